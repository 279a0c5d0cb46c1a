// SPDX-License-Identifier: Apache-2.0
// The inside of a ssm_model, for the engine: its weights, and what owns them.
#ifndef SSM_MODEL_MODEL_H
#define SSM_MODEL_MODEL_H

#include <pthread.h>

#include <ssm/model.h>

#include "architecture.h"
#include "checkpoint.h"
#include "kernels/weights.h"

struct ssm_model {
    ssm_model_info info;
    ssm_weights weights;      // .layers is layers
    ssm_layer *layers;        // [n_layers]
    ssm_tensor_info *tensors; // in file order
    int32_t n_tensors;

    // Whose memory the tensors are: a folder's mappings (and copies of what lay unaligned in them),
    // or one anonymous mapping.
    checkpoint checkpoint;
    void **copies;
    int32_t n_copies;
    void *memory;
    size_t memory_bytes;
    char *names; // of a random model's tensors, back to back

    pthread_mutex_t hash_lock; // all zeros is unlocked
    uint64_t hash[2];          // state/model_hash.c
    bool has_hash;
};

// Borrowed from the model.
const ssm_weights *ssm_model_weights(const ssm_model *model);

// Finds every tensor of a blueprint in model->checkpoint and points model->weights at them. Names
// the tensor that is missing, has another shape or type, or belongs to no part of the model.
int model_bind(ssm_model *model, const blueprint *b, ssm_error *err);

// Fills what info says of geometry and weights, from model->weights.
void model_describe(ssm_model *model, const blueprint *b);

#endif
