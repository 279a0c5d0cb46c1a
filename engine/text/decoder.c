// SPDX-License-Identifier: Apache-2.0
// A decoder is a row of stages. The library hands each stage the list of all tokens and takes a new
// list; here every stage takes its tokens as a stream of two events, `text` (some more of the
// current token) and `end` (the current token is complete), and passes events on as soon as nothing
// that comes later can change them. What a stage must wait for it holds:
//
//     ByteLevel     a token until it is complete (one foreign character makes all of it literal),
//     and
//                   up to three bytes of an unfinished character
//     ByteFallback  a run of byte tokens until it ends (one bad byte turns all of the run into
//                   U+FFFD, each byte its own) or is known to be bad
//     Strip         white space at the end of a token, up to the count it may have to drop
//     Replace       what may be the beginning of the string; a token, if it is an expression
//     BPEDecoder    a token until the next (the last one is treated differently)
//
// Fuse and ByteLevel make one long token of all: their `end` comes at the finish. decode() is a
// stream that is finished at once, so that the two cannot differ.
#include "engine/text/decoder.h"

#include <stdlib.h>
#include <string.h>

#include "engine/text/fields.h"
#include "engine/text/pattern.h"
#include "engine/text/pretokenizer.h"
#include "engine/text/unicode.h"

enum { MAX_STAGES = 32, MAX_NESTING = 16 };

#define REPLACEMENT "\xef\xbf\xbd" // U+FFFD

typedef enum stage_kind {
    STAGE_JOIN, // no decoder: a space between tokens
    STAGE_BYTE_LEVEL,
    STAGE_BYTE_FALLBACK,
    STAGE_FUSE,
    STAGE_STRIP,     // mark, start, stop
    STAGE_REPLACE,   // pattern, content
    STAGE_METASPACE, // mark, drops_first
    STAGE_BPE,       // pattern (the suffix)
} stage_kind;

typedef struct stage {
    stage_kind kind;
    int32_t mark;
    size_t start, stop;
    bool drops_first;
    pattern *pattern;
    ssm_text content;
} stage;

struct decoder {
    stage stages[MAX_STAGES];
    size_t n;
    bool has_regex;
};

// What a stage remembers in one stream.
typedef struct memory {
    ssm_text hold;  // of the current token, or the unfinished character (ByteLevel: see tail)
    ssm_text run;   // ByteFallback: bytes of the run; BPEDecoder: the last token
    size_t checked; // of run: valid UTF-8 so far
    size_t tokens;  // complete ones so far
    size_t taken, pending; // Strip: marks dropped at the start, marks held at the end
    bool inside;    // Strip: past the start. ByteFallback: the token is not a byte, passing it on
    bool is_broken; // ByteFallback: the run is known to be bad
    char tail[4];   // ByteLevel: an unfinished character
    size_t tail_len;
} memory;

struct decoder_stream {
    const decoder *d;
    matcher *matcher; // NULL unless a stage has an expression
    ssm_text *out;
    memory memory[MAX_STAGES];
};

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

static int on_text(decoder_stream *s, size_t i, const char *text, size_t len);
static int on_end(decoder_stream *s, size_t i);

// The letters of a byte-level token as bytes; false if one of them is no such letter.
static bool letters_to_bytes(const char *token, size_t len, ssm_text *out, int *rc) {
    static const short high[] = {// U+0100..U+0143: the bytes that have no printable letter
#define ROW(b) b, b + 1, b + 2, b + 3
                                 ROW(0),    ROW(4),    ROW(8),    ROW(12),   ROW(16),
                                 ROW(20),   ROW(24),   ROW(28),   0x20,      0x7f,
                                 ROW(0x80), ROW(0x84), ROW(0x88), ROW(0x8c), ROW(0x90),
                                 ROW(0x94), ROW(0x98), ROW(0x9c), 0xa0,      0xad};
#undef ROW
    const size_t before = out->len;
    for (size_t i = 0; i < len; i += utf8_width((unsigned char)token[i])) {
        const int32_t c = utf8_get(token + i);
        int byte = -1;
        if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xff && c != 0xad))
            byte = c;
        else if (c >= 0x100 && c < 0x100 + (int32_t)(sizeof high / sizeof high[0]))
            byte = high[c - 0x100];
        if (byte < 0) {
            out->len = before;
            return false;
        }
        const char b = (char)byte;
        if ((*rc = ssm_text_append(out, &b, 1)) != 0)
            return true;
    }
    return true;
}

// Passes on the characters of bytes, U+FFFD for what is none; what may yet become one stays.
static int pass_lossy(decoder_stream *s, size_t i, ssm_text *bytes) {
    memory *m = &s->memory[i];
    int rc = 0;
    size_t at = 0, good = 0;
    while (good < bytes->len && rc == 0) {
        size_t n;
        good += utf8_valid_prefix(bytes->data + good, bytes->len - good);
        if (good == bytes->len)
            break;
        const utf8_kind kind = utf8_scan(bytes->data + good, bytes->len - good, &n);
        if (kind == UTF8_PARTIAL)
            break;
        if (good > at)
            rc = on_text(s, i + 1, bytes->data + at, good - at);
        if (rc == 0)
            rc = on_text(s, i + 1, REPLACEMENT, 3);
        good += n;
        at = good;
    }
    if (rc == 0 && good > at)
        rc = on_text(s, i + 1, bytes->data + at, good - at);
    m->tail_len = bytes->len - good;
    memcpy(m->tail, bytes->data + good, m->tail_len);
    return rc;
}

static int end_byte_level(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    m->run.len = 0;
    int rc = ssm_text_append(&m->run, m->tail, m->tail_len);
    if (rc == 0 && !letters_to_bytes(m->hold.data, m->hold.len, &m->run, &rc))
        rc = ssm_text_append(&m->run, m->hold.data, m->hold.len);
    m->hold.len = 0;
    return rc != 0 ? rc : pass_lossy(s, i, &m->run);
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
        return (c | 0x20) - 'a' + 10;
    return -1;
}

// The byte of a token "<0xNN>", -1 if it is none. (The library reads "+N" as a number too.)
static int byte_token(const char *t, size_t len) {
    if (len != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>')
        return -1;
    const int high = t[3] == '+' ? 0 : hex_digit(t[3]), low = hex_digit(t[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

static int pass_token(decoder_stream *s, size_t i, const char *text, size_t len) {
    const int rc = len > 0 ? on_text(s, i + 1, text, len) : 0;
    return rc != 0 ? rc : on_end(s, i + 1);
}

// U+FFFD for each byte of the run.
static int pass_broken(decoder_stream *s, size_t i) {
    int rc = 0;
    for (size_t k = 0; k < s->memory[i].run.len && rc == 0; k++)
        rc = pass_token(s, i, REPLACEMENT, 3);
    s->memory[i].run.len = 0;
    return rc;
}

static int push_byte(decoder_stream *s, size_t i, int byte) {
    memory *m = &s->memory[i];
    const char b = (char)byte;
    int rc = ssm_text_append(&m->run, &b, 1);
    if (rc != 0)
        return rc;
    if (!m->is_broken) {
        size_t n;
        const utf8_kind kind = utf8_scan(m->run.data + m->checked, m->run.len - m->checked, &n);
        if (kind == UTF8_VALID)
            m->checked += n;
        m->is_broken = kind == UTF8_BROKEN;
    }
    return m->is_broken ? pass_broken(s, i) : 0;
}

static int end_run(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    int rc = 0;
    if (m->run.len > 0) // not known to be bad, but it may be unfinished
        rc = m->checked == m->run.len ? pass_token(s, i, m->run.data, m->run.len)
                                      : pass_broken(s, i);
    m->run.len = m->checked = 0;
    m->is_broken = false;
    return rc;
}

static int text_byte_fallback(decoder_stream *s, size_t i, const char *text, size_t len) {
    memory *m = &s->memory[i];
    if (m->inside)
        return on_text(s, i + 1, text, len);
    int rc = ssm_text_append(&m->hold, text, len);
    if (rc != 0 || m->hold.len <= 6)
        return rc;
    m->inside = true; // too long for a byte
    rc = end_run(s, i);
    if (rc == 0)
        rc = on_text(s, i + 1, m->hold.data, m->hold.len);
    m->hold.len = 0;
    return rc;
}

static int end_byte_fallback(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    if (m->inside) {
        m->inside = false;
        return on_end(s, i + 1);
    }
    const int byte = byte_token(m->hold.data, m->hold.len);
    int rc;
    if (byte >= 0) {
        rc = push_byte(s, i, byte);
    } else {
        rc = end_run(s, i);
        if (rc == 0)
            rc = pass_token(s, i, m->hold.data, m->hold.len);
    }
    m->hold.len = 0;
    return rc;
}

static int pass_marks(decoder_stream *s, size_t i, size_t n) {
    char mark[4];
    const size_t width = utf8_put(s->d->stages[i].mark, mark);
    int rc = 0;
    while (n-- > 0 && rc == 0)
        rc = on_text(s, i + 1, mark, width);
    return rc;
}

static int text_strip(decoder_stream *s, size_t i, const char *text, size_t len) {
    const stage *st = &s->d->stages[i];
    memory *m = &s->memory[i];
    int rc = 0;
    size_t at = 0; // what is before it has been passed on, dropped or counted as pending
    for (size_t k = 0, n; k < len && rc == 0; k += n) {
        n = utf8_width((unsigned char)text[k]);
        const bool is_mark = utf8_get(text + k) == st->mark;
        if (is_mark && !m->inside && m->taken < st->start) {
            m->taken++;
            at = k + n;
            continue;
        }
        m->inside = true;
        if (is_mark) {
            if (k > at)
                rc = on_text(s, i + 1, text + at, k - at);
            at = k + n;
            m->pending++;
            if (m->pending > st->stop && rc == 0) {
                rc = pass_marks(s, i, 1);
                m->pending--;
            }
        } else if (m->pending > 0) {
            rc = pass_marks(s, i, m->pending);
            m->pending = 0;
        }
    }
    return rc == 0 && at < len ? on_text(s, i + 1, text + at, len - at) : rc;
}

static int end_strip(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    m->taken = m->pending = 0;
    m->inside = false;
    return on_end(s, i + 1);
}

// Passes text on with every match replaced.
static int pass_replaced(decoder_stream *s, size_t i, const char *text, size_t len,
                         const char *content, size_t content_len, size_t *used) {
    cursor c = {0};
    size_t start, end, at = 0;
    int rc;
    while ((rc = pattern_next(s->d->stages[i].pattern, s->matcher, text, len, &c, &start, &end,
                              NULL)) > 0) {
        rc = start > at ? on_text(s, i + 1, text + at, start - at) : 0;
        if (rc == 0 && content_len > 0)
            rc = on_text(s, i + 1, content, content_len);
        if (rc != 0)
            return rc;
        at = end;
    }
    *used = at;
    return rc;
}

// Bytes at the end of text that may be the beginning of the string.
static size_t begun(const char *text, size_t len, const char *string, size_t string_len) {
    for (size_t n = string_len - 1 < len ? string_len - 1 : len; n > 0; n--) {
        if (memcmp(text + len - n, string, n) == 0)
            return n;
    }
    return 0;
}

static int text_replace(decoder_stream *s, size_t i, const char *text, size_t len) {
    const stage *st = &s->d->stages[i];
    memory *m = &s->memory[i];
    size_t string_len, at;
    const char *string = pattern_literal(st->pattern, &string_len);
    int rc = ssm_text_append(&m->hold, text, len);
    if (rc != 0 || !string || string_len > 64)
        return rc; // an expression, or a string too long for begun: at the token's end
    rc = pass_replaced(s, i, m->hold.data, m->hold.len, st->content.data, st->content.len, &at);
    if (rc != 0)
        return rc;
    const size_t keep = begun(m->hold.data + at, m->hold.len - at, string, string_len);
    if (m->hold.len - keep > at)
        rc = on_text(s, i + 1, m->hold.data + at, m->hold.len - keep - at);
    memmove(m->hold.data, m->hold.data + m->hold.len - keep, keep);
    m->hold.len = keep;
    return rc;
}

static int end_replace(decoder_stream *s, size_t i) {
    const stage *st = &s->d->stages[i];
    memory *m = &s->memory[i];
    size_t at = 0;
    int rc = 0;
    if (m->hold.len > 0)
        rc = pass_replaced(s, i, m->hold.data, m->hold.len, st->content.data, st->content.len, &at);
    if (rc == 0 && m->hold.len > at)
        rc = on_text(s, i + 1, m->hold.data + at, m->hold.len - at);
    m->hold.len = 0;
    return rc != 0 ? rc : on_end(s, i + 1);
}

static int text_metaspace(decoder_stream *s, size_t i, const char *text, size_t len) {
    const stage *st = &s->d->stages[i];
    const bool drops = st->drops_first && s->memory[i].tokens == 0;
    int rc = 0;
    size_t at = 0;
    for (size_t k = 0, n; k < len && rc == 0; k += n) {
        n = utf8_width((unsigned char)text[k]);
        if (utf8_get(text + k) != st->mark)
            continue;
        if (k > at)
            rc = on_text(s, i + 1, text + at, k - at);
        if (rc == 0 && !drops)
            rc = on_text(s, i + 1, " ", 1);
        at = k + n;
    }
    return rc == 0 && at < len ? on_text(s, i + 1, text + at, len - at) : rc;
}

// Passes the last token on, its suffix as a space or (at the end) as nothing.
static int pass_last(decoder_stream *s, size_t i, bool at_end) {
    memory *m = &s->memory[i];
    size_t at = 0;
    if (m->tokens == 0)
        return 0;
    int rc = 0;
    if (m->run.len > 0)
        rc = pass_replaced(s, i, m->run.data, m->run.len, " ", at_end ? 0 : 1, &at);
    return rc != 0 ? rc : pass_token(s, i, m->run.data + at, m->run.len - at);
}

static int end_bpe(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    const int rc = pass_last(s, i, false);
    m->run.len = 0;
    m->tokens++;
    const int rc2 = ssm_text_append(&m->run, m->hold.data, m->hold.len);
    m->hold.len = 0;
    return rc != 0 ? rc : rc2;
}

// Some more text of the token that stage i is at.
static int on_text(decoder_stream *s, size_t i, const char *text, size_t len) {
    if (i == s->d->n)
        return ssm_text_append(s->out, text, len);
    memory *m = &s->memory[i];
    switch (s->d->stages[i].kind) {
    case STAGE_FUSE:
        return on_text(s, i + 1, text, len);
    case STAGE_STRIP:
        return text_strip(s, i, text, len);
    case STAGE_REPLACE:
        return text_replace(s, i, text, len);
    case STAGE_METASPACE:
        return text_metaspace(s, i, text, len);
    case STAGE_BYTE_FALLBACK:
        return text_byte_fallback(s, i, text, len);
    case STAGE_JOIN:
    case STAGE_BYTE_LEVEL:
    case STAGE_BPE:
        return ssm_text_append(&m->hold, text, len);
    }
    return SSM_EINTERNAL;
}

// The token that stage i is at is complete.
static int on_end(decoder_stream *s, size_t i) {
    if (i == s->d->n)
        return 0;
    memory *m = &s->memory[i];
    int rc;
    switch (s->d->stages[i].kind) {
    case STAGE_JOIN:
        rc = m->tokens++ > 0 ? on_text(s, i + 1, " ", 1) : 0;
        if (rc == 0)
            rc = pass_token(s, i, m->hold.data, m->hold.len);
        m->hold.len = 0;
        return rc;
    case STAGE_BYTE_LEVEL:
        return end_byte_level(s, i);
    case STAGE_BYTE_FALLBACK:
        return end_byte_fallback(s, i);
    case STAGE_FUSE:
        return 0;
    case STAGE_STRIP:
        return end_strip(s, i);
    case STAGE_REPLACE:
        return end_replace(s, i);
    case STAGE_METASPACE:
        m->tokens++;
        return on_end(s, i + 1);
    case STAGE_BPE:
        return end_bpe(s, i);
    }
    return SSM_EINTERNAL;
}

// There are no more tokens.
static int on_finish(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    switch (s->d->stages[i].kind) {
    case STAGE_BYTE_LEVEL: {
        const int rc = m->tail_len > 0 ? on_text(s, i + 1, REPLACEMENT, 3) : 0;
        m->tail_len = 0;
        return rc != 0 ? rc : on_end(s, i + 1);
    }
    case STAGE_BYTE_FALLBACK:
        return end_run(s, i);
    case STAGE_FUSE:
        return on_end(s, i + 1);
    case STAGE_BPE:
        return pass_last(s, i, true);
    default:
        return 0;
    }
}

int decoder_push(decoder_stream *s, const char *token, size_t len, ssm_text *out) {
    s->out = out;
    const int rc = len > 0 ? on_text(s, 0, token, len) : 0;
    return rc != 0 ? rc : on_end(s, 0);
}

int decoder_finish(decoder_stream *s, ssm_text *out) {
    int rc = 0;
    s->out = out;
    for (size_t i = 0; i < s->d->n && rc == 0; i++)
        rc = on_finish(s, i);
    return rc;
}

// ---- one token by itself ------------------------------------------------------------------------

// Replaces in *text, with *spare for room.
static int replace_in(const pattern *p, matcher *m, const char *content, size_t content_len,
                      ssm_text *text, ssm_text *spare) {
    cursor c = {0};
    size_t start, end, at = 0;
    int rc;
    spare->len = 0;
    while ((rc = pattern_next(p, m, text->data, text->len, &c, &start, &end, NULL)) > 0) {
        rc = ssm_text_append(spare, text->data + at, start - at);
        if (rc == 0)
            rc = ssm_text_append(spare, content, content_len);
        if (rc != 0)
            return rc;
        at = end;
    }
    if (rc == 0)
        rc = ssm_text_append(spare, text->data + at, text->len - at);
    const ssm_text swap = *text;
    *text = *spare;
    *spare = swap;
    return rc;
}

static int metaspace_in(int32_t mark, ssm_text *text, ssm_text *spare) {
    int rc = ssm_text_append(spare, "", 0);
    spare->len = 0;
    for (size_t k = 0, n; k < text->len && rc == 0; k += n) {
        n = utf8_width((unsigned char)text->data[k]);
        const bool is_space = utf8_get(text->data + k) == mark;
        rc = ssm_text_append(spare, is_space ? " " : text->data + k, is_space ? 1 : n);
    }
    const ssm_text swap = *text;
    *text = *spare;
    *spare = swap;
    return rc;
}

// One stage; *done: bytes have come out, which no further stage reads as text.
static int stage_bytes(const stage *st, matcher *m, ssm_text *text, ssm_text *spare, bool *done) {
    int rc = 0;
    if (st->kind == STAGE_REPLACE)
        return replace_in(st->pattern, m, st->content.data, st->content.len, text, spare);
    if (st->kind == STAGE_BPE)
        return replace_in(st->pattern, m, " ", 1, text, spare);
    if (st->kind == STAGE_METASPACE)
        return metaspace_in(st->mark, text, spare);
    if (st->kind == STAGE_BYTE_FALLBACK) {
        const int byte = byte_token(text->data, text->len);
        if (byte >= 0) {
            text->data[0] = (char)byte;
            text->len = 1;
            *done = true;
        }
    } else if (st->kind == STAGE_BYTE_LEVEL) {
        spare->len = 0;
        if (letters_to_bytes(text->data, text->len, spare, &rc) && rc == 0) {
            rc = ssm_text_append(spare, "", 0);
            const ssm_text swap = *text;
            *text = *spare;
            *spare = swap;
        }
        *done = true;
    }
    return rc;
}

int decoder_bytes(const decoder *d, const char *token, size_t len, ssm_text *out) {
    ssm_text text = {0}, spare = {0};
    matcher *m = NULL;
    bool done = false;
    int rc = ssm_text_append(&text, token, len);
    if (rc == 0 && d->has_regex)
        rc = matcher_create(&m);
    for (size_t i = 0; i < d->n && rc == 0 && !done; i++)
        rc = stage_bytes(&d->stages[i], m, &text, &spare, &done);
    if (rc == 0)
        rc = ssm_text_append(out, text.data, text.len);
    matcher_free(m);
    ssm_text_dispose(&text);
    ssm_text_dispose(&spare);
    return rc;
}
