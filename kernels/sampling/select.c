// SPDX-License-Identifier: Apache-2.0
// Weighted selection: where does a list, ordered by key, reach a given mass? It is quickselect with
// sums, so that top_k (weights 1), top_p and typical_p (weights are probabilities) cost one linear
// pass over a few candidates instead of a sort of the vocabulary.
#include "sampler.h"

#include <assert.h>

static bool comes_before(sampler_pick a, sampler_pick b) {
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

static void swap(sampler_pick *a, sampler_pick *b) {
    const sampler_pick t = *a;
    *a = *b;
    *b = t;
}

// Moves what comes before the pivot to the front; returns where the pivot ends and the mass before.
static int32_t partition(sampler_pick *picks, int32_t n, int32_t pivot, double *mass) {
    double before = 0;
    int32_t end = 0;
    swap(&picks[pivot], &picks[n - 1]);
    for (int32_t i = 0; i < n - 1; i++) {
        if (comes_before(picks[i], picks[n - 1])) {
            before += (double)picks[i].weight;
            swap(&picks[i], &picks[end++]);
        }
    }
    swap(&picks[end], &picks[n - 1]);
    *mass = before;
    return end;
}

sampler_pick sampler_select(sampler_pick *picks, int32_t n, double mass) {
    assert(n >= 1);
    uint32_t random = 0x9E3779B9u; // pivots must not follow a pattern that the input may have
    for (;;) {
        random = random * 1664525u + 1013904223u;
        double before;
        const int32_t at =
            partition(picks, n, (int32_t)((uint64_t)random * (uint32_t)n >> 32), &before);
        if (before >= mass && at > 0) {
            n = at;
            continue;
        }
        mass -= before + (double)picks[at].weight;
        if (mass <= 0 || at == n - 1)
            return picks[at];
        picks += at + 1;
        n -= at + 1;
    }
}
