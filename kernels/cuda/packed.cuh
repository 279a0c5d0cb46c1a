// SPDX-License-Identifier: Apache-2.0
// in_proj and out_proj in 12 bits a weight, for kernels whose time is that of reading weights
// (solo_large.cu, solo_large_mamba2.cu, few_packed.cu, resident_packed.cuh,
// resident_packed_rows.cuh): a copy beside the bf16 one, which all others read. Of Mamba-2's
// in_proj the rows of x and of z. The head is held so, too, in an order of its own and with a power
// of two a row (head_packed.cu).
//
// A weight's eight exponent bits take few values: nearly all weights of a matrix are within 2^15 of
// its largest. So they are kept as floats of four exponent bits, seven fraction bits and a sign,
// times a power of two of the matrix. What has at least 2^-14 of the largest one's power of two is
// what it was, bit for bit. Smaller ones are subnormal and rounded, by at most 2^-22 of that power,
// which a sum of products in fp32 does not show, as long as the sum has large ones, too: where a
// row or a column of a matrix has nothing of 2^-10 of the largest one's power, or one weight in 32
// would change, the model is not packed. (A criterion of whole matrices is none: one weight of 2^40
// outweighs all that it makes zero.) Our trained models: rows and columns from 2^-2.5 on, 1 to 5
// weights in 10,000 below 2^-14.
//
// The exponent field is that of a bf16 whose upper four bits are zero: the weight times 2^-base,
// subnormal where that is small. The matrix instruction takes such numbers as they are, so nobody
// multiplies them: what they are multiplied by is larger, and 2^base is put to the sums.
//
// Layout: what a block of solo_large.cu takes into one slot of its ring lies in a row, all blocks'
// first slots before all second ones: in_proj [x, z][slot][block] (Mamba-2 stores z first),
// out_proj [slot][block], 128 blocks, 10 slots at 2.8b. A slot has the block's rows of in_proj by
// 256 columns (2.8b: 40 rows) or of out_proj by 512 (20), in the order in which four warps read
// them, each its quarter of the columns: a tile of eight rows by 64 columns is sixteen weights, two
// units, a lane (row: lane / 4). out_proj's rows beyond a multiple of eight are four: their tile
// has both runs of 64 columns. First all units' S: [warp][tile][lane][unit], then E. A unit is
// three words: S has the first two, E the third. They are its first three pairs of weights as bf16
// with the upper four bits of the exponent missing; in these bits of each half lies what the fourth
// pair needs, so that 9 instructions on integers unpack eight weights. packed_format.h has the same
// as C.
#ifndef SSM_KERNELS_CUDA_PACKED_CUH
#define SSM_KERNELS_CUDA_PACKED_CUH

#include "packed_format.h"
#include "util.cuh"

namespace ssm {

// What such weights, times 2^-base and some of them subnormal, are multiplied by is given this, so
// that sums are far from that.
constexpr float PACKED_GIVEN = 0x1p90f;
constexpr uint32_t PACKED_GIVEN_TWICE = 0x6c806c80; // as two bf16

// A unit's weights in bf16, in order, times 2^-base.
__device__ __forceinline__ uint4 unpack(uint2 s, uint32_t e) {
    enum : uint32_t { KEPT = 0x87ff87ff };
    // Exponents, four bits of the fractions; signs and the last three (of the other half).
    uint32_t last = s.x >> 8 & 0x00780078;
    last |= e >> 4 & 0x07800780;
    last |= __funnelshift_l(s.y, s.y, 4) & 0x80078007;
    return make_uint4(s.x & KEPT, s.y & KEPT, e & KEPT, last);
}

// Two bf16 by two more.
__device__ __forceinline__ uint32_t times(uint32_t two, uint32_t by) {
    uint32_t v;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(two), "r"(by));
    return v;
}
__device__ __forceinline__ uint4 times(const uint4 &v, uint32_t by) {
    return make_uint4(times(v.x, by), times(v.y, by), times(v.z, by), times(v.w, by));
}
__device__ __forceinline__ uint4 given(const uint4 &v) { // by PACKED_GIVEN
    return times(v, PACKED_GIVEN_TWICE);
}
// The head's weights in their own size, but for their row's power of two: by 2^PACKED_HEAD_LIFT.
__device__ __forceinline__ uint4 lifted(const uint4 &v) {
    return times(v, 0x77807780);
}
// c [16 token rows][8 weight rows] += a lane's sixteen columns of 64 (packed_format.h) of a tile of
// weights, times its token rows' g and g + 8, two sixteen-byte parts of each.
__device__ __forceinline__ void multiply_packed(float (&c)[4], const uint4 (&row)[2],
                                                const uint4 (&row8)[2], const uint4 &lower,
                                                const uint2 &upper) {
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const uint4 v = u ? unpack(make_uint2(lower.z, lower.w), upper.y)
                          : unpack(make_uint2(lower.x, lower.y), upper.x);
        mma(c, row[u].x, row8[u].x, row[u].y, row8[u].y, v.x, v.y);
        mma(c, row[u].z, row8[u].z, row[u].w, row8[u].w, v.z, v.w);
    }
}
// What their sums are multiplied by. by: packed_by(), a bf16 twice.
inline float packed_taken(uint32_t by) {
    union {
        uint32_t bits;
        float v;
    } one = {by << 16};
    return one.v / PACKED_GIVEN;
}

} // namespace ssm

#endif
