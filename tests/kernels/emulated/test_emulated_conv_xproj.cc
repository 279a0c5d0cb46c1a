// SPDX-License-Identifier: Apache-2.0
// conv_xproj.cu's kernel on the host (emulator.h): prompts of any lengths, that begin anew or go on
// from a slot's ring, through the convolution and x_proj, and x_proj alone of what another kernel
// has left, against the same in double.
#include "kernels/cuda/conv_xproj_kernel.cuh"
#include "product_reference.h"

using namespace ssm;

enum { KEPT = 3 };

struct launched {
    cx_maps maps;
    cx_args a;
};
template <class SHAPE> static void kernel(const void *arguments) {
    const launched *l = (const launched *)arguments;
    conv_xproj_kernel<SHAPE>(l->maps, l->a);
}
template <class SHAPE> static void launch(const launched &l, int tiles, unsigned seed) {
    emu_launch(tiles * SHAPE::SPLITS, SHAPE::THREADS, SHAPE::BYTES, kernel<SHAPE>, &l, seed,
               SHAPE::SPLITS);
}

// in_proj's output, of whose columns the first `channels` are convolved.
struct prompts {
    int channels, columns, tokens = 0, slots;
    std::vector<span> spans;
    weights in, out, ring;
    numbers taps, bias;
    doubles want_out, want_ring;

    prompts(int n, const std::vector<int> &lengths)
        : channels(n), columns(n + 64), slots((int)lengths.size() + 2),
          ring((size_t)(slots * KEPT * n)), taps(random_numbers((size_t)(4 * n), -1, 1)),
          bias(random_numbers((size_t)n, -1, 1)) {
        for (size_t i = 0; i < lengths.size(); i++) {
            span s = {};
            s.first = tokens, s.count = lengths[i], s.slot = slots - 1 - (int)i;
            s.ring = (int)i % KEPT, s.fresh = i % 3 == 1;
            spans.push_back(s);
            tokens += lengths[i];
        }
        in.resize((size_t)(tokens * columns)), out.resize((size_t)(tokens * channels));
        for (weights *w : {&in, &out, &ring}) {
            for (uint16_t &one : *w)
                one = to_bf16(normal());
        }
        make();
        watch("what is convolved", out), watch("the convolution's ring", ring);
    }
    double input(int token, int c) const {
        return emu_bf16(in[(size_t)(token * columns + c)]);
    }
    HOST void make(void) {
        want_out.resize(out.size()), want_ring = bf16_in_double(ring);
        for (const span &s : spans) {
            for (int c = 0; c < channels; c++)
                convolve(s, c, &want_ring[(size_t)(s.slot * KEPT * channels + c)]);
        }
    }
    // A channel of a span; its ring's entries lie `channels` apart.
    void convolve(const span &s, int c, double *entries) {
        const doubles before = {entries[0], entries[channels], entries[2 * channels]};
        for (int t = 0; t < s.count; t++) {
            double v = bias[(size_t)c];
            for (int j = 0; j <= KEPT; j++) { // tokens ago
                const double x = t >= j    ? input(s.first + t - j, c)
                                 : s.fresh ? 0
                                           : before[(size_t)(s.ring + t - j + KEPT) % KEPT];
                v += taps[(size_t)((KEPT - j) * channels + c)] * x;
            }
            want_out[(size_t)((s.first + t) * channels + c)] = silu_of(v);
        }
        for (int j = 0; j < KEPT; j++) {
            double *entry = &entries[(s.ring + s.count - 1 - j + KEPT) % KEPT * channels];
            if (j < s.count)
                *entry = input(s.first + s.count - 1 - j, c);
            else if (s.fresh)
                *entry = 0;
        }
    }
};

static void set_outputs(cx_maps *maps, const weights &w, int channels, int tokens, int n) {
    for (int i = 0; i < CX_BOXES; i++)
        set_map(&maps->out[i], w, channels, tokens, CX_PIECE, cx_box_rows(i, n, n), true);
}

// x_proj's sums are those of the convolution's own bits.
static bool near_sums(multiplied of, const weights &x, const numbers &sums) {
    of.x = x;
    return near("sums", of.sums(), in_double(sums));
}

// apart: no two spans in a tile.
template <class SHAPE>
static bool agrees(int channels, int n_x, const std::vector<int> &lengths, bool apart,
                   unsigned seed) {
    prompts p(channels, lengths);
    const multiplied of(n_x, channels, p.tokens, false);
    numbers sums((size_t)(p.tokens * n_x), -77);
    launched l = {};
    l.a.bias = p.bias.data(), l.a.in = (const bf16 *)p.in.data(), l.a.ring = (bf16 *)p.ring.data();
    l.a.sums = sums.data(), l.a.channels = channels, l.a.pieces = channels / CX_PIECE;
    l.a.n_x = n_x, l.a.n_slots = p.slots, l.a.n_spans = (int)p.spans.size();
    l.a.tokens = p.tokens, l.a.in_pitch = (size_t)p.columns, l.a.spans = p.spans.data();
    int tiles = 1, rows = 0; // and one that has nothing
    for (int n : lengths) {
        tiles += apart ? (n + SHAPE::N - 1) / SHAPE::N : 0;
        rows += (n + CX_BEFORE + CX_ALIGN - 1) / CX_ALIGN * CX_ALIGN;
    }
    l.a.most_tiles = apart ? tiles : 0;
    tiles += apart ? 0 : (rows - CX_BEFORE + SHAPE::N - 1) / SHAPE::N;
    set_map(&l.maps.w, of.w, channels, n_x, CX_PIECE, n_x, true);
    set_map_of(&l.maps.taps, p.taps.data(), 4, channels, 4, CX_PIECE, 4, 0);
    set_outputs(&l.maps, p.out, channels, p.tokens, SHAPE::N);
    for (int i = 0; i < CX_BOXES; i++)
        set_map(&l.maps.x[i], p.in, p.columns, p.tokens, CX_PIECE,
                cx_box_rows(i, SHAPE::X_ROWS, SHAPE::N), false);
    set_map(&l.maps.x[CX_HISTORY], p.ring, channels, p.slots * KEPT, CX_PIECE, 1, false);
    watch("sums", sums);
    launch<SHAPE>(l, tiles, seed);
    printf("%d channels, %d tokens of %zu prompts in %d tiles of %d\n", channels, p.tokens,
           lengths.size(), tiles, (int)SHAPE::N);
    return (int)near("xc", p.want_out, bf16_in_double(p.out)) &
           near("ring", p.want_ring, bf16_in_double(p.ring)) & near_sums(of, p.out, sums);
}

template <class SHAPE> static bool alone_agrees(int channels, int n_x, int tokens, unsigned seed) {
    const multiplied of(n_x, channels, tokens, false);
    numbers sums((size_t)(tokens * n_x), -77);
    launched l = {};
    l.a.sums = sums.data(), l.a.channels = channels, l.a.pieces = channels / CX_PIECE;
    l.a.n_x = n_x, l.a.tokens = tokens;
    set_map(&l.maps.w, of.w, channels, n_x, CX_PIECE, n_x, true);
    set_outputs(&l.maps, of.x, channels, tokens, SHAPE::N);
    watch("sums", sums);
    launch<SHAPE>(l, ceil_div(tokens, SHAPE::N), seed);
    printf("%d channels, %d tokens in tiles of %d, x_proj alone\n", channels, tokens,
           (int)SHAPE::N);
    return near_sums(of, of.x, sums);
}

static const emulated_case cases[] = {
    CASE(true, (agrees<cx_shape<1, 72, 4, 3, 3, 4, 6>>(1088, 44, {150}, false, 1))),
    CASE(true, (agrees<cx_shape<3, 72, 4, 3, 3, 4, 6>>(832, 180, {70, 1, 2, 9, 2}, false, 2))),
    CASE(true, (agrees<cx_shape<2, 64, 2, 3, 4, 5, 6>>(832, 112, {64, 130, 5}, true, 3))),
    CASE(true, (agrees<cx_shape<2, 128, 1, 2, 4, 4, 4>>(704, 80, {40, 129, 1, 1, 90}, false, 4))),
    CASE(true, (agrees<cx_shape<1, 128, 1, 2, 4, 3, 4>>(640, 64, {128, 256}, true, 5))),
    CASE(true, (alone_agrees<cx_shape<1, 72, 4, 0, 5, 5, 1>>(1472, 44, 100, 6))),
    CASE(true, (alone_agrees<cx_shape<2, 128, 1, 0, 5, 6, 1>>(576, 80, 130, 7))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
