// SPDX-License-Identifier: Apache-2.0
// A matrix in a block of a convolution (lti_block.cu): S4. The states of columns follow one
// another.
#ifndef SSM_KERNELS_CUDA_LTI_BLOCK_DENSE_CUH
#define SSM_KERNELS_CUDA_LTI_BLOCK_DENSE_CUH

#include "lti_block.cuh"

namespace ssm {

enum { DENSE_KEPT = LTI_DENSE * LTI_DENSE / THREADS };

// S from what each of `whole` columns leaves to what each begins with; the state moves on past
// them. Two threads a row of the matrix, their numbers of it in registers.
template <int COLS>
__device__ __forceinline__ void carry_dense(const block_args &a, const layout<COLS> &l,
                                            const float (&kept)[DENSE_KEPT], int whole) {
    const int i = threadIdx.x >> 1, q = threadIdx.x & 1, n = a.p.n;
    for (int col = 0; col < COLS; col++) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < DENSE_KEPT; k++)
            sum = fmaf(kept[k], 2 * k + q < n ? l.state[2 * k + q] : 0.f, sum);
        sum += __shfl_xor_sync(~0u, sum, 1);
        __syncthreads();
        if (q == 0 && i < n) {
            const float left = l.s[i * COLS + col];
            l.s[i * COLS + col] = l.state[i];
            if (col < whole)
                l.state[i] = sum + left;
        }
        __syncthreads();
        if (col >= whole)
            break; // the column after the last whole one has its beginning
    }
}

} // namespace ssm

#endif
