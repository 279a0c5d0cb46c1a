// SPDX-License-Identifier: Apache-2.0
// Names in Redis: of sessions and of what belongs to them. store_redis.c has the list.
#ifdef SSM_HIREDIS
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "redis_store.h"
#include "secret.h"

void id_digits(const uint64_t id[2], char out[33]) {
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, id[0], id[1]);
}

void id_of(const redis_store *s, const uint64_t owner[2], const char *name, uint64_t out[2]) {
    uint8_t text[16 + SSM_SESSION_NAME], hash[16];
    const size_t n = strnlen(name, SSM_SESSION_NAME);
    for (int i = 0; i < 16; i++)
        text[i] = (uint8_t)(owner[i / 8] >> 8 * (i % 8));
    memcpy(text + 16, name, n);
    siphash128(s->base.secret, text, 16 + n, hash);
    out[0] = out[1] = 0;
    for (int i = 0; i < 16; i++)
        out[i / 8] = out[i / 8] << 8 | hash[i];
}

void key_of(const op *o, char kind, const uint64_t id[2], char out[KEY_BYTES]) {
    char digits[33];
    id_digits(id, digits);
    snprintf(out, KEY_BYTES, "%s%c:%s", o->store->prefix, kind, digits);
}

void key_own(const op *o, char out[KEY_BYTES]) {
    key_of(o, 'o', o->r->label.owner, out);
}

void key_all(const redis_store *s, char out[KEY_BYTES]) {
    snprintf(out, KEY_BYTES, "%sall", s->prefix);
}
#endif
