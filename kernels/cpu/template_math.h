// SPDX-License-Identifier: Apache-2.0
// exp2, softplus and silu of sixteen lanes; included once by each isa_*.c. Softplus, which goes
// through exp, is within 2.5e-7 of its value from -80 to 40 (2.7e-6 without fused products):
// tests/kernels/test_ops measures it.

// 2^x: x = n + f, |f| <= 1/2; a degree-6 polynomial for 2^f (Cephes), then the exponent is moved.
static inline vf vf_exp2(vf x) {
    const vf n = vf_round(x);
    const vf f = vf_sub(x, n);
    vf p = vf_set(1.535336188e-4f);
    p = vf_fma(p, f, vf_set(1.339887440e-3f));
    p = vf_fma(p, f, vf_set(9.618437357e-3f));
    p = vf_fma(p, f, vf_set(5.550332471e-2f));
    p = vf_fma(p, f, vf_set(2.402264791e-1f));
    p = vf_fma(p, f, vf_set(6.931472029e-1f));
    p = vf_fma(p, f, vf_set(1.0f));
    return vf_scale2(p, n);
}

#define LOG2_E 1.44269504088896340736f

// exp(x); x log2(e) in two parts, so that large x lose nothing.
static inline vf vf_exp(vf x) {
    const vf high = vf_mul(x, vf_set(LOG2_E));
    const vf n = vf_round(high);
    const vf f = vf_fma(x, vf_set(LOG2_E), vf_sub(vf_set(0), n)); // exact difference, one rounding
    const vf g = vf_fma(x, vf_set(1.925963033e-8f), f);
    vf p = vf_set(1.535336188e-4f);
    p = vf_fma(p, g, vf_set(1.339887440e-3f));
    p = vf_fma(p, g, vf_set(9.618437357e-3f));
    p = vf_fma(p, g, vf_set(5.550332471e-2f));
    p = vf_fma(p, g, vf_set(2.402264791e-1f));
    p = vf_fma(p, g, vf_set(6.931472029e-1f));
    p = vf_fma(p, g, vf_set(1.0f));
    return vf_scale2(p, n);
}

// x / (1 + exp(-x)); -x is bounded where exp would overflow: silu is 0 to fp32 there.
static inline vf vf_silu(vf x) {
    const vf e = vf_exp(vf_min(vf_set(100), vf_sub(vf_set(0), x)));
    return vf_div(x, vf_add(vf_set(1), e));
}

// max(x, 0) + log1p(exp(-|x|)); log1p(y) = 2 atanh(s), s = y / (2 + y) <= 1/3, by its series.
static inline vf vf_softplus(vf x) {
    const vf y = vf_exp(vf_max(vf_set(-100), vf_sub(vf_set(0), vf_abs(x))));
    const vf s = vf_div(y, vf_add(y, vf_set(2)));
    const vf s2 = vf_mul(s, s);
    vf p = vf_set(2.0f / 17);
    p = vf_fma(p, s2, vf_set(2.0f / 15));
    p = vf_fma(p, s2, vf_set(2.0f / 13));
    p = vf_fma(p, s2, vf_set(2.0f / 11));
    p = vf_fma(p, s2, vf_set(2.0f / 9));
    p = vf_fma(p, s2, vf_set(2.0f / 7));
    p = vf_fma(p, s2, vf_set(2.0f / 5));
    p = vf_fma(p, s2, vf_set(2.0f / 3));
    p = vf_fma(p, s2, vf_set(2.0f));
    return vf_fma(p, s, vf_max(vf_set(0), x));
}
