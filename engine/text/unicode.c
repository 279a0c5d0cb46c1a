// SPDX-License-Identifier: Apache-2.0
#include "engine/text/unicode.h"

#include <string.h>

#include <utf8proc.h>

size_t utf8_put(int32_t c, char out[4]) {
    return (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)out);
}

// Length of the lead byte's character and the range of its second byte (Unicode table 3-7).
static size_t lead_info(unsigned char lead, unsigned char *lo, unsigned char *hi) {
    *lo = 0x80;
    *hi = 0xbf;
    if (lead >= 0xc2 && lead < 0xe0)
        return 2;
    if (lead >= 0xe0 && lead < 0xf0) {
        if (lead == 0xe0)
            *lo = 0xa0;
        else if (lead == 0xed)
            *hi = 0x9f;
        return 3;
    }
    if (lead >= 0xf0 && lead < 0xf5) {
        if (lead == 0xf0)
            *lo = 0x90;
        else if (lead == 0xf4)
            *hi = 0x8f;
        return 4;
    }
    return 0;
}

utf8_kind utf8_scan(const char *s, size_t len, size_t *n) {
    const unsigned char *p = (const unsigned char *)s;
    unsigned char lo, hi;
    *n = 1;
    if (p[0] < 0x80)
        return UTF8_VALID;
    const size_t width = lead_info(p[0], &lo, &hi);
    if (width == 0)
        return UTF8_BROKEN;
    for (; *n < width; ++*n) {
        if (*n == len)
            return UTF8_PARTIAL;
        if (p[*n] < lo || p[*n] > hi)
            return UTF8_BROKEN;
        lo = 0x80;
        hi = 0xbf;
    }
    return UTF8_VALID;
}

size_t utf8_valid_prefix(const char *s, size_t len) {
    size_t i = 0;
    while (i < len) {
        uint64_t word;
        if (i + 8 <= len) {
            memcpy(&word, s + i, 8);
            if ((word & 0x8080808080808080u) == 0) {
                i += 8;
                continue;
            }
        }
        size_t n;
        if (utf8_scan(s + i, len - i, &n) != UTF8_VALID)
            break;
        i += n;
    }
    return i;
}

bool is_white_space(int32_t c) {
    if (c < 0x80)
        return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

size_t white_space_end(const char *s, size_t len, size_t at) {
    while (at < len && is_white_space(utf8_get(s + at)))
        at += utf8_width((unsigned char)s[at]);
    return at;
}

size_t white_space_before(const char *s, size_t from, size_t end) {
    while (end > from) {
        size_t before = end - 1;
        while (((unsigned char)s[before] & 0xc0) == 0x80)
            before--;
        if (!is_white_space(utf8_get(s + before)))
            break;
        end = before;
    }
    return end;
}

bool is_numeric(int32_t c) {
    if (c < 0x80)
        return c >= '0' && c <= '9';
    const utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool is_mark(int32_t c) {
    if (c < 0x300)
        return false;
    const utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC || k == UTF8PROC_CATEGORY_ME;
}

bool is_punctuation(int32_t c) {
    if (c < 0x80) {
        return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
               (c >= '{' && c <= '~');
    }
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return true;
    default:
        return false;
    }
}

// utf8proc knows general categories only. Alphabetic is L*, Nl and Other_Alphabetic; what of the
// latter is not a mark (those count anyway) are the circled and squared Latin letters.
bool is_word(int32_t c) {
    if (c < 0x80)
        return c == '_' || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
    if (c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9) ||
        (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
        (c >= 0x1f170 && c <= 0x1f189))
        return true;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

int32_t to_lower(int32_t c) {
    return utf8proc_tolower(c);
}
