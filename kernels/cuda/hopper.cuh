// SPDX-License-Identifier: Apache-2.0
// Hopper's instructions that CUDA C++ has no words for, as medium.cu and resident.cu need them:
// tiles copied by tensor map, clusters, and the warp groups' matrix instruction. Barriers, and
// copies of bytes in a row, are in bulk.cuh.
//
// Tiles are rows of 128 bytes (64 numbers of 16 bits) in groups of 8, 16-byte parts swapped by row
// (CU_TENSOR_MAP_SWIZZLE_128B): what tile_at() of the instruction's descriptor expects.
#ifndef SSM_KERNELS_CUDA_HOPPER_CUH
#define SSM_KERNELS_CUDA_HOPPER_CUH

#include <cuda.h>

#include "bulk.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SSM_HOPPER 1
#else
#define SSM_HOPPER 0
#endif

namespace ssm {

#if SSM_HOPPER

// ---- registers a thread, of a group of four warps: others give, or take, what is missing

template <int N> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- copies: a box of a two-dimensional array, its first number at (column, row)

// One lane of a warp that is all here. From this instruction the compiler knows that it is one;
// with `lane == 0` it puts a loop over lanes around every copy that is asked for.
__device__ __forceinline__ bool one_lane() {
    uint32_t mine;
    asm volatile("{\n.reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(mine));
    return mine != 0;
}
__device__ __forceinline__ void map_prefetch(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int column, int row,
                                         uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap *map, int column, int row,
                                         uint32_t barrier, uint64_t policy) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
                 : "memory");
}
// The same to L2 alone.
__device__ __forceinline__ void prefetch_box(const CUtensorMap *map, int column, int row) {
    asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map),
                 "r"(column), "r"(row)
                 : "memory");
}
__device__ __forceinline__ void prefetch_line(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// ---- clusters

// Orders nothing: a release would wait for all that this thread wrote anywhere (MEMBAR.ALL.GPU,
// about 1 us). What blocks give each other goes by copy_to_peer().
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ uint32_t peer_address(uint32_t address, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
__device__ __forceinline__ void arrive_at_peer(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Into a peer's shared memory, counted by a barrier there.
__device__ __forceinline__ void copy_to_peer(uint32_t to, uint32_t from, uint32_t bytes,
                                             uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(to),
                 "r"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}
// Eight bytes of registers to there.
__device__ __forceinline__ void store_to_peer(uint32_t to, float2 v, uint32_t barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, "
                 "[%3];" ::"r"(to),
                 "f"(v.x), "f"(v.y), "r"(barrier)
                 : "memory");
}

// ---- the matrix instruction (wgmma.cuh: its shapes)

__device__ __forceinline__ uint64_t tile_at(uint32_t address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}
__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int LEFT> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// The compiler sees an accumulator change here: it cannot move reads or writes of it past this.
template <int N> __device__ __forceinline__ void wgmma_touch(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

#endif

} // namespace ssm

#endif
