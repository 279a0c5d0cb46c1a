// SPDX-License-Identifier: Apache-2.0
#include "histogram.h"

const double ssm_step_seconds_bounds[SSM_STATS_BUCKETS] = {
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032,
    0.064,   0.128,  0.256, 0.512, 1.024, 2.048, 4.096, 8.192};
const double ssm_batch_rows_bounds[SSM_STATS_BUCKETS] = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
const double ssm_restore_seconds_bounds[SSM_STATS_BUCKETS] = {
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1};

void histogram_add(ssm_histogram *h, const double *bounds, double value) {
    int i = 0;
    while (i < SSM_STATS_BUCKETS && value > bounds[i])
        i++;
    h->count[i]++;
    h->sum += value;
}
