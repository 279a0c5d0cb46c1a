// SPDX-License-Identifier: Apache-2.0
#include "buf.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool buf_reserve(buf *b, size_t more) {
    if (b->failed || more > SIZE_MAX / 2 - b->len) {
        b->failed = true;
        return false;
    }
    if (b->len + more <= b->cap) {
        return true;
    }
    size_t cap = b->cap ? b->cap : 256;
    while (cap < b->len + more) {
        cap += cap / 2;
    }
    char *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        b->len = 0;
        return false;
    }
    b->data = data;
    b->cap = cap;
    return true;
}

void buf_add(buf *b, const char *data, size_t len) {
    if (len > 0 && buf_reserve(b, len)) {
        memcpy(b->data + b->len, data, len);
        b->len += len;
    }
}

void buf_printf(buf *b, const char *fmt, ...) {
    va_list args;
    if (!buf_reserve(b, 128)) {
        return;
    }
    va_start(args, fmt);
    int n = vsnprintf(b->data + b->len, b->cap - b->len, fmt, args);
    va_end(args);
    assert(n >= 0);
    if ((size_t)n >= b->cap - b->len) {
        if (!buf_reserve(b, (size_t)n + 1)) {
            return;
        }
        va_start(args, fmt);
        n = vsnprintf(b->data + b->len, b->cap - b->len, fmt, args);
        va_end(args);
    }
    b->len += (size_t)n;
}

void buf_dispose(buf *b) {
    free(b->data);
    *b = (buf){0};
}

char *buf_take(buf *b, size_t *len) {
    char *data = b->failed ? NULL : b->data;
    *len = b->failed ? 0 : b->len;
    if (b->failed) {
        free(b->data);
    }
    *b = (buf){0};
    return data;
}

// ---- UTF-8

size_t utf8_length(const char *text, size_t len) {
    const unsigned char *t = (const unsigned char *)text;
    if (len == 0 || t[0] < 0x80) {
        return len > 0;
    }
    const size_t n = t[0] >= 0xf0 ? 4 : t[0] >= 0xe0 ? 3 : 2;
    if (t[0] < 0xc2 || t[0] > 0xf4 || n > len) {
        return 0;
    }
    for (size_t i = 1; i < n; i++) {
        if ((t[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    const bool overlong = (t[0] == 0xe0 && t[1] < 0xa0) || (t[0] == 0xf0 && t[1] < 0x90);
    const bool surrogate = t[0] == 0xed && t[1] > 0x9f;
    const bool beyond = t[0] == 0xf4 && t[1] > 0x8f;
    return overlong || surrogate || beyond ? 0 : n;
}

bool utf8_is_valid(const char *text, size_t len) {
    for (size_t at = 0, n; at < len; at += n) {
        n = utf8_length(text + at, len - at);
        if (n == 0) {
            return false;
        }
    }
    return true;
}

size_t utf8_count(const char *text, size_t len) {
    size_t count = 0;
    for (size_t i = 0; i < len; i++) {
        count += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    return count;
}

// ---- JSON

// Bytes from text on that can be copied as they are; ASCII sixteen at a time.
static size_t plain_run(const char *text, size_t len) {
    typedef signed char bytes16 __attribute__((vector_size(16))); // from 0x80 on they are negative
    typedef uint64_t pair16 __attribute__((vector_size(16)));
    size_t at = 0;
    while (at < len) {
        for (bytes16 x; at + sizeof x <= len; at += sizeof x) {
            memcpy(&x, text + at, sizeof x);
            const pair16 odd = (pair16)((x < 0x20) | (x == '"') | (x == '\\'));
            if (odd[0] | odd[1]) {
                break;
            }
        }
        while (at < len && (signed char)text[at] >= 0x20 && text[at] != '"' && text[at] != '\\') {
            at++;
        }
        const size_t n =
            at < len && (signed char)text[at] < 0 ? utf8_length(text + at, len - at) : 0;
        if (n == 0) {
            break;
        }
        at += n;
    }
    return at;
}

static void put_escaped(buf *b, unsigned char c) {
    switch (c) {
    case '"':
        buf_add(b, "\\\"", 2);
        break;
    case '\\':
        buf_add(b, "\\\\", 2);
        break;
    case '\n':
        buf_add(b, "\\n", 2);
        break;
    case '\r':
        buf_add(b, "\\r", 2);
        break;
    case '\t':
        buf_add(b, "\\t", 2);
        break;
    default:
        if (c < 0x20) {
            buf_printf(b, "\\u%04x", c);
        } else {
            buf_str(b, "\xef\xbf\xbd"); // U+FFFD for a byte that is no UTF-8
        }
    }
}

void json_put_string(buf *b, const char *text, size_t len) {
    buf_add(b, "\"", 1);
    for (size_t at = 0; at < len;) {
        const size_t n = plain_run(text + at, len - at);
        buf_add(b, text + at, n);
        at += n;
        if (at < len) {
            put_escaped(b, (unsigned char)text[at++]);
        }
    }
    buf_add(b, "\"", 1);
}

void json_put_text(buf *b, const char *text) {
    if (text) {
        json_put_string(b, text, strlen(text));
    } else {
        buf_add(b, "null", 4);
    }
}

void json_put_int(buf *b, int64_t number) {
    char text[24];
    char *at = text + sizeof text;
    uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do {
        *--at = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number < 0) {
        *--at = '-';
    }
    buf_add(b, at, (size_t)(text + sizeof text - at));
}

void json_put_double(buf *b, double number) {
    if (isfinite(number)) {
        buf_printf(b, "%.15g", number);
    } else {
        buf_add(b, "null", 4);
    }
}

void json_put_logprob(buf *b, float number) {
    char text[32];
    if (isnan(number)) {
        buf_add(b, "null", 4);
        return;
    }
    if (!(number > -9999.0f)) {
        buf_add(b, "-9999.0", 7);
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)number);
        if (strtof(text, NULL) == number) {
            break;
        }
    }
    if (!strpbrk(text, ".en")) {
        strcat(text, ".0"); // a float stays a float for readers that tell them apart
    }
    buf_str(b, text);
}
