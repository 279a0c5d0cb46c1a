// SPDX-License-Identifier: Apache-2.0
// States in double, token by token, for tests of emulated kernels that advance or scan them: of
// Mamba-1's channels, of Mamba-2's heads, with a layer's random constants; and what a slot holds
// beside its base.
#ifndef SSM_TESTS_STATES_REFERENCE_H
#define SSM_TESTS_STATES_REFERENCE_H

#include "emulated_test.h"

// Most that states may be off (a root mean square) where they are advanced in fp32.
template <class S> constexpr double states_off(void) {
    return sizeof(S) == 4 ? 2e-6 : 5e-4;
}

// Mamba-1: 16 states a channel, dt_proj's products of dt in bf16.
struct channels_reference {
    enum { STATES = 16 };
    int channels, rank, n_x; // n_x: dt, B, C of a token
    weights dt_proj;
    numbers decay, skip, bias;

    channels_reference(int n, int r)
        : channels(n), rank(r), n_x(r + 2 * STATES), dt_proj(random_matrix((size_t)n, (size_t)r)),
          decay(random_numbers((size_t)(n * STATES), -10, -.5f)),
          skip(random_numbers((size_t)n, .5f, 1.5f)), bias(random_numbers((size_t)n, -4, 0)) {
    }
    // What a kernel reads of them.
    template <class ARGS> void set(ARGS *a) const {
        a->decay = decay.data(), a->skip = skip.data(), a->dt_bias = bias.data();
        a->dt_proj = dt_proj.data(), a->channels = channels, a->rank = rank;
        a->states = STATES, a->n_x = n_x, a->n_splits = 1;
    }
    // All channels one token on. x, z: its inputs; of: its x_proj's sums; h: its slot's states;
    // y: in double.
    HOST void advance(const uint16_t *x, const uint16_t *z, const float *of, bool fresh, double *h,
                      double *y) const {
        doubles dt;
        for (int i = 0; i < rank; i++)
            dt.push_back(rounded(of[i]));
        for (int c = 0; c < channels; c++, h += STATES) {
            const double in = emu_bf16(x[c]);
            const double delta =
                log1p(exp(dot(&dt_proj[(size_t)(c * rank)], dt) + bias[(size_t)c]));
            double sum = skip[(size_t)c] * in;
            for (int n = 0; n < STATES; n++) {
                h[n] = exp2(delta * decay[(size_t)(c * STATES + n)]) * (fresh ? 0 : h[n]) +
                       delta * in * of[rank + n];
                sum += h[n] * of[rank + STATES + n];
            }
            y[c] = sum * silu_of(emu_bf16(z[c]));
        }
    }
};

// Mamba-2: heads of 64 channels by 128 states.
struct heads_reference {
    enum { P = 64, N = 128 };
    static constexpr float DT_MIN = .05f, DT_MAX = .5f;
    int heads, groups, inner, conv, n_in; // of a token: x, B, C; z, those raw, dt
    numbers decay, skip, bias;

    heads_reference(int h, int g)
        : heads(h), groups(g), inner(h * P), conv(inner + 2 * g * N), n_in(inner + conv + h),
          decay(random_numbers((size_t)h, -1, -.05f)), skip(random_numbers((size_t)h, .5f, 1.5f)),
          bias(random_numbers((size_t)h, -4, 0)) {
    }
    template <class ARGS> void set(ARGS *a) const {
        a->decay = decay.data(), a->skip = skip.data(), a->dt_bias = bias.data();
        a->heads = heads, a->groups = groups, a->d_inner = inner, a->conv_dim = conv;
        a->n_in = n_in, a->dt_min = DT_MIN, a->dt_max = DT_MAX;
    }
    // All heads one token on. x: after the convolution; in: in_proj's outputs; h: its slot's
    // states; y: in double.
    HOST void advance(const uint16_t *x, const uint16_t *in, bool fresh, double *h,
                      double *y) const {
        for (int channel = 0; channel < inner; channel++, h += N) {
            const int head = channel / P, b = inner + head / (heads / groups) * N,
                      c = b + groups * N;
            const double dt = emu_bf16(in[n_in - heads + head]) + bias[(size_t)head];
            const double delta = fmin(fmax(log1p(exp(dt)), DT_MIN), DT_MAX);
            const double by = exp2(delta * decay[(size_t)head]), one = emu_bf16(x[channel]);
            double sum = skip[(size_t)head] * one;
            for (int n = 0; n < N; n++) {
                h[n] = by * (fresh ? 0 : h[n]) + delta * one * emu_bf16(x[b + n]);
                sum += h[n] * emu_bf16(x[c + n]);
            }
            y[channel] = sum * silu_of(emu_bf16(in[channel]));
        }
    }
};

// Tokens that a slot's base is without, by its own history: lists.cu's rule.
template <int EVERY> struct held_tokens {
    enum { FOLDS = 256 };
    int held = 0, phase = 0;

    int on(bool fresh) { // returns what the kernel is told
        if (fresh)
            held = phase = 0;
        const int before = held;
        phase = (phase + 1) % EVERY;
        const bool folds = fresh || phase == 0;
        held = folds ? 0 : before + 1;
        return before + (folds ? (int)FOLDS : 0);
    }
};

static inline void new_inputs(weights *w) {
    for (uint16_t &one : *w)
        one = to_bf16(normal());
}

#endif
