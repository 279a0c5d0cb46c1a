// SPDX-License-Identifier: Apache-2.0
// From Oniguruma's Ruby syntax to PCRE2's.
//
// tokenizer.json files carry expressions that their authors ran through Oniguruma. Most read the
// same in PCRE2; these do not, and each difference would give other tokens without a word:
//
//     \w \b      Oniguruma: Alphabetic, M, Nd, Pc and, as its Latin-1 table has it, the six
//                superscripts and fractions there. PCRE2 10.42 with UCP: L, N and '_'.
//     \s         Oniguruma: White_Space. PCRE2 adds U+180E.
//     \h \v      a hex digit, VT; in PCRE2 the horizontal and vertical spaces.
//     x{n,m}+    in Ruby the repeat of a repeat; in PCRE2 possessive.
//     x{n}?      in Ruby optional; in PCRE2 lazy (and so without effect).
//     x{,m}      zero to m; in PCRE2 10.42 literal text.
//     (?m)       dot matches newline: PCRE2's (?s). ^ and $ always match at lines.
//     \p{Han}    the script; in PCRE2 the script extensions.
//     a(?i)b|c   the option holds to the end of the group, alternatives included.
//
// The translation is a whitelist: a construct that is not known to mean the same is refused by
// name (set operations and nested sets, named and relative references, absent operators, \K, ...).
#include "engine/text/pattern.h"

#include <string.h>
#include <strings.h>

#include "engine/text/unicode.h"

#define WORD_SET "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"
#define SPACE_SET                                                                                  \
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"
#define HEX_SET "0-9A-Fa-f"

enum { MAX_DEPTH = 64 };

typedef struct translator {
    const char *s, *end;
    ssm_text *out;
    ssm_error *err;
    int code;
    size_t atom;            // output offset where the last atom begins, for wrapping
    bool has_atom;          // a quantifier may follow
    size_t open[MAX_DEPTH]; // output offset of each open group
    size_t depth;
    bool at_group_start; // nothing but options since the group began
} translator;

static void put(translator *t, const char *s, size_t n) {
    if (t->code == 0)
        t->code = ssm_text_append(t->out, s, n);
}

static void puts_(translator *t, const char *s) {
    put(t, s, strlen(s));
}

static void refuse(translator *t, const char *what) {
    if (t->code == 0)
        t->code = ssm_error_set(t->err, SSM_EUNSUPPORTED, "pattern",
                                "regular expression: %s is not supported", what);
}

static void broken(translator *t, const char *what) {
    if (t->code == 0)
        t->code = ssm_error_set(t->err, SSM_EFORMAT, "pattern", "regular expression: %s", what);
}

static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool is_alnum(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static void put_hex(translator *t, const char *digits, size_t n) {
    puts_(t, "\\x{");
    put(t, digits, n);
    puts_(t, "}");
}

static bool equals(const char *s, size_t n, const char *name) {
    return strlen(name) == n && strncasecmp(s, name, n) == 0;
}

// General categories (one or two letters) and the binary properties that PCRE2 calls the same.
static bool is_plain_property(const char *s, size_t n) {
    static const char *const names[] = {
        "Any",       "Alphabetic", "White_Space",           "Lowercase",
        "Uppercase", "Emoji",      "Extended_Pictographic", "Ideographic"};
    if (n == 1)
        return strchr("LMNPSZC", s[0]) != NULL;
    if (n == 2 && s[0] >= 'A' && s[0] <= 'Z' && s[1] >= 'a' && s[1] <= 'z')
        return true;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (equals(s, n, names[i]))
            return true;
    }
    return false;
}

// \p{...} after the backslash; s is at the p or P.
static void translate_property(translator *t, bool in_set) {
    static const struct {
        const char *onig, *pcre;
    } names[] = {{"Alpha", "Alphabetic"}, {"Space", "White_Space"},
                 {"Digit", "Nd"},         {"Lower", "Lowercase"},
                 {"Upper", "Uppercase"},  {"Letter", "L"},
                 {"Number", "N"},         {"Mark", "M"},
                 {"Punctuation", "P"},    {"Symbol", "S"},
                 {"Separator", "Z"}};
    bool negated = *t->s++ == 'P';
    if (t->s == t->end || *t->s != '{') {
        refuse(t, "\\p without braces");
        return;
    }
    const char *name = t->s + 1;
    const char *close = memchr(name, '}', (size_t)(t->end - name));
    if (!close) {
        broken(t, "\\p{ without }");
        return;
    }
    t->s = close + 1;
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    const size_t n = (size_t)(close - name);
    puts_(t, negated ? "\\P{" : "\\p{");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (equals(name, n, names[i].onig)) {
            puts_(t, names[i].pcre);
            puts_(t, "}");
            return;
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (!is_alnum(name[i]) && name[i] != '_')
            refuse(t, "this \\p{} name");
    }
    if (equals(name, n, "Word") || equals(name, n, "Punct") || equals(name, n, "Graph") ||
        equals(name, n, "Print") || equals(name, n, "Alnum") || equals(name, n, "Cntrl") ||
        equals(name, n, "Blank") || equals(name, n, "XDigit") || equals(name, n, "ASCII"))
        refuse(t, "a POSIX name in \\p{}");
    if (!is_plain_property(name, n))
        puts_(t, "sc:");
    put(t, name, n);
    puts_(t, "}");
}

// \x.. and \u....; s is at the letter.
static void translate_code(translator *t) {
    const char kind = *t->s++;
    const char *p = t->s;
    if (kind == 'x' && p < t->end && *p == '{') {
        const char *digits = ++p;
        while (p < t->end && is_hex(*p))
            p++;
        if (p == t->end || *p != '}' || p == digits || p - digits > 6) {
            broken(t, "\\x{} without a code point");
            return;
        }
        put_hex(t, digits, (size_t)(p - digits));
        t->s = p + 1;
        return;
    }
    const size_t want = kind == 'u' ? 4 : 2;
    while (p < t->end && is_hex(*p) && (size_t)(p - t->s) < want)
        p++;
    const size_t n = (size_t)(p - t->s);
    if (n == 0 || (kind == 'u' && n != 4))
        broken(t, "\\x or \\u without its digits");
    else if (kind == 'x' && n == 2 && t->s[0] > '7')
        refuse(t, "\\x of a byte beyond 7F");
    else
        put_hex(t, t->s, n);
    t->s = p;
}

// The classes \d \s \w \h, whole or inside a set; true if c was one.
static bool translate_class(translator *t, char c, bool in_set) {
    const char *set = NULL;
    switch (c) {
    case 'd':
    case 'D':
        puts_(t, c == 'd' ? "\\p{Nd}" : "\\P{Nd}");
        return true;
    case 'S':
        if (in_set) {
            puts_(t, "\\P{White_Space}");
            return true;
        }
        set = SPACE_SET;
        break;
    case 's':
        set = SPACE_SET;
        break;
    case 'w':
    case 'W':
        set = WORD_SET;
        break;
    case 'h':
    case 'H':
        set = HEX_SET;
        break;
    default:
        return false;
    }
    const bool negated = c < 'a';
    if (in_set && negated) {
        refuse(t, "\\W or \\H inside a set");
        return true;
    }
    if (!in_set)
        puts_(t, negated ? "[^" : "[");
    puts_(t, set);
    if (!in_set)
        puts_(t, "]");
    return true;
}

// An escape; s is behind the backslash. True if it stands for a set of characters.
static bool translate_escape(translator *t, bool in_set) {
    if (t->s == t->end) {
        broken(t, "a backslash at the end");
        return false;
    }
    const char c = *t->s;
    if (c == 'p' || c == 'P') {
        translate_property(t, in_set);
        return true;
    }
    if (translate_class(t, c, in_set)) {
        t->s++;
        return true;
    }
    if (c == 'x' || c == 'u') {
        translate_code(t);
        return false;
    }
    const char both[] = {'\\', c, '\0'};
    if (!is_alnum(c)) { // punctuation, or the first byte of a character beyond ASCII
        const size_t n = utf8_width((unsigned char)c);
        if (n == 1)
            puts_(t, both);
        else
            put(t, t->s, n);
        t->s += n;
        return false;
    }
    t->s++;
    if (strchr("nrtfae", c))
        puts_(t, both);
    else if (c == 'v')
        puts_(t, "\\x0b");
    else if (!in_set && strchr("AzZGR", c))
        puts_(t, both);
    else if (!in_set && (c == 'b' || c == 'B'))
        puts_(t, c == 'b' ? "(?:(?<=[" WORD_SET "])(?![" WORD_SET "])|(?<![" WORD_SET
                            "])(?=[" WORD_SET "]))"
                          : "(?:(?<=[" WORD_SET "])(?=[" WORD_SET "])|(?<![" WORD_SET
                            "])(?![" WORD_SET "]))");
    else if (!in_set && c >= '1' && c <= '9' && (t->s == t->end || *t->s < '0' || *t->s > '9'))
        puts_(t, both);
    else
        refuse(t, both);
    return false;
}

// [:name:] inside a set; s is at the inner '['.
static void translate_posix(translator *t) {
    static const struct {
        const char *name, *set;
    } sets[] = {{"[:alpha:]", "\\p{Alphabetic}"}, {"[:digit:]", "\\p{Nd}"},
                {"[:space:]", SPACE_SET},         {"[:upper:]", "\\p{Uppercase}"},
                {"[:lower:]", "\\p{Lowercase}"},  {"[:alnum:]", "\\p{Alphabetic}\\p{Nd}"},
                {"[:word:]", WORD_SET},           {"[:xdigit:]", HEX_SET}};
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        const size_t n = strlen(sets[i].name);
        if ((size_t)(t->end - t->s) >= n && memcmp(t->s, sets[i].name, n) == 0) {
            puts_(t, sets[i].set);
            t->s += n;
            return;
        }
    }
    refuse(t, "a set inside a set");
}

// A bracketed set; s is behind the '['.
static void translate_set(translator *t) {
    puts_(t, "[");
    if (t->s < t->end && *t->s == '^') {
        puts_(t, "^");
        t->s++;
    }
    bool first = true, after_class = false;
    while (t->code == 0) {
        if (t->s == t->end) {
            broken(t, "a set without ]");
            return;
        }
        const char c = *t->s;
        bool is_class = false;
        if (c == ']' && !first) {
            t->s++;
            puts_(t, "]");
            return;
        } else if (c == ']') {
            t->s++;
            puts_(t, "\\]");
        } else if (c == '[') {
            translate_posix(t);
            is_class = true;
        } else if (c == '&' && t->end - t->s > 1 && t->s[1] == '&') {
            refuse(t, "an intersection of sets (&&)");
        } else if (c == '\\') {
            t->s++;
            is_class = translate_escape(t, true);
        } else if (c == '-' && after_class) {
            t->s++;
            puts_(t, "\\-");
        } else {
            const size_t n = utf8_width((unsigned char)c);
            put(t, t->s, n);
            t->s += n;
        }
        after_class = is_class;
        first = false;
    }
}

// Options of a group, (?im-x) or (?im-x:; s is behind the '?'. Ruby's m is PCRE2's s.
static void translate_options(translator *t) {
    puts_(t, "(?");
    for (; t->s < t->end; t->s++) {
        const char c = *t->s;
        if (c == 'i' || c == '-') {
            put(t, t->s, 1);
        } else if (c == 'm') {
            puts_(t, "s");
        } else if (c == ':') {
            t->s++;
            puts_(t, ":");
            return;
        } else if (c == ')') {
            // Holds to the end of the group in both, but PCRE2 keeps earlier alternatives apart.
            if (!t->at_group_start)
                refuse(t, "an option in the middle of a group");
            t->s++;
            puts_(t, ")");
            t->depth--; // not a group
            t->at_group_start = true;
            return;
        } else {
            break;
        }
    }
    refuse(t, "this kind of group (?...)");
}

// An opening bracket; s is behind it.
static void translate_group(translator *t) {
    static const char *const kinds[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    if (t->depth == MAX_DEPTH) {
        refuse(t, "nesting this deep");
        return;
    }
    t->open[t->depth++] = t->out->len;
    const bool at_start = t->at_group_start;
    t->has_atom = false;
    t->at_group_start = true;
    if (t->s == t->end || *t->s != '?') {
        puts_(t, "(");
        return;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const size_t n = strlen(kinds[i]);
        if ((size_t)(t->end - t->s) >= n && memcmp(t->s, kinds[i], n) == 0) {
            puts_(t, "(");
            put(t, t->s, n);
            t->s += n;
            return;
        }
    }
    t->s++;
    t->at_group_start = at_start;
    translate_options(t);
    t->at_group_start = true;
}

// Puts (?:...) around the last atom and its quantifier, so that another may follow.
static void wrap_atom(translator *t) {
    const size_t tail = t->out->len - t->atom;
    puts_(t, "(?:)");
    if (t->code != 0)
        return;
    char *at = t->out->data + t->atom;
    memmove(at + 3, at, tail);
    memcpy(at, "(?:", 3);
    t->out->data[t->out->len - 1] = ')';
}

// {n}, {n,}, {,m} or {n,m} at s: its length, 0 if it is none. n and m: digits, maybe none.
static size_t scan_interval(const translator *t, size_t *n_digits, bool *is_exact) {
    const char *p = t->s + 1;
    while (p < t->end && *p >= '0' && *p <= '9')
        p++;
    *n_digits = (size_t)(p - t->s - 1);
    *is_exact = p < t->end && *p == '}';
    size_t m_digits = 0;
    if (p < t->end && *p == ',') {
        const char *m = ++p;
        while (p < t->end && *p >= '0' && *p <= '9')
            p++;
        m_digits = (size_t)(p - m);
    }
    if (p == t->end || *p != '}' || *n_digits + m_digits == 0)
        return 0;
    return (size_t)(p + 1 - t->s);
}

// A '{': an interval behind an atom, otherwise itself.
static void translate_brace(translator *t) {
    size_t n_digits;
    bool is_exact;
    const size_t len = scan_interval(t, &n_digits, &is_exact);
    if (len == 0) {
        t->atom = t->out->len;
        t->has_atom = true;
        t->s++;
        puts_(t, "\\{");
        return;
    }
    if (!t->has_atom) {
        broken(t, "a repeat of nothing");
        return;
    }
    puts_(t, n_digits == 0 ? "{0" : "{");
    put(t, t->s + 1, len - 1);
    t->s += len;
    const char next = t->s < t->end ? *t->s : '\0';
    if (next == '+' || next == '*' || (next == '?' && is_exact))
        wrap_atom(t); // the next round reads it as a quantifier of the whole
    else if (next == '?')
        put(t, t->s++, 1);
}

static void translate_quantifier(translator *t) {
    if (!t->has_atom) {
        broken(t, "a repeat of nothing");
        return;
    }
    put(t, t->s++, 1);
    if (t->s < t->end && (*t->s == '?' || *t->s == '+'))
        put(t, t->s++, 1);
}

// One item outside sets.
static void translate_item(translator *t) {
    const char c = *t->s;
    if (c == '{') {
        translate_brace(t);
    } else if (c == '*' || c == '+' || c == '?') {
        translate_quantifier(t);
    } else if (c == '(') {
        t->s++;
        translate_group(t);
        return;
    } else if (c == ')') {
        t->s++;
        if (t->depth == 0) {
            broken(t, "an unmatched )");
            return;
        }
        puts_(t, ")");
        t->atom = t->open[--t->depth];
        t->has_atom = true;
    } else if (c == '|') {
        t->s++;
        puts_(t, "|");
        t->has_atom = false;
    } else {
        t->atom = t->out->len;
        t->has_atom = true;
        const size_t n = utf8_width((unsigned char)c);
        t->s += c == '[' || c == '\\' ? 1 : n;
        if (c == '[')
            translate_set(t);
        else if (c == '\\')
            translate_escape(t, false);
        else
            put(t, t->s - n, n);
    }
    t->at_group_start = false;
}

int onig_translate(const char *source, size_t len, ssm_text *out, ssm_error *err) {
    translator t = {
        .s = source, .end = source + len, .out = out, .err = err, .at_group_start = true};
    t.code = ssm_text_append(out, "", 0);
    if (utf8_valid_prefix(source, len) != len)
        broken(&t, "not valid UTF-8");
    while (t.code == 0 && t.s < t.end)
        translate_item(&t);
    if (t.depth > 0)
        broken(&t, "a group without )");
    return t.code;
}
