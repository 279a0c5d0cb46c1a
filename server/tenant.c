// SPDX-License-Identifier: Apache-2.0
#include "tenant.h"

#include <string.h>
#include <strings.h>

#include <xxhash.h>

#include "conn/http.h"
#include "loop.h"
#include "server.h"

void tenant_owner(const struct exchange *ex, uint64_t out[2]) {
    const server *s = ex->conn->loop->server;
    const char *header = MHD_lookup_connection_value(ex->mhd, MHD_HEADER_KIND, "Authorization");
    out[0] = out[1] = 0;
    if (s->auth.keys.n == 0 || !header || strncasecmp(header, "Bearer ", 7) != 0) {
        return;
    }
    const char *key = header + 7; // as auth_check reads it
    key += strspn(key, " ");
    const XXH128_hash_t h = XXH3_128bits(key, strlen(key));
    out[0] = h.high64;
    out[1] = h.low64;
}

void tenant_salt(const struct exchange *ex, const char *salt, size_t len, uint64_t out[2]) {
    tenant_owner(ex, out);
    if (salt) { // the owner's bits survive: no salt reaches into another owner's states
        const XXH128_hash_t h = XXH3_128bits_withSeed(salt, len, out[0] ^ out[1]);
        out[0] += h.high64 | 1;
        out[1] ^= h.low64;
    }
}

bool tenant_is_session(const char *name) {
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t n = strlen(name);
    return n >= 1 && n <= 128 && strspn(name, allowed) == n;
}
