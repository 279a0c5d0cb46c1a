// SPDX-License-Identifier: Apache-2.0
// The discrete Fourier transform in fp64 and its direct twin. Numbers are (real, imaginary).
#ifndef SSM_KERNELS_REFERENCE_FFT_H
#define SSM_KERNELS_REFERENCE_FFT_H

#include <stddef.h>

// X_k = sum_j x_j e^(-2 pi i j k / n), in place; n is a power of two. inverse: e^(+...), and not
// divided by n.
void ref_fft(size_t n, double *x, int inverse);

// The same sum as it is written, for any n; out is not x.
void ref_dft(size_t n, const double *x, int inverse, double *out);

#endif
