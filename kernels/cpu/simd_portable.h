// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes in four of GCC's 128-bit vectors: NEON on aarch64 (fused by intrinsics), SSE2 or
// whatever the baseline is elsewhere, where a product and its sum are rounded apart.
#ifndef SSM_KERNELS_CPU_SIMD_PORTABLE_H
#define SSM_KERNELS_CPU_SIMD_PORTABLE_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __aarch64__
#include <arm_neon.h>
#endif

#define SIMD_TILE_TOKENS 4
#ifdef __aarch64__
#define SIMD_TILE_BLOCKS(t) ((t) == 1 ? 3 : 1) // 32 registers: 16 accumulators
#define SIMD_PAIR_ROWS      4
#else
#define SIMD_TILE_BLOCKS(t) 1
#define SIMD_PAIR_ROWS      2
#endif
#define SIMD_SCAN_STATES  4
#define SIMD_SCAN2_STATES 4
#define SIMD_SCAN2_BLOCKS 1
#define SIMD_PAIR_TILES   1
#define SIMD_ROW_TOKENS   2 // tokens that norms and conversions take together
#define SIMD_EXPANDS_BF16 0

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef struct vf {
    f4 q[4];
} vf;
typedef struct vi {
    i4 q[4];
} vi;

#define VF_EACH(expression)                                                                        \
    do {                                                                                           \
        vf r_;                                                                                     \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) r_.q[i] = (expression);                \
        return r_;                                                                                 \
    } while (0)
#define VI_EACH(expression)                                                                        \
    do {                                                                                           \
        vi r_;                                                                                     \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) r_.q[i] = (expression);                \
        return r_;                                                                                 \
    } while (0)

static inline f4 select4(i4 mask, f4 yes, f4 no) {
    return (f4)(((i4)yes & mask) | ((i4)no & ~mask));
}
static inline f4 round4(f4 x) { // nearest even; beyond 2^22 numbers keep their value
    const f4 magic = {12582912.0f, 12582912.0f, 12582912.0f, 12582912.0f};
    const i4 small = (x < 4194304.0f) & (x > -4194304.0f);
    return select4(small, (x + magic) - magic, x);
}
static inline f4 scale4(f4 x, f4 n) { // by two powers, so that neither overflows
    const f4 top = {252, 252, 252, 252};
    n = select4(n < top, n, top);
    n = select4(n > -top, n, -top);
    const i4 i = __builtin_convertvector(n, i4);
    const i4 half = i >> 1;
    return x * (f4)((half + 127) << 23) * (f4)((i - half + 127) << 23);
}

static inline vf vf_set(float x) {
    VF_EACH(((f4){x, x, x, x}));
}
static inline vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vf_store(float *p, vf v) {
    memcpy(p, &v, sizeof v);
}
static inline vf vf_add(vf a, vf b) {
    VF_EACH(a.q[i] + b.q[i]);
}
static inline vf vf_sub(vf a, vf b) {
    VF_EACH(a.q[i] - b.q[i]);
}
static inline vf vf_mul(vf a, vf b) {
    VF_EACH(a.q[i] * b.q[i]);
}
static inline vf vf_div(vf a, vf b) {
    VF_EACH(a.q[i] / b.q[i]);
}
static inline vf vf_fma(vf a, vf b, vf c) {
#ifdef __aarch64__
    VF_EACH((f4)vfmaq_f32((float32x4_t)c.q[i], (float32x4_t)a.q[i], (float32x4_t)b.q[i]));
#else
    VF_EACH(a.q[i] * b.q[i] + c.q[i]);
#endif
}
static inline vf vf_max(vf a, vf b) { // b if either is NaN
    VF_EACH(select4(a.q[i] > b.q[i], a.q[i], b.q[i]));
}
static inline vf vf_min(vf a, vf b) {
    VF_EACH(select4(a.q[i] < b.q[i], a.q[i], b.q[i]));
}
static inline vf vf_abs(vf a) {
    VF_EACH((f4)((i4)a.q[i] & 0x7fffffff));
}
static inline vf vf_round(vf a) {
    VF_EACH(round4(a.q[i]));
}
static inline vf vf_scale2(vf a, vf n) {
    VF_EACH(scale4(a.q[i], n.q[i]));
}
static inline float vf_sum(vf v) {
    const f4 a = v.q[0] + v.q[2], b = v.q[1] + v.q[3], c = a + b;
    return (c[0] + c[2]) + (c[1] + c[3]);
}
static inline float vf_max_lane(vf v) {
    float m = v.q[0][0];
    for (int i = 1; i < 16; i++)
        m = v.q[i / 4][i % 4] > m ? v.q[i / 4][i % 4] : m;
    return m;
}

// ---- 16-bit numbers

static inline float f16_lane(uint16_t h) { // exact; subnormals by a product
    const uint32_t shifted = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float f;
    memcpy(&f, &shifted, sizeof f);
    f *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((h & 0x7c00) == 0x7c00)
        bits = 0x7f800000u | (uint32_t)(h & 0x3ff) << 13;
    bits |= sign;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline vf vf_load_f16(const uint16_t *p) {
    vf v;
    for (int i = 0; i < 16; i++)
        v.q[i / 4][i % 4] = f16_lane(p[i]);
    return v;
}
static inline vi vi_load(const void *p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline vf vf_load_bf16_even(const uint16_t *p) {
    const vi w = vi_load(p);
    VF_EACH((f4)(w.q[i] << 16));
}
static inline vf vf_load_bf16_odd(const uint16_t *p) {
    const vi w = vi_load(p);
    VF_EACH((f4)(w.q[i] & (int32_t)0xffff0000));
}
static inline f4 round_bf16(f4 x) {
    const i4 bits = (i4)x;
    const i4 r = (bits + ((bits >> 16) & 1) + 0x7fff) & (int32_t)0xffff0000;
    return select4(x == x, (f4)r, x);
}
static inline vf vf_round_bf16(vf v) {
    VF_EACH(round_bf16(v.q[i]));
}

// ---- integers

static inline vi vi_set(int32_t x) {
    VI_EACH(((i4){x, x, x, x}));
}
static inline vi vi_broadcast4(const void *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return vi_set(x);
}
static inline vi vi_sub(vi a, vi b) {
    VI_EACH(a.q[i] - b.q[i]);
}
static inline vi vi_low_nibbles(vi a) {
    VI_EACH(a.q[i] & 0x0f0f0f0f);
}
static inline vi vi_high_nibbles(vi a) {
    VI_EACH((a.q[i] >> 4) & 0x0f0f0f0f);
}
static inline vi vi_add_bits(vi nibbles, vi bits, const int from, const int mask) {
    const int32_t masks = mask * 0x01010101;
    if (from < 4)
        VI_EACH(nibbles.q[i] | ((bits.q[i] << (4 - from)) & masks));
    VI_EACH(nibbles.q[i] | ((bits.q[i] >> (from - 4)) & masks));
}
static inline vf vf_from_int(vi a) {
    VF_EACH(__builtin_convertvector(a.q[i], f4));
}
static inline vf vf_load_s8(const int8_t *p) {
    vi v;
    for (int i = 0; i < 16; i++)
        v.q[i / 4][i % 4] = p[i];
    return vf_from_int(v);
}
static inline vi vi_from_float(vf a) {
    VI_EACH(__builtin_convertvector(round4(a.q[i]), i4));
}
static inline void vi_store_low_bytes(uint8_t *p, vi a) {
    for (int i = 0; i < 16; i++)
        p[i] = (uint8_t)a.q[i / 4][i % 4];
}
static inline vi vi_shift_right(vi a, int n) {
    VI_EACH(a.q[i] >> n);
}
static inline vi vi_dot(vi acc, vi u8, vi s8) {
    _Pragma("GCC unroll 4") for (int byte = 0; byte < 4; byte++) {
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) acc.q[i] +=
            ((u8.q[i] >> (8 * byte)) & 255) * ((s8.q[i] << (24 - 8 * byte)) >> 24);
    }
    return acc;
}

#endif
