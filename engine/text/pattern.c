// SPDX-License-Identifier: Apache-2.0
// Searching text for a pattern.
//
// Regular expressions run in PCRE2's just-in-time code without its UTF check (the text was checked
// once; checking it at each of n matches would make one pass over it quadratic). JIT code has
// a machine stack of its own: small at first, and a call that overflows it is tried again with a
// large one. Where JIT is not to be had the interpreter runs, within limits on matching steps and
// heap: a pattern that would backtrack for ever ends in an error.
#define _GNU_SOURCE // memmem
#include "engine/text/pattern.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/text/unicode.h"

enum {
    MATCH_LIMIT = 50 * 1000 * 1000, // steps of one search: tens of milliseconds
    HEAP_LIMIT_KIB = 256 * 1024,
    JIT_STACK_MAX = 64 * 1024 * 1024,
    SOURCE_MAX = 64 * 1024,
};

struct pattern {
    char *literal; // not NULL: search for these bytes
    size_t len;
    pcre2_code *code;
};

struct matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack; // made when first needed
};

static int compile(const ssm_text *text, pcre2_code **out, ssm_error *err) {
    int code;
    PCRE2_SIZE offset;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return SSM_ENOMEM;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    const uint32_t options =
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
    *out = pcre2_compile((PCRE2_SPTR)text->data, text->len, options, &code, &offset, context);
    pcre2_compile_context_free(context);
    if (!*out) {
        char message[128];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
        return ssm_error_set(err, SSM_EFORMAT, "pattern", "regular expression: %s in %.200s",
                             message, text->data);
    }
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); // failing that, the interpreter runs it
    return 0;
}

int pattern_create(bool regex, const char *source, size_t len, pattern **out, ssm_error *err) {
    ssm_text text = {0};
    int rc = SSM_ENOMEM;
    pattern *p = calloc(1, sizeof *p);
    if (!p)
        return SSM_ENOMEM;
    if (len > SOURCE_MAX) {
        rc = ssm_error_set(err, SSM_EFORMAT, "pattern", "a pattern of %zu bytes is too long", len);
        goto done;
    }
    if (!regex && len > 0) {
        p->len = len;
        p->literal = malloc(len);
        if (!p->literal)
            goto done;
        memcpy(p->literal, source, len);
        rc = 0;
        goto done;
    }
    rc = onig_translate(source, len, &text, err);
    if (rc == 0)
        rc = compile(&text, &p->code, err);
done:
    ssm_text_dispose(&text);
    if (rc != 0) {
        pattern_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

void pattern_free(pattern *p) {
    if (!p)
        return;
    free(p->literal);
    if (p->code)
        pcre2_code_free(p->code);
    free(p);
}

const char *pattern_literal(const pattern *p, size_t *len) {
    *len = p->len;
    return p->literal;
}

int matcher_create(matcher **out) {
    matcher *m = calloc(1, sizeof *m);
    if (!m)
        return SSM_ENOMEM;
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    if (!m->data || !m->context) {
        matcher_free(m);
        return SSM_ENOMEM;
    }
    pcre2_set_match_limit(m->context, MATCH_LIMIT);
    pcre2_set_heap_limit(m->context, HEAP_LIMIT_KIB);
    *out = m;
    return 0;
}

void matcher_free(matcher *m) {
    if (!m)
        return;
    if (m->stack)
        pcre2_jit_stack_free(m->stack);
    if (m->context)
        pcre2_match_context_free(m->context);
    if (m->data)
        pcre2_match_data_free(m->data);
    free(m);
}

static int search(const pattern *p, matcher *m, const char *s, size_t len, size_t from) {
    int rc =
        pcre2_match(p->code, (PCRE2_SPTR)s, len, from, PCRE2_NO_UTF_CHECK, m->data, m->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !m->stack) {
        m->stack = pcre2_jit_stack_create(64 * 1024, JIT_STACK_MAX, NULL);
        if (!m->stack)
            return PCRE2_ERROR_NOMEMORY;
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
        rc =
            pcre2_match(p->code, (PCRE2_SPTR)s, len, from, PCRE2_NO_UTF_CHECK, m->data, m->context);
    }
    return rc;
}

static int next_regex(const pattern *p, matcher *m, const char *s, size_t len, cursor *c,
                      size_t *start, size_t *end, ssm_error *err) {
    while (c->at <= len) {
        const int rc = search(p, m, s, len, c->at);
        if (rc == PCRE2_ERROR_NOMATCH)
            return 0;
        if (rc < 0)
            return ssm_error_set(err, rc == PCRE2_ERROR_NOMEMORY ? SSM_ENOMEM : SSM_EUNSUPPORTED,
                                 "pattern", "a pattern of the tokenizer gave up on this text (%d)",
                                 rc);
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(m->data);
        *start = v[0];
        *end = v[1];
        if (*start == *end && c->matched && *end == c->last_end) {
            c->at += c->at < len ? utf8_width((unsigned char)s[c->at]) : 1;
            continue;
        }
        c->at = c->last_end = *end;
        c->matched = true;
        return 1;
    }
    return 0;
}

// Short strings, a space or a metaspace, come often: from first byte to first byte. For long ones
// that would be quadratic at worst; memmem is not.
static const char *find_literal(const pattern *p, const char *s, size_t len) {
    if (p->len > 8)
        return memmem(s, len, p->literal, p->len);
    while (len >= p->len) {
        const char *hit = memchr(s, p->literal[0], len - p->len + 1);
        if (!hit || memcmp(hit, p->literal, p->len) == 0)
            return hit;
        len -= (size_t)(hit + 1 - s);
        s = hit + 1;
    }
    return NULL;
}

int pattern_next(const pattern *p, matcher *m, const char *s, size_t len, cursor *c, size_t *start,
                 size_t *end, ssm_error *err) {
    if (!p->literal)
        return next_regex(p, m, s, len, c, start, end, err);
    const char *hit = find_literal(p, s + c->at, len - c->at);
    if (!hit)
        return 0;
    *start = (size_t)(hit - s);
    c->at = *end = *start + p->len;
    return 1;
}
