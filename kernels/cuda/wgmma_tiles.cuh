// SPDX-License-Identifier: Apache-2.0
// Hopper's asynchronous matrix instruction and what it needs around it. Only for sm_90a: code that
// uses it stands behind SSM_HOPPER.
//
// Tiles in shared memory: rows of 128 bytes (64 numbers), 16-byte vectors swapped within a row by
// its number modulo 8 (the 128-byte swizzle), 1,024-byte aligned. Wider tiles are several such
// slabs behind each other. One image serves both ways of reading: k along the rows, or down them.
#ifndef SSM_KERNELS_CUDA_WGMMA_TILES_CUH
#define SSM_KERNELS_CUDA_WGMMA_TILES_CUH

#include "hopper.cuh"

namespace ssm {

// Where 16-byte vector v of row r lies in a slab.
__device__ __forceinline__ int swizzled(int r, int v) {
    return r * 128 + ((v ^ r) & 7) * 16;
}

#if SSM_HOPPER

// stride: bytes from a slab to the next, for tiles read down their rows.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address, uint32_t stride) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(stride >> 4) << 16 |
           (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

#define SSM_R8(d, i)                                                                               \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define SSM_R32(d, i) SSM_R8(d, i), SSM_R8(d, i + 8), SSM_R8(d, i + 16), SSM_R8(d, i + 24)
#define SSM_LIST32                                                                                 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"   \
    "%25,%26,%27,%28,%29,%30,%31"

// d [64 x 64] = a [64 x 16] b [16 x 64], or += with `add`; both with k along their rows.
__device__ __forceinline__ void wgmma_64(float (&d)[32], uint64_t a, uint64_t b, int add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SSM_LIST32
                 "}, %32, %33, p, 1, 1, 0, 0;}"
                 : SSM_R32(d, 0)
                 : "l"(a), "l"(b), "r"(add));
}
// d [64 x 64] += a b: a from registers (util.cuh's fragments, a warp 16 rows), b with k down its
// rows.
__device__ __forceinline__ void wgmma_down_64(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" SSM_LIST32
                 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : SSM_R32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// The same, [64 x 128].
__device__ __forceinline__ void wgmma_down_128(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" SSM_LIST32
                 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
                 "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, 1, 1, "
                 "1, 1;"
                 : SSM_R32(d, 0), SSM_R32(d, 32)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif

} // namespace ssm

#endif
