// SPDX-License-Identifier: Apache-2.0
#include "fft.h"

#include <assert.h>
#include <math.h>

static void swap(double *x, size_t i, size_t j) {
    for (size_t k = 0; k < 2; k++) {
        const double t = x[2 * i + k];
        x[2 * i + k] = x[2 * j + k];
        x[2 * j + k] = t;
    }
}

static void reverse_bits(size_t n, double *x) {
    for (size_t i = 1, j = 0; i < n; i++) {
        size_t bit = n / 2;
        for (; j & bit; bit /= 2)
            j ^= bit;
        j |= bit;
        if (i < j)
            swap(x, i, j);
    }
}

void fft_twiddles(size_t n, double *w) {
    for (size_t j = 0; j < n / 2; j++) {
        const double angle = -2 * M_PI * (double)j / (double)n;
        w[2 * j] = cos(angle), w[2 * j + 1] = sin(angle);
    }
}

void fft_transform(size_t n, const double *w, double *x, int inverse) {
    assert(n > 0 && (n & (n - 1)) == 0);
    reverse_bits(n, x);
    for (size_t span = 2; span <= n; span *= 2) {
        for (size_t j = 0; j < span / 2; j++) {
            const double *turn = w + 2 * (j * (n / span));
            const double wr = turn[0], wi = inverse ? -turn[1] : turn[1];
            for (size_t i = j; i < n; i += span) {
                double *a = x + 2 * i, *b = x + 2 * (i + span / 2);
                const double re = wr * b[0] - wi * b[1], im = wr * b[1] + wi * b[0];
                b[0] = a[0] - re, b[1] = a[1] - im;
                a[0] += re, a[1] += im;
            }
        }
    }
}

void fft_direct(size_t n, const double *x, int inverse, double *out) {
    const double turn = inverse ? 2 * M_PI : -2 * M_PI;
    for (size_t k = 0; k < n; k++) {
        double re = 0, im = 0;
        for (size_t j = 0; j < n; j++) {
            const double angle = turn * (double)(j * k % n) / (double)n;
            const double wr = cos(angle), wi = sin(angle);
            re += wr * x[2 * j] - wi * x[2 * j + 1];
            im += wr * x[2 * j + 1] + wi * x[2 * j];
        }
        out[2 * k] = re, out[2 * k + 1] = im;
    }
}
