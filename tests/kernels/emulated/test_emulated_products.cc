// SPDX-License-Identifier: Apache-2.0
// medium.cu's and xproj.cu's kernels on the host (emulator.h): a product each of odd sizes, in_proj
// of either family with its convolution, x_proj's sums, out_proj onto the residual, against the
// same in double. Rows that begin anew or have no slot are among them.
#include "emulated_test.h"
#include "kernels/cuda/medium_kernel.cuh"
#include "kernels/cuda/xproj_kernel.cuh"

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

// Weights and tokens of a product, and what a token's sums are multiplied by, if by anything.
struct multiplied {
    enum { SUMS = 5 };
    int rows, columns, tokens;
    weights w, x;
    numbers bias, squares;
    float eps = .3f;

    multiplied(int n, int k, int t, bool scaled, bool biased)
        : rows(n), columns(k), tokens(t), w(random_matrix((size_t)n, (size_t)k)),
          x((size_t)t * (size_t)k) {
        for (uint16_t &one : x)
            one = to_bf16(normal());
        if (scaled)
            squares = random_numbers((size_t)t * SUMS, .2f, 40);
        if (biased)
            bias = random_numbers((size_t)n, -1, 1);
    }
    // [token][row]
    HOST doubles sums(void) const {
        doubles all;
        for (int t = 0; t < tokens; t++) {
            doubles of((size_t)columns);
            double square = 0, by = 1;
            for (int i = 0; i < columns; i++)
                of[(size_t)i] = emu_bf16(x[(size_t)(t * columns + i)]);
            for (size_t i = 0; !squares.empty() && i < SUMS; i++)
                square += squares[(size_t)t * SUMS + i];
            if (!squares.empty())
                by = 1 / sqrt(square / columns + eps);
            for (int r = 0; r < rows; r++)
                all.push_back(dot(&w[(size_t)r * (size_t)columns], of) * by +
                              (bias.empty() ? 0. : bias[(size_t)r]));
        }
        return all;
    }
    medium_args arguments(int tile_rows, int box_tokens) const {
        medium_args a = {};
        a.n_rows = rows, a.tokens = tokens, a.tile_rows = tile_rows, a.box_tokens = box_tokens;
        a.bias = bias.empty() ? NULL : bias.data();
        a.squares = squares.empty() ? NULL : squares.data(), a.n_squares = SUMS;
        a.per_width = 1.f / (float)columns, a.eps = eps;
        return a;
    }
    template <int NW, int SPLITS, medium_after AFTER>
    void launch(medium_args a, unsigned seed) const {
        launched<medium_args> l = {};
        const int bytes = medium_deal(NW, SPLITS, AFTER, columns, &a);
        const dim3 grid((unsigned)(ceil_div(rows, a.tile_rows) * SPLITS),
                        (unsigned)ceil_div(tokens, a.box_tokens));
        l.a = a;
        set_map(&l.w, w, columns, rows, PIECE, a.box_rows, true);
        set_map(&l.x, x, columns, tokens, PIECE, a.box_tokens, true);
        emu_launch(grid, MEDIUM_THREADS, (uint32_t)bytes, kernel<NW, SPLITS, AFTER>, &l, seed,
                   SPLITS);
    }
    void say(const char *what, int tile_rows) const {
        printf("%s: %d rows of %d by tiles of %d, %d tokens\n", what, rows, columns, tile_rows,
               tokens);
    }
};

// in_proj, of whose rows `channels` from conv_first on are convolved.
template <int NW>
static bool in_agrees(int rows, int columns, int conv_first, int channels, int tile_rows,
                      int tokens, int width, bool scaled, unsigned seed) {
    const multiplied of(rows, columns, tokens, scaled, scaled);
    const int kept = width - 1, slots = tokens + 3;
    weights xz((size_t)(tokens * rows)), xc((size_t)(tokens * channels)),
        ring((size_t)(slots * kept * channels));
    for (weights *w : {&xz, &xc, &ring}) {
        for (uint16_t &one : *w)
            one = to_bf16(normal());
    }
    const numbers taps = random_numbers((size_t)(width * channels), -1, 1),
                  bias = random_numbers((size_t)channels, -1, 1);
    std::vector<row> all((size_t)tokens);
    for (int t = 0; t < tokens; t++) {
        row *r = &all[(size_t)t];
        *r = row();
        r->at = t, r->ring = t % kept, r->slot = t % 6 == 4 ? -1 : slots - 1 - t;
        r->fresh = r->slot < 0 || t % 5 == 1;
    }
    doubles want_xz = bf16_in_double(xz), want_xc = bf16_in_double(xc),
            want_ring = bf16_in_double(ring);
    const doubles sums = of.sums();
    for (int t = 0; t < tokens; t++) {
        const row &r = all[(size_t)t];
        for (int i = 0; i < rows; i++) {
            const double raw = rounded(sums[(size_t)(t * rows + i)]);
            const int c = i - conv_first;
            if (c < 0 || c >= channels) {
                want_xz[(size_t)(t * rows + i)] = raw;
                continue;
            }
            if (r.slot < 0)
                continue;
            double *slot = &want_ring[(size_t)(r.slot * kept * channels + c)];
            double v = bias[(size_t)c] + taps[(size_t)(kept * channels + c)] * raw;
            for (int j = 1; j <= kept; j++) // tokens ago
                v += r.fresh ? 0
                             : taps[(size_t)((kept - j) * channels + c)] *
                                   slot[(r.ring - j + kept) % kept * channels];
            for (int e = 0; r.fresh && e < kept; e++)
                slot[e * channels] = 0;
            slot[r.ring * channels] = raw;
            want_xc[(size_t)(t * channels + c)] = silu_of(v);
        }
    }
    medium_args a = of.arguments(tile_rows, tokens);
    a.xz = (bf16 *)xz.data(), a.xc = (bf16 *)xc.data(), a.ring = (bf16 *)ring.data();
    a.rows = all.data(), a.conv_weight = taps.data(), a.conv_bias = bias.data();
    a.conv_first = conv_first, a.channels = channels, a.width = width;
    watch("xz", xz), watch("xc", xc), watch("the convolution's ring", ring);
    of.launch<NW, 2, MEDIUM_IN>(a, seed);
    of.say("in_proj", tile_rows);
    return (int)near("xz", want_xz, bf16_in_double(xz)) & near("xc", want_xc, bf16_in_double(xc)) &
           near("ring", want_ring, bf16_in_double(ring));
}

// By xproj.cu in `shared` bytes of a block, too few for a ring of all it has.
template <int ROWS, int SPLITS>
static bool x_agrees(int rows, int columns, int tokens, int shared, bool early, unsigned seed) {
    const multiplied of(rows, columns, tokens, false, false);
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
    of.say("x_proj", ROWS);
    return near("sums", of.sums(), in_double(out));
}

template <int NW> static bool sums_agree(int rows, int columns, int tokens, unsigned seed) {
    enum { TILE_ROWS = 48, TOKENS = 16 };
    const multiplied of(rows, columns, tokens, false, false);
    numbers out((size_t)(tokens * rows), -77);
    medium_args a = of.arguments(TILE_ROWS, TOKENS);
    a.out = out.data();
    watch("sums", out);
    of.launch<NW, 8, MEDIUM_SUMS>(a, seed);
    of.say("x_proj", TILE_ROWS);
    return near("sums", of.sums(), in_double(out));
}

// last: no layer follows, which would take u and squares.
template <int NW, int SPLITS>
static bool out_agrees(int rows, int columns, int tile_rows, int tokens, bool scaled, bool last,
                       unsigned seed) {
    const multiplied of(rows, columns, tokens, scaled, scaled);
    const int tiles = ceil_div(rows, tile_rows);
    numbers out((size_t)(tokens * rows)), squares((size_t)(tokens * tiles), -77);
    const numbers norm = random_numbers((size_t)rows, .5f, 1.5f);
    weights u((size_t)(tokens * rows), to_bf16(-77));
    for (float &one : out)
        one = normal();
    doubles want = of.sums(), want_u = bf16_in_double(u), want_squares = in_double(squares);
    for (size_t i = 0; i < want.size(); i++) {
        const size_t token = i / (size_t)rows, row = i % (size_t)rows,
                     tile = token * (size_t)tiles + row / (size_t)tile_rows;
        want[i] += out[i];
        if (last)
            continue;
        want_u[i] = rounded(want[i] * norm[row]);
        want_squares[tile] = (row % (size_t)tile_rows ? want_squares[tile] : 0) + want[i] * want[i];
    }
    medium_args a = of.arguments(tile_rows, tokens);
    a.out = out.data();
    if (!last)
        a.next_norm = norm.data(), a.u = (bf16 *)u.data(), a.next_squares = squares.data();
    watch("the residual", out), watch("u", u), watch("its squares", squares);
    of.launch<NW, SPLITS, MEDIUM_OUT>(a, seed);
    of.say("out_proj", tile_rows);
    return (int)near("residual", want, in_double(out)) & near("u", want_u, bf16_in_double(u)) &
           near("squares", want_squares, in_double(squares));
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
