// SPDX-License-Identifier: Apache-2.0
// exp2, softplus and silu of sixteen lanes; included once by each isa_*.c. Softplus, which goes
// through exp, is within 2.5e-7 of its value from -80 to 40 (2.7e-6 without fused products):
// tests/kernels/test_ops measures it.

// 2^x: x = n + f, |f| <= 1/2; 2^f by a polynomial of degree 5 that is 1 at 0, so that a decay near
// 1 is rounded and not biased (relative error 9.2e-8 before rounding); then the exponent is moved.
static inline vf vf_exp2(vf x) {
    const vf n = vf_round(x);
    const vf f = vf_sub(x, n);
    vf p = vf_set(1.32647e-3f);
    p = vf_fma(p, f, vf_set(9.67151e-3f));
    p = vf_fma(p, f, vf_set(5.550734e-2f));
    p = vf_fma(p, f, vf_set(2.4022242e-1f));
    p = vf_fma(p, f, vf_set(6.9314698e-1f));
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

// max(x, 0) + log1p(exp(-|x|)); log1p(y) = 2 atanh(s), s = y / (2 + y) <= 1/3: a
// polynomial in s^2 with relative error 4e-9.
static inline vf vf_softplus(vf x) {
    const vf y = vf_exp(vf_max(vf_set(-100), vf_sub(vf_set(0), vf_abs(x))));
    const vf s = vf_div(y, vf_add(y, vf_set(2)));
    const vf s2 = vf_mul(s, s);
    vf p = vf_set(2.8178335e-1f);
    p = vf_fma(p, s2, vf_set(2.7960603e-1f));
    p = vf_fma(p, s2, vf_set(4.0024910e-1f));
    p = vf_fma(p, s2, vf_set(6.6666315e-1f));
    p = vf_fma(p, s2, vf_set(2.0f));
    return vf_fma(p, s, vf_max(vf_set(0), x));
}
