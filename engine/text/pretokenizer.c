// SPDX-License-Identifier: Apache-2.0
// A pre-tokenizer is a list of steps over a list of words. A step either cuts words (by a pattern
// or a class of characters) or rewrites them into a new text (a space in front, spaces to the
// metaspace, bytes to letters). What the file calls one component may be several steps: ByteLevel
// is a prefix, a cut by GPT-2's pattern and a rewrite; Metaspace a rewrite and a cut.
//
// A word whose text a step would leave empty is dropped, as the library does. Words never share
// bytes, so the lists grow with the text and every step is linear in it.
#include "engine/text/pretokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "engine/text/fields.h"
#include "engine/text/unicode.h"

enum { MAX_STEPS = 64, MAX_NESTING = 16 };

#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
// What the library calls a word here is the Rust regex crate's \w: other than Oniguruma's in the
// superscripts and fractions of Latin-1, and in the two joiners.
#define WORD_SET      "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}"
#define WORDS_PATTERN "[" WORD_SET "]+|[^" WORD_SET "\\s]+"

typedef enum behavior {
    BEHAVIOR_REMOVED,
    BEHAVIOR_ISOLATED,
    BEHAVIOR_MERGED_WITH_PREVIOUS,
    BEHAVIOR_MERGED_WITH_NEXT,
    BEHAVIOR_CONTIGUOUS,
} behavior;

typedef enum scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } scheme;

typedef enum step_kind {
    STEP_PREFIX, // a space in front of words that do not begin with one
    STEP_META,   // spaces to `mark`, and `mark` in front by `scheme`
    STEP_SPLIT,  // pattern, behavior, invert
    STEP_CLASS,  // is_in, behavior
    STEP_BYTES,  // bytes to letters
} step_kind;

typedef struct step {
    step_kind kind;
    behavior behavior;
    bool invert;
    pattern *pattern;
    bool (*is_in)(int32_t c);
    char mark[4];
    size_t mark_len;
    scheme scheme;
} step;

struct pretokenizer {
    step steps[MAX_STEPS + 1]; // the last one takes what is one too many
    size_t n;
};

void pretokenizer_free(pretokenizer *p) {
    if (!p)
        return;
    for (size_t i = 0; i < p->n; i++)
        pattern_free(p->steps[i].pattern);
    free(p);
}

// ---- reading ------------------------------------------------------------------------------------

static step *add(pretokenizer *p, fields *f, step_kind kind) {
    if (p->n == MAX_STEPS) {
        fields_fail(f, SSM_EUNSUPPORTED, "too many pre-tokenizers");
        return &p->steps[MAX_STEPS];
    }
    step *s = &p->steps[p->n++];
    *s = (step){.kind = kind};
    return s;
}

static void add_split(pretokenizer *p, fields *f, bool regex, ssm_string source, behavior b,
                      bool invert) {
    if (f->code != 0)
        return;
    step *s = add(p, f, STEP_SPLIT);
    s->behavior = b;
    s->invert = invert;
    if (f->code == 0)
        f->code = pattern_create(regex, source.data, source.len, &s->pattern, f->err);
}

static behavior read_behavior(fields *f, bool required) {
    static const char *const names[] = {[BEHAVIOR_REMOVED] = "Removed",
                                        [BEHAVIOR_ISOLATED] = "Isolated",
                                        [BEHAVIOR_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                        [BEHAVIOR_MERGED_WITH_NEXT] = "MergedWithNext",
                                        [BEHAVIOR_CONTIGUOUS] = "Contiguous"};
    const ssm_string s = fields_string(f, "behavior", required);
    if (f->code != 0 || !s.data)
        return BEHAVIOR_ISOLATED;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(s.data, names[i]) == 0)
            return (behavior)i;
    }
    fields_fail(f, SSM_EUNSUPPORTED, "behavior %.60s is not supported", s.data);
    return BEHAVIOR_ISOLATED;
}

static void read_byte_level(pretokenizer *p, fields *f) {
    const bool prefix = fields_bool(f, "add_prefix_space", true);
    fields_bool(f, "trim_offsets", true); // of offsets, which are not kept here
    const bool use_regex = fields_bool(f, "use_regex", true);
    if (prefix)
        add(p, f, STEP_PREFIX);
    if (use_regex)
        add_split(p, f, true, (ssm_string){GPT2_PATTERN, strlen(GPT2_PATTERN)}, BEHAVIOR_ISOLATED,
                  false);
    add(p, f, STEP_BYTES);
}

// Older files have add_prefix_space alone, newer ones prepend_scheme; both must agree.
static scheme read_scheme(fields *f) {
    const ssm_string name = fields_string(f, "prepend_scheme", false);
    const bool has_prefix = fields_any(f, "add_prefix_space") != NULL;
    const bool prefix = fields_bool(f, "add_prefix_space", true);
    if (f->code != 0)
        return PREPEND_NEVER;
    scheme s = prefix ? PREPEND_ALWAYS : PREPEND_NEVER;
    if (name.data && strcmp(name.data, "always") == 0)
        s = PREPEND_ALWAYS;
    else if (name.data && strcmp(name.data, "first") == 0)
        s = PREPEND_FIRST;
    else if (name.data && strcmp(name.data, "never") == 0)
        s = PREPEND_NEVER;
    else if (name.data)
        fields_fail(f, SSM_EUNSUPPORTED, "prepend_scheme %.60s is not supported", name.data);
    if (has_prefix && !prefix && s != PREPEND_NEVER)
        fields_fail(f, SSM_EFORMAT, "add_prefix_space does not match prepend_scheme");
    return s;
}

static void read_metaspace(pretokenizer *p, fields *f) {
    const int32_t mark = fields_char(f, "replacement");
    fields_any(f, "str_rep"); // in old files, always the same as replacement
    const scheme s = read_scheme(f);
    const bool split = fields_bool(f, "split", true);
    step *meta = add(p, f, STEP_META);
    meta->mark_len = utf8_put(mark, meta->mark);
    meta->scheme = s;
    if (split)
        add_split(p, f, false, (ssm_string){meta->mark, meta->mark_len}, BEHAVIOR_MERGED_WITH_NEXT,
                  false);
}

static void read_split(pretokenizer *p, fields *f) {
    const json_t *source = fields_object(f, "pattern", true);
    const behavior b = read_behavior(f, true);
    const bool invert = fields_bool(f, "invert", false);
    if (f->code != 0)
        return;
    fields s = fields_open(source, "pre_tokenizer Split pattern", false, f->err);
    const ssm_string literal = fields_string(&s, "String", false);
    const ssm_string regex = fields_string(&s, "Regex", false);
    if (fields_done(&s) != 0)
        f->code = s.code;
    else if (!literal.data == !regex.data)
        fields_fail(f, SSM_EFORMAT, "pattern is neither String nor Regex");
    else
        add_split(p, f, regex.data != NULL, regex.data ? regex : literal, b, invert);
}

static void add_class(pretokenizer *p, fields *f, bool (*is_in)(int32_t), behavior b) {
    step *s = add(p, f, STEP_CLASS);
    s->is_in = is_in;
    s->behavior = b;
}

static int read(pretokenizer *p, const json_t *json, int depth, ssm_error *err);

static int read_sequence(pretokenizer *p, fields *f, int depth) {
    const json_t *list = fields_array(f, "pretokenizers", true);
    if (fields_done(f) != 0)
        return f->code;
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)list, i, item) {
        const int rc = read(p, item, depth + 1, f->err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int read(pretokenizer *p, const json_t *json, int depth, ssm_error *err) {
    fields f = fields_open(json, "pre_tokenizer", true, err);
    if (f.code != 0)
        return f.code;
    if (depth > MAX_NESTING)
        return fields_fail(&f, SSM_EUNSUPPORTED, "nested too deep");
    if (strcmp(f.type, "Sequence") == 0)
        return read_sequence(p, &f, depth);
    if (strcmp(f.type, "ByteLevel") == 0)
        read_byte_level(p, &f);
    else if (strcmp(f.type, "Metaspace") == 0)
        read_metaspace(p, &f);
    else if (strcmp(f.type, "Split") == 0)
        read_split(p, &f);
    else if (strcmp(f.type, "Punctuation") == 0)
        add_class(p, &f, is_punctuation, read_behavior(&f, false));
    else if (strcmp(f.type, "Digits") == 0)
        add_class(p, &f, is_numeric,
                  fields_bool(&f, "individual_digits", false) ? BEHAVIOR_ISOLATED
                                                              : BEHAVIOR_CONTIGUOUS);
    else if (strcmp(f.type, "Whitespace") == 0)
        add_split(p, &f, true, (ssm_string){WORDS_PATTERN, strlen(WORDS_PATTERN)}, BEHAVIOR_REMOVED,
                  true);
    else if (strcmp(f.type, "WhitespaceSplit") == 0)
        add_class(p, &f, is_white_space, BEHAVIOR_REMOVED);
    else
        return fields_unsupported(&f);
    return fields_done(&f);
}

int pretokenizer_create(const json_t *json, pretokenizer **out, ssm_error *err) {
    *out = NULL;
    if (!json || json_is_null(json))
        return 0;
    pretokenizer *p = calloc(1, sizeof *p);
    if (!p)
        return SSM_ENOMEM;
    const int rc = read(p, json, 0, err);
    if (rc != 0) {
        pretokenizer_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

// ---- running ------------------------------------------------------------------------------------

void words_dispose(words *w) {
    free(w->list);
    free(w->spare);
    ssm_text_dispose(&w->text);
    ssm_text_dispose(&w->text_spare);
    *w = (words){0};
}

static int push_word(words *w, size_t start, size_t end, bool is_first) {
    if (start == end)
        return 0;
    if (w->spare_n == w->spare_cap) {
        const size_t want = w->spare_cap ? 2 * w->spare_cap : 64;
        word *bigger = realloc(w->spare, want * sizeof *bigger);
        if (!bigger)
            return SSM_ENOMEM;
        w->spare = bigger;
        w->spare_cap = want;
    }
    w->spare[w->spare_n++] = (word){start, end - start, is_first};
    return 0;
}

// What a cut of one word has seen: the piece that is still open, and what may join it.
typedef struct cutter {
    words *w;
    const word *from;
    behavior behavior;
    size_t start, end; // the open piece; none while start == end
    bool was_match;    // the last piece seen
} cutter;

static int close_piece(cutter *c) {
    const int rc =
        push_word(c->w, c->start, c->end, c->from->is_first && c->start == c->from->start);
    c->start = c->end;
    return rc;
}

// Takes the next piece of the word, [start, end), and joins it to the open one or closes that.
static int cut(cutter *c, size_t start, size_t end, bool is_match) {
    bool joins = false;
    switch (c->behavior) {
    case BEHAVIOR_REMOVED:
        if (is_match) {
            const int rc = close_piece(c);
            c->start = c->end = end;
            return rc;
        }
        break;
    case BEHAVIOR_ISOLATED:
        break;
    case BEHAVIOR_MERGED_WITH_PREVIOUS:
        joins = is_match && !c->was_match;
        break;
    case BEHAVIOR_MERGED_WITH_NEXT:
        joins = !is_match && c->was_match;
        break;
    case BEHAVIOR_CONTIGUOUS:
        joins = is_match == c->was_match;
        break;
    }
    int rc = 0;
    if (!joins)
        rc = close_piece(c);
    c->end = end;
    c->was_match = is_match;
    return rc;
}

static int split_by_pattern(const step *st, matcher *m, words *w, const word *from,
                            ssm_error *err) {
    cutter c = {w, from, st->behavior, from->start, from->start, false};
    cursor at = {0};
    size_t start, end, last = 0;
    int rc;
    while ((rc = pattern_next(st->pattern, m, w->base + from->start, from->len, &at, &start, &end,
                              err)) > 0) {
        rc = start > last ? cut(&c, from->start + last, from->start + start, st->invert) : 0;
        if (rc == 0)
            rc = cut(&c, from->start + start, from->start + end, !st->invert);
        if (rc != 0)
            return rc;
        last = end;
    }
    if (rc == 0 && last < from->len)
        rc = cut(&c, from->start + last, from->start + from->len, st->invert);
    return rc != 0 ? rc : close_piece(&c);
}

static int split_by_class(const step *st, words *w, const word *from) {
    cutter c = {w, from, st->behavior, from->start, from->start, false};
    const size_t end = from->start + from->len;
    size_t last = from->start;
    int rc = 0;
    for (size_t i = from->start; i < end && rc == 0;) {
        const size_t n = utf8_width((unsigned char)w->base[i]);
        if (st->is_in(utf8_get(w->base + i))) {
            if (last < i)
                rc = cut(&c, last, i, false);
            if (rc == 0)
                rc = cut(&c, i, i + n, true);
            last = i + n;
        }
        i += n;
    }
    if (rc == 0 && last < end)
        rc = cut(&c, last, end, false);
    return rc != 0 ? rc : close_piece(&c);
}

static int append_prefixed(const char *s, size_t len, ssm_text *out) {
    const int rc = s[0] == ' ' ? 0 : ssm_text_append(out, " ", 1);
    return rc != 0 ? rc : ssm_text_append(out, s, len);
}

static int append_meta(const step *st, const char *s, size_t len, bool is_first, ssm_text *out) {
    const bool has_mark =
        s[0] == ' ' || (len >= st->mark_len && memcmp(s, st->mark, st->mark_len) == 0);
    const bool wants = st->scheme == PREPEND_ALWAYS || (st->scheme == PREPEND_FIRST && is_first);
    int rc = wants && !has_mark ? ssm_text_append(out, st->mark, st->mark_len) : 0;
    size_t last = 0;
    while (rc == 0 && last < len) {
        const char *space = memchr(s + last, ' ', len - last);
        const size_t i = space ? (size_t)(space - s) : len;
        rc = ssm_text_append(out, s + last, i - last);
        if (rc == 0 && space)
            rc = ssm_text_append(out, st->mark, st->mark_len);
        last = i + 1;
    }
    return rc;
}

static int append_letters(const char *s, size_t len, ssm_text *out) {
    char buffer[512];
    size_t used = 0;
    for (size_t i = 0; i < len; i++) {
        const unsigned char *letter = byte_letters[(unsigned char)s[i]];
        buffer[used] = (char)letter[0];
        buffer[used + 1] = (char)letter[1];
        used += letter[2];
        if (used > sizeof buffer - 2) {
            if (ssm_text_append(out, buffer, used) != 0)
                return SSM_ENOMEM;
            used = 0;
        }
    }
    return ssm_text_append(out, buffer, used);
}

// One step over all words, from w->list to w->spare (and, if it rewrites, w->base to text_spare).
static int run_step(const step *st, matcher *m, words *w, ssm_error *err) {
    const bool rewrites = st->kind != STEP_SPLIT && st->kind != STEP_CLASS;
    w->spare_n = 0;
    w->text_spare.len = 0;
    int rc = 0;
    for (size_t i = 0; i < w->n && rc == 0; i++) {
        const word from = w->list[i];
        const char *s = w->base + from.start;
        const size_t start = w->text_spare.len;
        if (st->kind == STEP_SPLIT)
            rc = split_by_pattern(st, m, w, &from, err);
        else if (st->kind == STEP_CLASS)
            rc = split_by_class(st, w, &from);
        else if (st->kind == STEP_PREFIX)
            rc = append_prefixed(s, from.len, &w->text_spare);
        else if (st->kind == STEP_META)
            rc = append_meta(st, s, from.len, from.is_first, &w->text_spare);
        else
            rc = append_letters(s, from.len, &w->text_spare);
        if (rc == 0 && rewrites)
            rc = push_word(w, start, w->text_spare.len, from.is_first);
    }
    if (rc == 0 && rewrites) {
        const ssm_text swap = w->text;
        w->text = w->text_spare;
        w->text_spare = swap;
        w->base = w->text.data;
    }
    return rc;
}

static void swap_lists(words *w) {
    const words old = *w;
    w->list = old.spare;
    w->n = old.spare_n;
    w->cap = old.spare_cap;
    w->spare = old.list;
    w->spare_n = old.n;
    w->spare_cap = old.cap;
}

int pretokenizer_run(const pretokenizer *p, matcher *m, const char *s, size_t len, bool is_first,
                     words *w, ssm_error *err) {
    w->base = s;
    w->spare_n = 0;
    int rc = push_word(w, 0, len, is_first);
    swap_lists(w);
    for (size_t i = 0; rc == 0 && p && i < p->n; i++) {
        rc = run_step(&p->steps[i], m, w, err);
        swap_lists(w);
    }
    return rc;
}
