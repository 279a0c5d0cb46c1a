// SPDX-License-Identifier: Apache-2.0
// A reader of one pass and no lookahead. NULL goes all the way up at once: broken text, a lone
// surrogate, more digits than an integer surely has, deep nesting, no memory.
#include <ssm/json.h>

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include <ssm/tokenizer.h>

enum { MOST_DEPTH = 256, MOST_DIGITS = 18, MOST_NUMBER = 64, MOST_KEY = 256 };

typedef struct reader {
    const char *at, *end;
    int depth;
} reader;

static void skip_space(reader *r) {
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t'))
        r->at++;
}

static bool take(reader *r, char want) {
    if (r->at == r->end || *r->at != want)
        return false;
    r->at++;
    return true;
}

// ---- strings

typedef signed char bytes16 __attribute__((vector_size(16)));
typedef uint64_t pair16 __attribute__((vector_size(16)));

static bool is_plain(char c) { // bytes from 0x80 on are negative
    return (signed char)c >= 0x20 && c != '"' && c != '\\';
}

// Over bytes that stand for themselves: sixteen at a time.
static const char *plain_end(const char *at, const char *end) {
    while (end - at >= (ptrdiff_t)sizeof(bytes16)) {
        bytes16 x;
        memcpy(&x, at, sizeof x);
        const pair16 odd = (pair16)((x < 0x20) | (x == '"') | (x == '\\'));
        if (odd[0] | odd[1])
            break;
        at += sizeof x;
    }
    while (at < end && is_plain(*at))
        at++;
    return at;
}

// Bytes of the UTF-8 sequence at `at`, of more than one; 0: it is none.
static size_t sequence(const char *at, const char *end) {
    const uint8_t *s = (const uint8_t *)at;
    const size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || (size_t)(end - at) < n)
        return 0;
    const uint8_t least = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    const uint8_t most = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    bool is_one = s[1] >= least && s[1] <= most;
    for (size_t i = 2; i < n; i++)
        is_one = is_one && (s[i] & 0xc0) == 0x80;
    return is_one ? n : 0;
}

// To the next quote or backslash; false: the text is broken before it.
static bool pass_text(reader *r) {
    for (;;) {
        r->at = plain_end(r->at, r->end);
        if (r->at == r->end)
            return false;
        if (*r->at == '"' || *r->at == '\\')
            return true;
        const size_t n = (signed char)*r->at < 0 ? sequence(r->at, r->end) : 0;
        if (n == 0)
            return false;
        r->at += n;
    }
}

static bool read_hex(reader *r, uint32_t *out) {
    *out = 0;
    if (r->end - r->at < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        const char c = *r->at++;
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0)
            return false;
        *out = *out << 4 | (uint32_t)digit;
    }
    return true;
}

static size_t encode(uint32_t c, char out[4]) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    const size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((0xf00u >> n & 0xf0) | c);
    return n;
}

// Behind \u: one or two units.
static bool read_unit(reader *r, char out[4], size_t *n) {
    uint32_t c, low;
    if (!read_hex(r, &c))
        return false;
    if (c >= 0xd800 && c <= 0xdfff) {
        if (c > 0xdbff || !take(r, '\\') || !take(r, 'u') || !read_hex(r, &low) || low < 0xdc00 ||
            low > 0xdfff)
            return false;
        c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
    }
    *n = encode(c, out);
    return true;
}

// At a backslash.
static bool read_escape(reader *r, ssm_text *out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char piece[4];
    size_t n = 1;
    r->at++;
    if (r->at == r->end)
        return false;
    const char c = *r->at++;
    const char *known = c ? strchr(from, c) : NULL;
    if (known)
        piece[0] = to[known - from];
    else if (c != 'u' || !read_unit(r, piece, &n))
        return false;
    return ssm_text_append(out, piece, n) == 0;
}

// A string's text, behind its opening quote: in place, or in *own where it has escapes.
static bool read_text(reader *r, const char **text, size_t *len, ssm_text *own) {
    const char *from = r->at;
    if (!pass_text(r))
        return false;
    if (take(r, '"')) {
        *text = from;
        *len = (size_t)(r->at - 1 - from);
        return true;
    }
    for (;;) {
        if (ssm_text_append(own, from, (size_t)(r->at - from)) != 0)
            return false;
        if (take(r, '"'))
            break;
        if (!read_escape(r, own))
            return false;
        from = r->at;
        if (!pass_text(r))
            return false;
    }
    *text = own->data;
    *len = own->len;
    return true;
}

static json_t *read_string(reader *r) {
    ssm_text own = {0};
    const char *text;
    size_t len;
    json_t *value = read_text(r, &text, &len, &own) ? json_stringn_nocheck(text, len) : NULL;
    ssm_text_dispose(&own);
    return value;
}

// NUL-terminated, without another NUL, as jansson wants keys.
static bool read_key(reader *r, char out[MOST_KEY]) {
    ssm_text own = {0};
    const char *text;
    size_t len;
    const bool is_ok = take(r, '"') && read_text(r, &text, &len, &own) && len < MOST_KEY &&
                       (len == 0 || !memchr(text, 0, len));
    if (is_ok) {
        memcpy(out, text ? text : "", len);
        out[len] = '\0';
    }
    ssm_text_dispose(&own);
    return is_ok;
}

// ---- numbers and words

static size_t pass_digits(reader *r) {
    const char *from = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
        r->at++;
    return (size_t)(r->at - from);
}

static json_t *read_number(reader *r) {
    const char *from = r->at;
    char copy[MOST_NUMBER];
    (void)take(r, '-');
    const bool is_zero = r->at < r->end && *r->at == '0';
    const size_t n = pass_digits(r);
    if (n == 0 || n > MOST_DIGITS || (is_zero && n > 1))
        return NULL;
    bool is_real = false;
    if (take(r, '.')) {
        is_real = true;
        if (pass_digits(r) == 0)
            return NULL;
    }
    if (r->at < r->end && (*r->at | 0x20) == 'e') {
        is_real = true;
        r->at++;
        if (!take(r, '-'))
            (void)take(r, '+');
        if (pass_digits(r) == 0)
            return NULL;
    }
    const size_t len = (size_t)(r->at - from);
    if (len >= sizeof copy)
        return NULL;
    memcpy(copy, from, len);
    copy[len] = '\0';
    if (!is_real)
        return json_integer(strtoll(copy, NULL, 10));
    char *end;
    const double value = strtod(copy, &end); // of another locale it would stop at the point
    return *end == '\0' && isfinite(value) ? json_real(value) : NULL;
}

static json_t *read_word(reader *r) {
    static const struct {
        const char *text;
        size_t len;
    } words[] = {{"true", 4}, {"false", 5}, {"null", 4}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if ((size_t)(r->end - r->at) >= words[i].len &&
            memcmp(r->at, words[i].text, words[i].len) == 0) {
            r->at += words[i].len;
            return i == 0 ? json_true() : i == 1 ? json_false() : json_null();
        }
    }
    return NULL;
}

// ---- trees

static json_t *read_value(reader *r);

// `whole` is the list's or object's, given back only if all went well.
static json_t *close_at(reader *r, json_t *whole, bool is_ok) {
    r->depth--;
    if (is_ok)
        return whole;
    json_decref(whole);
    return NULL;
}

static json_t *read_list(reader *r) {
    json_t *list = json_array();
    skip_space(r);
    if (take(r, ']'))
        return close_at(r, list, true);
    do { // json_array_append_new takes NULL for a failure
        if (json_array_append_new(list, read_value(r)) != 0)
            return close_at(r, list, false);
        skip_space(r);
    } while (take(r, ','));
    return close_at(r, list, take(r, ']'));
}

static json_t *read_object(reader *r) {
    json_t *object = json_object();
    char key[MOST_KEY];
    skip_space(r);
    if (take(r, '}'))
        return close_at(r, object, true);
    do {
        skip_space(r);
        if (!read_key(r, key))
            return close_at(r, object, false);
        skip_space(r);
        if (!take(r, ':') || json_object_set_new_nocheck(object, key, read_value(r)) != 0)
            return close_at(r, object, false);
        skip_space(r);
    } while (take(r, ','));
    return close_at(r, object, take(r, '}'));
}

static json_t *read_value(reader *r) {
    skip_space(r);
    if (r->at == r->end)
        return NULL;
    if (take(r, '"'))
        return read_string(r);
    if (*r->at != '{' && *r->at != '[')
        return *r->at == '-' || (*r->at >= '0' && *r->at <= '9') ? read_number(r) : read_word(r);
    if (++r->depth > MOST_DEPTH)
        return NULL;
    return *r->at++ == '{' ? read_object(r) : read_list(r);
}

json_t *ssm_json_read(const char *text, size_t len) {
    if (len == 0)
        return NULL; // and text may be
    reader r = {.at = text, .end = text + len};
    skip_space(&r);
    if (r.at == r.end || (*r.at != '{' && *r.at != '['))
        return NULL;
    json_t *tree = read_value(&r);
    skip_space(&r);
    if (tree && r.at == r.end)
        return tree;
    json_decref(tree);
    return NULL;
}
