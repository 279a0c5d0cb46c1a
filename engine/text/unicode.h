// SPDX-License-Identifier: Apache-2.0
// UTF-8 and the character classes that tokenizer files speak of. Pure functions, any thread.
#ifndef SSM_ENGINE_TEXT_UNICODE_H
#define SSM_ENGINE_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes of the character that begins with this byte of valid UTF-8.
static inline size_t utf8_width(unsigned char lead) {
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

// Decodes one character of valid UTF-8 at s; its width is utf8_width(*s).
static inline int32_t utf8_get(const char *s) {
    const unsigned char *p = (const unsigned char *)s;
    if (p[0] < 0x80)
        return p[0];
    if (p[0] < 0xe0)
        return (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    if (p[0] < 0xf0)
        return (p[0] & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    return (p[0] & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

// The last character of the valid, non-empty s[0..len).
static inline int32_t utf8_get_last(const char *s, size_t len) {
    do
        len--;
    while (((unsigned char)s[len] & 0xc0) == 0x80);
    return utf8_get(s + len);
}

// Writes c (a scalar value) and returns its width.
size_t utf8_put(int32_t c, char out[4]);

// What begins at s[0], len > 0: *n is its length in bytes.
typedef enum utf8_kind {
    UTF8_VALID,  // a character
    UTF8_BROKEN, // a maximal run that one U+FFFD stands for (Unicode 3.9, as Rust's lossy decoding)
    UTF8_PARTIAL, // the beginning of a character that len cuts off; *n = len
} utf8_kind;
utf8_kind utf8_scan(const char *s, size_t len, size_t *n);

// Bytes of s that are valid UTF-8 from its start: len if all of it is.
size_t utf8_valid_prefix(const char *s, size_t len);

bool is_white_space(int32_t c); // property White_Space
bool is_numeric(int32_t c);     // general category N*
bool is_mark(int32_t c);        // general category M*
bool is_punctuation(int32_t c); // ASCII punctuation and general category P*
bool is_word(int32_t c);        // \w of UTS #18: Alphabetic, M*, Nd, Pc, Join_Control
int32_t to_lower(int32_t c);    // simple mapping, one to one

// Of valid UTF-8: where the white space ends that begins at s[at], and where that begins that ends
// at s[end], not before s[from].
size_t white_space_end(const char *s, size_t len, size_t at);
size_t white_space_before(const char *s, size_t from, size_t end);

#endif
