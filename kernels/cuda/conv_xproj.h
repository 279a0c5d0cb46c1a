// SPDX-License-Identifier: Apache-2.0
// Mamba-1's convolution and x_proj of prompts on Hopper (conv_xproj.cu).
#ifndef SSM_KERNELS_CUDA_CONV_XPROJ_H
#define SSM_KERNELS_CUDA_CONV_XPROJ_H

#include "cuda.h"

namespace ssm {

bool conv_xproj_fits(const device *d, const batch &b); // both at once
cudaError_t conv_xproj(device *d, int layer, const batch &b);

// x_proj alone, of such steps whose spans do not fit: a token's bits are the same.
bool xproj_of_prompts_fits(const device *d, const batch &b);
cudaError_t xproj_of_prompts(device *d, int layer, const batch &b);

} // namespace ssm

#endif
