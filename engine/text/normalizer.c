// SPDX-License-Identifier: Apache-2.0
#include "engine/text/normalizer.h"

#include <stdlib.h>
#include <string.h>

#include "engine/text/fields.h"
#include "engine/text/nform.h"
#include "engine/text/unicode.h"

enum { MAX_STEPS = 64, MAX_NESTING = 16 };

typedef enum step_kind {
    STEP_FORM, // compat, compose
    STEP_LOWERCASE,
    STEP_STRIP, // left, right
    STEP_STRIP_ACCENTS,
    STEP_PREPEND, // content
    STEP_REPLACE, // pattern, content
} step_kind;

typedef struct step {
    step_kind kind;
    bool compat, compose;
    bool left, right;
    pattern *pattern;
    ssm_text content;
} step;

struct normalizer {
    step steps[MAX_STEPS];
    size_t n;
};

void normalizer_free(normalizer *n) {
    if (!n)
        return;
    for (size_t i = 0; i < n->n; i++) {
        pattern_free(n->steps[i].pattern);
        ssm_text_dispose(&n->steps[i].content);
    }
    free(n);
}

static int set_content(step *s, ssm_string content) {
    return ssm_text_append(&s->content, content.data, content.len);
}

static int read_replace(fields *f, step *s) {
    const json_t *source = fields_object(f, "pattern", true);
    const ssm_string content = fields_string(f, "content", true);
    if (f->code != 0)
        return f->code;
    fields p = fields_open(source, "normalizer Replace pattern", false, f->err);
    const ssm_string literal = fields_string(&p, "String", false);
    const ssm_string regex = fields_string(&p, "Regex", false);
    if (fields_done(&p) != 0)
        return f->code = p.code;
    const ssm_string text = regex.data ? regex : literal;
    if (!text.data || (regex.data && literal.data))
        return fields_fail(f, SSM_EFORMAT, "pattern is neither String nor Regex");
    if (text.len == 0)
        return fields_fail(f, SSM_EUNSUPPORTED, "an empty pattern is not supported");
    f->code = pattern_create(regex.data != NULL, text.data, text.len, &s->pattern, f->err);
    if (f->code == 0)
        f->code = set_content(s, content);
    return f->code;
}

static int read(normalizer *n, const json_t *json, int depth, ssm_error *err);

static int read_sequence(normalizer *n, fields *f, int depth) {
    const json_t *list = fields_array(f, "normalizers", true);
    if (fields_done(f) != 0)
        return f->code;
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)list, i, item) {
        const int rc = read(n, item, depth + 1, f->err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int read(normalizer *n, const json_t *json, int depth, ssm_error *err) {
    fields f = fields_open(json, "normalizer", true, err);
    if (f.code != 0)
        return f.code;
    if (depth > MAX_NESTING || n->n == MAX_STEPS)
        return fields_fail(&f, SSM_EUNSUPPORTED, "too many normalizers");
    if (strcmp(f.type, "Sequence") == 0)
        return read_sequence(n, &f, depth);
    step *s = &n->steps[n->n++];
    if (strcmp(f.type, "NFC") == 0) {
        *s = (step){.kind = STEP_FORM, .compose = true};
    } else if (strcmp(f.type, "NFD") == 0) {
        *s = (step){.kind = STEP_FORM};
    } else if (strcmp(f.type, "NFKC") == 0) {
        *s = (step){.kind = STEP_FORM, .compat = true, .compose = true};
    } else if (strcmp(f.type, "NFKD") == 0) {
        *s = (step){.kind = STEP_FORM, .compat = true};
    } else if (strcmp(f.type, "Lowercase") == 0) {
        *s = (step){.kind = STEP_LOWERCASE};
    } else if (strcmp(f.type, "StripAccents") == 0) {
        *s = (step){.kind = STEP_STRIP_ACCENTS};
    } else if (strcmp(f.type, "Strip") == 0) {
        *s = (step){.kind = STEP_STRIP};
        s->left = fields_bool(&f, "strip_left", false);
        s->right = fields_bool(&f, "strip_right", false);
    } else if (strcmp(f.type, "Prepend") == 0) {
        *s = (step){.kind = STEP_PREPEND};
        const ssm_string content = fields_string(&f, "prepend", true);
        if (f.code == 0)
            f.code = set_content(s, content);
    } else if (strcmp(f.type, "Replace") == 0) {
        *s = (step){.kind = STEP_REPLACE};
        read_replace(&f, s);
    } else {
        n->n--;
        return fields_unsupported(&f);
    }
    return fields_done(&f);
}

int normalizer_create(const json_t *json, normalizer **out, ssm_error *err) {
    *out = NULL;
    if (!json || json_is_null(json))
        return 0;
    normalizer *n = calloc(1, sizeof *n);
    if (!n)
        return SSM_ENOMEM;
    const int rc = read(n, json, 0, err);
    if (rc != 0) {
        normalizer_free(n);
        return rc;
    }
    *out = n;
    return 0;
}

static int lowercase(const char *s, size_t len, ssm_text *out) {
    int rc = 0;
    for (size_t i = 0; i < len && rc == 0; i += utf8_width((unsigned char)s[i])) {
        const int32_t c = utf8_get(s + i);
        char bytes[4];
        if (c == 0x130) // the one character whose lower case is two: i and a dot above
            rc = ssm_text_append(out, "i\u0307", 3);
        else
            rc = ssm_text_append(out, bytes, utf8_put(to_lower(c), bytes));
    }
    return rc;
}

static int strip(const step *st, const char *s, size_t len, ssm_text *out, bool *kept_start) {
    const size_t i = st->left ? white_space_end(s, len, 0) : 0;
    const size_t end = st->right ? white_space_before(s, i, len) : len;
    *kept_start = *kept_start && i == 0;
    return ssm_text_append(out, s + i, end - i);
}

static int strip_accents(const char *s, size_t len, ssm_text *out, bool *kept_start) {
    int rc = 0;
    for (size_t i = 0; i < len && rc == 0;) {
        const size_t n = utf8_width((unsigned char)s[i]);
        if (!is_mark(utf8_get(s + i)))
            rc = ssm_text_append(out, s + i, n);
        else if (i == 0)
            *kept_start = false;
        i += n;
    }
    return rc;
}

static int replace(const step *st, matcher *m, const char *s, size_t len, ssm_text *out,
                   bool *kept_start, ssm_error *err) {
    cursor c = {0};
    size_t start, end, at = 0;
    int rc;
    while ((rc = pattern_next(st->pattern, m, s, len, &c, &start, &end, err)) > 0) {
        rc = ssm_text_append(out, s + at, start - at);
        if (rc == 0)
            rc = ssm_text_append(out, st->content.data, st->content.len);
        if (rc != 0)
            return rc;
        if (start == 0 && end > 0 && st->content.len == 0)
            *kept_start = false;
        at = end;
    }
    return rc < 0 ? rc : ssm_text_append(out, s + at, len - at);
}

static int run_step(const step *st, matcher *m, const char *s, size_t len, ssm_text *out,
                    bool *kept_start, ssm_error *err) {
    switch (st->kind) {
    case STEP_FORM:
        return nform_append(s, len, st->compat, st->compose, out);
    case STEP_LOWERCASE:
        return lowercase(s, len, out);
    case STEP_STRIP:
        return strip(st, s, len, out, kept_start);
    case STEP_STRIP_ACCENTS:
        return strip_accents(s, len, out, kept_start);
    case STEP_PREPEND:
        if (len > 0 && ssm_text_append(out, st->content.data, st->content.len) != 0)
            return SSM_ENOMEM;
        return ssm_text_append(out, s, len);
    case STEP_REPLACE:
        return replace(st, m, s, len, out, kept_start, err);
    }
    return SSM_EINTERNAL;
}

int normalizer_run(const normalizer *n, matcher *m, const char *s, size_t len, ssm_text *out,
                   bool *kept_start, ssm_error *err) {
    ssm_text spare = {0};
    int rc = 0;
    *kept_start = true;
    out->len = 0;
    if (!n || n->n == 0)
        return ssm_text_append(out, s, len);
    for (size_t i = 0; i < n->n && rc == 0; i++) {
        if (i > 0) { // the last result is this step's input
            const ssm_text swap = spare;
            spare = *out;
            *out = swap;
            out->len = 0;
            s = spare.data;
            len = spare.len;
        }
        rc = ssm_text_append(out, "", 0);
        if (rc == 0)
            rc = run_step(&n->steps[i], m, s, len, out, kept_start, err);
    }
    ssm_text_dispose(&spare);
    return rc;
}
