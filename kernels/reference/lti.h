// SPDX-License-Identifier: Apache-2.0
// One channel of a linear time-invariant SSM in all its forms: token by token, as a kernel, and a
// prompt as a convolution that takes an old state and leaves the new one. The recurrent form is
// what the reference backend runs; the others are its twins for tests.
//
// Sums are in double. States are ref_real: float as every backend keeps them, or double where a
// test builds this file so, to see that the forms agree to rounding and not only to float's.
#ifndef SSM_KERNELS_REFERENCE_LTI_H
#define SSM_KERNELS_REFERENCE_LTI_H

#include <stddef.h>

#include <ssm/error.h>

#include "kernels/lti.h"

#ifndef REF_REAL
#define REF_REAL float
#endif
typedef REF_REAL ref_real;

typedef enum ref_ssm_kind { REF_DIAGONAL, REF_DENSE, REF_SHIFT } ref_ssm_kind;

typedef struct ref_ssm {
    ref_ssm_kind kind;
    size_t n;         // DIAGONAL: pairs of poles, else the state's dimension
    const double *ab; // DIAGONAL [n][2]; DENSE [n][n]
    const double *bb; // DIAGONAL [n][2]; DENSE, SHIFT [n]
    const double *c;  // DIAGONAL [n][2]; DENSE, SHIFT [n]
    double d;
    double *work; // [4 n] of the caller
} ref_ssm;

// Advances the state (DIAGONAL [n][2], else [n]) by one input and returns the output, D u included.
double ref_ssm_step(const ref_ssm *ssm, ref_real *s, double u);

// The response to a single 1, D left out: k[length].
void ref_ssm_kernel(const ref_ssm *ssm, size_t length, double *k);

// y_t = sum_{j <= t} k_{t-j} u_j: written out, and by FFT zero-padded to at least 2 length.
// SSM_ENOMEM.
typedef int ref_convolution(size_t length, const double *k, const double *u, double *y);
ref_convolution ref_convolve_direct, ref_convolve_fft;

// A prompt u[length] as a convolution: y[length], the state from the old to the new. SSM_ENOMEM.
int ref_ssm_prompt(const ref_ssm *ssm, ref_convolution *convolve, size_t length, const double *u,
                   double *y, ref_real *s);

// y/2 (1 + erf(y / sqrt 2))
double ref_gelu(double y);

#endif
