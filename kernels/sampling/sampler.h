// SPDX-License-Identifier: Apache-2.0
// Draws tokens from rows of logits on the host; shared by the CPU backends. See sampler.c.
#ifndef SSM_KERNELS_SAMPLING_SAMPLER_H
#define SSM_KERNELS_SAMPLING_SAMPLER_H

#include "kernels/backend.h"

// An id that is still in play; lists of them are kept in the order of their ids.
typedef struct sampler_entry {
    float logit;
    int32_t id;
} sampler_entry;

// What a selection orders (larger key first, then lower id) and weighs.
typedef struct sampler_pick {
    float key;
    int32_t id;
    float weight;
} sampler_pick;

// Scratch of one thread. Sized once for a vocabulary; drawing allocates nothing.
typedef struct ssm_sampler {
    int32_t n;              // ids that may be drawn: below the vocabulary's limit
    int32_t n_blocks;       // of SAMPLER_BLOCK ids, the last one partial
    float *work;            // [n] logits after penalties, bias and bans
    float *block_max;       // [n_blocks]
    double *block_mass;     // [n_blocks]
    sampler_entry *entries; // [n]
    sampler_pick *picks;    // [n]
} ssm_sampler;

enum { SAMPLER_BLOCK = 64 };

int ssm_sampler_init(ssm_sampler *sampler, int32_t vocab_limit); // 0 or SSM_ENOMEM
void ssm_sampler_dispose(ssm_sampler *sampler);

// One draw or look. logits [at least vocab_limit] fp32, only read.
void ssm_sampler_draw(ssm_sampler *sampler, const float *logits, const ssm_sample *sample,
                      ssm_sampled *out);

// ---- select.c: parts with tests of their own

// The pick at which the picks before it and itself reach `mass`, in the order above; the last one
// if rounding keeps the sum below. Linear time; picks are permuted. n >= 1.
sampler_pick sampler_select(sampler_pick *picks, int32_t n, double mass);

#endif
