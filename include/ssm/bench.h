// SPDX-License-Identifier: Apache-2.0
// Benchmarks of a model on a device: steps of the backend itself, without queues or HTTP.
//
// Decode: n sessions advance by one token a step, greedy draw included. Prefill: one session reads
// a prompt in one step, from a fresh state, with logits of the last token. Beside each time stand
// the bytes that such a step must move (every weight that it needs once, each session's state once
// in and once out) and the operations of its products, and what share of the device's ceilings that
// makes; the ceilings are measured in the same run where the backend can.
//
// Everything runs on the calling thread (and the backend's own) and blocks for seconds.
#ifndef SSM_BENCH_H
#define SSM_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include <ssm/engine.h>
#include <ssm/model.h>

enum { SSM_BENCH_MAX_ROWS = 64 };

typedef struct ssm_bench_options {
    const ssm_engine_options *engine; // device, threads, types; the rest is not used
    const int32_t *batches;           // sessions of each decode row, borrowed during the run
    int32_t n_batches;
    const int32_t *prompts; // tokens of each prefill row
    int32_t n_prompts;
    double seconds; // to measure each row for, after a warm-up; 0: 1 s
    // Before each row: what is measured now. May be NULL.
    void (*progress)(void *ctx, const char *what);
    void *ctx;
} ssm_bench_options;

typedef struct ssm_bench_row {
    bool is_prefill;
    int32_t sessions, tokens;  // of a step
    int32_t steps;             // measured
    double median_ms, best_ms; // a step
    double tokens_per_second;  // of the median
    double bytes, flops;       // a step, as above
    double read_share;         // of the read ceiling, by the median; 0 without a ceiling
    double product_share;      // of the product ceiling
} ssm_bench_row;

typedef struct ssm_bench_result {
    char device[192]; // as ssm_engine_describe says it
    double load_seconds;
    double read_bytes_per_second, product_flops_per_second; // ceilings; 0: not measured
    int32_t n_rows;
    ssm_bench_row rows[SSM_BENCH_MAX_ROWS]; // prefill, then decode, as asked
} ssm_bench_result;

// Opens the device, measures, closes it. SSM_EINVAL: no rows, too many, or a number below 1; errors
// of opening as ssm_engine_create gives them.
int ssm_bench_run(const ssm_model *model, const ssm_bench_options *options, ssm_bench_result *out,
                  ssm_error *err);

#endif
