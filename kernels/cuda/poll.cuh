// SPDX-License-Identifier: Apache-2.0
// How a warp waits for numbers that say themselves whether they are there: it asks for those that
// are not, again and again, and some seconds on the launch ends with an error.
#ifndef SSM_KERNELS_CUDA_POLL_CUH
#define SSM_KERNELS_CUDA_POLL_CUH

#include "hopper.cuh"

namespace ssm {

#if SSM_HOPPER

__device__ __forceinline__ void give_up_after(int tries) {
    if (tries > 1 << 22)
        __trap();
}
// Waits for what load(i) gives until there(v[i]), of all lanes.
template <int N, class T, class LOAD, class THERE>
__device__ __forceinline__ void poll(T (&v)[N], const LOAD &load, const THERE &there) {
#pragma unroll
    for (int i = 0; i < N; i++)
        load(i, v[i]);
    for (int tries = 0;; tries++) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            all &= there(i, v[i]);
        if (__all_sync(~0u, all))
            break;
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (!there(i, v[i]))
                load(i, v[i]);
        }
        give_up_after(tries);
    }
}

#endif

} // namespace ssm

#endif
