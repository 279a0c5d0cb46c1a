// SPDX-License-Identifier: Apache-2.0
#include "history.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct history {
    const ssm_sampling *sampling;
    ssm_token_count *counts; // [n], in order of first appearance
    int32_t *index;          // [cap] open addressing: position in counts + 1, 0 = empty
    int32_t n, cap;          // cap: a power of two, at least twice n
    int32_t *tail;           // [tail_max] last tokens, oldest first
    int32_t n_tail, tail_max;
};

static size_t bucket(const history *h, int32_t id) {
    size_t i = (uint32_t)id * 2654435769u & (uint32_t)(h->cap - 1);
    while (h->index[i] != 0 && h->counts[h->index[i] - 1].id != id)
        i = (i + 1) & (size_t)(h->cap - 1);
    return i;
}

static bool grow(history *h) {
    const int32_t cap = h->cap ? 2 * h->cap : 64;
    ssm_token_count *counts = realloc(h->counts, (size_t)cap / 2 * sizeof *counts);
    if (counts)
        h->counts = counts;
    int32_t *index = calloc((size_t)cap, sizeof *index);
    if (!counts || !index) {
        free(index);
        return false;
    }
    free(h->index);
    h->index = index;
    h->cap = cap;
    for (int32_t i = 0; i < h->n; i++)
        h->index[bucket(h, h->counts[i].id)] = i + 1;
    return true;
}

static ssm_token_count *entry(history *h, int32_t id) {
    if (2 * (h->n + 1) > h->cap && !grow(h))
        return NULL;
    const size_t i = bucket(h, id);
    if (h->index[i] == 0) {
        h->counts[h->n] = (ssm_token_count){.id = id};
        h->index[i] = ++h->n;
    }
    return &h->counts[h->index[i] - 1];
}

static void push_tail(history *h, int32_t id) {
    if (h->tail_max == 0)
        return;
    if (h->n_tail == h->tail_max)
        memmove(h->tail, h->tail + 1, (size_t)--h->n_tail * sizeof *h->tail);
    h->tail[h->n_tail++] = id;
}

static int32_t longest_bad_word(const ssm_sampling *s) {
    int32_t longest = 0;
    for (int32_t i = 0; i < s->n_bad; i++) {
        const int32_t len = s->bad_ends[i] - (i ? s->bad_ends[i - 1] : 0);
        longest = len > longest ? len : longest;
    }
    return longest;
}

history *history_create(const ssm_sampling *sampling, const int32_t *prompt, size_t n_prompt) {
    history *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->sampling = sampling;
    const int32_t longest = longest_bad_word(sampling);
    h->tail_max = longest > 1 ? longest - 1 : 0;
    if (!grow(h) || (h->tail_max && !(h->tail = malloc((size_t)h->tail_max * sizeof *h->tail))))
        goto fail;
    for (size_t i = 0; i < n_prompt; i++) {
        if (sampling->repetition_penalty != 1) {
            ssm_token_count *count = entry(h, prompt[i]);
            if (!count)
                goto fail;
            count->in_prompt = true;
        }
        if (n_prompt - i <= (size_t)h->tail_max)
            push_tail(h, prompt[i]);
    }
    return h;
fail:
    history_free(h);
    return NULL;
}

void history_free(history *h) {
    if (!h)
        return;
    free(h->counts);
    free(h->index);
    free(h->tail);
    free(h);
}

int history_push(history *h, int32_t id) {
    ssm_token_count *count = entry(h, id);
    if (!count)
        return SSM_ENOMEM;
    count->generated++;
    push_tail(h, id);
    return 0;
}

const ssm_token_count *history_counts(const history *h, int32_t *n) {
    *n = h->n;
    return h->counts;
}

int32_t history_bans(const history *h, int32_t *out) {
    const ssm_sampling *s = h->sampling;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_bad; i++) {
        const int32_t first = i ? s->bad_ends[i - 1] : 0;
        const int32_t before = s->bad_ends[i] - first - 1; // tokens in front of its last
        assert(before >= 0);
        if (before > h->n_tail)
            continue;
        if (before == 0 || memcmp(h->tail + h->n_tail - before, s->bad_words + first,
                                  (size_t)before * sizeof *h->tail) == 0)
            out[n++] = s->bad_words[first + before];
    }
    return n;
}
