// SPDX-License-Identifier: Apache-2.0
// Bodies of POST /v1/completions. Besides not crashing: what is accepted is JSON to jansson too and
// lies in the ranges that the API gives, a refusal says why, and all memory asked for is given
// back.
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "completion.h"
#include "log.h"

static bool take(void *ctx, size_t bytes) {
    *(size_t *)ctx += bytes;
    return bytes < (size_t)256 << 20;
}

static void give(void *ctx, size_t bytes) {
    assert(*(size_t *)ctx >= bytes);
    *(size_t *)ctx -= bytes;
}

static void check_accepted(const completion *c) {
    assert(c->n_prompts >= 1 && c->prompts);
    for (size_t i = 0; i < c->n_prompts; i++) {
        const completion_prompt *p = &c->prompts[i];
        assert(p->text ? utf8_is_valid(p->text, p->text_len) : (p->ids || p->n_ids == 0));
    }
    assert(c->n >= 1 && c->n <= 128 && c->best_of >= c->n && c->best_of <= 128);
    assert(c->max_tokens >= 0 && c->min_tokens >= 0);
    assert(c->logprobs >= -1 && c->logprobs <= SSM_MAX_LOGPROBS);
    assert(c->sampling.temperature >= 0 && c->sampling.temperature <= 2);
    assert(c->sampling.top_p >= 0 && c->sampling.top_p <= 1);
    assert(c->sampling.min_p >= 0 && c->sampling.min_p <= 1);
    assert(c->sampling.repetition_penalty > 0);
    for (size_t i = 0; i < c->n_stops; i++) {
        assert(c->stops[i].len > 0 && utf8_is_valid(c->stops[i].data, c->stops[i].len));
    }
    for (size_t i = 0; i < c->n_biases; i++) {
        assert(c->biases[i].bias >= -100 && c->biases[i].bias <= 100);
    }
}

// Whether the body as it came is an object to jansson; integers of any size, which the parser
// takes for one key and refuses for others.
static bool is_object(const uint8_t *data, size_t size) {
    json_t *root =
        json_loadb((const char *)data, size, JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, NULL);
    const bool yes = json_is_object(root);
    json_decref(root);
    return yes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t held = 0;
    const completion_limits limits = {.max_prompts = 64};
    const completion_memory memory = {take, give, &held, 0};
    completion c;
    buf body = {0};
    ssm_error err = {0};
    log_set_level("error");
    buf_add(&body, (const char *)data, size);
    if (completion_parse(&c, &limits, &memory, &body, &err) == 0) {
        check_accepted(&c);
        assert(is_object(data, size));
        completion_dispose(&c);
    } else {
        assert(err.code < 0 && err.message[0] != '\0');
    }
    buf_dispose(&body);
    return 0;
}
