// SPDX-License-Identifier: Apache-2.0
#include "redis_url.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int bad(ssm_error *err, const char *what) {
    return ssm_error_set(err, SSM_EINVAL, "state_url",
                         "state_url: %s; redis://[[user]:password@]host[:port][/db] or "
                         "unix://[[user]:password@]/path[?db=N] is wanted",
                         what);
}

static int hex(char c) {
    static const char digits[] = "0123456789abcdef";
    const char *at = c ? strchr(digits, c | 0x20) : NULL;
    return at ? (int)(at - digits) : -1;
}

// n bytes with %XX resolved; false: too long, broken, or a zero byte.
static bool decode(const char *from, size_t n, char out[REDIS_TEXT]) {
    size_t len = 0;
    for (size_t i = 0; i < n; i++) {
        int c = (unsigned char)from[i];
        if (c == '%') {
            const int high = i + 2 < n ? hex(from[i + 1]) : -1;
            const int low = i + 2 < n ? hex(from[i + 2]) : -1;
            if (high < 0 || low < 0)
                return false;
            c = high * 16 + low;
            i += 2;
        }
        if (c == 0 || len + 1 == REDIS_TEXT)
            return false;
        out[len++] = (char)c;
    }
    out[len] = '\0';
    return true;
}

static bool read_number(const char *text, size_t n, int32_t most, int32_t *out) {
    int64_t value = 0;
    if (n == 0 || n > 6)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (text[i] - '0');
    }
    *out = (int32_t)value;
    return value <= most;
}

static const char *skip(const char *text, const char *prefix) {
    const size_t n = strlen(prefix);
    return strncmp(text, prefix, n) == 0 ? text + n : NULL;
}

// "user:password@", either part may be empty; *at moves behind it.
static int read_user(const char **at, const char *end, redis_url *out, ssm_error *err) {
    const char *sign = NULL;
    for (const char *c = *at; c < end; c++)
        sign = *c == '@' ? c : sign; // the last: a password may hold others
    if (!sign)
        return 0;
    const char *colon = memchr(*at, ':', (size_t)(sign - *at));
    if (!colon)
        return bad(err, "what stands before @ is not user:password");
    if (!decode(*at, (size_t)(colon - *at), out->user) ||
        !decode(colon + 1, (size_t)(sign - colon - 1), out->password))
        return bad(err, "its user or password is too long or not well encoded");
    if (out->user[0] && !out->password[0])
        return bad(err, "it has a user and no password");
    *at = sign + 1;
    return 0;
}

static int read_host(const char *at, const char *end, redis_url *out, ssm_error *err) {
    const bool is_bracketed = at < end && *at == '[';
    const char *close = is_bracketed ? memchr(at, ']', (size_t)(end - at)) : NULL;
    if (is_bracketed && !close)
        return bad(err, "a ] is missing");
    const char *from = is_bracketed ? at + 1 : at;
    const char *rest = is_bracketed ? close + 1 : memchr(at, ':', (size_t)(end - at));
    const char *until = is_bracketed ? close : rest ? rest : end;
    if (until == from)
        return bad(err, "it has no host");
    if (!decode(from, (size_t)(until - from), out->host))
        return bad(err, "its host is too long or not well encoded");
    out->port = 6379;
    if (!rest || rest == end)
        return 0;
    if (*rest != ':' || !read_number(rest + 1, (size_t)(end - rest - 1), 65535, &out->port) ||
        out->port == 0)
        return bad(err, "its port is none");
    return 0;
}

static int read_db(const char *text, redis_url *out, ssm_error *err) {
    if (*text && !read_number(text, strlen(text), 99999, &out->db))
        return bad(err, "its database is no number");
    return 0;
}

static int read_socket(const char *at, redis_url *out, ssm_error *err) {
    const char *path = *at == '/' ? at : strstr(at, "@/");
    if (path && path != at) {
        const int rc = read_user(&at, path + 1, out, err);
        if (rc != 0)
            return rc;
    }
    const char *query = strchr(at, '?');
    const size_t n = query ? (size_t)(query - at) : strlen(at);
    if (*at != '/')
        return bad(err, "its socket's path does not begin with /");
    if (n > 100 || !decode(at, n, out->host)) // sun_path
        return bad(err, "its socket's path is too long");
    if (!query)
        return 0;
    const char *db = skip(query, "?db=");
    return db && *db ? read_db(db, out, err) : bad(err, "behind its path there is no ?db=N");
}

int redis_url_parse(const char *text, redis_url *out, ssm_error *err) {
    *out = (redis_url){0};
    if (skip(text, "rediss://") || skip(text, "valkeys://"))
        return bad(err, "TLS is not supported (a tunnel such as stunnel is)");
    const char *at = skip(text, "unix://");
    if (at)
        return read_socket(at, out, err);
    if (!(at = skip(text, "redis://")) && !(at = skip(text, "valkey://")))
        return bad(err, "it begins with none of redis://, valkey://, unix://");
    const char *sign = strrchr(at, '@');
    const char *slash = strchr(sign ? sign : at, '/');
    const char *end = slash ? slash : at + strlen(at);
    int rc = read_user(&at, end, out, err);
    if (rc == 0)
        rc = read_host(at, end, out, err);
    return rc == 0 && slash ? read_db(slash + 1, out, err) : rc;
}
