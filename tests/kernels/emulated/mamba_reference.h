// SPDX-License-Identifier: Apache-2.0
// Mamba-1's layers for tests of emulated kernels: random weights, and one token in double.
#ifndef SSM_TESTS_MAMBA_REFERENCE_H
#define SSM_TESTS_MAMBA_REFERENCE_H

#include "kernels/cuda/cuda.h"
#include "packed_weights.h"

enum { STATES = 16 };
template <int NW> struct mamba_layer {
    enum { M = 32 * NW, INNER = 2 * M, RANK = M / 16, N_X = RANK + 2 * STATES };
    weights in, x, dt, out;
    packed_weights packed_in, packed_out;
    numbers conv, conv_bias, dt_bias, decay, skip, norm;

    mamba_layer(int width, bool packed)
        : in(random_matrix(2 * INNER, M)), x(random_matrix(N_X, INNER)),
          dt(random_matrix(INNER, RANK)), out(random_matrix(M, INNER)),
          conv(random_numbers((size_t)width * INNER, -.6f, .6f)),
          conv_bias(random_numbers(INNER, -.2f, .2f)), dt_bias(random_numbers(INNER, -4, 0)),
          decay(random_numbers(INNER * STATES, -10, -.5f)), skip(random_numbers(INNER, .5f, 1.5f)),
          norm(random_numbers(M, .5f, 1.5f)) {
        if (packed)
            packed_in.pack(&in, true, false, NW), packed_out.pack(&out, false, false, NW);
    }
};

// To a root mean square of 1.
static void normed(double *v, int n, double eps) {
    double square = 0;
    for (int i = 0; i < n; i++)
        square += v[i] * v[i];
    for (int i = 0; i < n; i++)
        v[i] /= sqrt(square / n + eps);
}

// One token of one row through a layer, in double. ring, state: the slot's, or NULL; eps: of the
// norms of dt, B and C (falcon_mamba), below 0: there are none. exact: z and dt
// are not rounded to bf16.
template <int NW>
HOST static void reference(const mamba_layer<NW> &l, const ssm::row &r, int width, doubles *x,
                           double *ring, double *state, double eps = -1, bool exact = false) {
    typedef mamba_layer<NW> of;
    const int kept = width - 1;
    double square = 0;
    for (double v : *x)
        square += v * v;
    doubles u(of::M), in(2 * of::INNER), xc(of::INNER), y(of::INNER), sums(of::N_X);
    for (int i = 0; i < of::M; i++)
        u[i] = rounded((*x)[i] * l.norm[i]) / sqrt(square / of::M + 1e-5);
    for (int i = 0; i < 2 * of::INNER; i++) {
        in[i] = dot(&l.in[(size_t)i * of::M], u);
        if (!exact || i < of::INNER)
            in[i] = rounded(in[i]);
    }
    for (int c = 0; c < of::INNER; c++) {
        double sum = l.conv_bias[c] + l.conv[(size_t)kept * of::INNER + c] * in[c];
        for (int j = 1; j <= kept && ring && !r.fresh; j++)
            sum += l.conv[(size_t)(kept - j) * of::INNER + c] *
                   ring[(size_t)((r.ring - j + kept) % kept) * of::INNER + c];
        for (int e = 0; e < kept && ring; e++) {
            double *entry = &ring[(size_t)e * of::INNER + c];
            *entry = e == r.ring ? in[c] : r.fresh ? 0 : *entry;
        }
        xc[c] = rounded(silu_of(sum));
    }
    for (int i = 0; i < of::N_X; i++)
        sums[i] = dot(&l.x[(size_t)i * of::INNER], xc);
    if (eps >= 0) {
        normed(&sums[0], of::RANK, eps), normed(&sums[of::RANK], STATES, eps);
        normed(&sums[of::RANK + STATES], STATES, eps);
    }
    doubles dt(of::RANK);
    for (int i = 0; i < of::RANK; i++)
        dt[i] = exact ? sums[i] : rounded(sums[i]);
    for (int c = 0; c < of::INNER; c++) {
        const double delta = log1p(exp(dot(&l.dt[(size_t)c * of::RANK], dt) + l.dt_bias[c]));
        double sum = l.skip[c] * xc[c];
        for (int n = 0; n < STATES; n++) {
            double *h = state ? &state[(size_t)c * STATES + n] : NULL;
            const double before = h && !r.fresh ? *h : 0;
            const double v = exp2(delta * l.decay[(size_t)c * STATES + n]) * before +
                             delta * xc[c] * sums[of::RANK + n];
            sum += v * sums[of::RANK + STATES + n];
            if (h)
                *h = v;
        }
        y[c] = rounded(sum * silu_of(in[of::INNER + c]));
    }
    for (int i = 0; i < of::M; i++)
        (*x)[i] += dot(&l.out[(size_t)i * of::INNER], y);
}

#endif
