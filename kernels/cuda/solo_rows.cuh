// SPDX-License-Identifier: Apache-2.0
// What solo.cu's products are made of: the warp that asks for in_proj's rows, and sums of sixteen
// weight rows at a time.
//
// Weights are the matrix instruction's first operand: half the instructions of weights as the
// second (few.cu), which bounded the products.
#ifndef SSM_KERNELS_CUDA_SOLO_ROWS_CUH
#define SSM_KERNELS_CUDA_SOLO_ROWS_CUH

#include "solo_exchange.cuh"

namespace ssm {

#if SSM_HOPPER

// How fast rows are asked for counts: in a burst they queue in front of packets (solo.cu).
template <int M, int CH, class S>
__device__ __forceinline__ void ask(const solo_args &a, const solo_block<M, CH, S> &b) {
    typedef solo_shape<M, CH, S> shape;
    const int lane = threadIdx.x % 32;
    const uint64_t once = policy_once();
#pragma unroll 1
    for (int layer = 0; layer < a.n_layers; layer++) {
        const bf16 *rows = a.layers[layer].in_proj;
        if (layer >= shape::STAGES)
            solo_wait(b.of(b.empty, layer), b.phase(layer) ^ 1);
        const uint32_t full = b.of(b.full, layer), to = b.rows(layer);
        if (shape::STAGES > 1 ? lane == 0 : one_lane()) {
            barrier_expect(full, 2 * CH * M * 2);
#pragma unroll 1
            for (int i = 0; i < 2 * CH; i++) {
                const int row_at = i < CH ? b.first + i : shape::INNER + b.first + i - CH;
                copy_run(to + i * shape::IN_PITCH, rows + (size_t)row_at * M, M * 2, full, once);
            }
        }
        __syncwarp();
    }
}

// ---- sixteen rows

// Of N parts of 32 columns a lane's eight of each, of two rows.
template <int N> struct tile_rows { uint4 a[N], b[N]; };

// From memory, a layer ahead: asked for where this stands (load_once).
__device__ __forceinline__ float load_once1(const float *p) {
    float v;
    asm volatile("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ uint2 load_once2(const void *p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(p)
                 : "memory");
    return v;
}
template <int N>
__device__ __forceinline__ void ahead_rows(tile_rows<N> &w, const bf16 *a, size_t pitch) {
#pragma unroll
    for (int k = 0; k < N; k++)
        w.a[k] = load_once(a + k * 32), w.b[k] = load_once(a + pitch + k * 32);
}
__device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}
template <int N> __device__ __forceinline__ void load_rows(tile_rows<N> &w, uint32_t a, int pitch) {
#pragma unroll
    for (int k = 0; k < N; k++)
        w.a[k] = load_shared(a + k * 64), w.b[k] = load_shared(a + pitch + k * 64);
}
// Two ways of a part of the activation and of the sums, each the faster one for a width (solo.cu).
// NARROW: a part of the activation for the lanes that have columns of the second operand (0 to 7);
// zeros are the others. (Sixteen bytes to every lane would take shared memory four times as long.)
template <bool NARROW> __device__ __forceinline__ uint4 load_column(uint32_t from, int lane) {
    return !NARROW || lane < 8 ? load_shared(from) : make_uint4(0, 0, 0, 0);
}
// Sums of rows a and b, in lane 4 g; c: zeros at first. x(k): the activation's k-th part.
//
// NARROW: a lane's sixteen bytes of a weight row are the first operand's registers as they lie: two
// pairs of numbers as a row's, two as that of the row eight further on, which have the activation's
// matching pairs in the second operand's first and second column. What a weight row's sum wants is
// the first row by the first column and the other one by the second. Otherwise rows a and b take
// turns in the operand's registers, and all columns are the same.
template <bool NARROW, int N, class X>
__device__ __forceinline__ float2 dots(float (&c)[4][4], const tile_rows<N> &w, const X &x) {
    const bool second = threadIdx.x & 4;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const uint4 v = x(k);
        if constexpr (!NARROW) {
            mma(c[k % 2 * 2], w.a[k].x, w.b[k].x, w.a[k].y, w.b[k].y, v.x, v.y);
            mma(c[k % 2 * 2 + 1], w.a[k].z, w.b[k].z, w.a[k].w, w.b[k].w, v.z, v.w);
            continue;
        }
        const uint32_t b0 = second ? v.y : v.x, b1 = second ? v.w : v.z;
        mma(c[k % 2 * 2], w.a[k].x, w.a[k].y, w.a[k].z, w.a[k].w, b0, b1);
        mma(c[k % 2 * 2 + 1], w.b[k].x, w.b[k].y, w.b[k].z, w.b[k].w, b0, b1);
    }
    if constexpr (!NARROW)
        return make_float2(c[0][0] + c[1][0] + (c[2][0] + c[3][0]),
                           c[0][2] + c[1][2] + (c[2][2] + c[3][2]));
    return make_float2(c[0][0] + c[0][3] + (c[2][0] + c[2][3]),
                       c[1][0] + c[1][3] + (c[3][0] + c[3][3]));
}
template <bool NARROW, int N, class X>
__device__ __forceinline__ float2 dots(const tile_rows<N> &w, const X &x) {
    float c[4][4] = {};
    return dots<NARROW>(c, w, x);
}

#endif

} // namespace ssm

#endif
