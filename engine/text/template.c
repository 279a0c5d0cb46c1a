// SPDX-License-Identifier: Apache-2.0
// The public calls of the chat template interpreter, and the bounds of a rendering.
#include "template.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SOURCE = 1 << 20, MAX_COMPILED = 256 << 20 };

// ---- compiling

// As jinja2 reads a source: \r\n and \r are \n, and one newline at the very end goes.
static size_t normalise(const char *source, size_t len, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (source[i] != '\r')
            out[n++] = source[i];
        else if (i + 1 == len || source[i + 1] != '\n')
            out[n++] = '\n';
    }
    return n - (n > 0 && out[n - 1] == '\n');
}

int ssm_template_create(const char *source, size_t len, ssm_template **out, ssm_error *err) {
    int rc = 0;
    tpl_token *tokens = NULL;
    if (len > MAX_SOURCE)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "chat_template",
                             "a chat template of %zu bytes, more than %d", len, MAX_SOURCE);
    ssm_template *tpl = calloc(1, sizeof *tpl);
    if (tpl)
        tpl->source = malloc(len + 1);
    if (!tpl || !tpl->source) {
        rc = ssm_error_set(err, SSM_ENOMEM, "chat_template", "no memory for a chat template");
        goto done;
    }
    tpl->arena.limit = MAX_COMPILED;
    const size_t n = normalise(source, len, tpl->source);
    rc = tpl_lex(tpl->source, n, &tpl->arena, &tokens, err);
    if (rc == 0 && !tpl_intern(tpl, "loop", 4))
        rc = ssm_error_set(err, SSM_ENOMEM, "chat_template", "no memory for a chat template");
    if (rc == 0)
        rc = tpl_parse(tpl, tokens, err);
done:
    free(tokens);
    if (rc != 0)
        ssm_template_free(tpl);
    else
        *out = tpl;
    return rc;
}

void ssm_template_free(ssm_template *tpl) {
    if (!tpl)
        return;
    tpl_arena_dispose(&tpl->arena);
    free(tpl->names);
    free(tpl->source);
    free(tpl);
}

// ---- running

void tpl_fail(tpl_run *r, int code, const char *fmt, ...) {
    if (r->code != 0)
        return;
    char what[320];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    if (r->line > 0)
        r->code = ssm_error_set(r->err, code, "chat_template", "chat template, line %d: %s",
                                r->line, what);
    else
        r->code = ssm_error_set(r->err, code, "chat_template", "chat template: %s", what);
}

bool tpl_charge(tpl_run *r, uint64_t steps) {
    r->steps += steps;
    if (r->steps > r->max_steps)
        tpl_fail(r, SSM_EINVAL, "needs more than %llu steps", (unsigned long long)r->max_steps);
    return r->code == 0;
}

void *tpl_alloc(tpl_run *r, size_t n) {
    if (r->code != 0)
        return NULL;
    void *p = tpl_arena_alloc(&r->arena, n);
    if (!p)
        tpl_fail(r, SSM_EINVAL, "needs more than %zu bytes of memory", r->arena.limit);
    return p;
}

// A context is text, or has been parsed.
static int render(const ssm_template *tpl, const char *context, struct json_t *tree, size_t len,
                  const ssm_template_limits *limits, ssm_text *out, ssm_error *err) {
    enum { STEPS = 1000000, STEPS_A_BYTE = 4, BYTES = 64 << 20, BYTES_A_BYTE = 32 };
    const ssm_template_limits given = limits ? *limits : (ssm_template_limits){0};
    const size_t bytes = (size_t)BYTES + BYTES_A_BYTE * len;
    tpl_run r = {
        .tpl = tpl,
        .arena = {.limit = given.memory ? given.memory : bytes},
        .out = out,
        .block_text = tpl_string("", 0),
        .max_steps = given.steps ? given.steps : (uint64_t)STEPS + STEPS_A_BYTE * (uint64_t)len,
        .max_output = given.output ? given.output : bytes,
        .now = given.now,
        .err = err,
    };
    if (tpl_frame_push(&r, NULL) && tree) // the context
        tpl_take_context(&r, tree);
    else if (r.frame)
        tpl_load_context(&r, context, len);
    if (tpl_frame_push(&r, r.frame)) // what the template sets
        tpl_exec(&r, tpl->body);
    tpl_arena_dispose(&r.arena);
    return r.code;
}

int ssm_template_render(const ssm_template *tpl, const char *context, size_t len,
                        const ssm_template_limits *limits, ssm_text *out, ssm_error *err) {
    return render(tpl, context, NULL, len, limits, out, err);
}

int tpl_render_tree(const ssm_template *tpl, struct json_t *context, size_t len,
                    const ssm_template_limits *limits, ssm_text *out, ssm_error *err) {
    return render(tpl, NULL, context, len, limits, out, err);
}
