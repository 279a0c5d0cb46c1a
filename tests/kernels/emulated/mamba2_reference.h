// SPDX-License-Identifier: Apache-2.0
// Mamba-2's layers for tests of emulated kernels: random weights, and one token in double, in heads
// of 64 channels and 128 states.
#ifndef SSM_TESTS_MAMBA2_REFERENCE_H
#define SSM_TESTS_MAMBA2_REFERENCE_H

#include "kernels/cuda/cuda.h"
#include "packed_weights.h"

static const float DT_MIN = .05f, DT_MAX = .5f;

// GROUPS: of B and C, and of the gated norm.
template <int NW, int GROUPS = 1> struct mamba2_layer {
    enum { HEAD = 64, STATES = 128, M = 32 * NW, INNER = 2 * M, HEADS = INNER / HEAD };
    enum { B = INNER, C = B + GROUPS * STATES, CONV = C + GROUPS * STATES };
    enum { DT = INNER + CONV, IN = DT + HEADS }; // in_proj: z, then these
    weights in, out;
    packed_weights packed_in, packed_out;
    numbers conv, conv_bias, dt_bias, decay, skip, norm, gate_norm;

    mamba2_layer(int width, bool packed)
        : in(random_matrix(IN, M)), out(random_matrix(M, INNER)),
          conv(random_numbers((size_t)width * CONV, -.6f, .6f)),
          conv_bias(random_numbers(CONV, -.2f, .2f)), dt_bias(random_numbers(HEADS, -4, 0)),
          decay(random_numbers(HEADS, -1, -.05f)), skip(random_numbers(HEADS, .5f, 1.5f)),
          norm(random_numbers(M, .5f, 1.5f)), gate_norm(random_numbers(INNER, 1, 3)) {
        if (packed)
            packed_in.pack(&in, true, true, NW), packed_out.pack(&out, false, false, NW);
    }
};

// What the reference knows of a slot in a layer, and what a token leaves there.
struct memory {
    double *ring, *state;     // [kept][CONV], [INNER][STATES]; NULL: there is no slot
    doubles convolved, delta; // x, B, C; by head
};

// One token of one row through a layer, in double. exact: z and dt are not rounded to bf16.
template <int NW, int GROUPS>
HOST static void reference(const mamba2_layer<NW, GROUPS> &l, const ssm::row &r, int width,
                           doubles *x, memory *m, bool exact = false) {
    typedef mamba2_layer<NW, GROUPS> of;
    enum { OF_GROUP = of::INNER / GROUPS }; // channels
    const int kept = width - 1;
    double square = 0;
    for (double v : *x)
        square += v * v;
    doubles u(of::M), in(of::IN), y(of::INNER);
    for (int i = 0; i < of::M; i++)
        u[i] = rounded((*x)[i] * l.norm[i]) / sqrt(square / of::M + 1e-5);
    for (int i = 0; i < of::IN; i++) {
        in[i] = dot(&l.in[(size_t)i * of::M], u);
        if (!exact || (i >= of::INNER && i < of::DT))
            in[i] = rounded(in[i]);
    }
    m->convolved.resize(of::CONV), m->delta.resize(of::HEADS);
    for (int c = 0; c < of::CONV; c++) {
        const double now = in[of::INNER + c];
        double sum = l.conv_bias[c] + l.conv[(size_t)kept * of::CONV + c] * now;
        for (int j = 1; j <= kept && m->ring && !r.fresh; j++)
            sum += l.conv[(size_t)(kept - j) * of::CONV + c] *
                   m->ring[(size_t)((r.ring - j + kept) % kept) * of::CONV + c];
        for (int e = 0; e < kept && m->ring; e++) {
            double *entry = &m->ring[(size_t)e * of::CONV + c];
            *entry = e == r.ring ? now : r.fresh ? 0 : *entry;
        }
        m->convolved[c] = rounded(silu_of(sum));
    }
    for (int h = 0; h < of::HEADS; h++)
        m->delta[h] = fmin(fmax(log1p(exp(in[of::DT + h] + l.dt_bias[h])), DT_MIN), DT_MAX);
    double squares[GROUPS] = {};
    for (int i = 0; i < of::INNER; i++) {
        const int group = i / OF_GROUP, head = i / of::HEAD;
        const double *b = &m->convolved[of::B + group * of::STATES];
        const double *c = &m->convolved[of::C + group * of::STATES];
        const double delta = m->delta[head], decay = exp2(delta * l.decay[head]);
        double sum = l.skip[head] * m->convolved[i];
        double *state = m->state ? m->state + (size_t)i * of::STATES : NULL;
        for (int n = 0; n < of::STATES; n++) {
            const double before = state && !r.fresh ? state[n] : 0;
            const double v = decay * before + delta * m->convolved[i] * b[n];
            sum += v * c[n];
            if (state)
                state[n] = v;
        }
        sum *= silu_of(in[i]);
        squares[group] += sum * sum;
        y[i] = rounded(sum * l.gate_norm[i]);
    }
    for (int i = 0; i < of::INNER; i++)
        y[i] /= sqrt(squares[i / OF_GROUP] / OF_GROUP + 1e-5);
    for (int i = 0; i < of::M; i++)
        (*x)[i] += dot(&l.out[(size_t)i * of::INNER], y);
}

#endif
