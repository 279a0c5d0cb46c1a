// SPDX-License-Identifier: Apache-2.0
// Counters of the server, and the page that Prometheus reads. Any loop thread counts (relaxed
// atomics); engine figures are read from the engines when the page is asked for.
#ifndef SSMD_METRICS_H
#define SSMD_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

#include "buf.h"

struct registry;

enum { METRICS_BUCKETS = 18, METRICS_STATUSES = 600 };

typedef struct metrics_histogram {
    atomic_uint_fast64_t count[METRICS_BUCKETS + 1]; // the last: above all bounds
    atomic_uint_fast64_t sum_ns;
} metrics_histogram;

typedef struct metrics {
    atomic_uint_fast64_t requests[METRICS_STATUSES]; // by status; 499: the client left
    atomic_int_fast64_t connections;
    metrics_histogram time_to_first_token, time_per_output_token, request_duration, queue_time;
} metrics;

void metrics_observe(metrics_histogram *h, uint64_t ns);
void metrics_count_request(metrics *m, int status);
void metrics_write(metrics *m, const struct registry *models, buf *out);

#endif
