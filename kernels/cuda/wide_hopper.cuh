// SPDX-License-Identifier: Apache-2.0
// Hopper's instructions that wide.cuh needs beyond hopper.cuh and wgmma.cuh: boxes to all blocks of
// a cluster and back to memory, wider shapes of the matrix instruction.
#ifndef SSM_KERNELS_CUDA_WIDE_HOPPER_CUH
#define SSM_KERNELS_CUDA_WIDE_HOPPER_CUH

#include "wgmma.cuh"

namespace ssm {

#if SSM_HOPPER

// A box to the same place of each block of the cluster in `blocks`, counted by its barrier there.
__device__ __forceinline__ void copy_box_to(uint32_t blocks, uint32_t to, const CUtensorMap *map,
                                            int column, int row, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((uint16_t)blocks)
                 : "memory");
}

// ---- stores: a box of shared memory to an array, in groups (bulk.cuh)

__device__ __forceinline__ void store_box(const CUtensorMap *map, int column, int row,
                                          uint32_t from) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(column), "r"(row), "r"(from)
        : "memory");
}
__device__ __forceinline__ float2 load_shared(uint32_t at) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ void store_shared(uint32_t at, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t at, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");
}

__device__ __forceinline__ void store_matrices(uint32_t at, uint32_t a, uint32_t b, uint32_t c,
                                               uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(a),
                 "r"(b), "r"(c), "r"(d)
                 : "memory");
}
__device__ __forceinline__ void store_matrices(uint32_t at, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(at), "r"(a), "r"(b)
                 : "memory");
}

// ---- the matrix instruction, as wgmma.cuh's

#define D4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i)  D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)

// Operands by number: P64 is %0 to %63.
#define TEN(t)                                                                                     \
    "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define P40 TEN() "," TEN(1) "," TEN(2) "," TEN(3)
#define P60 P40 "," TEN(4) "," TEN(5)
#define P80 P60 "," TEN(6) "," TEN(7)
#define P64 P60 ",%60,%61,%62,%63"
#define P96 P80 "," TEN(8) ",%90,%91,%92,%93,%94,%95"
#define WGMMA(n, sums, a, b)                                                                       \
    "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" sums "}, %" #a ", %" #b           \
    ", 1, 1, 1, 0, 0;"

__device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b) {
    asm volatile(WGMMA(128, P64, 64, 65) : D32(0), D32(32) : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[80], uint64_t a, uint64_t b) {
    asm volatile(WGMMA(160, P80, 80, 81) : D32(0), D32(32), D16(64) : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[96], uint64_t a, uint64_t b) {
    asm volatile(WGMMA(192, P96, 96, 97) : D32(0), D32(32), D32(64) : "l"(a), "l"(b));
}
#undef WGMMA
#undef P40
#undef P60
#undef P80
#undef P64
#undef P96
#undef TEN
#undef D4
#undef D8
#undef D16
#undef D32

#endif

} // namespace ssm

#endif
