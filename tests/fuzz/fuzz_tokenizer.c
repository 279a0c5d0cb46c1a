// SPDX-License-Identifier: Apache-2.0
// A tokenizer from foreign bytes, then foreign text: tokenizer.json, a NUL byte, the text. Whatever
// opens must encode and decode without a crash, and its stream must give what decode gives.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/tokenizer.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
    if (!condition)
        abort();
}

static void check_stream(const ssm_tokenizer *t, const ssm_ids *ids, unsigned flags) {
    ssm_text whole = {0}, streamed = {0};
    ssm_detokenizer *d;
    const int rc = ssm_tokenizer_decode(t, ids->data, ids->len, flags, &whole, NULL);
    require(ssm_detokenizer_create(t, flags, &d) == 0);
    for (size_t i = 0; rc == 0 && i < ids->len; i++)
        require(ssm_detokenizer_push(d, ids->data[i], &streamed, NULL) == 0);
    if (rc == 0) {
        require(ssm_detokenizer_finish(d, &streamed, NULL) == 0);
        require(whole.len == streamed.len);
        require(whole.len == 0 || memcmp(whole.data, streamed.data, whole.len) == 0);
    }
    ssm_detokenizer_free(d);
    ssm_text_dispose(&whole);
    ssm_text_dispose(&streamed);
}

// Ids that no text gives: every value once or the bytes of the text taken as ids.
static void check_ids(const ssm_tokenizer *t, const uint8_t *text, size_t len) {
    const int32_t n = ssm_tokenizer_vocab_size(t);
    ssm_ids ids = {0};
    for (size_t i = 0; i < len && n > 0; i++) {
        const int32_t id = text[i] % n;
        size_t piece_len;
        const char *piece = ssm_tokenizer_piece(t, id, &piece_len);
        require(ssm_ids_append(&ids, &id, 1) == 0);
        if (piece)
            require(ssm_tokenizer_find(t, piece, piece_len) >= 0);
        ssm_tokenizer_bytes(t, id, &piece_len);
    }
    check_stream(t, &ids, 0);
    ssm_ids_dispose(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *nul = memchr(data, 0, size);
    const size_t json_len = nul ? (size_t)(nul - data) : size;
    const uint8_t *text = nul ? nul + 1 : data + size;
    const size_t text_len = (size_t)(data + size - text);
    ssm_tokenizer *t;
    ssm_error err = {0};
    if (ssm_tokenizer_create((const char *)data, json_len, &t, &err) != 0) {
        require(err.code < 0);
        return 0;
    }
    ssm_ids ids = {0};
    if (ssm_tokenizer_encode(t, (const char *)text, text_len, SSM_ADD_SPECIAL, &ids, &err) == 0) {
        for (size_t i = 0; i < ids.len; i++)
            require(ids.data[i] >= 0 && ids.data[i] < ssm_tokenizer_vocab_size(t));
        check_stream(t, &ids, 0);
        check_stream(t, &ids, SSM_SKIP_SPECIAL);
    }
    check_ids(t, text, text_len);
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(t);
    return 0;
}
