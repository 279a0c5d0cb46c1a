// SPDX-License-Identifier: Apache-2.0
// A decoder is a row of stages. The library hands each stage the list of all tokens and takes a new
// list; here every stage takes its tokens as a stream of two events, `text` (some more of the
// current token) and `end` (the current token is complete), and passes events on as soon as nothing
// that comes later can change them. What a stage must wait for it holds:
//
//     ByteLevel     a token until it is complete (one foreign character makes all of it
//                   literal), and up to three bytes of an unfinished character
//     ByteFallback  a run of byte tokens until it ends (one bad byte turns all of the run into
//                   U+FFFD, each byte its own) or is known to be bad
//     Strip         white space at the end of a token, up to the count it may have to drop
//     Replace       what may be the beginning of the string; a token, if it is an expression
//     BPEDecoder    a token until the next (the last one is treated differently)
//
// Fuse and ByteLevel make one long token of all: their `end` comes at the finish. decode() is a
// stream that is finished at once, so that the two cannot differ.
#include "engine/text/decoder_stages.h"

#include <stdlib.h>
#include <string.h>

#include "engine/text/fields.h"

enum { MAX_NESTING = 16 };

void decoder_free(decoder *d) {
    if (!d)
        return;
    for (size_t i = 0; i < d->n; i++) {
        pattern_free(d->stages[i].pattern);
        ssm_text_dispose(&d->stages[i].content);
    }
    free(d);
}

// ---- reading ------------------------------------------------------------------------------------

static void read_replace(decoder *d, fields *f, stage *s) {
    const json_t *source = fields_object(f, "pattern", true);
    const ssm_string content = fields_string(f, "content", true);
    if (f->code != 0)
        return;
    fields p = fields_open(source, "decoder Replace pattern", false, f->err);
    const ssm_string literal = fields_string(&p, "String", false);
    const ssm_string regex = fields_string(&p, "Regex", false);
    const ssm_string text = regex.data ? regex : literal;
    if (fields_done(&p) != 0)
        f->code = p.code;
    else if (!literal.data == !regex.data)
        fields_fail(f, SSM_EFORMAT, "pattern is neither String nor Regex");
    else if (text.len == 0)
        fields_fail(f, SSM_EUNSUPPORTED, "an empty pattern is not supported");
    if (f->code != 0)
        return;
    d->has_regex = d->has_regex || regex.data;
    f->code = pattern_create(regex.data != NULL, text.data, text.len, &s->pattern, f->err);
    if (f->code == 0)
        f->code = ssm_text_append(&s->content, content.data, content.len);
}

static void read_metaspace(fields *f, stage *s) {
    s->mark = fields_char(f, "replacement");
    fields_any(f, "str_rep");
    fields_bool(f, "split", true);
    const bool prefix = fields_bool(f, "add_prefix_space", true);
    const ssm_string scheme = fields_string(f, "prepend_scheme", false);
    s->drops_first = scheme.data ? strcmp(scheme.data, "never") != 0 : prefix;
}

static void read_bpe(fields *f, stage *s) {
    const ssm_string suffix = fields_string(f, "suffix", true);
    if (f->code == 0 && suffix.len == 0)
        fields_fail(f, SSM_EUNSUPPORTED, "an empty suffix is not supported");
    if (f->code == 0)
        f->code = pattern_create(false, suffix.data, suffix.len, &s->pattern, f->err);
}

static int read(decoder *d, const json_t *json, int depth, ssm_error *err);

static int read_sequence(decoder *d, fields *f, int depth) {
    const json_t *list = fields_array(f, "decoders", true);
    if (fields_done(f) != 0)
        return f->code;
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)list, i, item) {
        const int rc = read(d, item, depth + 1, f->err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int read(decoder *d, const json_t *json, int depth, ssm_error *err) {
    fields f = fields_open(json, "decoder", true, err);
    if (f.code != 0)
        return f.code;
    if (depth > MAX_NESTING || d->n == MAX_STAGES)
        return fields_fail(&f, SSM_EUNSUPPORTED, "too many decoders");
    if (strcmp(f.type, "Sequence") == 0)
        return read_sequence(d, &f, depth);
    stage *s = &d->stages[d->n++];
    if (strcmp(f.type, "ByteLevel") == 0) {
        s->kind = STAGE_BYTE_LEVEL;
        fields_bool(&f, "add_prefix_space", true); // these three are the pre-tokenizer's
        fields_bool(&f, "trim_offsets", true);
        fields_bool(&f, "use_regex", true);
    } else if (strcmp(f.type, "ByteFallback") == 0) {
        s->kind = STAGE_BYTE_FALLBACK;
    } else if (strcmp(f.type, "Fuse") == 0) {
        s->kind = STAGE_FUSE;
    } else if (strcmp(f.type, "Strip") == 0) {
        s->kind = STAGE_STRIP;
        s->mark = fields_char(&f, "content");
        s->start = fields_size(&f, "start", INT32_MAX);
        s->stop = fields_size(&f, "stop", INT32_MAX);
    } else if (strcmp(f.type, "Replace") == 0) {
        s->kind = STAGE_REPLACE;
        read_replace(d, &f, s);
    } else if (strcmp(f.type, "Metaspace") == 0) {
        s->kind = STAGE_METASPACE;
        read_metaspace(&f, s);
    } else if (strcmp(f.type, "BPEDecoder") == 0) {
        s->kind = STAGE_BPE;
        read_bpe(&f, s);
    } else {
        return fields_unsupported(&f);
    }
    return fields_done(&f);
}

int decoder_create(const json_t *json, decoder **out, ssm_error *err) {
    decoder *d = calloc(1, sizeof *d);
    if (!d)
        return SSM_ENOMEM;
    int rc = 0;
    if (json && !json_is_null(json))
        rc = read(d, json, 0, err);
    else
        d->stages[d->n++].kind = STAGE_JOIN;
    if (rc != 0) {
        decoder_free(d);
        return rc;
    }
    *out = d;
    return 0;
}

// ---- running ------------------------------------------------------------------------------------

int decoder_stream_create(const decoder *d, decoder_stream **out) {
    decoder_stream *s = calloc(1, sizeof *s);
    if (!s)
        return SSM_ENOMEM;
    s->d = d;
    if (d->has_regex && matcher_create(&s->matcher) != 0) {
        free(s);
        return SSM_ENOMEM;
    }
    *out = s;
    return 0;
}

void decoder_stream_free(decoder_stream *s) {
    if (!s)
        return;
    for (size_t i = 0; i < s->d->n; i++) {
        ssm_text_dispose(&s->memory[i].hold);
        ssm_text_dispose(&s->memory[i].run);
    }
    matcher_free(s->matcher);
    free(s);
}

// Some more text of the token that stage i is at.
int decoder_on_text(decoder_stream *s, size_t i, const char *text, size_t len) {
    if (i == s->d->n)
        return ssm_text_append(s->out, text, len);
    memory *m = &s->memory[i];
    switch (s->d->stages[i].kind) {
    case STAGE_FUSE:
        return decoder_on_text(s, i + 1, text, len);
    case STAGE_STRIP:
        return stage_text_strip(s, i, text, len);
    case STAGE_REPLACE:
        return stage_text_replace(s, i, text, len);
    case STAGE_METASPACE:
        return stage_text_metaspace(s, i, text, len);
    case STAGE_BYTE_FALLBACK:
        return stage_text_byte_fallback(s, i, text, len);
    case STAGE_JOIN:
    case STAGE_BYTE_LEVEL:
    case STAGE_BPE:
        return ssm_text_append(&m->hold, text, len);
    }
    return SSM_EINTERNAL;
}

// The token that stage i is at is complete.
int decoder_on_end(decoder_stream *s, size_t i) {
    if (i == s->d->n)
        return 0;
    memory *m = &s->memory[i];
    int rc;
    switch (s->d->stages[i].kind) {
    case STAGE_JOIN:
        rc = m->tokens++ > 0 ? decoder_on_text(s, i + 1, " ", 1) : 0;
        if (rc == 0)
            rc = stage_pass_token(s, i, m->hold.data, m->hold.len);
        m->hold.len = 0;
        return rc;
    case STAGE_BYTE_LEVEL:
        return stage_end_byte_level(s, i);
    case STAGE_BYTE_FALLBACK:
        return stage_end_byte_fallback(s, i);
    case STAGE_FUSE:
        return 0;
    case STAGE_STRIP:
        return stage_end_strip(s, i);
    case STAGE_REPLACE:
        return stage_end_replace(s, i);
    case STAGE_METASPACE:
        m->tokens++;
        return decoder_on_end(s, i + 1);
    case STAGE_BPE:
        return stage_end_bpe(s, i);
    }
    return SSM_EINTERNAL;
}

// There are no more tokens.
static int on_finish(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    switch (s->d->stages[i].kind) {
    case STAGE_BYTE_LEVEL: {
        const int rc = m->tail_len > 0 ? decoder_on_text(s, i + 1, REPLACEMENT, 3) : 0;
        m->tail_len = 0;
        return rc != 0 ? rc : decoder_on_end(s, i + 1);
    }
    case STAGE_BYTE_FALLBACK:
        return stage_end_run(s, i);
    case STAGE_FUSE:
        return decoder_on_end(s, i + 1);
    case STAGE_BPE:
        return stage_pass_last(s, i, true);
    default:
        return 0;
    }
}

int decoder_push(decoder_stream *s, const char *token, size_t len, ssm_text *out) {
    s->out = out;
    const int rc = len > 0 ? decoder_on_text(s, 0, token, len) : 0;
    return rc != 0 ? rc : decoder_on_end(s, 0);
}

int decoder_finish(decoder_stream *s, ssm_text *out) {
    int rc = 0;
    s->out = out;
    for (size_t i = 0; i < s->d->n && rc == 0; i++)
        rc = on_finish(s, i);
    return rc;
}
