// SPDX-License-Identifier: Apache-2.0
// Mamba's form against those that it was built from (Gu and Dao 2023, section 3 and theorem 1; Gu
// et al. 2020): S6 whose step, B and C do not change is an S4D layer of real poles; with one state
// and A = -1 it is the gate of a recurrent cell, to the difference between delta B and the exact
// hold; and HiPPO's state is a memory of the input, recent better than old.
//
// SSM_HIPPO_PLOT=FILE writes the last as an SVG.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/lti.h"
#include "kernels/reference/lti.h"
#include "kernels/reference/ops.h"
#include "random_model.h"

enum { CHANNELS = 5, N = 8, LENGTH = 400 };

// Mamba's recurrence with constants against the convolution of an S4D-real layer: A from A_log, Ab
// = exp(delta A), Bb = delta B, one real pole a state, which half of C makes of a conjugate pair.
START_TEST(constant_selection_is_s4d) {
    random_model r = {.state = 3};
    float a_log[CHANNELS * N], d[CHANNELS], delta[CHANNELS], b[N], c[N], h[CHANNELS * N] = {0};
    float x[LENGTH][CHANNELS], y[LENGTH][CHANNELS];
    for (int i = 0; i < CHANNELS * N; i++)
        a_log[i] = (float)(0.7 + random_unit(&r));
    for (int i = 0; i < N; i++)
        b[i] = (float)random_unit(&r), c[i] = (float)random_unit(&r);
    for (int i = 0; i < CHANNELS; i++)
        d[i] = (float)random_unit(&r), delta[i] = (float)exp(-3 + 2 * random_unit(&r));
    for (int t = 0; t < LENGTH; t++) {
        for (int i = 0; i < CHANNELS; i++)
            x[t][i] = (float)random_unit(&r);
        ref_scan_mamba(CHANNELS, N, a_log, d, delta, b, c, x[t], h, y[t]);
    }
    for (int i = 0; i < CHANNELS; i++) {
        double ab[2 * N] = {0}, bb[2 * N] = {0}, half[2 * N] = {0}, work[4 * N];
        double u[LENGTH], want[LENGTH];
        float s[2 * N] = {0};
        for (int n = 0; n < N; n++) {
            const double a[2] = {-exp((double)a_log[i * N + n]), 0};
            double held[2];
            lti_discretise_pole(SSM_RULE_ZOH, (double)delta[i], a, ab + 2 * n, held);
            bb[2 * n] = (double)delta[i] * (double)b[n];
            half[2 * n] = (double)c[n] / 2;
        }
        const ref_ssm m = {REF_DIAGONAL, N, ab, bb, half, (double)d[i], work};
        for (int t = 0; t < LENGTH; t++)
            u[t] = (double)x[t][i];
        ck_assert_int_eq(ref_ssm_prompt(&m, ref_convolve_fft, LENGTH, u, want, s), 0);
        for (int t = 0; t < LENGTH; t++)
            ck_assert_msg(fabs((double)y[t][i] - want[t]) <= 1e-6, "channel %d, token %d: %g, %g",
                          i, t, (double)y[t][i], want[t]);
        for (int n = 0; n < N; n++)
            ck_assert(fabs((double)h[i * N + n] - (double)s[2 * n]) <= 1e-6);
    }
}
END_TEST

// Theorem 1: N = 1, A = -1, B = 1, delta = softplus(z). Then exp(-delta) = 1 - sigmoid(z), and what
// an exact hold lets in is 1 - exp(-delta) = sigmoid(z): h = (1 - g) h + g x, a gated cell. Mamba
// lets delta in instead, sigmoid(z) + (softplus(z) - sigmoid(z)): more, by that much of x.
START_TEST(one_state_is_a_gate) {
    const double pole[2] = {-1, 0};
    random_model r = {.state = 5};
    double cell = 0, held = 0;
    float h = 0;
    for (int t = 0; t < LENGTH; t++) {
        const double z = 4 * random_unit(&r), g = 1 / (1 + exp(-z)), x = random_unit(&r);
        const float a_log = 0, d = 0, one = 1, zf = (float)z, xf = (float)x;
        const float delta = ref_softplus(zf);
        double ab[2], bb[2];
        lti_discretise_pole(SSM_RULE_ZOH, log1p(exp(z)), pole, ab, bb);
        cell = (1 - g) * cell + g * x;
        held = ab[0] * held + bb[0] * x;
        ck_assert_msg(fabs(held - cell) <= 1e-12, "token %d: %g, not %g", t, held, cell);
        const double before = (double)h, miss = (log1p(exp(z)) - g) * x;
        float y;
        ref_scan_mamba(1, 1, &a_log, &d, &delta, &one, &one, &xf, &h, &y);
        const double gated = (1 - g) * before + g * x;
        ck_assert_msg(fabs((double)h - gated - miss) <= 1e-6, "token %d: off by %g, not %g", t,
                      (double)h - gated, miss);
        ck_assert(fabs(x) < 0.1 || fabs(miss) > 1e-3 * fabs(x) || z < -3);
    }
}
END_TEST

// ---- HiPPO

enum { ORDER = 64, STEPS = 2000 };
static const double dt = 0.005;

static double signal_at(int t) {
    static const double waves[][3] = {{1, 0.9, 0.1}, {0.8, 1.7, 1},   {0.6, 2.9, 2},
                                      {0.5, 4.1, 3}, {0.4, 5.3, 0.5}, {0.3, 6.1, 4}};
    double sum = 0;
    for (int i = 0; i < 6; i++)
        sum += waves[i][0] * sin(waves[i][1] * 2 * dt * t + waves[i][2]);
    return sum;
}

// u(j steps ago) ~ sum_n s_n sqrt(2n + 1) P_n(2 exp(-j dt) - 1): Legendre's polynomials by
// recursion.
static double remember(const double *s, int ago) {
    const double x = 2 * exp(-ago * dt) - 1;
    double before = 0, p = 1, sum = 0;
    for (int n = 0; n < ORDER; n++) {
        sum += s[n] * sqrt(2.0 * n + 1) * p;
        const double next = ((2.0 * n + 1) * x * p - n * before) / (n + 1);
        before = p;
        p = next;
    }
    return sum;
}

static double error_between(const double *remembered, int first, int end) {
    double off = 0, size = 0;
    for (int j = first; j < end; j++) {
        const double u = signal_at(STEPS - 1 - j);
        off += (remembered[j] - u) * (remembered[j] - u);
        size += u * u;
    }
    return sqrt(off / size);
}

static void plot(const char *path, const double *remembered) {
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fprintf(f, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 260\" "
               "font-family=\"sans-serif\" font-size=\"13\">\n"
               "<rect width=\"1000\" height=\"260\" fill=\"#fff\"/>\n"
               "<text x=\"10\" y=\"18\">64 numbers remember 2,000 steps (HiPPO-LegS): the input, "
               "grey, and what its state says of it, blue; now at the right</text>\n");
    for (int curve = 0; curve < 2; curve++) {
        fprintf(f, "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"%s\" points=\"",
                curve ? "#06c" : "#bbb");
        for (int t = 0; t < STEPS; t += 4)
            fprintf(f, "%.1f,%.1f ", t / 2.0,
                    140 - 30 * (curve ? remembered[STEPS - 1 - t] : signal_at(t)));
        fprintf(f, "\"/>\n");
    }
    fprintf(f, "</svg>\n");
    fclose(f);
}

START_TEST(hippo_remembers) {
    static double a[ORDER * ORDER], b[ORDER], ab[ORDER * ORDER], bb[ORDER], remembered[STEPS];
    double s[ORDER] = {0}, next[ORDER];
    lti_hippo_legs(ORDER, a, b);
    ck_assert_int_eq(lti_discretise_dense(SSM_RULE_BILINEAR, dt, ORDER, a, b, ab, bb), 0);
    for (int t = 0; t < STEPS; t++) {
        for (int i = 0; i < ORDER; i++) {
            next[i] = bb[i] * signal_at(t);
            for (int j = 0; j < ORDER; j++)
                next[i] += ab[i * ORDER + j] * s[j];
        }
        memcpy(s, next, sizeof s);
    }
    for (int j = 0; j < STEPS; j++)
        remembered[j] = remember(s, j);
    const double now = error_between(remembered, 0, 100);
    const double then = error_between(remembered, 300, 600);
    const double old = error_between(remembered, 600, 1000);
    const double gone = error_between(remembered, 1000, STEPS);
    if (getenv("SSM_TEST_VERBOSE"))
        printf("relative error 0-100 %.3f, 300-600 %.3f, 600-1000 %.3f, beyond %.3f\n", now, then,
               old, gone);
    ck_assert_msg(now <= 0.05, "%g", now);
    ck_assert_msg(then <= 0.15, "%g", then);
    ck_assert(now < then && then < old && old < gone);
    const char *path = getenv("SSM_HIPPO_PLOT");
    if (path)
        plot(path, remembered);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("ancestors");
    TCase *tc = tcase_create("forms");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, constant_selection_is_s4d);
    tcase_add_test(tc, one_state_is_a_gate);
    tcase_add_test(tc, hippo_remembers);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
