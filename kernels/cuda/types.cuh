// SPDX-License-Identifier: Apache-2.0
// The one place where a number format becomes a template argument.
#ifndef SSM_KERNELS_CUDA_TYPES_CUH
#define SSM_KERNELS_CUDA_TYPES_CUH

#include <assert.h>

#include "cuda.h"
#include "util.cuh"

namespace ssm {

// Weights and activations: f(T()).
template <class F> auto with_type(ssm_dtype t, F f) {
    if (t == SSM_DTYPE_BF16)
        return f(bf16());
    if (t == SSM_DTYPE_F16)
        return f(f16());
    assert(t == SSM_DTYPE_F32);
    return f(float());
}

// States: f(S()).
template <class F> auto with_state_type(ssm_dtype t, F f) {
    if (t == SSM_DTYPE_F16)
        return f(f16());
    assert(t == SSM_DTYPE_F32);
    return f(float());
}

} // namespace ssm

#endif
