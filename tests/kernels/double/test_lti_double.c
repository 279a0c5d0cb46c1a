// SPDX-License-Identifier: Apache-2.0
// The reference's SSMs built with states in double: recurrence, direct convolution, FFT and any
// chunks agree to rounding, outputs and states, 1e-12 of the largest magnitude, for spectral radii
// up to 0.9999. In fp32 they could hide an error of 1e-6.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/reference/lti.h"

_Static_assert(sizeof(ref_real) == sizeof(double), "this test is of the double build");

enum { N = 24, LENGTH = 1000 };

typedef struct fixture {
    double ab[N * N], bb[2 * N], c[2 * N], work[4 * N];
    ref_ssm ssm;
    size_t state; // numbers
    double radius;
} fixture;

static double uniform(uint64_t *state) { // splitmix64 to (-1, 1)
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (double)(int64_t)(z ^ z >> 31) * 0x1p-63;
}

static void make(fixture *f, int i) {
    uint64_t seed = (uint64_t)i;
    const ref_ssm_kind kind = (ref_ssm_kind)(i % 3);
    *f = (fixture){.state = kind == REF_DIAGONAL ? 2 * N : N};
    for (size_t k = 0; k < 2 * N; k++) {
        f->bb[k] = uniform(&seed);
        f->c[k] = uniform(&seed);
    }
    if (kind == REF_DIAGONAL) { // radii from 0.3 to 0.9999, angles over the half circle
        for (size_t k = 0; k < N; k++) {
            const double radius = k == 0 ? 0.9999 : 1 - pow(10, -4 * fabs(uniform(&seed)) - 0.15);
            const double angle = k < 2 ? 0.01 * (double)k : 3.1 * fabs(uniform(&seed));
            f->ab[2 * k] = radius * cos(angle);
            f->ab[2 * k + 1] = radius * sin(angle);
            f->radius = fmax(f->radius, radius);
        }
    } else if (kind == REF_DENSE) { // HiPPO with a step that puts its slowest number at 0.9999
        double a[N * N], b[N];
        lti_hippo_legs(N, a, b);
        const ssm_rule rule = i < 3 ? SSM_RULE_BILINEAR : SSM_RULE_ZOH;
        ck_assert_int_eq(lti_discretise_dense(rule, 1.0001e-4, N, a, b, f->ab, f->bb), 0);
        f->radius = lti_spectral_radius(N, f->ab);
    }
    f->ssm = (ref_ssm){kind, N, f->ab, f->bb, f->c, 0.7, f->work};
}

// The largest |a - b| over the largest |b|.
static double relative(const double *a, const double *b, size_t n) {
    double most = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs(a[i] - b[i]);
        scale = fmax(scale, fabs(b[i]));
        if (!(off <= most))
            most = off;
    }
    return most / scale;
}

static void check(const fixture *f, const char *what, const double *y, const double *state,
                  const double *want_y, const double *want_state) {
    const double outputs = relative(y, want_y, LENGTH);
    const double states = relative(state, want_state, f->state);
    ck_assert_msg(outputs <= 1e-12, "kind %d, %s: outputs off by %g", f->ssm.kind, what, outputs);
    ck_assert_msg(states <= 1e-12, "kind %d, %s: states off by %g", f->ssm.kind, what, states);
    if (getenv("SSM_TEST_VERBOSE"))
        printf("kind %d radius %.6f %-8s outputs %.1e states %.1e\n", f->ssm.kind, f->radius, what,
               outputs, states);
}

START_TEST(forms_agree) {
    fixture f;
    uint64_t seed = 99;
    double u[LENGTH], want[LENGTH], y[LENGTH], state[2 * N] = {0}, s[2 * N];
    const size_t cuts[] = {1, 7, 256, N - 1, 64, 3, 500, LENGTH};
    make(&f, _i);
    for (size_t t = 0; t < LENGTH; t++) {
        u[t] = uniform(&seed);
        want[t] = ref_ssm_step(&f.ssm, state, u[t]);
    }
    memset(s, 0, sizeof s);
    ck_assert_int_eq(ref_ssm_prompt(&f.ssm, ref_convolve_direct, LENGTH, u, y, s), 0);
    check(&f, "direct", y, s, want, state);
    memset(s, 0, sizeof s);
    ck_assert_int_eq(ref_ssm_prompt(&f.ssm, ref_convolve_fft, LENGTH, u, y, s), 0);
    check(&f, "fft", y, s, want, state);
    memset(s, 0, sizeof s);
    for (size_t done = 0, i = 0; done < LENGTH; i++) {
        const size_t count = cuts[i] < LENGTH - done ? cuts[i] : LENGTH - done;
        ck_assert_int_eq(ref_ssm_prompt(&f.ssm, ref_convolve_fft, count, u + done, y + done, s), 0);
        done += count;
    }
    check(&f, "chunks", y, s, want, state);
}
END_TEST

// A kernel that is wrong in one place must not pass: the bound means something.
START_TEST(a_wrong_kernel_is_seen) {
    fixture f;
    double u[LENGTH] = {1}, want[LENGTH], k[LENGTH], s[2 * N] = {0};
    make(&f, _i);
    for (size_t t = 0; t < LENGTH; t++)
        want[t] = ref_ssm_step(&f.ssm, s, u[t]);
    ref_ssm_kernel(&f.ssm, LENGTH, k);
    k[0] += f.ssm.d;
    ck_assert(relative(k, want, LENGTH) <= 1e-12);
    k[5] *= 1 + 1e-9;
    k[5] += 1e-10;
    ck_assert(relative(k, want, LENGTH) > 1e-12);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("lti in double");
    TCase *tc = tcase_create("forms");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, forms_agree, 0, 6);
    tcase_add_loop_test(tc, a_wrong_kernel_is_seen, 0, 6);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
