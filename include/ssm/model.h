// SPDX-License-Identifier: Apache-2.0
// Models: a checkpoint on disk, opened, checked and mapped.
//
// A ssm_model holds the geometry, the mapped weights and what config.json says of special tokens.
// It is immutable once open: any thread may read it, any number of engines may share it, and it
// must outlive them. Weights stay in the file's mapping (no copy) wherever the stored type allows.
#ifndef SSM_MODEL_H
#define SSM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include <ssm/dtype.h>
#include <ssm/error.h>

typedef struct ssm_model ssm_model;

enum { SSM_MAX_EOS = 8 };

typedef struct ssm_model_info {
    char architecture[32]; // "mamba", "falcon_mamba", "mamba2", "s4d", "s4", "h3"
    int32_t n_layers, d_model, d_inner, d_state, d_conv;
    int32_t dt_rank;                     // Mamba-1 only, else 0
    int32_t n_heads, head_dim, n_groups; // Mamba-2; H3 the first two; else 0
    int32_t vocab_size;                  // rows of the embedding, padding rows included
    bool tied;                           // lm_head is the embedding
    uint64_t parameters;                 // a tied head counted once
    uint64_t weight_bytes;               // as stored
    uint64_t state_bytes;                // one session: SSM and convolution state, fp32
    uint64_t saved_bytes;                // one that is saved: with the next token's logits
    ssm_dtype weight_dtype;              // of the projections, as stored
    int32_t bos_id, pad_id;              // -1: none
    int32_t eos_ids[SSM_MAX_EOS];        // config.json and generation_config.json together
    int32_t n_eos;
} ssm_model_info;

typedef struct ssm_tensor_info {
    const char *name; // as in the checkpoint; lives as long as the model
    ssm_dtype dtype;
    int32_t n_dims;
    int64_t dims[8];
    uint64_t bytes;
} ssm_tensor_info;

// Opens a Hugging Face folder (config.json, model.safetensors or its index and shards). Reads and
// checks every header, maps the data, touches none of it. Errors: SSM_EIO (no such file),
// SSM_EFORMAT (broken; param names the tensor or key), SSM_EUNSUPPORTED (by name). On success
// *out is the caller's, to be freed with ssm_model_free. Any thread; blocks on disk.
int ssm_model_open(const char *path, ssm_model **out, ssm_error *err);

// A model of a published geometry ("mamba-130m", "mamba2-2.7b", ...; ssm_model_geometry lists them)
// with random weights of the given type in memory, for benchmarks. The same seed gives the same
// weights anywhere. SSM_EINVAL: unknown name or a type that files do not hold; SSM_ENOMEM.
int ssm_model_random(const char *geometry, ssm_dtype dtype, uint64_t seed, ssm_model **out,
                     ssm_error *err);

// The i-th published geometry's name, NULL past the last.
const char *ssm_model_geometry(int i);

void ssm_model_free(ssm_model *model); // NULL is allowed

// Borrowed from the model.
const ssm_model_info *ssm_model_get_info(const ssm_model *model);

// The checkpoint's tensors in file order, for inspection: fills *out and returns 0, or
// SSM_ENOTFOUND past the last. A random model has the tensors that a file of its geometry would.
int ssm_model_get_tensor(const ssm_model *model, int i, ssm_tensor_info *out);

#endif
