// SPDX-License-Identifier: Apache-2.0
// A growing buffer of bytes, and JSON written into it. Zero-initialise; dispose or take when done.
// An allocation that fails sets `failed` and empties the buffer: writers need no checks of their
// own, whoever uses the result looks once.
#ifndef SSMD_BUF_H
#define SSMD_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct buf {
    char *data;
    size_t len, cap;
    bool failed;
} buf;

bool buf_reserve(buf *b, size_t more); // room for so many bytes beyond len; false: failed
void buf_add(buf *b, const char *data, size_t len);
void buf_printf(buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_dispose(buf *b);
char *buf_take(buf *b, size_t *len); // the bytes are the caller's (free); the buffer is empty

static inline void buf_str(buf *b, const char *text) {
    buf_add(b, text, strlen(text));
}

// ---- JSON values. What is not valid UTF-8 becomes U+FFFD: an answer is always JSON.

void json_put_string(buf *b, const char *text, size_t len);
void json_put_text(buf *b, const char *text); // NUL-terminated; NULL: null
void json_put_int(buf *b, int64_t number);
void json_put_double(buf *b, double number); // 15 digits; not finite: null

// A log-probability: the fewest digits that read back as the same float, so that one number looks
// the same wherever it appears; NAN: null; -infinity and what lies below -9999: -9999.0.
void json_put_logprob(buf *b, float number);

// ---- UTF-8

// Length of the character that begins at text, 1 to 4, or 0 if it is not valid UTF-8 (overlong
// forms, surrogates and cut characters included).
size_t utf8_length(const char *text, size_t len);
bool utf8_is_valid(const char *text, size_t len);
size_t utf8_count(const char *text, size_t len); // characters of valid UTF-8

#endif
