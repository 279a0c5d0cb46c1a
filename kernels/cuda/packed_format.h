// SPDX-License-Identifier: Apache-2.0
// Packed weights: the number format and where each weight lies. Plain integers, in C, for the
// kernels that pack and for a test without a device; packed.cuh says what it is for.
//
// A magnitude is a bf16's lower 15 bits: these are in the order of the values that they stand for.
#ifndef SSM_KERNELS_CUDA_PACKED_FORMAT_H
#define SSM_KERNELS_CUDA_PACKED_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __CUDACC__
#define SSM_BOTH static __host__ __device__ inline
#else
#define SSM_BOTH static inline
#endif

enum {
    PACKED_BLOCKS = 128, // of solo_large.cu
    PACKED_UNIT = 8,     // weights
    PACKED_TILE = 3072,  // bytes that a tile of each of a slot's four warps takes
    // A row or column whose largest weight is below 2^-10 of the matrix's might lose more than what
    // activations in bf16 lose anyway (2^-12 of that weight); one weight in 32 may change.
    PACKED_REACH = 10,
    PACKED_CHANGES = 32
};

// ---- numbers

// What is subtracted from exponents, of a matrix whose largest magnitude is `most`.
SSM_BOTH int packed_base(uint32_t most) {
    return most >> 7 > 15 ? (int)(most >> 7) - 15 : 0;
}

// Two bf16 of 2^base, what sums of unpacked weights are multiplied by; 0: there is none, nor where
// some weights are no numbers.
SSM_BOTH uint32_t packed_by(uint32_t most) {
    const uint32_t exponent = (uint32_t)packed_base(most) + 127;
    return exponent < 255 ? exponent << 23 | exponent << 7 : 0;
}

// Sign, four bits of exponent, seven of fraction of a bf16 times 2^-base, subnormals rounded to
// even. The exponent is at most base + 15.
SSM_BOTH uint32_t packed_of(uint32_t bits, int base) {
    const int exponent = bits >> 7 & 255, at = (exponent > 0 ? exponent : 1) - base;
    const uint32_t sign = bits >> 15 << 11, fraction = bits & 127;
    if (at >= 1)
        return sign | (exponent > 0 ? (uint32_t)at << 7 : 0) | fraction;
    const int drop = 1 - at;
    if (drop > 9)
        return sign;
    const uint32_t significand = exponent > 0 ? 128 | fraction : fraction;
    const uint32_t half = 1u << (drop - 1), kept = significand >> drop;
    const uint32_t rest = significand & ((1u << drop) - 1);
    return sign | (kept + (rest > half || (rest == half && kept % 2)));
}

// The bf16 that it stands for.
SSM_BOTH uint32_t packed_bf16(uint32_t packed, int base) {
    const uint32_t sign = packed >> 11 << 15;
    int exponent = packed >> 7 & 15;
    uint32_t significand = packed & 127;
    if (exponent > 0)
        return sign | (uint32_t)(exponent + base) << 7 | significand;
    if (significand == 0)
        return sign;
    // a subnormal, whose first bit goes where a bf16's is
    for (exponent = base; exponent > 0 && significand < 128; exponent--)
        significand *= 2;
    return sign |
           (significand < 128 ? significand : (uint32_t)(exponent + 1) << 7 | significand % 128);
}

// Eight of them, three words: word `at` has this of weight k. The first six are bf16 but for four
// bits each, which hold the last two (packed.cuh: unpack()).
SSM_BOTH uint32_t packed_word(int at, int k, uint32_t packed) {
    const int half = k % 2 * 16;
    if (k < 6)
        return at == k / 2 ? ((packed & 0x800) << 4 | (packed & 0x7ff)) << half : 0;
    return at == 0   ? (packed >> 3 & 15) << (11 + half)
           : at == 1 ? (packed >> 11) << (11 + half) | (packed & 7) << (28 - half)
                     : (packed >> 7 & 15) << (11 + half);
}

// Whether a row or column counts beside the matrix's largest magnitude; one of zeros does.
SSM_BOTH bool packed_reaches(uint32_t magnitude, uint32_t most) {
    return magnitude == 0 || packed_base(most) == 0 || (magnitude >> 7) + PACKED_REACH >= most >> 7;
}

// ---- numbers of the head (head_packed.cuh), whose rows have factors of their own: a word that is
// rare is as exact as one that is not. Its weights are multiplied by 2^PACKED_HEAD_LIFT once they
// are unpacked: then nearly all of them are normal numbers.

enum { PACKED_HEAD_LIFT = 112 };

// What a row's sums are multiplied by, as bits of an fp32, given its largest magnitude; 0: there is
// none, for some weights are no numbers.
SSM_BOTH uint32_t packed_head_by(uint32_t most) {
    return most >> 7 < 255 ? (uint32_t)(packed_base(most) + 127 - PACKED_HEAD_LIFT) << 23 : 0;
}

// How large a weight is beside its row's largest one, for the column's sake: 0 is for zero alone.
SSM_BOTH uint32_t packed_head_told(uint32_t bits, uint32_t most) {
    const int base = packed_base(most);
    return (bits & 0x7fff) == 0 ? 0 : 1 + (base == 0 ? 15 << 7 : packed_of(bits, base) & 0x7ff);
}

// Whether a column counts, by the largest of what its weights told; one of zeros does.
SSM_BOTH bool packed_head_reaches(uint32_t told) {
    return told == 0 || told - 1 >= (15 - PACKED_REACH) << 7;
}

// ---- places, of a unit in bytes from a matrix's begin. nw: d_model / 32, a multiple of 16.

typedef struct packed_place {
    size_t s, e;
} packed_place;

// Tiles of eight rows by 64 columns of one of four warps' share of a slot.
SSM_BOTH int packed_tiles(int nw) {
    return nw / 16;
}
SSM_BOTH size_t packed_slot_bytes(int nw) {
    return (size_t)packed_tiles(nw) * PACKED_TILE;
}
// before: slots; lane's sixteen weights of a warp's tile, of which this is the first unit or not.
SSM_BOTH packed_place packed_lane_place(int nw, size_t before, int warp, int tile, int lane,
                                        int second) {
    const size_t first = before * packed_slot_bytes(nw), tiles = (size_t)packed_tiles(nw);
    const size_t at = ((size_t)warp * tiles + (size_t)tile) * 32 + (size_t)lane;
    packed_place place;
    place.s = first + at * 16 + (size_t)second * 8;
    place.e = first + tiles * 4 * 32 * 16 + at * 8 + (size_t)second * 4;
    return place;
}

SSM_BOTH packed_place packed_place_of(bool in_proj, int nw, int row, int unit) {
    const int slots = nw / 8, rows = in_proj ? nw / 2 : nw / 4; // of a block, x's or z's
    const int block = row / rows % PACKED_BLOCKS, z = row / rows / PACKED_BLOCKS, r = row % rows;
    const int columns = in_proj ? 8 : 16; // units of a warp's share of a slot
    const int slot = unit / (4 * columns), warp = unit / columns % 4;
    const int run = unit % columns / 8, q = unit % 8 / 2; // run: of 64 columns
    const int full = rows / 8;                            // tiles of a run
    const bool both = r >= full * 8;                      // four rows of each run
    const int tile = both ? 2 * full : run * full + r / 8, g = both ? run * 4 + r % 4 : r % 8;
    const size_t before = ((size_t)z * (size_t)slots + (size_t)slot) * PACKED_BLOCKS;
    return packed_lane_place(nw, before + (size_t)block, warp, tile, g * 4 + q, unit % 2);
}

// Where columns of 64 lie in token rows for resident_packed_rows.cuh: a lane's sixteen columns of
// weights are those that it has in four of the warp groups' matrix instructions then. Of a pair of
// columns; of the first pair of eight places, whose others are 16 columns on each.
SSM_BOTH int packed_rows_place(int column) {
    return column % 16 / 4 * 16 + column % 4 / 2 * 8 + column / 16 * 2;
}
SSM_BOTH int packed_rows_column(int place) {
    return place / 16 * 4 + place % 16 / 8 * 2;
}

// ---- places in the head: tiles of 64 rows by 64 columns, a row of tiles after another

enum {
    PACKED_HEAD_ROWS = 64,
    PACKED_HEAD_COLUMNS = 64,
    PACKED_HEAD_WARP = 512,                  // bytes of 16 a lane
    PACKED_HEAD_PART = 4 * PACKED_HEAD_WARP, // of all four warps: S of 32 columns, of 32 more, E
    PACKED_HEAD_TILE = 3 * PACKED_HEAD_PART
};

// Of a row's unit; pieces: d_model / 64. A unit is what a lane has of a row for two matrix
// instructions, its k-th weight is in the column below.
SSM_BOTH packed_place packed_head_place(int pieces, int row, int unit) {
    const int half = unit % 8 / 4, second = row % 16 / 8;
    const size_t tile = (size_t)(row / PACKED_HEAD_ROWS) * (size_t)pieces + (size_t)(unit / 8);
    const size_t at =
        (size_t)(row % PACKED_HEAD_ROWS / 16 * PACKED_HEAD_WARP + (row % 8 * 4 + unit % 4) * 16);
    packed_place place;
    place.s = tile * PACKED_HEAD_TILE + (size_t)half * PACKED_HEAD_PART + at + (size_t)second * 8;
    place.e = tile * PACKED_HEAD_TILE + 2 * PACKED_HEAD_PART + at + (size_t)(half * 8 + second * 4);
    return place;
}
SSM_BOTH int packed_head_column(int unit, int k) {
    return unit / 4 * 32 + k / 4 * 16 + k % 4 / 2 * 8 + unit % 4 * 2 + k % 2;
}

#endif
