// SPDX-License-Identifier: Apache-2.0
// What the linear time-invariant architectures (s4d, s4, h3) have in common.
#ifndef SSM_MODEL_LTI_H
#define SSM_MODEL_LTI_H

#include "architecture.h"

// The family's keys and `discretization`, which must be zoh or bilinear. Leaves d_inner = conv_dim
// = d_model and no convolution.
void lti_read(config *c, blueprint *b, ssm_block_kind kind);

// Refuses an `activation` other than gelu.
void lti_read_activation(config *c);

// Refuses an odd state_size: poles come in conjugate pairs.
void lti_read_pairs(config *c, const ssm_geometry *g);

// The layer's tensors are finite, and its steps and poles of magnitudes that mean something. For
// the rest of architecture.check, which discretises.
int lti_check_values(const blueprint *b, const ssm_layer *l, const char *prefix, ssm_error *err);

// All of architecture.check where a layer is diagonal.
int lti_check_diagonal(const blueprint *b, const ssm_layer *l, const char *prefix, ssm_error *err);

// What discretising says of a layer: *err as it is, its message led by the layer's prefix.
int lti_check_failed(int rc, const char *prefix, ssm_error *err);

// Refuses NaN and infinities by the tensor's name.
int lti_check_finite(const ssm_tensor *t, const char *name, ssm_error *err);

#endif
