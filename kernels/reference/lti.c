// SPDX-License-Identifier: Apache-2.0
#include "lti.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/fft.h"

double ref_gelu(double y) {
    return y / 2 * (1 + erf(y * M_SQRT1_2));
}

// ---- one token

static double step_diagonal(const ref_ssm *m, ref_real *s, double u) {
    double sum = 0;
    for (size_t i = 0; i < 2 * m->n; i += 2) {
        const double re = (double)s[i], im = (double)s[i + 1];
        s[i] = (ref_real)(m->ab[i] * re - m->ab[i + 1] * im + m->bb[i] * u);
        s[i + 1] = (ref_real)(m->ab[i] * im + m->ab[i + 1] * re + m->bb[i + 1] * u);
        sum += m->c[i] * (double)s[i] - m->c[i + 1] * (double)s[i + 1];
    }
    return 2 * sum + m->d * u;
}

static double step_dense(const ref_ssm *m, ref_real *s, double u) {
    double sum = 0;
    for (size_t i = 0; i < m->n; i++) {
        const double *row = m->ab + i * m->n;
        double next = m->bb[i] * u;
        for (size_t j = 0; j < m->n; j++)
            next += row[j] * (double)s[j];
        m->work[i] = next;
    }
    for (size_t i = 0; i < m->n; i++) {
        s[i] = (ref_real)m->work[i];
        sum += m->c[i] * (double)s[i];
    }
    return sum + m->d * u;
}

static double step_shift(const ref_ssm *m, ref_real *s, double u) {
    double sum = 0;
    for (size_t i = m->n; i-- > 0;) {
        s[i] = (ref_real)((i > 0 ? (double)s[i - 1] : 0) + m->bb[i] * u);
        sum += m->c[i] * (double)s[i];
    }
    return sum + m->d * u;
}

double ref_ssm_step(const ref_ssm *m, ref_real *s, double u) {
    switch (m->kind) {
    case REF_DIAGONAL:
        return step_diagonal(m, s, u);
    case REF_DENSE:
        return step_dense(m, s, u);
    case REF_SHIFT:
        break;
    }
    return step_shift(m, s, u);
}

// ---- powers of Ab, in double: vectors of 2 n (DIAGONAL) or n numbers

static size_t state_size(const ref_ssm *m) {
    return m->kind == REF_DIAGONAL ? 2 * m->n : m->n;
}

static void advance(const ref_ssm *m, double *x) { // x = Ab x
    if (m->kind == REF_DIAGONAL) {
        for (size_t i = 0; i < 2 * m->n; i += 2) {
            const double re = x[i], im = x[i + 1];
            x[i] = m->ab[i] * re - m->ab[i + 1] * im;
            x[i + 1] = m->ab[i] * im + m->ab[i + 1] * re;
        }
    } else if (m->kind == REF_DENSE) {
        double *old = m->work + 3 * m->n;
        memcpy(old, x, m->n * sizeof *x);
        for (size_t i = 0; i < m->n; i++) {
            const double *row = m->ab + i * m->n;
            double next = 0;
            for (size_t j = 0; j < m->n; j++)
                next += row[j] * old[j];
            x[i] = next;
        }
    } else {
        memmove(x + 1, x, (m->n - 1) * sizeof *x);
        x[0] = 0;
    }
}

static double look(const ref_ssm *m, const double *x) { // C x
    double sum = 0;
    if (m->kind != REF_DIAGONAL) {
        for (size_t i = 0; i < m->n; i++)
            sum += m->c[i] * x[i];
        return sum;
    }
    for (size_t i = 0; i < 2 * m->n; i += 2)
        sum += m->c[i] * x[i] - m->c[i + 1] * x[i + 1];
    return 2 * sum;
}

void ref_ssm_kernel(const ref_ssm *m, size_t length, double *k) {
    double *x = m->work;
    memcpy(x, m->bb, state_size(m) * sizeof *x);
    for (size_t l = 0; l < length; l++, advance(m, x))
        k[l] = look(m, x);
}

// ---- a prompt

int ref_convolve_direct(size_t length, const double *k, const double *u, double *y) {
    for (size_t t = 0; t < length; t++) {
        y[t] = 0;
        for (size_t j = 0; j <= t; j++)
            y[t] += k[t - j] * u[j];
    }
    return 0;
}

int ref_convolve_fft(size_t length, const double *k, const double *u, double *y) {
    size_t n = 2;
    while (n < 2 * length)
        n *= 2;
    double *a = calloc(5 * n, sizeof *a);
    if (!a)
        return SSM_ENOMEM;
    double *b = a + 2 * n, *w = b + 2 * n;
    fft_twiddles(n, w);
    for (size_t i = 0; i < length; i++) {
        a[2 * i] = k[i];
        b[2 * i] = u[i];
    }
    fft_transform(n, w, a, 0);
    fft_transform(n, w, b, 0);
    for (size_t i = 0; i < 2 * n; i += 2) {
        const double re = a[i] * b[i] - a[i + 1] * b[i + 1];
        a[i + 1] = a[i] * b[i + 1] + a[i + 1] * b[i];
        a[i] = re;
    }
    fft_transform(n, w, a, 1);
    for (size_t i = 0; i < length; i++)
        y[i] = a[2 * i] / (double)n;
    free(a);
    return 0;
}

int ref_ssm_prompt(const ref_ssm *m, ref_convolution *convolve, size_t length, const double *u,
                   double *y, ref_real *s) {
    const size_t size = state_size(m);
    double *k = malloc((length + 2 * size) * sizeof *k);
    if (!k)
        return SSM_ENOMEM;
    double *old = k + length, *sum = old + size, *x = m->work;
    ref_ssm_kernel(m, length, k);
    const int rc = convolve(length, k, u, y);
    for (size_t i = 0; i < size; i++) {
        old[i] = (double)s[i];
        sum[i] = 0;
        x[i] = m->bb[i];
    }
    for (size_t t = 0; t < length; t++) { // what the old state still says
        advance(m, old);
        y[t] += m->d * u[t] + look(m, old);
    }
    for (size_t j = length; j-- > 0; advance(m, x)) { // Ab^(L-1-j) Bb u_j
        for (size_t i = 0; i < size; i++)
            sum[i] += x[i] * u[j];
    }
    for (size_t i = 0; i < size; i++)
        s[i] = (ref_real)(old[i] + sum[i]);
    free(k);
    return rc;
}
