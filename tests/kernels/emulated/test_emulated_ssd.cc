// SPDX-License-Identifier: Apache-2.0
// Mamba-2's prompts on the host (emulator.h): ssd_wgmma.cu's kernel, prompts of any lengths that
// begin anew or go on from a slot's states, whole and cut into pieces, against the same in double,
// token by token.
#include "emulated_test.h"
#include "kernels/cuda/ssd_wgmma_kernel.cuh"

using namespace ssm;

static const float DT_MIN = .05f, DT_MAX = .5f;

struct launched {
    walk_args a;
    const span *spans;
    const piece *pieces;
};
template <class S, scan_pass PASS> static void kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    walk_kernel<S, PASS>(l->a, l->spans, l->pieces);
}

// A layer's inputs, and what its prompts are to leave.
template <class S> struct prompts {
    int heads, groups, inner, conv, n_in, tokens = 0, slots;
    std::vector<span> spans;
    std::vector<piece> pieces;
    numbers decay, skip, bias, carry;
    weights xc, in, y;
    std::vector<S> state;
    doubles want_y, want_state;

    // chunks: of a piece; 0: all are whole.
    prompts(int h, int g, const std::vector<int> &lengths, int chunks)
        : heads(h), groups(g), inner(h * P), conv(inner + 2 * g * N), n_in(inner + conv + h),
          slots((int)lengths.size() + 2), decay(random_numbers((size_t)h, -1, -.05f)),
          skip(random_numbers((size_t)h, .5f, 1.5f)), bias(random_numbers((size_t)h, -4, 0)),
          state((size_t)(slots * inner * N)) {
        for (size_t i = 0; i < lengths.size(); i++) {
            span s = {};
            s.first = tokens, s.count = lengths[i], s.slot = slots - 1 - (int)i;
            s.fresh = i % 3 == 1, s.first_piece = (int)pieces.size();
            for (int at = 0; at < s.count; at += chunks * CHUNK) {
                const int count = chunks > 0 ? min(chunks * CHUNK, s.count - at) : s.count;
                pieces.push_back({(int)i, s.first + at, count, (int)pieces.size()});
                if (chunks == 0)
                    break;
            }
            s.n_pieces = (int)pieces.size() - s.first_piece;
            spans.push_back(s);
            tokens += lengths[i];
        }
        carry.assign(pieces.size() * (size_t)(heads * SSD_CARRY), NAN);
        xc.resize((size_t)(tokens * conv)), in.resize((size_t)(tokens * n_in));
        y.assign((size_t)(tokens * inner), SPOILT);
        for (weights *w : {&xc, &in}) {
            for (uint16_t &one : *w)
                one = to_bf16(normal());
        }
        for (S &one : state)
            one = (S)normal();
        make();
    }
    HOST void make(void) {
        want_y.resize(y.size()), want_state = in_double(state);
        for (const span &s : spans) {
            for (int t = s.first; t < s.first + s.count; t++) {
                for (int head = 0; head < heads; head++)
                    advance(s, t, head);
            }
        }
    }
    HOST void advance(const span &s, int t, int head) {
        const uint16_t *x = &xc[(size_t)(t * conv)], *z = &in[(size_t)(t * n_in)];
        const int b = inner + head / (heads / groups) * N, c = b + groups * N;
        const double dt = emu_bf16(z[n_in - heads + head]) + bias[(size_t)head];
        const double delta = fmin(fmax(log1p(exp(dt)), DT_MIN), DT_MAX);
        const double by = exp2(delta * decay[(size_t)head]);
        for (int p = 0; p < P; p++) {
            const int channel = head * P + p;
            const double one = emu_bf16(x[channel]);
            double sum = skip[(size_t)head] * one;
            double *h = &want_state[(size_t)((s.slot * inner + channel) * N)];
            for (int n = 0; n < N; n++) {
                h[n] = by * (t == s.first && s.fresh ? 0 : h[n]) + delta * one * emu_bf16(x[b + n]);
                sum += h[n] * emu_bf16(x[c + n]);
            }
            want_y[(size_t)(t * inner + channel)] = sum * silu_of(emu_bf16(z[channel]));
        }
    }
    template <scan_pass PASS> void launch(unsigned seed) {
        launched l = {};
        l.a.decay = decay.data(), l.a.skip = skip.data(), l.a.dt_bias = bias.data();
        l.a.xc = (const bf16 *)xc.data(), l.a.in = (const bf16 *)in.data();
        l.a.y = (bf16 *)y.data(), l.a.state = state.data(), l.a.carry = carry.data();
        l.a.heads = heads, l.a.groups = groups, l.a.d_inner = inner, l.a.conv_dim = conv;
        l.a.n_in = n_in, l.a.dt_min = DT_MIN, l.a.dt_max = DT_MAX;
        l.spans = spans.data(), l.pieces = pieces.data();
        watch("y", y), watch("states", state), watch("ends of pieces", carry);
        emu_launch(dim3((unsigned)heads, (unsigned)pieces.size()), THREADS,
                   sizeof(walk_shared) + 1024, kernel<S, PASS>, &l, seed, 1);
    }
};

template <class S>
static bool agrees(int heads, int groups, const std::vector<int> &lengths, int chunks,
                   unsigned seed) {
    prompts<S> p(heads, groups, lengths, chunks);
    printf("%d heads of %d groups, %zu bytes a state, %d tokens of %zu prompts in %zu pieces\n",
           heads, groups, sizeof(S), p.tokens, lengths.size(), p.pieces.size());
    if (chunks == 0) {
        p.template launch<SCAN_WHOLE>(seed);
    } else {
        p.template launch<SCAN_FIRST>(seed);
        p.template launch<SCAN_FINAL>(seed + 100);
    }
    return (int)near("y", p.want_y, bf16_in_double(p.y)) &
           near("states", p.want_state, in_double(p.state));
}

static const emulated_case cases[] = {
    CASE(true, (agrees<float>(8, 1, {130, 1, 64}, 0, 1))),
    CASE(true, (agrees<__half>(8, 2, {63, 200}, 0, 2))),
    CASE(true, (agrees<float>(8, 1, {300, 64, 65}, 1, 3))),
    CASE(true, (agrees<__half>(16, 4, {10, 270}, 2, 4))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
