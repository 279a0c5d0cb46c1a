// SPDX-License-Identifier: Apache-2.0
// The tensors of a model's folder: model.safetensors, or the shards that its index names.
#ifndef SSM_MODEL_CHECKPOINT_H
#define SSM_MODEL_CHECKPOINT_H

#include <stdbool.h>

#include "safetensors.h"

typedef struct checkpoint_entry {
    const safetensor *tensor;
    int32_t shard;
    bool used; // some part of the model is this tensor
} checkpoint_entry;

typedef struct checkpoint {
    safetensors *shards;
    char **files; // the shards' names
    int32_t n_shards;
    checkpoint_entry *entries; // by name
    int32_t n_entries;
} checkpoint;

// Maps every shard, checks each header, the index against the shards, and that no name comes twice.
// *ck is zeroed first; to be disposed whatever is returned.
int checkpoint_open(checkpoint *ck, const char *folder, ssm_error *err);
void checkpoint_dispose(checkpoint *ck);

// NULL: there is none.
checkpoint_entry *checkpoint_find(const checkpoint *ck, const char *name);

#endif
