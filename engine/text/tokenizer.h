// SPDX-License-Identifier: Apache-2.0
// What a ssm_tokenizer is made of.
#ifndef SSM_ENGINE_TEXT_TOKENIZER_H
#define SSM_ENGINE_TEXT_TOKENIZER_H

#include <ssm/tokenizer.h>

#include "engine/text/added.h"
#include "engine/text/bpe.h"
#include "engine/text/decoder.h"
#include "engine/text/normalizer.h"
#include "engine/text/postprocessor.h"
#include "engine/text/pretokenizer.h"

typedef struct token_bytes {
    size_t start;
    uint32_t len;
    bool present, special;
} token_bytes;

struct ssm_tokenizer {
    normalizer *normalizer;
    pretokenizer *pretokenizer;
    bpe *model;
    added added;
    postprocessor post;
    decoder *decoder;
    int32_t n_ids;
    token_bytes *entries; // [n_ids] what each token stands for, into bytes
    ssm_text bytes;
};

#endif
