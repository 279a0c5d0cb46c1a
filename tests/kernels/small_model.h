// SPDX-License-Identifier: Apache-2.0
// Small random models of any geometry, for tests that compare backends.
#ifndef SSM_TESTS_SMALL_MODEL_H
#define SSM_TESTS_SMALL_MODEL_H

#include "kernels/weights.h"

typedef struct small_shape {
    const char *name;
    ssm_block_kind kind;
    int32_t n_layers, d_model, d_inner, d_state, d_conv, dt_rank; // dt_rank: MAMBA
    int32_t n_heads, n_groups;                                    // MAMBA2
    int32_t vocab_size;
    bool bc_dt_norm, biases, tied;
} small_shape;

typedef struct small_model {
    ssm_weights weights;
    ssm_layer *layers;
    void **blocks;
    int n_blocks;
} small_model;

// Scaled as a trained model is: activations near 1, decays from 1e-4 to nearly 1. Projections and
// the embedding have the given type, vectors fp32.
void small_model_create(small_model *m, const small_shape *shape, ssm_dtype type, uint64_t seed);
void small_model_free(small_model *m);

// A reproducible stream of numbers in [0, 1).
double small_uniform(uint64_t *state);

#endif
