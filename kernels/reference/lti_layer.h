// SPDX-License-Identifier: Apache-2.0
// A layer of S4D, S4 or H3 in the reference: its discrete SSMs in fp64, its projections in fp32.
#ifndef SSM_KERNELS_REFERENCE_LTI_LAYER_H
#define SSM_KERNELS_REFERENCE_LTI_LAYER_H

#include "lti.h"

typedef struct ref_lti_layer {
    lti_diagonal diagonal;                       // S4D, H3
    lti_dense dense;                             // S4
    double *shift_b, *shift_c, *shift_d;         // H3 [d_model][N], [d_model][N], [d_model]
    float *q, *k, *v, *q_bias, *k_bias, *v_bias; // H3
    float *out, *out_bias;
    double *work;  // of ref_ssm
    float *inputs; // [4][d_model]: one token's y, or q, k, v and y; then S4D, S4 [2 d_model]
    size_t bytes;
} ref_lti_layer;

// SSM_ENOMEM, or what lti.h refuses. On failure nothing is left to dispose.
int ref_lti_init(ref_lti_layer *l, const ssm_geometry *g, const ssm_layer *from, ssm_error *err);
void ref_lti_dispose(ref_lti_layer *l);

// One token from its normed input u[d_model] to what is added to the residual, in place of u. shift
// (H3) and s are the layer's states in canonical form.
void ref_lti_mix(ref_lti_layer *l, const ssm_geometry *g, float *shift, float *s, float *u);

#endif
