// SPDX-License-Identifier: Apache-2.0
// wide.cuh's products on the host (emulator.h), both kernels with what follows their sums: in_proj
// of prompts (wide_in.cuh), of decode rows with its convolution (wide_rows.cuh), out_proj onto the
// residual (wide_out.cuh); tiles of a block one after the other, blocks that share tokens or split
// columns, against the same in double.
#include "kernels/cuda/wide_in.cuh"
#include "kernels/cuda/wide_out.cuh"
#include "kernels/cuda/wide_rows.cuh"
#include "product_reference.h"

using namespace ssm;

template <class END> struct launched {
    CUtensorMap x, w;
    wide_args a;
    typename END::args e;
};
template <class SHAPE, class END> static void kernel(const void *arguments) {
    const launched<END> *l = (const launched<END> *)arguments;
    if constexpr ((int)SHAPE::WARPS == (int)WIDE_WARPS)
        wide_kernel<SHAPE, END>(l->x, l->w, l->a, l->e);
    else
        wide_turns_kernel<SHAPE, END>(l->x, l->w, l->a, l->e);
}

// By so many clusters, with tickets (wide_places.cuh) no more than tiles: a cluster without one
// divides by nothing, which the card has a number for. half: as wide_args. Returns whether
// tickets are left as they should be.
template <class SHAPE, class END>
static bool launch(const multiplied &of, const typename END::args &e, int clusters, bool tickets,
                   int half, unsigned seed) {
    static launched<END> l;
    place_tickets taken = {}, wiped;
    memset(&wiped, 1, sizeof wiped);
    l.a = wide_deal<SHAPE>(of.tokens, of.rows, of.columns, half), l.e = e;
    set_map(&l.w, of.w, of.columns, of.rows, WIDE_PIECE, half > 0 ? SHAPE::COLS / 2 : SHAPE::COLS,
            true);
    set_map(&l.x, of.x, of.columns, of.tokens, WIDE_PIECE, SHAPE::TOKENS / SHAPE::SHARE, true);
    const int tiles = l.a.row_tiles * l.a.col_tiles;
    if (tickets) { // all of one GPC, half of whose places are another's
        wide_places *p = &l.a.places;
        p->tickets = taken.in, p->wiped = (uint4 *)&wiped, p->n_gpcs = 2;
        p->first[1] = (uint8_t)(clusters / 2), p->first[2] = (uint8_t)clusters;
    } else if (SHAPE::SPLITS > 1 || tiles < clusters) {
        clusters = tiles;
    }
    emu_launch(clusters * SHAPE::CLUSTER, WIDE_THREADS, SHAPE::BYTES, kernel<SHAPE, END>, &l, seed,
               SHAPE::CLUSTER);
    printf("%d rows of %d, %d tokens, %d tiles of %d by %d%s\n", of.rows, of.columns, of.tokens,
           tiles, (int)SHAPE::TOKENS, (int)SHAPE::COLS, tickets ? ", by tickets" : "");
    const place_tickets none = {};
    const int second = tickets ? clusters - clusters / 2 : 0;
    const bool right = !tickets || (memcmp(&wiped, &none, sizeof none) == 0 &&
                                    (int)taken.in[0] == clusters && (int)taken.in[1] == second);
    if (!right)
        printf("  tickets are not as they should be: WRONG\n");
    return right;
}

template <class SHAPE>
static bool in_agrees(int rows, int columns, int tokens, int clusters, bool scaled, unsigned seed) {
    typedef wide_in_end<SHAPE> end;
    const multiplied of(rows, columns, tokens, scaled);
    weights y((size_t)(tokens * rows), to_bf16(-77));
    wide_in_args e = {};
    set_map_of(&e.y, y.data(), 2, rows, tokens, end::CHUNK, 16, 64);
    of.scale(&e);
    e.tokens = tokens;
    watch("y", y);
    const bool right = launch<SHAPE, end>(of, e, clusters, false, 0, seed);
    doubles want = of.sums();
    for (double &one : want)
        one = rounded(one);
    return right & near("in_proj", want, bf16_in_double(y));
}

// last: no layer follows, which would take u and squares.
template <class SHAPE>
static bool out_agrees(int rows, int columns, int tokens, int clusters, bool tickets, bool last,
                       unsigned seed) {
    typedef wide_out_end<SHAPE> end;
    const multiplied of(rows, columns, tokens, false);
    onto_residual r(of, SHAPE::N, last);
    wide_out_args e = {};
    set_map_of(&e.residual, r.residual.data(), 4, rows, tokens, end::CHUNK, 16,
               end::SWIZZLE ? 128 : 0);
    set_map_of(&e.u, r.u.data(), 2, rows, tokens, end::CHUNK, 16, end::SWIZZLE ? 64 : 0);
    e.next_norm = last ? NULL : r.norm.data(), e.squares = r.squares.data();
    e.tokens = tokens, e.cols = rows, e.n_squares = r.parts;
    const bool right = launch<SHAPE, end>(of, e, clusters, tickets, 0, seed);
    return right & r.agrees();
}

template <class SHAPE>
static bool rows_agree(int channels, int columns, int tokens, int clusters, bool tickets,
                       bool scaled, unsigned seed) {
    typedef wide_rows_end<SHAPE> end;
    const multiplied of(2 * channels, columns, tokens, scaled);
    convolution c(of, 0, channels, end::KEPT + 1);
    wide_rows_args e = {};
    c.give(&e);
    of.scale(&e);
    e.n = tokens;
    set_map_of(&e.ring_map, c.ring.data(), 2, channels, end::KEPT * convolution::slots(of),
               SHAPE::COLS / 2, end::KEPT, 0);
    const bool right = launch<SHAPE, end>(of, e, clusters, tickets, channels, seed);
    return right & c.agrees();
}

static const emulated_case cases[] = {
    CASE(true, (in_agrees<wide_shape<1, 96, 2, 1>>(264, 200, 150, 2, true, 1))),
    CASE(true, (in_agrees<wide_shape<1, 192, 1, 1>>(200, 264, 70, 3, false, 2))),
    CASE(true, (in_agrees<wide_shape<2, 160, 2, 1>>(328, 456, 270, 2, true, 3))),
    CASE(true, (in_agrees<wide_in_turns<192, 1>>(400, 328, 200, 2, true, 4))),
    CASE(true, (in_agrees<wide_in_turns<160, 2>>(328, 200, 140, 1, false, 5))),
    CASE(true, (out_agrees<wide_shape<1, 96, 1, 2>>(104, 512, 140, 9, false, false, 6))),
    CASE(true, (out_agrees<wide_shape<1, 160, 1, 2>>(320, 256, 140, 4, true, true, 7))),
    CASE(true, (out_agrees<wide_shape<1, 96, 2, 1>>(200, 264, 200, 1, false, false, 8))),
    CASE(true, (out_agrees<wide_shape<1, 128, 2, 1>>(264, 200, 140, 2, false, false, 9))),
    CASE(true, (out_agrees<wide_shape<1, 192, 2, 1>>(264, 200, 270, 2, true, false, 10))),
    CASE(true, (out_agrees<wide_shape<2, 160, 2, 1>>(328, 456, 270, 1, false, false, 11))),
    CASE(true, (rows_agree<rows_together<64>>(128, 200, 140, 2, false, true, 12))),
    CASE(true, (rows_agree<rows_together<96>>(192, 328, 200, 3, false, false, 13))),
    CASE(true, (rows_agree<rows_in_turns<64>>(256, 264, 140, 1, false, true, 14))),
    CASE(true, (rows_agree<rows_in_turns<80>>(320, 456, 400, 2, false, true, 15))),
    CASE(true, (rows_agree<rows_in_turns<64>>(256, 264, 400, 3, true, false, 16))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
