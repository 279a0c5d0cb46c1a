// SPDX-License-Identifier: Apache-2.0
// The reference's model: every weight expanded to fp32, and one token through all layers.
#ifndef SSM_KERNELS_REFERENCE_MODEL_H
#define SSM_KERNELS_REFERENCE_MODEL_H

#include <ssm/error.h>

#include "kernels/weights.h"
#include "lti_layer.h"

// As ssm_layer, expanded; absent tensors are NULL.
typedef struct ref_layer {
    float *norm, *in_proj, *in_bias, *conv_weight, *conv_bias, *x_proj, *dt_proj, *dt_bias, *a_log,
        *d, *gate_norm, *out_proj, *out_bias;
} ref_layer;

typedef struct ref_model {
    ssm_geometry g;
    ref_layer *layers;
    ref_lti_layer *lti;                  // [n_layers] of an LTI model, else NULL
    float *embedding, *norm_f, *lm_head; // lm_head is the embedding if tied
    size_t in_rows, x_rows;              // rows of in_proj and x_proj
    size_t bytes;
    float *residual, *u, *in, *y, *dbc, *delta; // one token's activations
    // For whoever wants to see them: a token's steps at a layer, [d_inner] or [n_heads]; or NULL.
    void (*on_steps)(void *ctx, int32_t layer, const float *delta, size_t n);
    void *on_steps_ctx;
} ref_model;

// SSM_ENOMEM, or what discretising refuses (lti.h).
int ref_model_init(ref_model *model, const ssm_weights *weights, ssm_error *err);
void ref_model_dispose(ref_model *model);

// Advances a session's state (canonical form, fp32) by one token; logits[vocab_size] or NULL.
void ref_model_forward(ref_model *model, int32_t token, float *state, float *logits);

#endif
