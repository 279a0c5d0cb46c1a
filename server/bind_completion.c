// SPDX-License-Identifier: Apache-2.0
// A completion against its model: ids in range, texts into ids.
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

static int check_ids(const char *key, const int32_t *ids, size_t n, const served_model *model,
                     ssm_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= model->info->vocab_size) {
            return ssm_error_set(err, SSM_EINVAL, key,
                                 "%s: token id %d is out of range, the model has %d", key, ids[i],
                                 model->info->vocab_size);
        }
    }
    return 0;
}

// An id in digits, or -1.
static int64_t id_of_key(const completion_bias *b) {
    if (b->key_len == 0 || b->key_len > 10 || strspn(b->key, "0123456789") != b->key_len) {
        return -1;
    }
    return strtoll(b->key, NULL, 10);
}

static int bias_ids(const completion_bias *b, const served_model *model, ssm_ids *out,
                    ssm_error *err) {
    const int64_t id = id_of_key(b);
    if (id < 0) {
        return ssm_tokenizer_encode(model->tokenizer, b->key, b->key_len, 0, out, err);
    }
    if (id >= model->info->vocab_size) {
        return ssm_error_set(err, SSM_EINVAL, "logit_bias",
                             "logit_bias: token id %lld is out of range, the model has %d",
                             (long long)id, model->info->vocab_size);
    }
    const int32_t narrow = (int32_t)id;
    return ssm_ids_append(out, &narrow, 1) < 0 ? no_memory(err) : 0;
}

static int bind_bias(completion *c, const served_model *model, ssm_error *err) {
    ssm_ids ids = {0};
    size_t *ends = calloc(c->n_biases + 1, sizeof *ends);
    ssm_logit_bias *list = NULL;
    int rc = ends ? 0 : no_memory(err);
    for (size_t i = 0; rc == 0 && i < c->n_biases; i++) {
        rc = bias_ids(&c->biases[i], model, &ids, err);
        ends[i] = ids.len;
    }
    if (rc < 0) {
        goto done;
    }
    list = arena_alloc(&c->arena, ids.len, sizeof *list);
    if (!list) {
        rc = no_memory(err);
        goto done;
    }
    for (size_t i = 0, k = 0; i < ids.len; i++) {
        while (i >= ends[k]) {
            k++;
        }
        list[i] = (ssm_logit_bias){ids.data[i], c->biases[k].bias};
    }
    c->sampling.bias = list;
    c->sampling.n_bias = (int32_t)ids.len;
done:
    free(ends);
    ssm_ids_dispose(&ids);
    return rc;
}

// Every word as it begins a text and as it follows a space: those are different tokens.
static int bind_bad_words(completion *c, const served_model *model, ssm_error *err) {
    ssm_ids ids = {0};
    buf word = {0};
    int32_t *ends = arena_alloc(&c->arena, 2 * c->n_bad_words, sizeof *ends);
    int32_t n = 0;
    int rc = ends ? 0 : no_memory(err);
    for (size_t i = 0; rc == 0 && i < 2 * c->n_bad_words; i++) {
        const ssm_string *text = &c->bad_words[i / 2];
        const size_t before = ids.len;
        word.len = 0;
        if (i % 2 == 1) {
            buf_add(&word, " ", 1);
        }
        buf_add(&word, text->data, text->len);
        rc = word.failed
                 ? no_memory(err)
                 : ssm_tokenizer_encode(model->tokenizer, word.data, word.len, 0, &ids, err);
        if (rc == 0 && ids.len > before) {
            ends[n++] = (int32_t)ids.len;
        }
    }
    int32_t *list = rc == 0 ? arena_alloc(&c->arena, ids.len, sizeof *list) : NULL;
    if (rc == 0 && !list) {
        rc = no_memory(err);
    }
    if (rc == 0) {
        if (ids.len > 0) {
            memcpy(list, ids.data, ids.len * sizeof *list);
        }
        c->sampling.bad_words = list;
        c->sampling.bad_ends = ends;
        c->sampling.n_bad = n;
    }
    buf_dispose(&word);
    ssm_ids_dispose(&ids);
    return rc;
}

int completion_bind(completion *c, const served_model *model, ssm_error *err) {
    int rc = check_ids("stop_token_ids", c->stop_ids, c->n_stop_ids, model, err);
    if (rc == 0) {
        rc = check_ids("allowed_token_ids", c->allowed, c->n_allowed, model, err);
    }
    if (rc == 0) {
        rc = bind_bias(c, model, err);
    }
    if (rc == 0) {
        rc = bind_bad_words(c, model, err);
    }
    c->sampling.allowed = c->allowed;
    c->sampling.n_allowed = (int32_t)c->n_allowed;
    return rc;
}

int completion_check_prompt(completion *c, const served_model *model,
                            const completion_limits *limits, completion_prompt *prompt,
                            ssm_error *err) {
    if (prompt->n_ids == 0 && !prompt->goes_on && model->info->bos_id >= 0) {
        int32_t *bos = arena_alloc(&c->arena, 1, sizeof *bos);
        if (!bos) {
            return no_memory(err);
        }
        *bos = model->info->bos_id;
        prompt->ids = bos;
        prompt->n_ids = 1;
    }
    if (limits->max_prompt_tokens > 0 && prompt->n_ids > limits->max_prompt_tokens) {
        // The caller turns this code into context_length_exceeded.
        return ssm_error_set(err, SSM_EUNSUPPORTED, "prompt",
                             "the prompt has %zu tokens, at most %zu are taken", prompt->n_ids,
                             limits->max_prompt_tokens);
    }
    return check_ids("prompt", prompt->ids, prompt->n_ids, model, err);
}
