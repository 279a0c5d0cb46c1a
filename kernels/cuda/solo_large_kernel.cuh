// SPDX-License-Identifier: Apache-2.0
// The kernel of solo_large.cu and solo_large_mamba2.cu, which have the design, and its host side.
#ifndef SSM_KERNELS_CUDA_SOLO_LARGE_KERNEL_CUH
#define SSM_KERNELS_CUDA_SOLO_LARGE_KERNEL_CUH

#include <type_traits>

#include "clusters.cuh"
#include "solo_large_groups.cuh"
#include "solo_large_packed.cuh"
#include "solo_large_states.cuh"
#include "types.cuh"

namespace ssm {

template <int M, class S, bool P, bool TWO>
__global__ void __launch_bounds__(large_shape<M, S, P, TWO>::THREADS, 1)
    large_kernel(const __grid_constant__ solo_args a) {
#if SSM_HOPPER
    typedef large_shape<M, S, P, TWO> shape;
    typedef std::conditional_t<P, large_packed<shape>, large_products<shape>> worker;
    typedef std::conditional_t<P, large_packed_asks<shape>, large_asks<shape>> asks;
    extern __shared__ __align__(128) char shared[];
    const large_block<shape> b(shared);
    const int warp = threadIdx.x / 32;
    dependents_start();
    if (threadIdx.x == 0)
        b.init();
    __syncthreads();
    if (warp < shape::WARPS) {
        large_multiply(worker(a, b));
    } else if (warp < shape::STATE_WARP) {
        if constexpr (shape::BC_GROUPS > 1)
            large_group(a, b);
        else if constexpr (TWO)
            large_rest<worker>(a, b);
        else
            large_x(a, b);
    } else if (warp < shape::ASK_WARP) {
        large_advance<std::conditional_t<TWO, large_heads<shape>, large_states<shape>>>(a, b);
    } else {
        large_ask(a, asks(b));
    }
    // All have read the counter: every warp that does had a part in what this thread has now.
    if (blockIdx.x == 0 && threadIdx.x == (shape::STATE_WARP - 1) * 32)
        *a.launches += 1;
#endif
}

// ---- host side

template <class S, bool P, bool TWO, class F> static bool with_width(int d_model, F f) {
    if constexpr (TWO) {
        if (d_model == 1024)
            return f(large_kernel<1024, S, P, TWO>, large_shape<1024, S, P, TWO>());
    }
    switch (d_model) {
    case 1536:
        return f(large_kernel<1536, S, P, TWO>, large_shape<1536, S, P, TWO>());
    case 2048:
        return f(large_kernel<2048, S, P, TWO>, large_shape<2048, S, P, TWO>());
    case 2560:
        return f(large_kernel<2560, S, P, TWO>, large_shape<2560, S, P, TWO>());
    case 4096:
        return f(large_kernel<4096, S, P, TWO>, large_shape<4096, S, P, TWO>());
    default:
        return false;
    }
}
template <bool TWO, class F> static bool with_kernel(const device *d, bool packed, F f) {
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        return packed ? with_width<S, true, TWO>(d->g.d_model, f)
                      : with_width<S, false, TWO>(d->g.d_model, f);
    });
}

// All blocks wait for each other, so all must be there at once.
template <class SHAPE> struct large_launch : cluster_launch {
    large_launch(const device *d)
        : cluster_launch(d, dim3(SHAPE::BLOCKS), SHAPE::THREADS, SHAPE::BYTES, 1, WITH_ALL_BLOCKS) {
    }
};

template <bool TWO> static bool large_room(const device *d) { // weights may be packed or not
    const auto there = [&](auto kernel, auto shape) {
        typedef decltype(shape) shape_of;
        return large_launch<shape_of>(d).most(kernel) >= shape_of::BLOCKS;
    };
    return with_kernel<TWO>(d, false, there) && with_kernel<TWO>(d, true, there);
}

template <bool TWO> static int large_packets(const device *d) {
    int packets = 0;
    with_kernel<TWO>(d, false, [&](auto, auto shape) {
        packets = decltype(shape)::PACKETS;
        return true;
    });
    return packets;
}

template <bool TWO> static cudaError_t large_layers(const device *d, const solo_args &a) {
    cudaError_t rc = cudaErrorNotSupported;
    with_kernel<TWO>(d, d->weights_packed, [&](auto kernel, auto shape) {
        rc = large_launch<decltype(shape)>(d).run(kernel, a);
        return true;
    });
    return rc;
}

} // namespace ssm

#endif
