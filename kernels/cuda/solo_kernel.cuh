// SPDX-License-Identifier: Apache-2.0
// The kernel of solo.cu, which has the design and its host side.
#ifndef SSM_KERNELS_CUDA_SOLO_KERNEL_CUH
#define SSM_KERNELS_CUDA_SOLO_KERNEL_CUH

#include "solo_states.cuh"

namespace ssm {

template <int M, int CH, class S>
__global__ void __launch_bounds__(solo_shape<M, CH, S>::THREADS, 1)
    solo_kernel(const __grid_constant__ solo_args a) {
#if SSM_HOPPER
    typedef solo_shape<M, CH, S> shape;
    extern __shared__ __align__(128) char shared[];
    const solo_block<M, CH, S> b(shared);
    const int warp = threadIdx.x / 32;
    dependents_start(); // the head takes the SMs that are left, and fetches ahead
    if (threadIdx.x == 0)
        b.init();
    __syncthreads();
    cluster_arrive();
    cluster_wait(); // all blocks' barriers are ready
    if (warp < shape::AFTER) {
        if constexpr (shape::BOTH)
            all_sums(a, b);
        else if (warp < shape::OUT_WARP)
            in_sums(a, b);
        else
            out_sums(a, b);
    }
    if (warp == shape::AFTER)
        after_in(a, b);
    else if (warp == shape::X_WARP)
        x_sums(a, b);
    else if (warp >= shape::STATE_WARP && warp < shape::ASK_WARP)
        advance_states(a, b);
    else if (warp == shape::ASK_WARP)
        ask(a, b);
    // All have read the counter: every block had a part in what this thread has now.
    if (blockIdx.x == 0 && threadIdx.x == shape::OUT_WARP * 32)
        *a.launches += 1;
    __syncwarp();
    cluster_arrive();
    cluster_wait(); // nothing is under way to a block that is gone
#endif
}

} // namespace ssm

#endif
