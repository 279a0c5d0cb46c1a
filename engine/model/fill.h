// SPDX-License-Identifier: Apache-2.0
// Filling the tensors of a random model, on all cores.
#ifndef SSM_MODEL_FILL_H
#define SSM_MODEL_FILL_H

#include "architecture.h"

typedef struct fill_target {
    ssm_tensor tensor; // data is writable, though the type cannot say so
    tensor_fill fill;
    uint64_t key; // of its numbers
} fill_target;

// A key for the i-th tensor of a seed.
uint64_t fill_key(uint64_t seed, uint64_t i);

// Fills n tensors of a model of n_layers; blocks. 0 or SSM_ENOMEM.
int fill_tensors(const fill_target *targets, int32_t n, int32_t n_layers, ssm_error *err);

#endif
