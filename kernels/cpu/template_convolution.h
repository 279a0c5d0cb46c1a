// SPDX-License-Identifier: Apache-2.0
// A block of LTI_BLOCK tokens of 16 channels as a convolution, between two exact states; included
// once by each isa_*.c, through template_lti.h.
//
//     y = K * u (D is in K_0)  +  what the old state still says        s' = Ab^L s + sum Ab^.. Bb u
//
// The convolution. Lanes are channels, so every lane runs the same real FFT of 2 LTI_BLOCK points
// with no shuffle: z_k = u_2k + i u_2k+1, a complex transform of LTI_BLOCK points in four radix-4
// passes, decimated in frequency so that it ends in digit-reversed order, in which the spectra of
// the even and the odd inputs (E, O) are taken apart, multiplied by the kernel's (Ke, Ko),
//     E' = E Ke + e^(-2 pi i k / LTI_BLOCK) O Ko,   O' = E Ko + O Ke,
// put together and transformed back by the mirrored passes. Half of the first pass's inputs are the
// padding's zeros and half of the last one's outputs are not wanted. The work is 32 KiB, a first-
// level cache; 70 vector operations a token.
//
// The states. Parts of LTI_PART tokens share one state each: the response of every pole to its
// place in a part is a power of Ab that one pass over r < LTI_PART walks through while eight parts
// are summed at a time, and from part to part goes Ab^LTI_PART, made in fp64. So 2.5 operations a
// pole and token to make the new state, and 2.5 to hear the old one, where the recurrence takes 8.
//
// What follows: the FFT's own cost does not depend on the state, so convolution wins where states
// are expensive to advance, above all for a dense A (N^2 operations a token against 4 N);
// lti_block.c has the threshold. A longer FFT would not change that: what a convolution saves is in
// the block already, what it adds, the states, grows with the tokens.

enum { PARTS = LTI_BLOCK / LTI_PART };
_Static_assert(PARTS == 8 && LTI_BLOCK == 256, "sums of eight parts, four passes of radix 4");

typedef struct cx {
    vf r, i;
} cx;

static inline cx cx_load(const float *p) {
    return (cx){vf_load(p), vf_load(p + CPU_LANES)};
}
static inline void cx_store(float *p, cx x) {
    vf_store(p, x.r);
    vf_store(p + CPU_LANES, x.i);
}
static inline cx cx_add(cx a, cx b) {
    return (cx){vf_add(a.r, b.r), vf_add(a.i, b.i)};
}
static inline cx cx_sub(cx a, cx b) {
    return (cx){vf_sub(a.r, b.r), vf_sub(a.i, b.i)};
}
static inline cx cx_times_i(cx a, const bool minus) {
    const vf zero = vf_set(0);
    return minus ? (cx){a.i, vf_sub(zero, a.r)} : (cx){vf_sub(zero, a.i), a.r};
}
static inline cx cx_mul(cx a, cx b) {
    const vf minus = vf_sub(vf_set(0), a.i);
    return (cx){vf_fma(a.r, b.r, vf_mul(minus, b.i)), vf_fma(a.r, b.i, vf_mul(a.i, b.r))};
}
static inline cx cx_fma(cx a, cx b, cx c) {
    const vf minus = vf_sub(vf_set(0), a.i);
    return (cx){vf_fma(a.r, b.r, vf_fma(minus, b.i, c.r)), vf_fma(a.r, b.i, vf_fma(a.i, b.r, c.i))};
}
static inline cx cx_twiddle(const float *w, int32_t j, const bool conjugate) {
    const float im = w[2 * j + 1];
    return (cx){vf_set(w[2 * j]), vf_set(conjugate ? -im : im)};
}

// One pass of butterflies over spans of `span` numbers; the first one has zeros in its upper half.
static inline __attribute__((always_inline)) void pass_forward(float *z, const float *w,
                                                               int32_t span, const bool is_first) {
    const int32_t m = span / 4, step = LTI_BLOCK / span;
    const size_t far = (size_t)m * 2 * CPU_LANES;
    for (int32_t j = 0; j < m; j++) {
        const cx w1 = cx_twiddle(w, j * step, false), w2 = cx_twiddle(w, 2 * j * step, false);
        const cx w3 = cx_twiddle(w, 3 * j * step, false);
        for (int32_t base = j; base < LTI_BLOCK; base += span) {
            float *p = z + (size_t)base * 2 * CPU_LANES;
            const cx a = cx_load(p), b = cx_load(p + far);
            cx sum = a, difference = a, sum2 = b, turned = b;
            if (!is_first) {
                const cx c = cx_load(p + 2 * far), d = cx_load(p + 3 * far);
                sum = cx_add(a, c), difference = cx_sub(a, c);
                sum2 = cx_add(b, d), turned = cx_sub(b, d);
            }
            turned = cx_times_i(turned, true);
            cx_store(p, cx_add(sum, sum2));
            cx_store(p + far, cx_mul(cx_add(difference, turned), w1));
            cx_store(p + 2 * far, cx_mul(cx_sub(sum, sum2), w2));
            cx_store(p + 3 * far, cx_mul(cx_sub(difference, turned), w3));
        }
    }
}

// The mirrored pass; the last one leaves the lower half alone in use.
static inline __attribute__((always_inline)) void pass_back(float *z, const float *w, int32_t span,
                                                            const bool is_last) {
    const int32_t m = span / 4, step = LTI_BLOCK / span;
    const size_t far = (size_t)m * 2 * CPU_LANES;
    for (int32_t j = 0; j < m; j++) {
        const cx w1 = cx_twiddle(w, j * step, true), w2 = cx_twiddle(w, 2 * j * step, true);
        const cx w3 = cx_twiddle(w, 3 * j * step, true);
        for (int32_t base = j; base < LTI_BLOCK; base += span) {
            float *p = z + (size_t)base * 2 * CPU_LANES;
            const cx a = cx_load(p), b = cx_mul(cx_load(p + far), w1);
            const cx c = cx_mul(cx_load(p + 2 * far), w2), d = cx_mul(cx_load(p + 3 * far), w3);
            const cx sum = cx_add(a, c), difference = cx_sub(a, c), sum2 = cx_add(b, d);
            const cx turned = cx_times_i(cx_sub(b, d), false);
            cx_store(p, cx_add(sum, sum2));
            cx_store(p + far, cx_add(difference, turned));
            if (!is_last) {
                cx_store(p + 2 * far, cx_sub(sum, sum2));
                cx_store(p + 3 * far, cx_sub(difference, turned));
            }
        }
    }
}

static __attribute__((noinline)) void fft_forward(float *z, const float *w) {
    pass_forward(z, w, LTI_BLOCK, true);
    for (int32_t span = LTI_BLOCK / 4; span >= 4; span /= 4)
        pass_forward(z, w, span, false);
}

static __attribute__((noinline)) void fft_back(float *z, const float *w) {
    for (int32_t span = 4; span < LTI_BLOCK; span *= 4)
        pass_back(z, w, span, false);
    pass_back(z, w, LTI_BLOCK, true);
}

// Where frequency k stands after the forward passes: its digits in base 4 the other way round.
static inline size_t place_of(int32_t k) {
    return (size_t)((k & 3) << 6 | (k >> 2 & 3) << 4 | (k >> 4 & 3) << 2 | k >> 6);
}

static __attribute__((noinline)) void multiply_spectra(float *z, const float *w, const float *k) {
    for (int32_t f = 0; f <= LTI_BLOCK / 2; f++, k += 4 * CPU_LANES) {
        float *p = z + place_of(f) * 2 * CPU_LANES;
        float *q = z + place_of((LTI_BLOCK - f) % LTI_BLOCK) * 2 * CPU_LANES;
        const cx a = cx_load(p), b = cx_load(q);
        const cx even = {vf_add(a.r, b.r), vf_sub(a.i, b.i)}; // twice E and O: K has the half
        const cx odd = {vf_add(a.i, b.i), vf_sub(b.r, a.r)};
        const cx ke = cx_load(k), ko = cx_load(k + 2 * CPU_LANES);
        const cx late = cx_mul(odd, cx_twiddle(w, f, false));
        const cx e = cx_fma(even, ke, cx_mul(late, ko)), o = cx_fma(even, ko, cx_mul(odd, ke));
        cx_store(p, (cx){vf_sub(e.r, o.i), vf_add(e.i, o.r)});
        if (f > 0 && f < LTI_BLOCK / 2)
            cx_store(q, (cx){vf_add(e.r, o.i), vf_sub(o.r, e.i)});
    }
}

// y = K * u over the block. Two tokens of u are one complex number as they lie.
static void convolve(const lti_block *a) {
    const size_t token = CPU_LANES * sizeof(float);
    memset(a->u + (size_t)a->count * CPU_LANES, 0, (size_t)(LTI_BLOCK - a->count) * token);
    memcpy(a->work, a->u, LTI_BLOCK * token);
    fft_forward(a->work, a->twiddles);
    multiply_spectra(a->work, a->twiddles, a->spectrum);
    fft_back(a->work, a->twiddles);
    memcpy(a->y, a->work, LTI_BLOCK * token);
}

// ---- poles

// y += the old state, decaying: part q has the state after q parts, each of a token's place in it a
// power of Ab more.
static inline void hear_pole(const lti_block *a, int32_t n, cx s, cx ab, cx power, int32_t parts) {
    const float *pole = a->poles + (size_t)n * LTI_POLE_FLOATS * CPU_LANES;
    const cx c = {vf_load(pole + 4 * CPU_LANES), // C's imaginary part is stored negated
                  vf_sub(vf_set(0), vf_load(pole + 5 * CPU_LANES))};
    cx state[PARTS], w = cx_mul(c, ab);
    for (int32_t q = 0; q < parts; q++, s = cx_mul(s, power))
        state[q] = (cx){s.r, vf_sub(vf_set(0), s.i)};
    for (int32_t r = 0; r < LTI_PART; r++, w = cx_mul(w, ab)) {
        float *y = a->y + (size_t)r * CPU_LANES;
        for (int32_t q = 0; q < parts; q++, y += LTI_PART * CPU_LANES)
            vf_store(y, vf_fma(w.r, state[q].r, vf_fma(w.i, state[q].i, vf_load(y))));
    }
}

// The sums of u over the parts, powers of Ab counted from each part's last token backwards.
static inline void sum_pole(const float *u, cx bb, cx ab, int32_t parts, cx sum[PARTS]) {
    UNROLL for (int q = 0; q < PARTS; q++) sum[q] = (cx){vf_set(0), vf_set(0)};
    if (parts == PARTS) {
        for (int32_t r = LTI_PART - 1; r >= 0; r--, bb = cx_mul(bb, ab)) {
            UNROLL for (int q = 0; q < PARTS; q++) {
                const vf x = vf_load(u + (size_t)(q * LTI_PART + r) * CPU_LANES);
                sum[q].r = vf_fma(bb.r, x, sum[q].r);
                sum[q].i = vf_fma(bb.i, x, sum[q].i);
            }
        }
        return;
    }
    for (int32_t r = LTI_PART - 1; r >= 0; r--, bb = cx_mul(bb, ab)) {
        for (int q = 0; q < parts; q++) {
            const vf x = vf_load(u + (size_t)(q * LTI_PART + r) * CPU_LANES);
            sum[q].r = vf_fma(bb.r, x, sum[q].r);
            sum[q].i = vf_fma(bb.i, x, sum[q].i);
        }
    }
}

static void block_poles(const lti_block *a) {
    const int32_t parts = a->count / LTI_PART;
    convolve(a);
    for (int32_t n = 0; n < a->n; n++) {
        const float *pole = a->poles + (size_t)n * LTI_POLE_FLOATS * CPU_LANES;
        float *kept = a->s + (size_t)n * 2 * CPU_LANES;
        const cx ab = cx_load(pole), bb = cx_load(pole + 2 * CPU_LANES);
        const cx power = cx_load(a->powers + (size_t)n * 2 * CPU_LANES);
        cx s = {vf_set(0), vf_set(0)}, sum[PARTS];
        if (!a->fresh) {
            s = cx_load(kept);
            hear_pole(a, n, s, ab, power, parts);
        }
        sum_pole(a->u, bb, ab, parts, sum);
        for (int32_t q = 0; q < parts; q++)
            s = cx_fma(s, power, sum[q]);
        cx_store(kept, s);
    }
}

// ---- dense

// next = Ab^LTI_PART s + add, rows by groups.
static void advance_part(const lti_block *a, const float *s, const float *add, float *next) {
    const size_t group = (size_t)a->n * LTI_ROWS * CPU_LANES;
    const float *ab = a->powers;
    for (int32_t i = 0; i < a->n; i += LTI_ROWS, ab += group) {
        const int32_t past = i + LTI_ROWS < a->n ? i + LTI_ROWS : a->n;
        dense_rows(ab, add + (size_t)i * CPU_LANES, vf_set(1), s, a->is_lower ? past : a->n,
                   next + (size_t)i * CPU_LANES);
    }
}

// y += C Ab^(r + 1) s for the tokens r of a part.
static void hear_dense(const lti_block *a, const float *s, float *y) {
    for (int32_t r = 0; r < LTI_PART; r += 4) {
        vf sum[4];
        const float *c = a->output + (size_t)r * (size_t)a->n * CPU_LANES;
        const size_t row = (size_t)a->n * CPU_LANES;
        UNROLL for (int i = 0; i < 4; i++) sum[i] = vf_load(y + (size_t)(r + i) * CPU_LANES);
        for (int32_t n = 0; n < a->n; n++, c += CPU_LANES) {
            const vf x = vf_load(s + (size_t)n * CPU_LANES);
            UNROLL for (int i = 0; i < 4; i++) sum[i] = vf_fma(vf_load(c + i * row), x, sum[i]);
        }
        UNROLL for (int i = 0; i < 4; i++) vf_store(y + (size_t)(r + i) * CPU_LANES, sum[i]);
    }
}

// Number n of what the inputs of each part leave: out[q * stride].
static void sum_dense(const lti_block *a, int32_t n, int32_t parts, float *out, size_t stride) {
    vf sum[PARTS];
    UNROLL for (int q = 0; q < PARTS; q++) sum[q] = vf_set(0);
    const float *b = a->input + (size_t)n * CPU_LANES;
    for (int32_t r = LTI_PART - 1; r >= 0; r--, b += (size_t)a->n * CPU_LANES) {
        const vf x = vf_load(b);
        UNROLL for (int q = 0; q < PARTS; q++) // zeros past the last part
            sum[q] = vf_fma(x, vf_load(a->u + (size_t)(q * LTI_PART + r) * CPU_LANES), sum[q]);
    }
    for (int q = 0; q < parts; q++)
        vf_store(out + q * stride, sum[q]);
}

// states: first what every part's inputs leave, then, one after the other, the states before each
// part: the old state's alone to be heard, and the whole one.
static void block_dense(const lti_block *a) {
    const int32_t parts = a->count / LTI_PART;
    const size_t rows = (size_t)(a->n + LTI_ROWS - 1) / LTI_ROWS * LTI_ROWS * CPU_LANES;
    const size_t bytes = (size_t)a->n * CPU_LANES * sizeof(float);
    float *zero = a->states + PARTS * rows, *next = zero + rows, *old = next + rows;
    convolve(a);
    memset(a->states, 0, (PARTS + 1) * rows * sizeof(float));
    for (int32_t n = 0; n < a->n; n++)
        sum_dense(a, n, parts, a->states + (size_t)n * CPU_LANES, rows);
    if (a->fresh)
        memset(a->s, 0, bytes);
    memcpy(old, a->s, bytes);
    for (int32_t q = 0; q < parts; q++) {
        advance_part(a, a->s, a->states + (size_t)q * rows, next);
        memcpy(a->s, next, bytes);
        if (a->fresh)
            continue;
        hear_dense(a, old, a->y + (size_t)q * LTI_PART * CPU_LANES);
        advance_part(a, old, zero, next);
        memcpy(old, next, bytes);
    }
}
