// SPDX-License-Identifier: Apache-2.0
// Linear time-invariant layers in discrete form, made in fp64 when weights are loaded.
//
// x' = A x + B u, over a step of Dt, becomes s = Ab s + Bb u. The rules, z = Dt A:
//     zoh       Ab = exp(z)                        Bb = A^-1 (exp(z) - 1) B   u held over the step
//     bilinear  Ab = (1 - z/2)^-1 (1 + z/2)        Bb = (1 - z/2)^-1 Dt B     the trapezium
//     euler     Ab = 1 + z                         Bb = Dt B
//     rk4       Ab = 1 + z + z^2/2 + z^3/6 + z^4/24,  Bb = Dt (1 + z/2 + z^2/6 + z^3/24) B
// The first two map the left half plane into the unit disc whatever Dt is; the others do so for
// small Dt only. A layer whose spectral radius exceeds 1 would grow without bound and is refused.
//
// Why fp64: entries of HiPPO's A reach 2 N, radii 0.9999. Rounded after discretisation a model of
// ours is off by 1.6e-4 in its logits, discretised in fp32 by 4.3e-4.
#ifndef SSM_KERNELS_LTI_H
#define SSM_KERNELS_LTI_H

#include <stdbool.h>
#include <stddef.h>

#include <ssm/error.h>

#include "weights.h"

// S4D's layer, or H3's diagonal SSM (a channel is a head): poles in conjugate pairs, one of each
// pair kept. Numbers are (real, imaginary).
typedef struct lti_diagonal {
    size_t channels, n;  // n = N / 2
    double *ab, *bb, *c; // [channels][n][2]
    double *d;           // [channels]
    double radius;       // the largest |ab|
} lti_diagonal;

// S4's layer. Ab differs by channel as Dt does.
typedef struct lti_dense {
    size_t channels, n;
    double *ab;     // [channels][n][n]
    double *bb, *c; // [channels][n]
    double *d;      // [channels]
    bool is_lower;  // nothing above the diagonal, as HiPPO-LegS has it
    double radius;  // the largest of all channels
} lti_dense;

// "zoh", "bilinear", "euler", "rk4".
const char *lti_rule_name(ssm_rule rule);

// Discretises a layer by the geometry's rule. SSM_ENOMEM, or SSM_EUNSUPPORTED ("discretization"):
// it leaves the unit disc. On failure nothing is left to dispose.
int lti_diagonal_init(lti_diagonal *s, const ssm_geometry *g, const ssm_layer *l, ssm_error *err);
int lti_dense_init(lti_dense *s, const ssm_geometry *g, const ssm_layer *l, ssm_error *err);
void lti_diagonal_dispose(lti_diagonal *s);
void lti_dense_dispose(lti_dense *s);

// One pole: z = dt a.
void lti_discretise_pole(ssm_rule rule, double dt, const double a[2], double ab[2], double bb[2]);

// One dense SSM, a [n][n] and b [n], to ab [n][n] and bb [n]. SSM_ENOMEM.
int lti_discretise_dense(ssm_rule rule, double dt, size_t n, const double *a, const double *b,
                         double *ab, double *bb);

// The largest magnitude of an eigenvalue of a [n][n]; -1: no memory.
double lti_spectral_radius(size_t n, const double *a);

// out = a b, all [n][n]; out is neither.
void lti_multiply(size_t n, const double *a, const double *b, double *out);

// HiPPO-LegS: A [n][n] and B [n] of a memory of all the past. (Gu et al. 2020.)
void lti_hippo_legs(size_t n, double *a, double *b);

#endif
