// SPDX-License-Identifier: Apache-2.0
// Durations counted in buckets of at most 0.8 % width, so that millions of them cost nothing and
// percentiles are as exact as a clock under load. Plain data, zero-initialised.
#ifndef LOAD_HISTOGRAM_H
#define LOAD_HISTOGRAM_H

#include <stdint.h>

// Each power of two is cut into 128: values below 128 ns are exact.
enum { HISTOGRAM_STEPS = 128, HISTOGRAM_BUCKETS = HISTOGRAM_STEPS * 58 };

typedef struct histogram {
    uint64_t count, max_ns;
    double sum_ns;
    uint64_t buckets[HISTOGRAM_BUCKETS];
} histogram;

void histogram_add(histogram *h, uint64_t ns);

// The smallest bucket's upper end under which a share q in [0, 1] of all values lies, in ns; 0 if
// there are none.
uint64_t histogram_quantile(const histogram *h, double q);

double histogram_mean(const histogram *h); // ns

#endif
