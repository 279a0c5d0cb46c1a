// SPDX-License-Identifier: Apache-2.0
// Dense matrices in fp64, as large as a state is: products, solving, the exponential, the spectral
// radius. They run once at load, 0.5 N^3 to 20 N^3 multiply-adds a channel, so they are plain loops
// over rows in memory order. What is zero above the diagonal of A is zero in Ab, bit for bit.
//
// The radius is the limit of |A^k|^(1/k) (Gelfand), by squaring: after 40 squarings k is 2^40 and
// what the norm differs from the radius by, a factor that may be large for a matrix far from
// normal, is gone. Each square is scaled back to norm 1, so nothing overflows; the first squarings'
// rounding, n ulps of the norm, is what is left. A triangular matrix has its eigenvalues on the
// diagonal.
#include "lti.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void lti_multiply(size_t n, const double *a, const double *b, double *out) {
    memset(out, 0, n * n * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < n; k++) {
            const double x = a[i * n + k];
            if (x == 0)
                continue;
            for (size_t j = 0; j < n; j++)
                out[i * n + j] += x * b[k * n + j];
        }
    }
}

// The largest row sum of magnitudes; NaN if any entry is.
static double norm_of(size_t n, const double *a) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t j = 0; j < n; j++)
            sum += fabs(a[i * n + j]);
        if (!(sum <= most))
            most = sum;
    }
    return most;
}

static void swap_rows(size_t n, double *m, size_t i, size_t j) {
    for (size_t k = 0; i != j && k < n; k++) {
        const double x = m[i * n + k];
        m[i * n + k] = m[j * n + k];
        m[j * n + k] = x;
    }
}

static bool is_triangular(size_t n, const double *a) {
    bool lower = true, upper = true;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = i + 1; j < n; j++) {
            lower &= a[i * n + j] == 0;
            upper &= a[j * n + i] == 0;
        }
    }
    return lower || upper;
}

// x = m^-1 x for x [n][cols]; m is overwritten. Gauss with row pivots; a triangle needs none.
static void solve(size_t n, double *m, size_t cols, double *x) {
    const bool triangular = is_triangular(n, m);
    for (size_t k = 0; k < n; k++) {
        size_t pivot = k;
        for (size_t i = k + 1; !triangular && i < n; i++)
            pivot = fabs(m[i * n + k]) > fabs(m[pivot * n + k]) ? i : pivot;
        swap_rows(n, m, k, pivot);
        swap_rows(cols, x, k, pivot);
        for (size_t i = k + 1; i < n; i++) {
            const double factor = m[i * n + k] / m[k * n + k];
            if (factor == 0)
                continue;
            for (size_t j = k; j < n; j++)
                m[i * n + j] -= factor * m[k * n + j];
            for (size_t j = 0; j < cols; j++)
                x[i * cols + j] -= factor * x[k * cols + j];
        }
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; k++) {
            const double factor = m[i * n + k];
            for (size_t j = 0; factor != 0 && j < cols; j++)
                x[i * cols + j] -= factor * x[k * cols + j];
        }
        for (size_t j = 0; j < cols; j++)
            x[i * cols + j] /= m[i * n + i];
    }
}

static void add_identity(size_t n, double *m) {
    for (size_t i = 0; i < n; i++)
        m[i * n + i] += 1;
}

// out = exp(m): scaled below norm 1/2, Pade's [6/6] approximant (error 3e-16 there), squared back.
// work: 4 n^2.
static void exponential(size_t n, const double *m, double *out, double *work) {
    const size_t size = n * n;
    double *x = work, *power = work + size, *next = work + 2 * size, *denominator = work + 3 * size;
    int squarings = 0;
    double scale = 1;
    for (double norm = norm_of(n, m); norm * scale > 0.5 && squarings < 200; squarings++)
        scale /= 2;
    for (size_t i = 0; i < size; i++)
        x[i] = power[i] = m[i] * scale;
    memset(out, 0, size * sizeof *out);
    memset(denominator, 0, size * sizeof *denominator);
    double c = 1;
    for (int k = 1; k <= 6; k++) {
        c *= (double)(7 - k) / (double)(k * (13 - k));
        for (size_t i = 0; i < size; i++) {
            out[i] += c * power[i];
            denominator[i] += k % 2 ? -c * power[i] : c * power[i];
        }
        lti_multiply(n, power, x, next);
        memcpy(power, next, size * sizeof *power);
    }
    add_identity(n, out);
    add_identity(n, denominator);
    solve(n, denominator, n, out);
    for (; squarings > 0; squarings--) {
        lti_multiply(n, out, out, next);
        memcpy(out, next, size * sizeof *out);
    }
}

// exp of Dt [[A, B], [0, 0]] holds Ab and, in the last column, Bb.
static int hold(double dt, size_t n, const double *a, const double *b, double *ab, double *bb) {
    const size_t m = n + 1, size = m * m;
    double *work = calloc(6 * size, sizeof *work);
    if (!work)
        return SSM_ENOMEM;
    double *block = work + 4 * size, *out = work + 5 * size;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++)
            block[i * m + j] = dt * a[i * n + j];
        block[i * m + n] = dt * b[i];
    }
    exponential(m, block, out, work);
    for (size_t i = 0; i < n; i++) {
        memcpy(ab + i * n, out + i * m, n * sizeof *ab);
        bb[i] = out[i * m + n];
    }
    free(work);
    return 0;
}

static int trapezium(double dt, size_t n, const double *a, const double *b, double *ab,
                     double *bb) {
    const size_t cols = n + 1;
    double *m = malloc((n * n + n * cols) * sizeof *m);
    if (!m)
        return SSM_ENOMEM;
    double *x = m + n * n; // [n][n + 1]: (I + Dt A / 2 | Dt B)
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < n; j++) {
            const double half = dt / 2 * a[i * n + j];
            m[i * n + j] = (i == j) - half;
            x[i * cols + j] = (i == j) + half;
        }
        x[i * cols + n] = dt * b[i];
    }
    solve(n, m, cols, x);
    for (size_t i = 0; i < n; i++) {
        memcpy(ab + i * n, x + i * cols, n * sizeof *ab);
        bb[i] = x[i * cols + n];
    }
    free(m);
    return 0;
}

// Taylor's polynomials by Horner: with p = 1 + z/2 (1 + z/3 (...)), Ab = 1 + z p and Bb = Dt p B.
static int taylor(int order, double dt, size_t n, const double *a, const double *b, double *ab,
                  double *bb) {
    double *p = calloc(2 * n * n, sizeof *p);
    if (!p)
        return SSM_ENOMEM;
    double *next = p + n * n;
    add_identity(n, p);
    for (int k = order; k >= 1; k--) {
        if (k == 1) {
            for (size_t i = 0; i < n; i++) {
                bb[i] = 0;
                for (size_t j = 0; j < n; j++)
                    bb[i] += dt * p[i * n + j] * b[j];
            }
        }
        lti_multiply(n, a, p, next);
        for (size_t i = 0; i < n * n; i++)
            p[i] = dt / k * next[i];
        add_identity(n, p);
    }
    memcpy(ab, p, n * n * sizeof *ab);
    free(p);
    return 0;
}

int lti_discretise_dense(ssm_rule rule, double dt, size_t n, const double *a, const double *b,
                         double *ab, double *bb) {
    switch (rule) {
    case SSM_RULE_ZOH:
        return hold(dt, n, a, b, ab, bb);
    case SSM_RULE_BILINEAR:
        return trapezium(dt, n, a, b, ab, bb);
    case SSM_RULE_EULER:
        return taylor(1, dt, n, a, b, ab, bb);
    case SSM_RULE_RK4:
        break;
    }
    return taylor(4, dt, n, a, b, ab, bb);
}

double lti_spectral_radius(size_t n, const double *a) {
    double most = 0;
    if (is_triangular(n, a)) {
        for (size_t i = 0; i < n; i++)
            most = fabs(a[i * n + i]) <= most ? most : fabs(a[i * n + i]);
        return most;
    }
    double *power = malloc(2 * n * n * sizeof *power);
    if (!power)
        return -1;
    double *next = power + n * n, log_radius = 0, share = 1; // A^k = radius^k power
    memcpy(power, a, n * n * sizeof *power);
    for (int i = 0; i <= 40; i++, share /= 2) {
        const double norm = norm_of(n, power);
        if (!(norm > 0)) { // nilpotent, or NaN
            free(power);
            return norm;
        }
        log_radius += share * log(norm);
        for (size_t k = 0; k < n * n; k++)
            power[k] /= norm;
        lti_multiply(n, power, power, next);
        memcpy(power, next, n * n * sizeof *power);
    }
    free(power);
    return exp(log_radius);
}
