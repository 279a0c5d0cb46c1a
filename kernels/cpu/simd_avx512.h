// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes in one AVX-512 register. With SSM_AVX512_VNNI byte products are that extension's
// instruction, else they are put together from AVX512BW's; with SSM_AVX512_BF16 there are products
// of bf16 pairs.
#ifndef SSM_KERNELS_CPU_SIMD_AVX512_H
#define SSM_KERNELS_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_TILE_TOKENS    8 // widest tile: 3 blocks of rows x 8 tokens = 24 accumulators of 32
#define SIMD_TILE_BLOCKS(t) 3
#define SIMD_SCAN_STATES    16 // states in registers across time
#define SIMD_SCAN2_STATES   8  // the same of Mamba-2, of two blocks together
#define SIMD_SCAN2_BLOCKS   2
#define SIMD_PAIR_ROWS      8 // H3: channels of a head together
#define SIMD_PAIR_TILES     2 // and vectors of tokens, or channels they are paired with
#define SIMD_ROW_TOKENS     8 // tokens that norms and conversions take together
#ifdef SSM_AVX512_BF16
#define SIMD_EXPANDS_BF16 0
#else
#define SIMD_EXPANDS_BF16 1 // template_product.h
#endif

typedef __m512 vf;
typedef __m512i vi;

static inline vf vf_set(float x) {
    return _mm512_set1_ps(x);
}
static inline vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf v) {
    _mm512_storeu_ps(p, v);
}
static inline vf vf_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c) { // a b + c
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vf_max(vf a, vf b) { // b if either is NaN
    return _mm512_max_ps(a, b);
}
static inline vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
static inline vf vf_abs(vf a) {
    return _mm512_abs_ps(a);
}
static inline vf vf_round(vf a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vf vf_scale2(vf a, vf n) { // a 2^n, n integral, any size
    return _mm512_scalef_ps(a, n);
}
static inline float vf_sum(vf v) { // halves are added to halves
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline float vf_max_lane(vf v) {
    return _mm512_reduce_max_ps(v);
}

// ---- 16-bit numbers

static inline vf vf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
// 16 rows x 2 inputs: the first, the second input of each row. Two loads, so that a full tile keeps
// its registers.
static inline vf vf_load_bf16_even(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
static inline vf vf_load_bf16_odd(const uint16_t *p) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xffff0000)));
}
static inline vi vi_bf16_bits(vf v) { // nearest even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
}
static inline void vf_store_bf16(uint16_t *p, vf v) { // the instruction: subnormals become 0
#ifdef SSM_AVX512_BF16
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
    _mm256_storeu_si256((__m256i *)p,
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(vi_bf16_bits(v), 16)));
#endif
}
static inline vf vf_round_bf16(vf v) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(vi_bf16_bits(v), _mm512_set1_epi32((int)0xffff0000)));
}

// ---- integers, 16 x int32

static inline vi vi_set(int32_t x) {
    return _mm512_set1_epi32(x);
}
static inline vi vi_load(const void *p) {
    return _mm512_loadu_si512(p);
}
static inline vi vi_broadcast4(const void *p) { // 4 bytes
    int32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}
static inline vi vi_sub(vi a, vi b) {
    return _mm512_sub_epi32(a, b);
}
static inline vi vi_low_nibbles(vi a) {
    return _mm512_and_si512(a, _mm512_set1_epi8(15));
}
static inline vi vi_high_nibbles(vi a) {
    return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15));
}
// Bits `from` on of every byte of `bits`, moved to bit 4 and masked, beside the nibbles.
static inline vi vi_add_bits(vi nibbles, vi bits, const int from, const int mask) {
    const vi moved = from < 4 ? _mm512_slli_epi16(bits, (unsigned)(4 - from))
                              : _mm512_srli_epi16(bits, (unsigned)(from - 4));
    return _mm512_or_si512(nibbles, _mm512_and_si512(moved, _mm512_set1_epi8((char)mask)));
}
static inline vf vf_from_int(vi a) {
    return _mm512_cvtepi32_ps(a);
}
static inline vf vf_load_s8(const int8_t *p) { // 16 of them
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline vi vi_from_float(vf a) { // nearest even
    return _mm512_cvtps_epi32(a);
}
static inline void vi_store_low_bytes(uint8_t *p, vi a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}
static inline vi vi_shift_right(vi a, int n) { // arithmetic
    return _mm512_srai_epi32(a, (unsigned)n);
}

// acc + sum of four products of an unsigned and a signed byte
static inline vi vi_dot(vi acc, vi u8, vi s8) {
#ifdef SSM_AVX512_VNNI
    // By hand: given the intrinsic, GCC 12 moves every accumulator of a full tile twice a product.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(u8), "v"(s8));
    return acc;
#else
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(u8, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(s8, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u8, 8), _mm512_srai_epi16(s8, 8));
    return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
#endif
}

// Pairs of 16-bit numbers: vpair_dot adds two products a lane to acc.
#if defined(SSM_AVX512_BF16)
#define SIMD_HAS_PAIR_DOT 1
#define SIMD_HAS_BF16_DOT 1
typedef vf vpair;
static inline vpair vpair_dot(vpair acc, vi a, vi b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
#elif defined(SSM_AVX512_VNNI)
#define SIMD_HAS_PAIR_DOT 1
#define SIMD_HAS_WORD_DOT 1
typedef vi vpair; // signed integers; by hand as vi_dot
static inline vpair vpair_dot(vpair acc, vi a, vi b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
static inline void vi_store_low_words(void *p, vi a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(a));
}
#endif

#endif
