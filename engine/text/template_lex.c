// SPDX-License-Identifier: Apache-2.0
// Tokens of a chat template, as jinja2's lexer makes them with trim_blocks and lstrip_blocks.
//
// White space around tags is settled here: "-" takes all of it on its side; a block or a comment
// (not a print) that is alone at the beginning of a line loses what stands before it, unless it
// begins with "+"; the first newline after a block or a comment goes, unless it ends with "+".
#include "template.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_NEST = 100 };

typedef struct lexer {
    const char *src;
    size_t len, pos;
    int line;
    tpl_token *tokens;
    size_t n, cap;
    char open[MAX_NEST]; // brackets, by what closes them
    int n_open;
    tpl_arena *arena;
    int code;
    ssm_error *err;
} lexer;

static void lex_fail(lexer *l, int code, const char *what) {
    if (l->code == 0)
        l->code = ssm_error_set(l->err, code, "chat_template", "chat template, line %d: %s",
                                l->line, what);
}

static void emit(lexer *l, tpl_token_kind kind, const char *text, size_t len) {
    if (l->n == l->cap) {
        const size_t cap = l->cap ? 2 * l->cap : 256;
        tpl_token *bigger = realloc(l->tokens, cap * sizeof *bigger);
        if (!bigger) {
            lex_fail(l, SSM_ENOMEM, "out of memory");
            return;
        }
        l->tokens = bigger;
        l->cap = cap;
    }
    l->tokens[l->n++] = (tpl_token){kind, l->line, text, len};
}

static bool looking_at(const lexer *l, size_t pos, const char *s) {
    const size_t n = strlen(s);
    return l->len - pos >= n && memcmp(l->src + pos, s, n) == 0;
}

// Past `to`, counting its lines.
static void advance(lexer *l, size_t to) {
    for (; l->pos < to; l->pos++)
        l->line += l->src[l->pos] == '\n';
}

static size_t skip_space(const lexer *l, size_t pos) {
    while (pos < l->len) {
        size_t n;
        if (!tpl_is_space(tpl_char_at(l->src + pos, l->len - pos, &n)))
            break;
        pos += n;
    }
    return pos;
}

// Where [begin, end) ends without the white space at its end.
static size_t trim_end(const lexer *l, size_t begin, size_t end) {
    while (end > begin) {
        size_t at = end - 1, n;
        while (at > begin && ((unsigned char)l->src[at] & 0xc0) == 0x80)
            at--;
        if (!tpl_is_space(tpl_char_at(l->src + at, end - at, &n)))
            break;
        end = at;
    }
    return end;
}

// Text before a tag whose sign is '-', '+' or 0.
static void lex_data(lexer *l, size_t begin, size_t end, char sign, bool is_print) {
    const bool line_starts = begin == 0 || l->src[begin - 1] == '\n';
    if (sign == '-') {
        end = trim_end(l, begin, end);
    } else if (sign != '+' && !is_print) {
        size_t line = end;
        while (line > begin && l->src[line - 1] != '\n')
            line--;
        if ((line > begin || line_starts) && trim_end(l, line, end) == line)
            end = line;
    }
    if (end > begin)
        emit(l, T_DATA, l->src + begin, end - begin);
}

// The end of a tag at pos ("%}", "-%}  ", "+%}"), newline and all; 0 if there is none.
static size_t tag_end(const lexer *l, size_t pos, const char *close) {
    const bool is_print = close[0] == '}';
    const char sign = pos < l->len ? l->src[pos] : 0;
    if (sign == '-' && looking_at(l, pos + 1, close))
        return skip_space(l, pos + 3);
    if (sign == '+' && !is_print && looking_at(l, pos + 1, close))
        return pos + 3;
    if (!looking_at(l, pos, close))
        return 0;
    return pos + 2 + (!is_print && looking_at(l, pos + 2, "\n"));
}

static void lex_comment(lexer *l) {
    for (size_t pos = l->pos; pos < l->len; pos++) {
        const size_t end = tag_end(l, pos, "#}");
        if (end > 0) {
            advance(l, end);
            return;
        }
    }
    lex_fail(l, SSM_EFORMAT, "a comment that never ends");
}

// The content of a raw block, from its beginning to behind its endraw.
static void lex_raw(lexer *l) {
    const size_t begin = l->pos;
    for (size_t pos = begin; pos + 1 < l->len; pos++) {
        if (!looking_at(l, pos, "{%"))
            continue;
        const char sign = pos + 2 < l->len ? l->src[pos + 2] : 0;
        size_t at = skip_space(l, pos + 2 + (sign == '-' || sign == '+'));
        if (!looking_at(l, at, "endraw"))
            continue;
        at = skip_space(l, at + 6);
        const size_t end = tag_end(l, at, "%}");
        if (end == 0)
            continue;
        lex_data(l, begin, pos, sign, false);
        advance(l, end);
        return;
    }
    lex_fail(l, SSM_EFORMAT, "a raw block that never ends");
}

// Behind "{% raw %}" at pos if that is what stands there (its newline stays), else 0.
static size_t raw_begin(const lexer *l, size_t pos) {
    pos = skip_space(l, pos);
    if (!looking_at(l, pos, "raw"))
        return 0;
    pos = skip_space(l, pos + 3);
    if (looking_at(l, pos, "-%}"))
        return skip_space(l, pos + 3);
    return looking_at(l, pos, "%}") ? pos + 2 : 0;
}

// ---- inside a tag

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c);
}

static size_t digits(const lexer *l, size_t pos) {
    while (pos < l->len && (is_digit(l->src[pos]) ||
                            (l->src[pos] == '_' && pos + 1 < l->len && is_digit(l->src[pos + 1]))))
        pos++;
    return pos;
}

static void lex_number(lexer *l) {
    size_t end = digits(l, l->pos);
    bool is_float = false;
    if (end + 1 < l->len && l->src[end] == '.' && is_digit(l->src[end + 1])) {
        end = digits(l, end + 1);
        is_float = true;
    }
    if (end < l->len && (l->src[end] == 'e' || l->src[end] == 'E')) {
        size_t at = end + 1;
        at += at < l->len && (l->src[at] == '+' || l->src[at] == '-');
        if (at < l->len && is_digit(l->src[at])) {
            end = digits(l, at);
            is_float = true;
        }
    }
    emit(l, is_float ? T_FLOAT : T_INTEGER, l->src + l->pos, end - l->pos);
    advance(l, end);
}

static int hex_value(char c) {
    if (is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static size_t put_utf8(char *to, uint32_t c) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const unsigned char lead[] = {0, 0xc0, 0xe0, 0xf0};
    for (int i = more; i > 0; i--, c >>= 6)
        to[i] = (char)(0x80 | (c & 0x3f));
    to[0] = (char)(lead[more] | c);
    return (size_t)more + 1;
}

// \xNN, \uNNNN, \UNNNNNNNN: the bytes read from s (behind the letter), 0 if it is not one.
static size_t read_hex(const char *s, size_t len, int n_digits, uint32_t *c) {
    *c = 0;
    if (len < (size_t)n_digits)
        return 0;
    for (int i = 0; i < n_digits; i++) {
        const int d = hex_value(s[i]);
        if (d < 0)
            return 0;
        *c = *c << 4 | (uint32_t)d;
    }
    return *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000) ? 0 : (size_t)n_digits;
}

// One escape behind its backslash at s[0]; gives the bytes read and puts the text at *to.
static size_t unescape(lexer *l, const char *s, size_t len, char **to) {
    static const char letters[] = "\\'\"abfnrtv", meant[] = "\\'\"\a\b\f\n\r\t\v";
    const char *letter = s[0] ? strchr(letters, s[0]) : NULL;
    uint32_t c = 0;
    size_t used = 1;
    if (letter) {
        c = (unsigned char)meant[letter - letters];
    } else if (s[0] == '\n') {
        return 1;
    } else if (s[0] >= '0' && s[0] <= '7') {
        for (used = 0; used < 3 && used < len && s[used] >= '0' && s[used] <= '7'; used++)
            c = c << 3 | (uint32_t)(s[used] - '0');
    } else if (s[0] == 'x' || s[0] == 'u' || s[0] == 'U') {
        used = read_hex(s + 1, len - 1, s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : 8, &c);
        if (used == 0)
            lex_fail(l, SSM_EFORMAT, "a broken escape in a string");
        used++;
    } else if (s[0] == 'N') {
        lex_fail(l, SSM_EUNSUPPORTED, "the escape \\N is not in the supported subset");
    } else { // Python keeps what it does not know
        *(*to)++ = '\\';
        return 0;
    }
    *to += put_utf8(*to, c);
    return used;
}

static void lex_string(lexer *l) {
    const char quote = l->src[l->pos];
    size_t end = l->pos + 1;
    while (end < l->len && l->src[end] != quote)
        end += l->src[end] == '\\' ? 2 : 1;
    if (end >= l->len) {
        lex_fail(l, SSM_EFORMAT, "a string that never ends");
        return;
    }
    const char *s = l->src + l->pos + 1;
    const size_t len = end - l->pos - 1;
    char *text = tpl_arena_alloc(l->arena, len + 1), *to = text; // no escape grows
    if (!text) {
        lex_fail(l, SSM_ENOMEM, "out of memory");
        return;
    }
    for (size_t i = 0; i < len;) {
        if (s[i] == '\\' && i + 1 < len)
            i += 1 + unescape(l, s + i + 1, len - i - 1, &to);
        else
            *to++ = s[i++];
    }
    emit(l, T_STRING, text, (size_t)(to - text));
    advance(l, end + 1);
}

static void lex_operator(lexer *l) {
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        if (!looking_at(l, l->pos, operators[i]))
            continue;
        const char c = operators[i][0];
        if (c == '(' || c == '[' || c == '{') {
            if (l->n_open == MAX_NEST)
                lex_fail(l, SSM_EUNSUPPORTED, "too many nested brackets");
            else
                l->open[l->n_open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
        } else if (c == ')' || c == ']' || c == '}') {
            if (l->n_open == 0 || l->open[--l->n_open] != c)
                lex_fail(l, SSM_EFORMAT, "a closing bracket that closes nothing");
        }
        emit(l, T_OPERATOR, operators[i], strlen(operators[i]));
        l->pos += strlen(operators[i]);
        return;
    }
    lex_fail(l, SSM_EFORMAT, "an unexpected character in a tag");
}

static void lex_tag(lexer *l, bool is_print) {
    const char *close = is_print ? "}}" : "%}";
    emit(l, is_print ? T_PRINT : T_BLOCK, "", 0);
    while (l->code == 0) {
        advance(l, skip_space(l, l->pos));
        const size_t end = l->n_open > 0 ? 0 : tag_end(l, l->pos, close);
        if (end > 0) {
            emit(l, is_print ? T_PRINT_CLOSE : T_BLOCK_CLOSE, "", 0);
            advance(l, end);
            return;
        }
        if (l->pos >= l->len) {
            lex_fail(l, SSM_EFORMAT, "a tag that never ends");
            return;
        }
        const char c = l->src[l->pos];
        if (is_digit(c)) {
            lex_number(l);
        } else if (is_name_char(c)) {
            size_t to = l->pos;
            while (to < l->len && is_name_char(l->src[to]))
                to++;
            emit(l, T_NAME, l->src + l->pos, to - l->pos);
            l->pos = to;
        } else if (c == '\'' || c == '"') {
            lex_string(l);
        } else {
            lex_operator(l);
        }
    }
}

// Text up to the next tag, and the tag.
static void lex_some(lexer *l) {
    size_t at = l->pos;
    while (at + 1 < l->len && !(l->src[at] == '{' && memchr("{%#", l->src[at + 1], 3) != NULL))
        at++;
    if (at + 1 >= l->len) {
        emit(l, T_DATA, l->src + l->pos, l->len - l->pos);
        l->pos = l->len;
        return;
    }
    const char kind = l->src[at + 1];
    const char c = at + 2 < l->len ? l->src[at + 2] : 0;
    const char sign = c == '-' || c == '+' ? c : 0;
    const size_t inside = at + 2 + (sign != 0);
    lex_data(l, l->pos, at, sign, kind == '{');
    advance(l, inside);
    const size_t raw = kind == '%' ? raw_begin(l, inside) : 0;
    if (raw > 0) {
        advance(l, raw);
        lex_raw(l);
    } else if (kind == '#') {
        lex_comment(l);
    } else {
        lex_tag(l, kind == '{');
    }
}

int tpl_lex(const char *source, size_t len, tpl_arena *arena, tpl_token **out, ssm_error *err) {
    lexer l = {.src = source, .len = len, .line = 1, .arena = arena, .err = err};
    while (l.code == 0 && l.pos < len)
        lex_some(&l);
    emit(&l, T_END, "", 0);
    if (l.code != 0) {
        free(l.tokens);
        return l.code;
    }
    *out = l.tokens;
    return 0;
}
