// SPDX-License-Identifier: Apache-2.0
// Mamba-1's scans of prompts on the host (emulator.h): scan_wgmma.cu's kernel, scan_roles.cu's and
// the one with quarters, prompts of any lengths that begin anew or go on from a slot's states,
// against the same in double; and whole against cut in two, which are the same bits.
#include "kernels/cuda/scan_quarters.cuh"
#include "kernels/cuda/scan_wgmma.cuh"
#include "states_reference.h"

using namespace ssm;

struct launched {
    scan_maps maps;
    mamba_args a;
    const span *spans;
};
template <class S, class T> static void wgmma_kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    scan_wgmma_kernel<T, S>(l->maps, l->a, l->spans);
}
template <class B, class T> static void roles_kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    scan_roles_kernel<T, B>(l->a, l->spans);
}

// How a form is launched, with states T.
template <class S> struct by_wgmma {
    enum { CHANNELS = S::CHANNELS, THREADS = S::THREADS, BYTES = S::BYTES };
    static void maps(launched *l, const weights &x, const weights &xz, const weights &y,
                     const numbers &xdb, int tokens) {
        const int n = l->a.channels;
        set_map(&l->maps.x, x, n, tokens, S::HALF, TILE, false);
        set_map(&l->maps.z, xz, 2 * n, tokens, S::HALF, TILE, false);
        set_map(&l->maps.y, y, n, tokens, S::HALF, TILE, false);
        set_map_of(&l->maps.bc, xdb.data(), 4, l->a.n_x, tokens, 2 * SCAN_STATES, TILE, 0);
    }
    template <class T> static void (*kernel(void))(const void *) {
        return wgmma_kernel<S, T>;
    }
};
template <class B> struct by_roles {
    typedef typename B::form form;
    enum { CHANNELS = form::CHANNELS, THREADS = form::THREADS, BYTES = form::BYTES };
    static void maps(launched *, const weights &, const weights &, const weights &, const numbers &,
                     int) {
    }
    template <class T> static void (*kernel(void))(const void *) {
        return roles_kernel<B, T>;
    }
};

// What a layer's scan reads of some prompts, and what it is to leave.
template <class T> struct prompts {
    channels_reference of;
    int tokens = 0, slots;
    std::vector<span> spans;
    weights x, xz;
    numbers xdb;
    std::vector<T> state;
    doubles want_y, want_state;

    prompts(int channels, int rank, const std::vector<int> &lengths)
        : of(channels, rank), slots((int)lengths.size() + 2),
          state((size_t)(slots * channels * SCAN_STATES)) {
        for (size_t i = 0; i < lengths.size(); i++) {
            span s = {};
            s.first = tokens, s.count = lengths[i], s.slot = slots - 1 - (int)i;
            s.fresh = i % 3 == 1;
            spans.push_back(s);
            tokens += lengths[i];
        }
        x.resize((size_t)(tokens * channels)), xz.resize(x.size() * 2);
        new_inputs(&x), new_inputs(&xz);
        xdb.resize((size_t)(tokens * of.n_x));
        for (float &one : xdb)
            one = normal();
        for (T &one : state)
            one = (T)normal();
        make();
    }
    HOST void make(void) {
        const int n = of.channels;
        want_y.resize(x.size()), want_state = in_double(state);
        for (const span &s : spans) {
            for (int t = s.first; t < s.first + s.count; t++)
                of.advance(&x[(size_t)(t * n)], &xz[(size_t)(t * 2 * n + n)],
                           &xdb[(size_t)(t * of.n_x)], t == s.first && s.fresh,
                           &want_state[(size_t)(s.slot * n * SCAN_STATES)],
                           &want_y[(size_t)(t * n)]);
        }
    }

    // By a form: y and states of these spans.
    template <class FORM>
    void run(const std::vector<span> &these, weights *y, std::vector<T> *states,
             unsigned seed) const {
        launched l = {};
        of.set(&l.a);
        l.a.xdb = xdb.data(), l.a.x = x.data(), l.a.xz = xz.data();
        l.a.y = y->data(), l.a.state = states->data(), l.spans = these.data();
        FORM::maps(&l, x, xz, *y, xdb, tokens);
        watch("y", *y), watch("states", *states);
        emu_launch(dim3((unsigned)ceil_div(of.channels, FORM::CHANNELS), (unsigned)these.size()),
                   FORM::THREADS, FORM::BYTES, FORM::template kernel<T>(), &l, seed, 1);
    }
};

// Longer prompts are then cut in two.
template <class FORM, class T>
static bool agrees(int channels, int rank, const std::vector<int> &lengths, unsigned seed) {
    const prompts<T> p(channels, rank, lengths);
    weights y(p.x.size(), SPOILT), y_cut(y);
    std::vector<T> states(p.state), states_cut(p.state);
    p.template run<FORM>(p.spans, &y, &states, seed);
    printf("%d channels by %d, rank %d, %zu bytes a state, %d tokens of %zu prompts\n", channels,
           (int)FORM::CHANNELS, rank, sizeof(T), p.tokens, lengths.size());
    bool right = near("y", p.want_y, bf16_in_double(y));
    right &= near("states", p.want_state, in_double(states), states_off<T>());
    if (EMU_FINDS_RACES || sizeof(T) < 4)
        return right;
    std::vector<span> first, rest;
    for (span s : p.spans) {
        const int count = s.count;
        s.count = count * 2 / 3 % 23 + 1;
        first.push_back(s);
        s.first += s.count, s.count = count - s.count, s.fresh = 0;
        if (s.count > 0)
            rest.push_back(s);
    }
    p.template run<FORM>(first, &y_cut, &states_cut, seed + 100);
    p.template run<FORM>(rest, &y_cut, &states_cut, seed + 200);
    if (!same_bits(y, y_cut) || !same_bits(states, states_cut)) {
        printf("  cut in two: other bits, WRONG\n");
        right = false;
    }
    return right;
}

// Not looked through for races: scan_roles.cu's, whose warps read a token beyond a tile's last and
// throw it away.
static const emulated_case cases[] = {
    CASE(true,
         (agrees<by_wgmma<scan_wgmma_shape<0, 8, 2, 4>>, float>(200, 48, {33, 1, 64, 17}, 1))),
    CASE(true, (agrees<by_wgmma<scan_wgmma_shape<0, 8, 2, 4>>, __half>(128, 64, {16, 95}, 2))),
    CASE(true, (agrees<by_wgmma<scan_wgmma_shape<8, 12, 2, 10>>, float>(320, 160, {50, 3}, 3))),
    CASE(true, (agrees<by_wgmma<scan_wgmma_shape<0, 12, 2, 16>>, float>(192, 256, {70}, 4))),
    CASE(true, (agrees<by_wgmma<scan_wgmma_shape<0, 16, 2, 10>>, float>(264, 136, {20, 31}, 5))),
    CASE(true, (agrees<by_roles<scan_quarters<2, 1, 8, 2>>, float>(40, 48, {150, 1, 16}, 6))),
    CASE(true, (agrees<by_roles<scan_quarters<5, 2, 8, 5>>, __half>(80, 160, {47, 2}, 7))),
    CASE(false, (agrees<by_roles<scan_block<1, 12, 12, 6, 2, 2>>, float>(96, 64, {100, 5}, 8))),
    CASE(false, (agrees<by_roles<scan_block<3, 4, 8, 4, 2, 5>>, float>(200, 128, {65, 33}, 9))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
