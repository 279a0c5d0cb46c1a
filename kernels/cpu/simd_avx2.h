// SPDX-License-Identifier: Apache-2.0
// Sixteen lanes in two AVX2 registers (with FMA and F16C).
#ifndef SSM_KERNELS_CPU_SIMD_AVX2_H
#define SSM_KERNELS_CPU_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_TILE_TOKENS    6 // 16 registers: 12 accumulators
#define SIMD_TILE_BLOCKS(t) ((t) == 1 ? 3 : (t) <= 3 ? 2 : 1)
#define SIMD_SCAN_STATES    4
#define SIMD_SCAN2_STATES   4
#define SIMD_SCAN2_BLOCKS   1
#define SIMD_PAIR_ROWS      4
#define SIMD_PAIR_TILES     1
#define SIMD_ROW_TOKENS     4 // tokens that norms and conversions take together
#define SIMD_EXPANDS_BF16   1

typedef struct vf {
    __m256 a, b;
} vf;
typedef struct vi {
    __m256i a, b;
} vi;

#define VF2(op, x, y) ((vf){op((x).a, (y).a), op((x).b, (y).b)})

static inline vf vf_set(float x) {
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline vf vf_load(const float *p) {
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void vf_store(float *p, vf v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline vf vf_add(vf x, vf y) {
    return VF2(_mm256_add_ps, x, y);
}
static inline vf vf_sub(vf x, vf y) {
    return VF2(_mm256_sub_ps, x, y);
}
static inline vf vf_mul(vf x, vf y) {
    return VF2(_mm256_mul_ps, x, y);
}
static inline vf vf_div(vf x, vf y) {
    return VF2(_mm256_div_ps, x, y);
}
static inline vf vf_fma(vf x, vf y, vf z) {
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline vf vf_max(vf x, vf y) {
    return VF2(_mm256_max_ps, x, y);
}
static inline vf vf_min(vf x, vf y) {
    return VF2(_mm256_min_ps, x, y);
}
static inline vf vf_abs(vf x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline vf vf_round(vf x) {
    return (vf){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline __m256 scale2(__m256 x, __m256 n) { // by two powers, so that neither overflows
    const __m256 bound = _mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-252)), _mm256_set1_ps(252));
    const __m256i i = _mm256_cvtps_epi32(bound);
    const __m256i half = _mm256_srai_epi32(i, 1), rest = _mm256_sub_epi32(i, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i p = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i q = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(p)), _mm256_castsi256_ps(q));
}
static inline vf vf_scale2(vf x, vf n) {
    return VF2(scale2, x, n);
}
static inline float vf_sum(vf v) {
    const __m256 a = _mm256_add_ps(v.a, v.b);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
static inline float vf_max_lane(vf v) {
    const __m256 a = _mm256_max_ps(v.a, v.b);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

// ---- 16-bit numbers

static inline vf vf_load_f16(const uint16_t *p) {
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline vf vf_load_bf16_even(const uint16_t *p) {
    return (vf){
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16)),
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p + 1), 16))};
}
static inline vf vf_load_bf16_odd(const uint16_t *p) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    return (vf){
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), high)),
        _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p + 1), high))};
}
static inline __m256 round_bf16(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    r = _mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000));
    return _mm256_blendv_ps(_mm256_castsi256_ps(r), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}
static inline vf vf_round_bf16(vf v) {
    return (vf){round_bf16(v.a), round_bf16(v.b)};
}

// Without TSan's hearing of it (template_tile.h).
#ifdef __SANITIZE_THREAD__
#define SIMD_HAS_UNWATCHED
static inline __m256i load_unwatched(const void *p) {
    __m256i v;
    __asm__("vmovdqu %1, %0" : "=x"(v) : "m"(*(const char(*)[32])p));
    return v;
}
static inline vf vf_load_unwatched(const char *p) {
    return (vf){_mm256_castsi256_ps(load_unwatched(p)),
                _mm256_castsi256_ps(load_unwatched(p + 32))};
}
static inline vf vf_load_bf16_even_unwatched(const char *p) {
    return (vf){_mm256_castsi256_ps(_mm256_slli_epi32(load_unwatched(p), 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(load_unwatched(p + 32), 16))};
}
static inline vf vf_load_bf16_odd_unwatched(const char *p) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    return (vf){_mm256_castsi256_ps(_mm256_and_si256(load_unwatched(p), high)),
                _mm256_castsi256_ps(_mm256_and_si256(load_unwatched(p + 32), high))};
}
#endif

// ---- integers

static inline vi vi_set(int32_t x) {
    return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline vi vi_load(const void *p) {
    return (vi){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
static inline vi vi_broadcast4(const void *p) {
    int32_t x;
    __builtin_memcpy(&x, p, sizeof x);
    return vi_set(x);
}
static inline vi vi_sub(vi x, vi y) {
    return (vi){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}
static inline vi vi_low_nibbles(vi x) {
    const __m256i m = _mm256_set1_epi8(15);
    return (vi){_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
static inline vi vi_high_nibbles(vi x) {
    return vi_low_nibbles((vi){_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
static inline __m256i add_bits(__m256i nibbles, __m256i bits, const int from, const int mask) {
    const __m256i moved =
        from < 4 ? _mm256_slli_epi16(bits, 4 - from) : _mm256_srli_epi16(bits, from - 4);
    return _mm256_or_si256(nibbles, _mm256_and_si256(moved, _mm256_set1_epi8((char)mask)));
}
static inline vi vi_add_bits(vi nibbles, vi bits, const int from, const int mask) {
    return (vi){add_bits(nibbles.a, bits.a, from, mask), add_bits(nibbles.b, bits.b, from, mask)};
}
static inline vf vf_from_int(vi x) {
    return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
static inline vf vf_load_s8(const int8_t *p) {
    const __m128i v = _mm_loadu_si128((const __m128i *)p);
    return vf_from_int(
        (vi){_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v))});
}
static inline vi vi_from_float(vf x) {
    return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}
static inline void vi_store_low_bytes(uint8_t *p, vi x) {
    int32_t lanes[16];
    _mm256_storeu_si256((__m256i *)lanes, x.a);
    _mm256_storeu_si256((__m256i *)(lanes + 8), x.b);
    for (int i = 0; i < 16; i++)
        p[i] = (uint8_t)lanes[i];
}
static inline vi vi_shift_right(vi x, int n) {
    return (vi){_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
static inline __m256i dot_bytes(__m256i acc, __m256i u8, __m256i s8) { // pmaddubsw would saturate
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u8, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(s8, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u8, 8), _mm256_srai_epi16(s8, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
static inline vi vi_dot(vi acc, vi u8, vi s8) {
    return (vi){dot_bytes(acc.a, u8.a, s8.a), dot_bytes(acc.b, u8.b, s8.b)};
}

#endif
