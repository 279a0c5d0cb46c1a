// SPDX-License-Identifier: Apache-2.0
// What a request must fulfil before it may become a job. Consumers check their users' input
// themselves, with their own words; this is the engine's own guard, so that no caller can make a
// kernel read outside its arrays.
#include "job.h"

#include <math.h>

static int bad(ssm_error *err, const char *field, const char *what) {
    return ssm_error_set(err, SSM_EINVAL, field, "%s %s", field, what);
}

static bool is_id(int32_t id, const ssm_model_info *info) {
    return id >= 0 && id < info->vocab_size;
}

static bool are_ids(const int32_t *ids, size_t n, const ssm_model_info *info) {
    for (size_t i = 0; i < n; i++) {
        if (!is_id(ids[i], info))
            return false;
    }
    return true;
}

static int check_bad_words(const ssm_sampling *s, const ssm_model_info *info, ssm_error *err) {
    if (s->n_bad < 0 || (s->n_bad > 0 && (!s->bad_words || !s->bad_ends)))
        return bad(err, "bad_words", "must be a list");
    int32_t end = 0;
    for (int32_t i = 0; i < s->n_bad; i++) {
        if (s->bad_ends[i] <= end)
            return bad(err, "bad_words", "must not be empty");
        end = s->bad_ends[i];
    }
    return are_ids(s->bad_words, (size_t)end, info) ? 0
                                                    : bad(err, "bad_words", "hold an unknown id");
}

static int check_sampling(const ssm_sampling *s, const ssm_model_info *info, ssm_error *err) {
    if (!(s->temperature >= 0 && s->temperature <= 1000))
        return bad(err, "temperature", "must be a number from 0 up");
    if (!(s->top_p >= 0 && s->top_p <= 1))
        return bad(err, "top_p", "must be from 0 to 1");
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return bad(err, "min_p", "must be from 0 to 1");
    if (!(s->typical_p >= 0 && s->typical_p <= 1))
        return bad(err, "typical_p", "must be from 0 to 1");
    if (!isfinite(s->presence_penalty))
        return bad(err, "presence_penalty", "must be finite");
    if (!isfinite(s->frequency_penalty))
        return bad(err, "frequency_penalty", "must be finite");
    if (!(s->repetition_penalty > 0 && isfinite(s->repetition_penalty)))
        return bad(err, "repetition_penalty", "must be above 0");
    if (s->n_bias < 0 || s->n_allowed < 0)
        return bad(err, "logit_bias", "must be a list");
    for (int32_t i = 0; i < s->n_bias; i++) {
        if (!is_id(s->bias[i].id, info) || !isfinite(s->bias[i].bias))
            return bad(err, "logit_bias", "holds an unknown id or a bias that is not finite");
    }
    if (!are_ids(s->allowed, (size_t)s->n_allowed, info))
        return bad(err, "allowed_token_ids", "hold an unknown id");
    return check_bad_words(s, info, err);
}

int request_check(const ssm_request *r, const ssm_model_info *info, ssm_error *err) {
    if (!r->port || !r->sampling)
        return bad(err, r->port ? "sampling" : "port", "is missing");
    if (r->n < 1 || r->n > 65536)
        return bad(err, "n", "must be from 1 to 65536");
    if (r->max_tokens < 0)
        return bad(err, "max_tokens", "must not be negative");
    if (r->min_tokens < 0)
        return bad(err, "min_tokens", "must not be negative");
    if (r->logprobs < -1 || r->logprobs > SSM_MAX_LOGPROBS)
        return bad(err, "logprobs", "must be from 0 to 20");
    if (r->n_prompt > 0 && !r->prompt)
        return bad(err, "prompt", "is missing");
    if (!are_ids(r->prompt, r->n_prompt, info))
        return bad(err, "prompt", "holds an unknown id");
    if (r->session && !session_name_is_valid(r->session))
        return bad(err, "session", "must be 1 to 128 characters of A-Z a-z 0-9 . _ -");
    if (r->session && (r->n != 1 || r->prompt_logprobs))
        return bad(err, "session", "goes with one choice and without the prompt's logprobs");
    if (r->n_stop_ids > 65536)
        return bad(err, "stop_token_ids", "are too many");
    return check_sampling(r->sampling, info, err);
}
