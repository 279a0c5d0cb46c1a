// SPDX-License-Identifier: Apache-2.0
// The warp groups' matrix instruction in the shapes that medium.cu, resident.cu, xproj.cu and
// head_packed.cu use:
// d [64][N] += a [64][16] b [N][16]^T, both operands bf16 tiles in shared memory (hopper.cuh), sums
// in fp32. Lane l of warp w of the group, g = l / 4, q = l % 4: d[4 j + i] is row 16 w + g + 8 (i /
// 2), column 8 j + 2 q + i % 2.
#ifndef SSM_KERNELS_CUDA_WGMMA_CUH
#define SSM_KERNELS_CUDA_WGMMA_CUH

#include "hopper.cuh"

namespace ssm {

#if SSM_HOPPER

#define D4(i)  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i)  D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)

__device__ __forceinline__ void wgmma(float (&d)[8], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7"
                 "}, %8, %9, 1, 1, 1, 0, 0;"
                 : D8(0)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[20], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19"
                 "}, %20, %21, 1, 1, 1, 0, 0;"
                 : D16(0), D4(16)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[12], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11"
                 "}, %12, %13, 1, 1, 1, 0, 0;"
                 : D8(0), D4(8)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[16], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
                 "}, %16, %17, 1, 1, 1, 0, 0;"
                 : D16(0)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[24], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23"
                 "}, %24, %25, 1, 1, 1, 0, 0;"
                 : D16(0), D8(16)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[32], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,"
                 "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
                 "}, %32, %33, 1, 1, 1, 0, 0;"
                 : D32(0)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[40], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,"
                 "%37,%38,%39"
                 "}, %40, %41, 1, 1, 1, 0, 0;"
                 : D32(0), D8(32)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[44], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n88k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,"
                 "%37,%38,%39,%40,%41,%42,%43"
                 "}, %44, %45, 1, 1, 1, 0, 0;"
                 : D32(0), D8(32), D4(40)
                 : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[48], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,"
                 "%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,"
                 "%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
                 "}, %48, %49, 1, 1, 1, 0, 0;"
                 : D32(0), D16(32)
                 : "l"(a), "l"(b));
}

// The same with a from registers: of its rows g and g + 8 of the warp's 16 columns 2 q and 2 q + 1
// as a pair, then 2 q + 8 and 2 q + 9 (util.cuh, mma()).
__device__ __forceinline__ void wgmma_registers(float (&d)[4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3"
                 "}, {%4,%5,%6,%7}, %8, 1, 1, 1, 0;"
                 : D4(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma_registers(float (&d)[8], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7"
                 "}, {%8,%9,%10,%11}, %12, 1, 1, 1, 0;"
                 : D8(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma_registers(float (&d)[16], const uint32_t (&a)[4],
                                                uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
                 "}, {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
                 : D16(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma_registers(float (&d)[32], const uint32_t (&a)[4],
                                                uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
                 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
                 "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
                 "}, {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                 : D32(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef D4
#undef D8
#undef D16
#undef D32

// d += a b of a piece of 64 columns of k, under way as a group of its own.
template <int N>
__device__ __forceinline__ void wgmma_piece(float (&d)[N], uint64_t a, uint64_t b) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) // 16 columns are 32 bytes
        wgmma(d, a + k * 2, b + k * 2);
    wgmma_commit();
}

#endif

} // namespace ssm

#endif
