// SPDX-License-Identifier: Apache-2.0
// Mamba-1's states of large decode steps on the host (emulator.h): advance_ring.cu's kernel, and
// advance_replay.cu's, whose slots keep every second token beside their states. Several steps of
// rows anywhere, some that begin anew, some without a slot, against the same in double; held tokens
// against none held, which are the same bits.
#include "kernels/cuda/advance_replay_kernel.cuh"
#include "kernels/cuda/advance_ring_kernel.cuh"
#include "states_reference.h"

using namespace ssm;

enum { STATES = 16 };

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

// A layer's slots; a step's inputs are new each time.
template <class S> struct steps {
    channels_reference of;
    int n_rows, slots;
    weights x, xz, y;
    numbers xdb;
    std::vector<S> state;
    std::vector<row> rows;
    doubles want_y, want_state;

    steps(int channels, int rank, int count)
        : of(channels, rank), n_rows(count), slots((count + 3) | 1), x((size_t)(count * channels)),
          xz(x.size() * 2), xdb((size_t)(count * of.n_x)),
          state((size_t)(slots * channels * STATES)), rows((size_t)count) {
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
        const int n = of.channels;
        new_inputs(&x), new_inputs(&xz);
        for (float &one : xdb)
            one = normal();
        y.assign(x.size(), SPOILT), want_y.assign(x.size(), 0);
        for (int i = 0; i < n_rows; i++) {
            row *r = &rows[(size_t)i];
            *r = row();
            r->at = n_rows - 1 - i, r->slot = slot_of(i);
            r->fresh = r->slot < 0 || i % 7 == step;
            if (r->slot >= 0)
                of.advance(&x[(size_t)(r->at * n)], &xz[(size_t)(r->at * 2 * n + n)],
                           &xdb[(size_t)(r->at * of.n_x)], r->fresh,
                           &want_state[(size_t)(r->slot * n * STATES)],
                           &want_y[(size_t)(r->at * n)]);
        }
    }
    launched arguments(std::vector<S> *states, weights *to) const {
        launched l = {};
        of.set(&l.a);
        l.a.xdb = xdb.data(), l.a.x = x.data(), l.a.xz = xz.data();
        l.a.y = to->data(), l.a.state = states->data();
        l.rows = rows.data(), l.n_rows = n_rows;
        watch("y", *to), watch("states", *states);
        return l;
    }
    // Of the rows that have a slot; the others' are as they were.
    bool near_y(void) const {
        difference d;
        bool right = true;
        for (const row &r : rows) {
            for (int c = 0; c < of.channels; c++) {
                const size_t at = (size_t)(r.at * of.channels + c);
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
        right &= near("states", s.want_state, in_double(s.state), states_off<S>());
    }
    return right;
}

// parts: blocks of a column.
static bool replay_agrees(int channels, int rank, int n_rows, int parts, unsigned seed) {
    typedef held_tokens<ADVANCE_REPLAY_EVERY> history;
    enum { CHANNELS = replay_ring::CHANNELS, OF_WARP = replay_ring::OF_WARP };
    steps<float> s(channels, rank, n_rows);
    const int entries = s.slots * (channels / OF_WARP);
    std::vector<char> kept((size_t)(entries * HELD_ENTRY), 0x7f); // large numbers
    numbers kept_b((size_t)(s.slots * STATES), NAN);
    std::vector<float> plain(s.state); // states of launches that hold nothing
    std::vector<history> of((size_t)n_rows);
    std::vector<int32_t> held((size_t)n_rows), none((size_t)n_rows, history::FOLDS);
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
            *h = state_on(*h, delta, s.of.decay[(size_t)at],
                          delta * emu_bf16(((const uint16_t *)entry)[lane]),
                          kept_b[(size_t)(slot * STATES + at % STATES)]);
        }
    }
    if (!same_bits(whole, plain)) {
        printf("  states and held tokens: other bits than without, WRONG\n");
        right = false;
    }
    return right & near("states", s.want_state, in_double(whole), states_off<float>());
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
