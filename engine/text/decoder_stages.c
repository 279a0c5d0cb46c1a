// SPDX-License-Identifier: Apache-2.0
#include "engine/text/decoder_stages.h"

#include <string.h>

#include "engine/text/unicode.h"

bool stage_letters_to_bytes(const char *token, size_t len, ssm_text *out, int *rc) {
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
            rc = decoder_on_text(s, i + 1, bytes->data + at, good - at);
        if (rc == 0)
            rc = decoder_on_text(s, i + 1, REPLACEMENT, 3);
        good += n;
        at = good;
    }
    if (rc == 0 && good > at)
        rc = decoder_on_text(s, i + 1, bytes->data + at, good - at);
    m->tail_len = bytes->len - good;
    memcpy(m->tail, bytes->data + good, m->tail_len);
    return rc;
}

int stage_end_byte_level(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    m->run.len = 0;
    int rc = ssm_text_append(&m->run, m->tail, m->tail_len);
    if (rc == 0 && !stage_letters_to_bytes(m->hold.data, m->hold.len, &m->run, &rc))
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
int stage_byte_token(const char *t, size_t len) {
    if (len != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>')
        return -1;
    const int high = t[3] == '+' ? 0 : hex_digit(t[3]), low = hex_digit(t[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
}

int stage_pass_token(decoder_stream *s, size_t i, const char *text, size_t len) {
    const int rc = len > 0 ? decoder_on_text(s, i + 1, text, len) : 0;
    return rc != 0 ? rc : decoder_on_end(s, i + 1);
}

// U+FFFD for each byte of the run.
static int pass_broken(decoder_stream *s, size_t i) {
    int rc = 0;
    for (size_t k = 0; k < s->memory[i].run.len && rc == 0; k++)
        rc = stage_pass_token(s, i, REPLACEMENT, 3);
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

int stage_end_run(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    int rc = 0;
    if (m->run.len > 0) // not known to be bad, but it may be unfinished
        rc = m->checked == m->run.len ? stage_pass_token(s, i, m->run.data, m->run.len)
                                      : pass_broken(s, i);
    m->run.len = m->checked = 0;
    m->is_broken = false;
    return rc;
}

int stage_text_byte_fallback(decoder_stream *s, size_t i, const char *text, size_t len) {
    memory *m = &s->memory[i];
    if (m->inside)
        return decoder_on_text(s, i + 1, text, len);
    int rc = ssm_text_append(&m->hold, text, len);
    if (rc != 0 || m->hold.len <= 6)
        return rc;
    m->inside = true; // too long for a byte
    rc = stage_end_run(s, i);
    if (rc == 0)
        rc = decoder_on_text(s, i + 1, m->hold.data, m->hold.len);
    m->hold.len = 0;
    return rc;
}

int stage_end_byte_fallback(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    if (m->inside) {
        m->inside = false;
        return decoder_on_end(s, i + 1);
    }
    const int byte = stage_byte_token(m->hold.data, m->hold.len);
    int rc;
    if (byte >= 0) {
        rc = push_byte(s, i, byte);
    } else {
        rc = stage_end_run(s, i);
        if (rc == 0)
            rc = stage_pass_token(s, i, m->hold.data, m->hold.len);
    }
    m->hold.len = 0;
    return rc;
}

static int pass_marks(decoder_stream *s, size_t i, size_t n) {
    char mark[4];
    const size_t width = utf8_put(s->d->stages[i].mark, mark);
    int rc = 0;
    while (n-- > 0 && rc == 0)
        rc = decoder_on_text(s, i + 1, mark, width);
    return rc;
}

int stage_text_strip(decoder_stream *s, size_t i, const char *text, size_t len) {
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
                rc = decoder_on_text(s, i + 1, text + at, k - at);
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
    return rc == 0 && at < len ? decoder_on_text(s, i + 1, text + at, len - at) : rc;
}

int stage_end_strip(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    m->taken = m->pending = 0;
    m->inside = false;
    return decoder_on_end(s, i + 1);
}

// Passes text on with every match replaced.
static int pass_replaced(decoder_stream *s, size_t i, const char *text, size_t len,
                         const char *content, size_t content_len, size_t *used) {
    cursor c = {0};
    size_t start, end, at = 0;
    int rc;
    while ((rc = pattern_next(s->d->stages[i].pattern, s->matcher, text, len, &c, &start, &end,
                              NULL)) > 0) {
        rc = start > at ? decoder_on_text(s, i + 1, text + at, start - at) : 0;
        if (rc == 0 && content_len > 0)
            rc = decoder_on_text(s, i + 1, content, content_len);
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

int stage_text_replace(decoder_stream *s, size_t i, const char *text, size_t len) {
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
        rc = decoder_on_text(s, i + 1, m->hold.data + at, m->hold.len - keep - at);
    memmove(m->hold.data, m->hold.data + m->hold.len - keep, keep);
    m->hold.len = keep;
    return rc;
}

int stage_end_replace(decoder_stream *s, size_t i) {
    const stage *st = &s->d->stages[i];
    memory *m = &s->memory[i];
    size_t at = 0;
    int rc = 0;
    if (m->hold.len > 0)
        rc = pass_replaced(s, i, m->hold.data, m->hold.len, st->content.data, st->content.len, &at);
    if (rc == 0 && m->hold.len > at)
        rc = decoder_on_text(s, i + 1, m->hold.data + at, m->hold.len - at);
    m->hold.len = 0;
    return rc != 0 ? rc : decoder_on_end(s, i + 1);
}

int stage_text_metaspace(decoder_stream *s, size_t i, const char *text, size_t len) {
    const stage *st = &s->d->stages[i];
    const bool drops = st->drops_first && s->memory[i].tokens == 0;
    int rc = 0;
    size_t at = 0;
    for (size_t k = 0, n; k < len && rc == 0; k += n) {
        n = utf8_width((unsigned char)text[k]);
        if (utf8_get(text + k) != st->mark)
            continue;
        if (k > at)
            rc = decoder_on_text(s, i + 1, text + at, k - at);
        if (rc == 0 && !drops)
            rc = decoder_on_text(s, i + 1, " ", 1);
        at = k + n;
    }
    return rc == 0 && at < len ? decoder_on_text(s, i + 1, text + at, len - at) : rc;
}

// Passes the last token on, its suffix as a space or (at the end) as nothing.
int stage_pass_last(decoder_stream *s, size_t i, bool at_end) {
    memory *m = &s->memory[i];
    size_t at = 0;
    if (m->tokens == 0)
        return 0;
    int rc = 0;
    if (m->run.len > 0)
        rc = pass_replaced(s, i, m->run.data, m->run.len, " ", at_end ? 0 : 1, &at);
    return rc != 0 ? rc : stage_pass_token(s, i, m->run.data + at, m->run.len - at);
}

int stage_end_bpe(decoder_stream *s, size_t i) {
    memory *m = &s->memory[i];
    const int rc = stage_pass_last(s, i, false);
    m->run.len = 0;
    m->tokens++;
    const int rc2 = ssm_text_append(&m->run, m->hold.data, m->hold.len);
    m->hold.len = 0;
    return rc != 0 ? rc : rc2;
}
