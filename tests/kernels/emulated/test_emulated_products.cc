// SPDX-License-Identifier: Apache-2.0
// medium.cu's and xproj.cu's kernels on the host (emulator.h): a product each of odd sizes, in_proj
// of either family with its convolution, x_proj's sums, out_proj onto the residual, against the
// same in double. Rows that begin anew or have no slot are among them.
#include "kernels/cuda/medium_kernel.cuh"
#include "kernels/cuda/xproj_kernel.cuh"
#include "product_reference.h"

using namespace ssm;

template <class ARGS> struct launched {
    CUtensorMap w, x;
    ARGS a;
};
template <int NW, int SPLITS, medium_after AFTER> static void kernel(const void *arguments) {
    const launched<medium_args> *l = (const launched<medium_args> *)arguments;
    medium_kernel<NW, SPLITS, AFTER>(l->w, l->x, l->a);
}
template <int ROWS, int SPLITS> static void x_kernel(const void *arguments) {
    const launched<xproj_args> *l = (const launched<xproj_args> *)arguments;
    xproj_kernel<ROWS, SPLITS>(l->w, l->x, l->a);
}

// Of medium.cu's, before it is dealt.
static medium_args arguments(const multiplied &of, int tile_rows, int box_tokens) {
    medium_args a = {};
    a.n_rows = of.rows, a.tokens = of.tokens, a.tile_rows = tile_rows, a.box_tokens = box_tokens;
    a.bias = of.bias.empty() ? NULL : of.bias.data();
    of.scale(&a);
    return a;
}
static void say(const char *what, const multiplied &of, int tile_rows) {
    printf("%s: %d rows of %d by tiles of %d, %d tokens\n", what, of.rows, of.columns, tile_rows,
           of.tokens);
}
template <int NW, int SPLITS, medium_after AFTER>
static void launch(const multiplied &of, medium_args a, unsigned seed) {
    launched<medium_args> l = {};
    const int bytes = medium_deal(NW, SPLITS, AFTER, of.columns, &a);
    const dim3 grid((unsigned)(ceil_div(of.rows, a.tile_rows) * SPLITS),
                    (unsigned)ceil_div(of.tokens, a.box_tokens));
    l.a = a;
    set_map(&l.w, of.w, of.columns, of.rows, PIECE, a.box_rows, true);
    set_map(&l.x, of.x, of.columns, of.tokens, PIECE, a.box_tokens, true);
    emu_launch(grid, MEDIUM_THREADS, (uint32_t)bytes, kernel<NW, SPLITS, AFTER>, &l, seed, SPLITS);
}

// in_proj, of whose rows `channels` from conv_first on are convolved.
template <int NW>
static bool in_agrees(int rows, int columns, int conv_first, int channels, int tile_rows,
                      int tokens, int width, bool scaled, unsigned seed) {
    const multiplied of(rows, columns, tokens, scaled, scaled);
    convolution c(of, conv_first, channels, width);
    medium_args a = arguments(of, tile_rows, tokens);
    c.give(&a);
    a.conv_first = conv_first, a.width = width;
    launch<NW, 2, MEDIUM_IN>(of, a, seed);
    say("in_proj", of, tile_rows);
    return c.agrees();
}

template <int NW> static bool sums_agree(int rows, int columns, int tokens, unsigned seed) {
    enum { TILE_ROWS = 48, TOKENS = 16 };
    const multiplied of(rows, columns, tokens, false);
    numbers out((size_t)(tokens * rows), -77);
    medium_args a = arguments(of, TILE_ROWS, TOKENS);
    a.out = out.data();
    watch("sums", out);
    launch<NW, 8, MEDIUM_SUMS>(of, a, seed);
    say("x_proj", of, TILE_ROWS);
    return near("sums", of.sums(), in_double(out));
}

// last: no layer follows, which would take u and squares.
template <int NW, int SPLITS>
static bool out_agrees(int rows, int columns, int tile_rows, int tokens, bool scaled, bool last,
                       unsigned seed) {
    const multiplied of(rows, columns, tokens, scaled, scaled);
    onto_residual r(of, tile_rows, last);
    medium_args a = arguments(of, tile_rows, tokens);
    a.out = r.residual.data();
    if (!last)
        a.next_norm = r.norm.data(), a.u = (bf16 *)r.u.data(), a.next_squares = r.squares.data();
    launch<NW, SPLITS, MEDIUM_OUT>(of, a, seed);
    say("out_proj", of, tile_rows);
    return r.agrees();
}

// By xproj.cu in `shared` bytes of a block, too few for a ring of all it has.
template <int ROWS, int SPLITS>
static bool x_agrees(int rows, int columns, int tokens, int shared, bool early, unsigned seed) {
    const multiplied of(rows, columns, tokens, false);
    numbers out((size_t)(tokens * rows), -77);
    launched<xproj_args> l = {};
    l.a.out = out.data(), l.a.n_rows = rows, l.a.tokens = tokens, l.a.early = early;
    xproj_deal<xproj_shape<ROWS, SPLITS>>(columns, shared, &l.a);
    set_map(&l.w, of.w, columns, rows, XPROJ_PIECE, ROWS, true);
    set_map(&l.x, of.x, columns, tokens, XPROJ_PIECE, XPROJ_TOKENS, true);
    watch("sums", out);
    const dim3 grid((unsigned)(ceil_div(tokens, XPROJ_TOKENS) * SPLITS),
                    (unsigned)ceil_div(rows, ROWS));
    emu_launch(grid, XPROJ_THREADS, (uint32_t)shared, x_kernel<ROWS, SPLITS>, &l, seed, SPLITS);
    say("x_proj", of, ROWS);
    return near("sums", of.sums(), in_double(out));
}

// Not looked through for races: tiles whose sixteen bytes of a token do not divide the threads, of
// which the last ones copy some histories that others copy, too.
static const emulated_case cases[] = {
    // Mamba-1: x is convolved, z is not; then Mamba-2: z, what is convolved, dt
    CASE(true, in_agrees<24>(400, 200, 0, 200, 48, 8, 4, false, 1)),
    CASE(true, in_agrees<48>(400, 328, 0, 200, 96, 40, 3, true, 2)),
    CASE(false, in_agrees<80>(640, 712, 0, 320, 160, 64, 4, true, 3)),
    CASE(true, in_agrees<24>(300, 200, 128, 160, 48, 16, 4, true, 4)),
    CASE(false, in_agrees<88>(500, 1096, 200, 288, 176, 64, 2, false, 5)),
    CASE(true, sums_agree<24>(48, 520, 8, 6)),
    CASE(true, sums_agree<24>(76, 1352, 56, 7)),
    CASE(true, (out_agrees<24, 8>(100, 520, 48, 8, false, false, 8))),
    CASE(true, (out_agrees<48, 8>(200, 1096, 96, 64, true, false, 9))),
    CASE(true, (out_agrees<80, 4>(328, 712, 160, 24, true, true, 10))),
    CASE(true, (out_agrees<88, 4>(360, 2056, 176, 64, false, false, 11))),
    CASE(true, (x_agrees<48, 8>(48, 2744, 9, 44 << 10, true, 12))),
    CASE(true, (x_agrees<80, 8>(76, 2568, 150, 60 << 10, false, 13))),
    CASE(true, (x_agrees<64, 4>(124, 1096, 70, 70 << 10, true, 14))),
    CASE(true, (x_agrees<96, 2>(100, 520, 64, 114 << 10, false, 15))),
};

int main(int argc, char **argv) {
    emu_waits_for_four = true;
    return run_cases(cases, argc, argv);
}
