// SPDX-License-Identifier: Apache-2.0
// Ids to text: a whole list at once, or one at a time. Both are the decoder's stream.
#include "engine/text/tokenizer.h"

#include <stdlib.h>

struct ssm_detokenizer {
    const ssm_tokenizer *tokenizer;
    decoder_stream *stream;
    unsigned flags;
};

int ssm_detokenizer_create(const ssm_tokenizer *tokenizer, unsigned flags, ssm_detokenizer **out) {
    ssm_detokenizer *d = calloc(1, sizeof *d);
    if (!d)
        return SSM_ENOMEM;
    d->tokenizer = tokenizer;
    d->flags = flags;
    const int rc = decoder_stream_create(tokenizer->decoder, &d->stream);
    if (rc != 0) {
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

void ssm_detokenizer_free(ssm_detokenizer *d) {
    if (!d)
        return;
    decoder_stream_free(d->stream);
    free(d);
}

static int push(const ssm_tokenizer *t, decoder_stream *s, unsigned flags, int32_t id,
                ssm_text *out, ssm_error *err) {
    if (id < 0 || id >= t->n_ids)
        return ssm_error_set(err, SSM_EINVAL, NULL,
                             "token id %d is out of range: the tokenizer has %d", id, t->n_ids);
    if ((flags & SSM_SKIP_SPECIAL) && t->entries[id].special)
        return 0;
    size_t len;
    const char *piece = ssm_tokenizer_piece(t, id, &len);
    return piece ? decoder_push(s, piece, len, out) : 0; // a hole in the vocabulary has no text
}

int ssm_detokenizer_push(ssm_detokenizer *d, int32_t id, ssm_text *out, ssm_error *err) {
    return push(d->tokenizer, d->stream, d->flags, id, out, err);
}

int ssm_detokenizer_finish(ssm_detokenizer *d, ssm_text *out, ssm_error *err) {
    (void)err;
    return decoder_finish(d->stream, out);
}

int ssm_tokenizer_decode(const ssm_tokenizer *t, const int32_t *ids, size_t n, unsigned flags,
                         ssm_text *out, ssm_error *err) {
    decoder_stream *s = NULL;
    const size_t before = out->len;
    int rc = ssm_text_append(out, "", 0);
    if (rc == 0)
        rc = decoder_stream_create(t->decoder, &s);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = push(t, s, flags, ids[i], out, err);
    if (rc == 0)
        rc = decoder_finish(s, out);
    decoder_stream_free(s);
    if (rc != 0)
        out->len = before;
    return rc;
}
