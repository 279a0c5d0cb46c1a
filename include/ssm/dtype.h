// SPDX-License-Identifier: Apache-2.0
// Number formats of weights, states and activations.
#ifndef SSM_DTYPE_H
#define SSM_DTYPE_H

#include <stddef.h>

typedef enum ssm_dtype {
    SSM_DTYPE_AUTO = 0, // as stored (weights), or the backend's default (states, activations)
    SSM_DTYPE_F32,
    SSM_DTYPE_F16,
    SSM_DTYPE_BF16,
    SSM_DTYPE_INT8, // symmetric, one fp32 scale an output row; a choice at load, never a file's
                    // type
    // Symmetric, one scale a group of inputs; a choice at load, never a file's type.
    SSM_DTYPE_INT4,
    SSM_DTYPE_INT5,
    SSM_DTYPE_INT6,
} ssm_dtype;

// "f32", "f16", "bf16", "int8", "int6", "int5", "int4" or "auto". Static string.
const char *ssm_dtype_name(ssm_dtype dtype);

// The dtype of a name (as above, "fp32", "fp16", "float32", "float16", "bfloat16" too), or -1.
int ssm_dtype_parse(const char *name);

// Bytes of n numbers of a dtype, without scales; 0 for SSM_DTYPE_AUTO.
size_t ssm_dtype_bytes(ssm_dtype dtype, size_t n);

#endif
