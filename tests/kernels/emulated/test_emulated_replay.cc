// SPDX-License-Identifier: Apache-2.0
// Mamba-2's states of large decode steps on the host (emulator.h): replay.cu's kernel, whose slots
// keep up to fifteen tokens beside a base. As many steps as bring every row to at least one fold,
// at phases of their own, some rows beginning anew, against the same in double, token by token.
#include "emulated_test.h"
#include "kernels/cuda/replay_kernel.cuh"

using namespace ssm;

enum { P = REPLAY_P, N = REPLAY_N, FOLDS = 256 };
static const float DT_MIN = .05f, DT_MAX = .5f;

template <class S> static void kernel(const void *arguments) {
    replay_kernel<S>(*(const replay_args *)arguments);
}

// What a row's slot holds, by its own history: lists.cu's rule.
struct history {
    int held = 0, phase = 0;

    int on(bool fresh) { // returns what the kernel is told
        if (fresh)
            held = phase = 0;
        const int before = held;
        phase = (phase + 1) % REPLAY_EVERY;
        const bool folds = fresh || phase == 0;
        held = folds ? 0 : before + 1;
        return before + (folds ? (int)FOLDS : 0);
    }
};

// squares: y is multiplied by the gated norm's weights, and its squares are summed up.
template <class S>
static bool agrees(int heads, int groups, int n_rows, int blocks, bool squares, int n_steps,
                   unsigned seed) {
    const int inner = heads * P, conv = inner + 2 * groups * N, n_in = inner + conv + heads;
    const int slots = (n_rows + 2) | 1, shared = REPLAY_WARPS * (replay_shape<S>::STAGE + 8);
    const numbers decay = random_numbers((size_t)heads, -1, -.05f),
                  skip = random_numbers((size_t)heads, .5f, 1.5f),
                  bias = random_numbers((size_t)heads, -4, 0),
                  gate = random_numbers((size_t)inner, 1, 3);
    weights xc((size_t)(n_rows * conv)), in((size_t)(n_rows * n_in)), y((size_t)(n_rows * inner));
    numbers sums((size_t)(n_rows * heads));
    std::vector<S> state((size_t)(slots * inner * N));
    for (S &one : state)
        one = (S)normal();
    doubles want_state = in_double(state);
    // Large numbers where nothing is held.
    weights held_x((size_t)(slots * inner * REPLAY_HELD), 0x7f7f),
        held_b((size_t)(slots * groups * REPLAY_HELD * N), 0x7f7f);
    numbers held_dt((size_t)(slots * REPLAY_HELD * heads), NAN);
    std::vector<row> rows((size_t)n_rows);
    std::vector<history> of((size_t)n_rows);
    std::vector<int32_t> held((size_t)n_rows), starts((size_t)(blocks * REPLAY_WARPS + 1));
    for (int i = 0; i < n_rows; i++)
        of[(size_t)i].phase = i * 5 % REPLAY_EVERY;
    for (size_t i = 0; i < starts.size(); i++)
        starts[i] = (int32_t)(i * (size_t)(n_rows * heads) / (starts.size() - 1));
    replay_args a = {};
    a.decay = decay.data(), a.skip = skip.data(), a.dt_bias = bias.data();
    a.gate_norm = gate.data(), a.xc = (const bf16 *)xc.data(), a.in = (const bf16 *)in.data();
    a.y = (bf16 *)y.data(), a.squares = squares ? sums.data() : NULL, a.state = state.data();
    a.x = (bf16 *)held_x.data(), a.b = (bf16 *)held_b.data(), a.dt = held_dt.data();
    a.rows = rows.data(), a.held = held.data(), a.starts = starts.data();
    a.heads = heads, a.groups = groups, a.d_inner = inner, a.conv_dim = conv, a.n_in = n_in;
    a.dt_min = DT_MIN, a.dt_max = DT_MAX;

    // A head of a row, and its states, in double. Returns what its outputs' squares come to.
    auto head_on = [&](const row &r, int head, doubles *want) HOST {
        const uint16_t *x = &xc[(size_t)(r.at * conv)], *z = &in[(size_t)(r.at * n_in)];
        const int b = inner + head / (heads / groups) * N, c = b + groups * N;
        const double dt = emu_bf16(z[n_in - heads + head]) + bias[(size_t)head];
        const double delta = fmin(fmax(log1p(exp(dt)), DT_MIN), DT_MAX);
        const double by = exp2(delta * decay[(size_t)head]);
        double all = 0;
        for (int p = 0; p < P; p++) {
            const int channel = head * P + p;
            const double one = emu_bf16(x[channel]);
            double sum = skip[(size_t)head] * one;
            double *h = &want_state[(size_t)((r.slot * inner + channel) * N)];
            for (int n = 0; n < N; n++) {
                h[n] = by * (r.fresh ? 0 : h[n]) + delta * one * emu_bf16(x[b + n]);
                sum += h[n] * emu_bf16(x[c + n]);
            }
            sum *= silu_of(emu_bf16(z[channel]));
            all += sum * sum;
            want->push_back(squares ? sum * gate[(size_t)channel] : sum);
        }
        return all;
    };
    bool right = true;
    int folds = 0;
    printf("%d heads of %d groups, %zu bytes a state, %d rows in %d blocks\n", heads, groups,
           sizeof(S), n_rows, blocks);
    for (int step = 0; step < steps_of(n_steps); step++) {
        for (weights *w : {&xc, &in}) {
            for (uint16_t &one : *w)
                one = to_bf16(normal());
        }
        doubles want((size_t)(n_rows * inner)), want_sums((size_t)(n_rows * heads));
        for (int i = 0; i < n_rows; i++) {
            row *r = &rows[(size_t)i];
            *r = row();
            r->at = n_rows - 1 - i, r->slot = (i * 2 + 1) % slots;
            r->fresh = (i * 7 + step) % 29 == 9;
            held[(size_t)i] = of[(size_t)i].on(r->fresh);
            folds += held[(size_t)i] >= FOLDS + 2;
            doubles of_row;
            for (int head = 0; head < heads; head++)
                want_sums[(size_t)(r->at * heads + head)] = head_on(*r, head, &of_row);
            std::copy(of_row.begin(), of_row.end(), &want[(size_t)(r->at * inner)]);
        }
        y.assign(y.size(), SPOILT), sums.assign(sums.size(), NAN);
        watch("y", y), watch("its squares", sums), watch("bases", state);
        watch("held x", held_x), watch("held B", held_b), watch("held dt", held_dt);
        emu_launch(blocks, REPLAY_WARPS * 32, (uint32_t)shared, kernel<S>, &a,
                   seed + (unsigned)step, 1);
        right &= near("y", want, bf16_in_double(y));
        right &= !squares || near("squares", want_sums, in_double(sums), 1e-3);
    }
    // Of slots whose base is whole.
    difference d;
    int whole = 0;
    for (int i = 0; i < n_rows; i++) {
        const size_t at = (size_t)(rows[(size_t)i].slot * inner * N);
        whole += of[(size_t)i].held == 0;
        for (size_t k = at; k < at + (size_t)(inner * N) && of[(size_t)i].held == 0; k++)
            d.add(want_state[k], (float)state[k]);
    }
    if (whole == 0 || (folds == 0 && !EMU_FINDS_RACES)) {
        printf("  no base is whole, or nothing was folded: WRONG\n");
        return false;
    }
    return right & d.is_small("bases", sizeof(S) == 4 ? 2e-5 : 1e-3);
}

static const emulated_case cases[] = {
    CASE(true, (agrees<__half>(4, 1, 9, 2, true, 22, 1))),
    CASE(true, (agrees<float>(4, 2, 7, 1, false, 22, 2))),
    CASE(true, (agrees<__half>(6, 3, 12, 1, false, 22, 3))),
    CASE(true, (agrees<float>(3, 1, 5, 1, true, 22, 4))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
