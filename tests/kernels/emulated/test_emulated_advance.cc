// SPDX-License-Identifier: Apache-2.0
// Mamba-1's states of large decode steps on the host (emulator.h): advance_ring.cu's kernel, and
// advance_replay.cu's, whose slots keep every second token beside their states. Several steps of
// rows anywhere, some that begin anew, some without a slot, against the same in double; held tokens
// against none held, which are the same bits.
#include "emulated_test.h"
#include "kernels/cuda/advance_replay_kernel.cuh"
#include "kernels/cuda/advance_ring_kernel.cuh"

using namespace ssm;

enum { STATES = 16, WRITES = 256 };

struct launched {
    mamba_args a;
    advance_replay_layout l;
    advance_replay_entries e;
    const row *rows;
    int n_rows;
};
template <class S, int COLS> static void ring_kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    advance_ring_kernel<S, COLS>(l->a, l->l, l->rows, l->n_rows);
}
static void replay_kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    advance_replay_kernel(l->a, l->e, l->l, l->rows, l->n_rows);
}

// A layer's constants, and slots; a step's inputs are new each time.
template <class S> struct steps {
    int channels, rank, n_x, n_rows, slots;
    weights dt_proj, x, xz, y;
    numbers xdb, decay, skip, bias;
    std::vector<S> state;
    std::vector<row> rows;
    doubles want_y, want_state;

    steps(int n, int r, int count)
        : channels(n), rank(r), n_x(r + 2 * STATES), n_rows(count), slots((count + 3) | 1),
          dt_proj(random_matrix((size_t)n, (size_t)r)), x((size_t)(count * n)), xz(x.size() * 2),
          xdb((size_t)(count * n_x)), decay(random_numbers((size_t)(n * STATES), -10, -.5f)),
          skip(random_numbers((size_t)n, .5f, 1.5f)), bias(random_numbers((size_t)n, -4, 0)),
          state((size_t)(slots * n * STATES)), rows((size_t)count) {
        for (S &one : state)
            one = (S)normal();
        want_state = in_double(state);
    }
    // The rows' slots, which stay theirs: the last two have none.
    int slot_of(int i) const {
        return i >= n_rows - 2 ? -1 : (i * 2 + 1) % slots;
    }
    // A step's inputs and what is to come of them. Of tokens without a slot y stays as it is.
    HOST void begin(int step) {
        for (weights *w : {&x, &xz}) {
            for (uint16_t &one : *w)
                one = to_bf16(normal());
        }
        for (float &one : xdb)
            one = normal();
        y.assign(x.size(), SPOILT), want_y.assign(x.size(), emu_bf16(SPOILT));
        for (int i = 0; i < n_rows; i++) {
            row *r = &rows[(size_t)i];
            *r = row();
            r->at = n_rows - 1 - i, r->slot = slot_of(i);
            r->fresh = r->slot < 0 || i % 7 == step;
            if (r->slot >= 0)
                advance(*r);
        }
    }
    HOST void advance(const row &r) {
        const float *of = &xdb[(size_t)(r.at * n_x)];
        doubles dt;
        for (int i = 0; i < rank; i++)
            dt.push_back(rounded(of[i]));
        for (int c = 0; c < channels; c++) {
            const double in = emu_bf16(x[(size_t)(r.at * channels + c)]);
            const double z = emu_bf16(xz[(size_t)(r.at * 2 * channels + channels + c)]);
            const double delta =
                log1p(exp(dot(&dt_proj[(size_t)(c * rank)], dt) + bias[(size_t)c]));
            double sum = skip[(size_t)c] * in;
            for (int n = 0; n < STATES; n++) {
                double *h = &want_state[(size_t)((r.slot * channels + c) * STATES + n)];
                *h = exp2(delta * decay[(size_t)(c * STATES + n)]) * (r.fresh ? 0 : *h) +
                     delta * in * of[rank + n];
                sum += *h * of[rank + STATES + n];
            }
            want_y[(size_t)(r.at * channels + c)] = sum * silu_of(z);
        }
    }
    launched arguments(std::vector<S> *states, weights *to) const {
        launched l = {};
        l.a.decay = decay.data(), l.a.skip = skip.data(), l.a.dt_bias = bias.data();
        l.a.dt_proj = dt_proj.data(), l.a.xdb = xdb.data(), l.a.x = x.data(), l.a.xz = xz.data();
        l.a.y = to->data(), l.a.state = states->data();
        l.a.channels = channels, l.a.rank = rank, l.a.states = STATES, l.a.n_x = n_x;
        l.a.n_splits = 1, l.rows = rows.data(), l.n_rows = n_rows;
        watch("y", *to), watch("states", *states);
        return l;
    }
    // Of the rows that have a slot; the others' are as they were.
    bool near_y(void) const {
        difference d;
        bool right = true;
        for (const row &r : rows) {
            for (int c = 0; c < channels; c++) {
                const size_t at = (size_t)(r.at * channels + c);
                if (r.slot >= 0)
                    d.add(want_y[at], emu_bf16(y[at]));
                else
                    right &= y[at] == SPOILT;
            }
        }
        if (!right)
            printf("  y of a row without a slot: WRONG\n");
        return d.is_small("y") & right;
    }
};

template <class S, int COLS>
static bool agrees(int channels, int rank, int n_rows, int blocks, unsigned seed) {
    steps<S> s(channels, rank, n_rows);
    bool right = true;
    printf("%d channels by %d, rank %d, %zu bytes a state, %d rows in %d blocks\n", channels,
           (int)advance_ring_shape<S, COLS>::CHANNELS, rank, sizeof(S), n_rows, blocks);
    for (int step = 0; step < steps_of(2); step++) {
        s.begin(step);
        launched l = s.arguments(&s.state, &s.y);
        (advance_ring_layout &)l.l = advance_ring_layout_of<S, COLS>(rank);
        emu_launch(blocks, ADVANCE_RING_THREADS, (uint32_t)l.l.end, ring_kernel<S, COLS>, &l,
                   seed + (unsigned)step, 1);
        right &= s.near_y();
        right &= near("states", s.want_state, in_double(s.state), sizeof(S) == 4 ? 2e-6 : 5e-4);
    }
    return right;
}

// What a row does with its slot, by its own history: lists.cu's rule.
struct history {
    int held = 0, phase = 0;

    int on(bool fresh) { // returns what the kernel is told
        if (fresh)
            held = phase = 0;
        const int before = held;
        phase = (phase + 1) % ADVANCE_REPLAY_EVERY;
        const bool writes = fresh || phase == 0;
        held = writes ? 0 : before + 1;
        return before + (writes ? (int)WRITES : 0);
    }
};

// parts: blocks of a column.
static bool replay_agrees(int channels, int rank, int n_rows, int parts, unsigned seed) {
    enum { CHANNELS = replay_ring::CHANNELS, OF_WARP = replay_ring::OF_WARP };
    steps<float> s(channels, rank, n_rows);
    const int entries = s.slots * (channels / OF_WARP);
    std::vector<char> kept((size_t)(entries * HELD_ENTRY), 0x7f); // large numbers
    numbers kept_b((size_t)(s.slots * STATES), NAN);
    std::vector<float> plain(s.state); // states of launches that hold nothing
    std::vector<history> of((size_t)n_rows);
    std::vector<int32_t> held((size_t)n_rows), none((size_t)n_rows, WRITES);
    bool right = true;
    printf("%d channels, rank %d, %d rows, every second token\n", channels, rank, n_rows);
    for (int i = 0; i < n_rows; i++)
        of[(size_t)i].phase = i % 3 % ADVANCE_REPLAY_EVERY;
    for (int step = 0; step < steps_of(4); step++) {
        s.begin(step);
        for (int i = 0; i < n_rows; i++)
            held[(size_t)i] = of[(size_t)i].on(s.rows[(size_t)i].fresh);
        weights y_plain(s.y);
        auto launch = [&](std::vector<float> *states, weights *y, const int32_t *what,
                          unsigned more) {
            launched l = s.arguments(states, y);
            l.l = advance_replay_layout_of(rank);
            l.e = {what, kept.data(), kept_b.data()};
            watch("held tokens", kept), watch("B of held tokens", kept_b);
            emu_launch(channels / CHANNELS * parts, ADVANCE_RING_THREADS, (uint32_t)l.l.end,
                       replay_kernel, &l, seed + (unsigned)step + more, 1);
        };
        launch(&plain, &y_plain, none.data(), 100);
        launch(&s.state, &s.y, held.data(), 0);
        right &= s.near_y();
        if (!same_bits(s.y, y_plain)) {
            printf("  y beside held tokens: other bits, WRONG\n");
            right = false;
        }
    }
    std::vector<float> whole(s.state);
    for (int i = 0; i < n_rows; i++) {
        const int slot = s.rows[(size_t)i].slot;
        for (int at = 0; at < channels * STATES && slot >= 0 && of[(size_t)i].held; at++) {
            const int channel = at / STATES, lane = channel % OF_WARP;
            const char *entry =
                &kept[(size_t)(slot * (channels / OF_WARP) + channel / OF_WARP) * HELD_ENTRY];
            const float delta = ((const float *)(entry + HELD_DELTA))[lane];
            float *h = &whole[(size_t)(slot * channels * STATES + at)];
            *h = state_on(*h, delta, s.decay[(size_t)at],
                          delta * emu_bf16(((const uint16_t *)entry)[lane]),
                          kept_b[(size_t)(slot * STATES + at % STATES)]);
        }
    }
    if (!same_bits(whole, plain)) {
        printf("  states and held tokens: other bits than without, WRONG\n");
        right = false;
    }
    return right & near("states", s.want_state, in_double(whole), 2e-6);
}

static const emulated_case cases[] = {
    CASE(true, (agrees<float, 2>(192, 48, 45, 5, 1))),
    CASE(true, (agrees<__half, 2>(256, 80, 75, 7, 2))),
    CASE(true, (agrees<__half, 1>(128, 256, 40, 3, 3))), // falcon-mamba-7b's rank
    CASE(true, (agrees<__half, 2>(128, 160, 17, 2, 4))),
    CASE(true, replay_agrees(128, 48, 70, 2, 5)),
    CASE(true, replay_agrees(64, 160, 100, 3, 6)),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
