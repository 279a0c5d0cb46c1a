// SPDX-License-Identifier: Apache-2.0
// One token by itself: the bytes that it stands for in mid-text. The stages that depend on a
// token's neighbours (Fuse, Strip) are left out, and a byte may be half a character.
#include "engine/text/decoder_stages.h"

#include "engine/text/unicode.h"

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
        const int byte = stage_byte_token(text->data, text->len);
        if (byte >= 0) {
            text->data[0] = (char)byte;
            text->len = 1;
            *done = true;
        }
    } else if (st->kind == STAGE_BYTE_LEVEL) {
        spare->len = 0;
        if (stage_letters_to_bytes(text->data, text->len, spare, &rc) && rc == 0) {
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
