// SPDX-License-Identifier: Apache-2.0
// What an architecture is: how its config becomes a geometry, and which tensors a layer has.
//
// One file and one row in architectures.c each. The same list of tensors maps a checkpoint
// (bind.c) and makes a random model (random.c).
#ifndef SSM_MODEL_ARCHITECTURE_H
#define SSM_MODEL_ARCHITECTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "kernels/weights.h"

typedef struct architecture architecture;

// A model's shape, before any weight.
typedef struct blueprint {
    const architecture *architecture;
    ssm_geometry geometry;
    bool tied; // lm_head is the embedding
    bool bias; // in_proj and out_proj have one
    bool conv_bias;
} blueprint;

// How a random model fills a tensor; see random.c.
typedef enum tensor_fill {
    FILL_ZERO,
    FILL_ONE,
    FILL_LINEAR,   // a matrix: by its inputs
    FILL_RESIDUAL, // the same, for what is added to the residual
    FILL_EMBEDDING,
    FILL_CONV,
    FILL_DT_PROJ,
    FILL_DT_BIAS,
    FILL_A_ORDINAL, // log 1, log 2, ... log N
    FILL_A_UNIFORM, // log of 1 to 16
} tensor_fill;

enum { LAYER_MAX_TENSORS = 20, TENSOR_MAX_DIMS = 4 };

typedef struct layer_tensor {
    const char *name;              // in a checkpoint, after "layers.N."
    size_t field;                  // offset of its ssm_tensor in ssm_layer
    int64_t dims[TENSOR_MAX_DIMS]; // 0 past the last
    tensor_fill fill;
} layer_tensor;

struct architecture {
    const char *name; // model_type

    // Fills *b from the config; failures stay in the config.
    void (*read)(config *c, blueprint *b);

    // The tensors of one layer of a blueprint; returns how many.
    int (*layer)(const blueprint *b, layer_tensor out[LAYER_MAX_TENSORS]);

    // Looks at the values of a layer that is bound, its names beginning with prefix; NULL: any will
    // do. 0, or the failure with the tensor's whole name.
    int (*check)(const blueprint *b, const ssm_layer *layer, const char *prefix, ssm_error *err);
};

extern const architecture architecture_mamba, architecture_falcon_mamba, architecture_mamba2,
    architecture_s4d, architecture_s4, architecture_h3;

// By model_type, or NULL; names are all of them, for messages.
const architecture *architecture_find(const char *model_type);
extern const char architecture_names[];

// Finds the architecture and reads the whole config. 0 or the config's failure.
int blueprint_read(blueprint *b, config *c);

// Shared by the architectures: what every config of the family says. tied: if it does not say so.
void blueprint_read_family(config *c, blueprint *b, bool tied);

// Appends a tensor to a layer's list, and the biases that a blueprint has (in_proj with in_rows).
#define LAYER_FIELD(member) offsetof(ssm_layer, member)
void layer_add(layer_tensor *list, int *n, layer_tensor tensor);
void layer_add_biases(const blueprint *b, int64_t in_rows, layer_tensor *list, int *n);

// Shared bounds. Far above any published model, low enough that no product below overflows.
enum {
    MAX_LAYERS = 4096,
    MAX_WIDTH = 1 << 17,
    MAX_INNER = 1 << 18,
    MAX_STATE = 4096,
    MAX_GROUPS = 1024,
    MAX_KERNEL = 64,
    MAX_VOCAB = 1 << 24,
};

#endif
