// SPDX-License-Identifier: Apache-2.0
// The discrete Fourier transform in fp64, for what is made when weights are loaded and for tests,
// and its direct twin. Numbers are (real, imaginary).
#ifndef SSM_KERNELS_FFT_H
#define SSM_KERNELS_FFT_H

#include <stddef.h>

// e^(-2 pi i j / n) for j < n / 2: w[n / 2][2]. n is a power of two.
void fft_twiddles(size_t n, double *w);

// X_k = sum_j x_j e^(-2 pi i j k / n), in place, n a power of two, w its twiddles. inverse:
// e^(+...), and not divided by n.
void fft_transform(size_t n, const double *w, double *x, int inverse);

// The same sum as it is written, for any n; out is not x.
void fft_direct(size_t n, const double *x, int inverse, double *out);

#endif
