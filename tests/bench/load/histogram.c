// SPDX-License-Identifier: Apache-2.0
#include "histogram.h"

#include <math.h>

// A value below 2 * STEPS is its own bucket; above, its leading 8 bits and its magnitude are.
static unsigned bucket_of(uint64_t ns) {
    if (ns < 2 * HISTOGRAM_STEPS) {
        return (unsigned)ns;
    }
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - 7u;
    return shift * HISTOGRAM_STEPS + (unsigned)(ns >> shift);
}

static uint64_t bucket_end(unsigned bucket) {
    if (bucket < 2 * HISTOGRAM_STEPS) {
        return bucket;
    }
    unsigned shift = bucket / HISTOGRAM_STEPS - 1;
    uint64_t leading = bucket - (uint64_t)shift * HISTOGRAM_STEPS;
    return ((leading + 1) << shift) - 1;
}

void histogram_add(histogram *h, uint64_t ns) {
    unsigned bucket = bucket_of(ns);
    h->buckets[bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1]++;
    h->count++;
    h->sum_ns += (double)ns;
    if (ns > h->max_ns) {
        h->max_ns = ns;
    }
}

uint64_t histogram_quantile(const histogram *h, double q) {
    // 0.055 * 20000 is a little over 1100 in binary: that must not be rank 1101
    uint64_t rank = (uint64_t)ceil(q * (double)h->count * (1 - 1e-12)), seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->buckets[i];
        if (seen >= rank && seen > 0) {
            uint64_t end = bucket_end(i);
            return end < h->max_ns ? end : h->max_ns;
        }
    }
    return 0;
}

double histogram_mean(const histogram *h) {
    return h->count > 0 ? h->sum_ns / (double)h->count : 0;
}
