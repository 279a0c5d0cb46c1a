// SPDX-License-Identifier: Apache-2.0
#include "job.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"

// A heap copy of n elements; *out stays NULL for n = 0.
static bool copy_array(void *out, const void *data, size_t n, size_t size) {
    void **slot = out;
    *slot = NULL;
    if (n == 0)
        return true;
    if (!(*slot = malloc(n * size)))
        return false;
    memcpy(*slot, data, n * size);
    return true;
}

static bool copy_sampling(ssm_sampling *to, const ssm_sampling *from) {
    *to = *from;
    const int32_t n_words = from->n_bad > 0 ? from->bad_ends[from->n_bad - 1] : 0;
    const bool ok = copy_array(&to->bias, from->bias, (size_t)from->n_bias, sizeof *from->bias) &
                    copy_array(&to->allowed, from->allowed, (size_t)from->n_allowed, 4) &
                    copy_array(&to->bad_words, from->bad_words, (size_t)n_words, 4) &
                    copy_array(&to->bad_ends, from->bad_ends, (size_t)from->n_bad, 4);
    return ok;
}

static bool copy_stops(job *j, const ssm_request *request, const int32_t *eos, int32_t n_eos) {
    const size_t n = request->n_stop_ids + (request->ignore_eos ? 0 : (size_t)n_eos);
    if (n == 0)
        return true;
    if (!(j->stops = malloc(n * sizeof *j->stops)))
        return false;
    if (request->n_stop_ids > 0)
        memcpy(j->stops, request->stop_ids, request->n_stop_ids * sizeof *j->stops);
    if (!request->ignore_eos && n_eos > 0)
        memcpy(j->stops + request->n_stop_ids, eos, (size_t)n_eos * sizeof *j->stops);
    j->n_stops = (int32_t)n;
    return true;
}

static bool create_histories(job *j) {
    if (!job_needs_history(j))
        return true;
    for (int32_t i = 0; i < j->n_choices; i++) {
        choice *c = &j->choices[i];
        if (!(c->history = history_create(&j->sampling, j->prompt, j->n_prompt)))
            return false;
    }
    return true;
}

job *job_create(const ssm_request *request, const int32_t *eos, int32_t n_eos) {
    job *j = calloc(1, sizeof *j + (size_t)request->n * sizeof j->choices[0]);
    if (!j)
        return NULL;
    j->user = request->user;
    j->port = request->port;
    j->n_prompt = request->n_prompt;
    j->max_tokens = request->max_tokens;
    j->min_tokens = request->min_tokens;
    j->seed = request->seed;
    j->logprobs = request->logprobs;
    j->prompt_logprobs = request->prompt_logprobs;
    j->client_key = request->client;
    j->priority = request->priority;
    j->uses_cache = request->cache_prompt && !request->prompt_logprobs && request->n_prompt > 0;
    memcpy(j->tenant, request->cache_salt, sizeof j->tenant);
    if (request->session)
        strcpy(j->session_name, request->session); // checked
    memcpy(j->owner, request->session_owner, sizeof j->owner);
    j->is_whole = request->session_whole;
    j->waits_not = request->session_no_wait;
    j->holds = request->session && request->session_hold;
    j->is_pinned = request->session && request->session_at;
    if (j->is_pinned)
        j->at = *request->session_at;
    j->n_choices = j->n_open = request->n;
    for (int32_t i = 0; i < j->n_choices; i++)
        j->choices[i] = (choice){.job = j, .index = i, .slot = -1, .last_token = -1, .cut = -1};
    if (!copy_sampling(&j->sampling, request->sampling) ||
        !copy_array(&j->prompt, request->prompt, request->n_prompt, sizeof *j->prompt) ||
        !copy_stops(j, request, eos, n_eos) || !create_histories(j)) {
        job_free(j);
        return NULL;
    }
    return j;
}

void job_free(job *j) {
    if (!j)
        return;
    assert(j->refs == 0);
    assert(!j->hit && !j->session && !j->kept && !j->last);
    for (int32_t i = 0; i < j->n_choices; i++) {
        history_free(j->choices[i].history);
        free(j->choices[i].tokens);
    }
    free((void *)j->sampling.bias);
    free((void *)j->sampling.allowed);
    free((void *)j->sampling.bad_words);
    free((void *)j->sampling.bad_ends);
    free(j->prompt);
    free(j->stops);
    free(j);
}

bool job_is_stop(const job *j, int32_t id) {
    for (int32_t i = 0; i < j->n_stops; i++) {
        if (j->stops[i] == id)
            return true;
    }
    return false;
}

bool job_needs_history(const job *j) {
    const ssm_sampling *s = &j->sampling;
    return s->presence_penalty != 0 || s->frequency_penalty != 0 || s->repetition_penalty != 1 ||
           s->n_bad > 0;
}

bool job_has_end(const job *j) {
    return j->hit && j->hit->position == j->base + j->n_prompt;
}

bool choice_remember(choice *c, int32_t id) {
    if (c->generated == c->cap_tokens) {
        const int64_t cap = c->cap_tokens ? 2 * c->cap_tokens : 64;
        int32_t *tokens = realloc(c->tokens, (size_t)cap * sizeof *tokens);
        if (!tokens)
            return false;
        c->tokens = tokens;
        c->cap_tokens = cap;
    }
    c->tokens[c->generated] = id;
    return true;
}

choice *job_pending_choice(job *j) {
    for (int32_t i = 0; i < j->n_choices; i++) {
        if (j->choices[i].state == CHOICE_PENDING)
            return &j->choices[i];
    }
    return NULL;
}
