// SPDX-License-Identifier: Apache-2.0
// in_proj and out_proj of Mamba-1 in 12 bits a weight, for kernels whose time is that of reading
// weights (solo_large.cu): a copy beside the bf16 one, which all others read.
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
// The exponent field is that of a bf16 whose upper four bits are zero: one multiplication by
// 2^base, which is exact, gives the weight (HMUL2 takes subnormals as they are).
//
// Layout: what a block of resident.cu takes into one slot of its ring lies in a row, all blocks'
// first slots before all second ones. A slot has NW rows of 128 columns of in_proj, or 2 NW of 64
// of out_proj, in two halves of rows, eight weights of a row a unit, units by row, then column:
//   first half's S | second half's E | first half's E | second half's S
// A unit is three words: S has the first two, E the third. They are its first three pairs of
// weights as bf16 with the upper four bits of the exponent missing; in these bits of each half lies
// what the fourth pair needs, so that 9 instructions on integers and four multiplications unpack
// eight weights. The order of S and E lets resident.cu unpack a slot where it lies. Slots of
//   in_proj   [x, z][10 at 2.8b][block]   block 2 c + r: rows from c NW, columns 10 r + slot
//   out_proj  [10][block]                 block 16 s + t: rows from 2 t NW, columns 10 s + slot
// where columns are counted in slots' widths.
// packed_format.h has the same as C, for all but the kernels that read (packed_shape).
#ifndef SSM_KERNELS_CUDA_PACKED_CUH
#define SSM_KERNELS_CUDA_PACKED_CUH

#include "packed_format.h"
#include "util.cuh"

namespace ssm {

template <int NW> struct packed_shape { // NW: d_model / 32
    enum {
        UNITS = 8 * NW, // of half a slot
        S = UNITS * 8,  // bytes of half a slot
        E = UNITS * 4,
        S_FIRST = 0, // offsets in a slot
        E_SECOND = S,
        E_FIRST = S + E,
        S_SECOND = S + 2 * E,
        BYTES = 2 * (S + E),
        IN_SLOTS = NW / 8, // of a block's rows of x, or of z
        OUT_SLOTS = NW / 8,
        IN_UNITS = 16, // of a row
        OUT_UNITS = 8
    };
    static __host__ __device__ constexpr size_t in_slot(bool is_z, int slot, int block) {
        return (((size_t)is_z * IN_SLOTS + slot) * PACKED_BLOCKS + block) * BYTES;
    }
    static __host__ __device__ constexpr size_t out_slot(int slot, int block) {
        return ((size_t)slot * PACKED_BLOCKS + block) * BYTES;
    }
    static constexpr size_t IN_BYTES = (size_t)2 * IN_SLOTS * PACKED_BLOCKS * BYTES;
    static constexpr size_t OUT_BYTES = (size_t)OUT_SLOTS * PACKED_BLOCKS * BYTES;
};

// A unit's weights in bf16, in order. by: packed_by() of the matrix.
__device__ __forceinline__ uint4 unpack(uint2 s, uint32_t e, uint32_t by) {
    auto times = [&](uint32_t small) {
        uint32_t v;
        asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(small), "r"(by));
        return v;
    };
    enum : uint32_t { KEPT = 0x87ff87ff };
    // Exponents, four bits of the fractions; signs and the last three (of the other half).
    uint32_t last = s.x >> 8 & 0x00780078;
    last |= e >> 4 & 0x07800780;
    last |= __funnelshift_l(s.y, s.y, 4) & 0x80078007;
    return make_uint4(times(s.x & KEPT), times(s.y & KEPT), times(e & KEPT), times(last));
}

} // namespace ssm

#endif
