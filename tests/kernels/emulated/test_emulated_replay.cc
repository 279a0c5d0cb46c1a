// SPDX-License-Identifier: Apache-2.0
// Mamba-2's states of large decode steps on the host (emulator.h): replay.cu's kernel, whose slots
// keep up to fifteen tokens beside a base. As many steps as bring every row to at least one fold,
// at phases of their own, some rows beginning anew, against the same in double, token by token.
#include "kernels/cuda/replay_kernel.cuh"
#include "states_reference.h"

using namespace ssm;

typedef held_tokens<REPLAY_EVERY> history;

template <class S> static void kernel(const void *arguments) {
    replay_kernel<S>(*(const replay_args *)arguments);
}

// squares: y is multiplied by the gated norm's weights, and its squares are summed up.
template <class S>
static bool agrees(int heads, int groups, int n_rows, int blocks, bool squares, int n_steps,
                   unsigned seed) {
    enum { N = heads_reference::N, P = heads_reference::P };
    const heads_reference layer(heads, groups);
    const int inner = layer.inner, conv = layer.conv, n_in = layer.n_in;
    const int slots = (n_rows + 2) | 1, shared = REPLAY_WARPS * (replay_shape<S>::STAGE + 8);
    const numbers gate = random_numbers((size_t)inner, 1, 3);
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
    layer.set(&a);
    a.gate_norm = gate.data(), a.xc = (const bf16 *)xc.data(), a.in = (const bf16 *)in.data();
    a.y = (bf16 *)y.data(), a.squares = squares ? sums.data() : NULL, a.state = state.data();
    a.x = (bf16 *)held_x.data(), a.b = (bf16 *)held_b.data(), a.dt = held_dt.data();
    a.rows = rows.data(), a.held = held.data(), a.starts = starts.data();
    bool right = true;
    int folds = 0;
    printf("%d heads of %d groups, %zu bytes a state, %d rows in %d blocks\n", heads, groups,
           sizeof(S), n_rows, blocks);
    for (int step = 0; step < steps_of(n_steps); step++) {
        new_inputs(&xc), new_inputs(&in);
        doubles want((size_t)(n_rows * inner)), want_sums((size_t)(n_rows * heads));
        for (int i = 0; i < n_rows; i++) {
            row *r = &rows[(size_t)i];
            *r = row();
            r->at = n_rows - 1 - i, r->slot = (i * 2 + 1) % slots;
            r->fresh = (i * 7 + step) % 29 == 9;
            held[(size_t)i] = of[(size_t)i].on(r->fresh);
            folds += held[(size_t)i] >= history::FOLDS + 2;
            double *of_row = &want[(size_t)(r->at * inner)];
            layer.advance(&xc[(size_t)(r->at * conv)], &in[(size_t)(r->at * n_in)], r->fresh,
                          &want_state[(size_t)(r->slot * inner * N)], of_row);
            for (int c = 0; squares && c < inner; c++) {
                want_sums[(size_t)(r->at * heads + c / P)] += of_row[c] * of_row[c];
                of_row[c] *= gate[(size_t)c];
            }
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
