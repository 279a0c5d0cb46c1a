// SPDX-License-Identifier: Apache-2.0
#include "lti.h"

#include <assert.h>
#include <complex.h>
#include <math.h>
#include <stdlib.h>

#ifndef CMPLX // clang with an older glibc
#define CMPLX(re, im) __builtin_complex((double)(re), (double)(im))
#endif

const char *lti_rule_name(ssm_rule rule) {
    static const char *const names[] = {"zoh", "bilinear", "euler", "rk4"};
    return names[rule];
}

static double complex expm1_complex(double complex z) { // without loss near 0
    const double x = creal(z), y = cimag(z), half = sin(y / 2);
    return CMPLX(expm1(x) * cos(y) - 2 * half * half, exp(x) * sin(y));
}

void lti_discretise_pole(ssm_rule rule, double dt, const double a[2], double ab[2], double bb[2]) {
    const double complex pole = CMPLX(a[0], a[1]), z = dt * pole;
    double complex p = 0, q = 0;
    switch (rule) {
    case SSM_RULE_ZOH:
        p = cexp(z);
        q = expm1_complex(z) / pole;
        break;
    case SSM_RULE_BILINEAR:
        p = (1 + z / 2) / (1 - z / 2);
        q = dt / (1 - z / 2);
        break;
    case SSM_RULE_EULER:
        p = 1 + z;
        q = dt;
        break;
    case SSM_RULE_RK4:
        p = 1 + z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4)));
        q = dt * (1 + z / 2 * (1 + z / 3 * (1 + z / 4)));
        break;
    }
    ab[0] = creal(p), ab[1] = cimag(p);
    bb[0] = creal(q), bb[1] = cimag(q);
}

// ---- layers

static double get(const ssm_tensor *t, size_t i) {
    return (double)ssm_tensor_get(t, i);
}

static int refuse(ssm_rule rule, double radius, ssm_error *err) {
    return ssm_error_set(err, SSM_EUNSUPPORTED, "discretization",
                         "%s leaves the unit disc: the spectral radius is %.9g, states would grow "
                         "without bound",
                         lti_rule_name(rule), radius);
}

static int no_memory(ssm_error *err) {
    return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a discrete layer");
}

// Rounding may leave a pole on the circle a few ulps outside it.
static bool leaves_disc(double radius) {
    return !(radius <= 1 + 1e-12);
}

static void init_channel(lti_diagonal *s, const ssm_geometry *g, const ssm_layer *l, size_t ch) {
    const double dt = exp(get(&l->lti.log_dt, ch));
    for (size_t i = ch * s->n; i < (ch + 1) * s->n; i++) {
        const double a[2] = {-exp(get(&l->A_log, i)), get(&l->lti.A_imag, i)};
        double *ab = s->ab + 2 * i, *bb = s->bb + 2 * i;
        lti_discretise_pole(g->rule, dt, a, ab, bb);
        if (l->lti.B.data) {
            const double re = get(&l->lti.B, 2 * i), im = get(&l->lti.B, 2 * i + 1);
            const double bre = bb[0] * re - bb[1] * im;
            bb[1] = bb[0] * im + bb[1] * re;
            bb[0] = bre;
        }
        s->c[2 * i] = get(&l->lti.C, 2 * i);
        s->c[2 * i + 1] = get(&l->lti.C, 2 * i + 1);
        const double magnitude = hypot(ab[0], ab[1]);
        if (!(magnitude <= s->radius)) // NaN stays
            s->radius = magnitude;
    }
    s->d[ch] = get(&l->D, ch);
}

int lti_diagonal_init(lti_diagonal *s, const ssm_geometry *g, const ssm_layer *l, ssm_error *err) {
    assert(g->kind == SSM_BLOCK_S4D || g->kind == SSM_BLOCK_H3);
    *s = (lti_diagonal){.n = (size_t)g->d_state / 2};
    s->channels = (size_t)(g->kind == SSM_BLOCK_H3 ? g->n_heads : g->d_model);
    const size_t poles = s->channels * s->n;
    s->ab = malloc(2 * poles * sizeof *s->ab);
    s->bb = malloc(2 * poles * sizeof *s->bb);
    s->c = malloc(2 * poles * sizeof *s->c);
    s->d = malloc(s->channels * sizeof *s->d);
    int rc = s->ab && s->bb && s->c && s->d ? 0 : no_memory(err);
    for (size_t ch = 0; rc == 0 && ch < s->channels; ch++)
        init_channel(s, g, l, ch);
    if (rc == 0 && leaves_disc(s->radius))
        rc = refuse(g->rule, s->radius, err);
    if (rc != 0)
        lti_diagonal_dispose(s);
    return rc;
}

void lti_diagonal_dispose(lti_diagonal *s) {
    free(s->ab);
    free(s->bb);
    free(s->c);
    free(s->d);
    *s = (lti_diagonal){0};
}

static bool is_lower(size_t n, const double *a) {
    for (size_t i = 0; i < n; i++) {
        for (size_t j = i + 1; j < n; j++) {
            if (a[i * n + j] != 0)
                return false;
        }
    }
    return true;
}

// The rules that files may ask for keep every eigenvalue on its side of the border whatever Dt is,
// so the longest step, where radii lie farthest from 1, speaks for all channels; the others are
// looked at one by one.
static int check_radius(lti_dense *s, ssm_rule rule, const double *dt, ssm_error *err) {
    const bool any_step = rule == SSM_RULE_EULER || rule == SSM_RULE_RK4;
    size_t longest = 0;
    for (size_t ch = 1; ch < s->channels; ch++)
        longest = dt[ch] > dt[longest] ? ch : longest;
    for (size_t ch = 0; ch < s->channels; ch++) {
        if (!any_step && !s->is_lower && ch != longest)
            continue;
        const double radius = lti_spectral_radius(s->n, s->ab + ch * s->n * s->n);
        if (radius < 0)
            return no_memory(err);
        if (!(radius <= s->radius))
            s->radius = radius;
    }
    return leaves_disc(s->radius) ? refuse(rule, s->radius, err) : 0;
}

int lti_dense_init(lti_dense *s, const ssm_geometry *g, const ssm_layer *l, ssm_error *err) {
    assert(g->kind == SSM_BLOCK_S4);
    const size_t n = (size_t)g->d_state, channels = (size_t)g->d_model;
    *s = (lti_dense){.channels = channels, .n = n};
    double *a = malloc(n * n * sizeof *a), *b = malloc(n * sizeof *b);
    double *dt = malloc(channels * sizeof *dt);
    s->ab = malloc(channels * n * n * sizeof *s->ab);
    s->bb = malloc(channels * n * sizeof *s->bb);
    s->c = malloc(channels * n * sizeof *s->c);
    s->d = malloc(channels * sizeof *s->d);
    int rc = a && b && dt && s->ab && s->bb && s->c && s->d ? 0 : no_memory(err);
    for (size_t i = 0; rc == 0 && i < n * n; i++)
        a[i] = get(&l->lti.A, i);
    for (size_t i = 0; rc == 0 && i < n; i++)
        b[i] = get(&l->lti.B, i);
    for (size_t ch = 0; rc == 0 && ch < channels; ch++) {
        dt[ch] = exp(get(&l->lti.log_dt, ch));
        s->d[ch] = get(&l->D, ch);
        for (size_t i = 0; i < n; i++)
            s->c[ch * n + i] = get(&l->lti.C, ch * n + i);
        if (lti_discretise_dense(g->rule, dt[ch], n, a, b, s->ab + ch * n * n, s->bb + ch * n) != 0)
            rc = no_memory(err);
    }
    if (rc == 0) {
        s->is_lower = is_lower(n, a);
        rc = check_radius(s, g->rule, dt, err);
    }
    free(a);
    free(b);
    free(dt);
    if (rc != 0)
        lti_dense_dispose(s);
    return rc;
}

void lti_dense_dispose(lti_dense *s) {
    free(s->ab);
    free(s->bb);
    free(s->c);
    free(s->d);
    *s = (lti_dense){0};
}

void lti_hippo_legs(size_t n, double *a, double *b) {
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            const double below = -sqrt((2.0 * (double)i + 1) * (2.0 * (double)j + 1));
            a[i * n + j] = i > j ? below : i == j ? -(double)(i + 1) : 0;
        }
        b[i] = sqrt(2.0 * (double)i + 1);
    }
}
