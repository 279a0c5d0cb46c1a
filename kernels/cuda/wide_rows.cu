// SPDX-License-Identifier: Apache-2.0
// in_proj of many decode rows of Mamba-1 on Hopper, with the norm's scale before it and the
// convolution and its SiLU behind it in one launch, in place of cuBLASLt's product and conv.cu's
// kernel (wide_turns.cuh, wide_kernel.cuh, wide_rows.cuh).
//
// - A tile is 128 rows by 80 channels of x (64 where 80 do not divide) and the same channels of z
//   (weight rows as two boxes), so that every block convolves as much. Its end is hidden behind the
//   next tile's product, all but the last one's. Where tiles of 96 or 64 channels are one a block
//   and fill the card, its two groups share it, 64 rows each, and its end with it.
// - Sums are scaled, rounded to bf16 as cuBLASLt's product was, and go through shared memory
//   (stmatrix): a lane then has 16 bytes, eight channels, of some rows, and the channels' taps in
//   registers. Sums over k and over taps are in the order of cuBLASLt's and conv.cu's: the bits are
//   theirs, wherever a row lies.
// - What a tile needs beside (rows, scales, taps) is made by idle warps. A row's history is its
//   slot's ring as it lies, a box of three entries, fetched while the tile is multiplied; its input
//   takes the oldest entry's place.
//
// Bytes: the weights once; a row u, three histories, x, z and one entry: 31 MB beside the weights'
// 52 at 512 rows of 2.8b, which conv.cu's kernel moves in 8.5 us.
//
// us a layer of 2.8b in chains with cold weights, one H200 (2026-11-28); in brackets without a
// norm:
//                               256 rows    384         512         768         1,024
//   norm, cuBLASLt, conv.cu     30.6 (28.1) 40.3 (37.3) 49.8 (46.3) 76.0 (69.6) 95.1 (87.3)
//   norm, this                  31.8 (28.5) 40.8 (36.6) 49.2 (45.3) 67.2 (63.1) 89.2 (82.1)
//   this, with squares          29.0        38.0        45.8        63.6        84.0
//
// Steps of 2.8b with it and wide_out.cu, fp16 states, ms: 512 rows 8.849 to 8.688, 640 12.20 to
// 12.09, 768 12.90 to 12.41, 1,024 16.57 to 16.56. 1,024 of 130m in turns: 1.637 to 1.613,
// but 1.557 with wide_in.cu and conv.cu's kernel. So turns are for some rows of wide models only.
// In tiles of 64 (one process, graphs of all ways in turns, ms; where tiles fill the card's turns
// to 73% only, 370m's 768 rows, they lose to wide_in.cu):
//                          370m 512   1.4b 512   1.4b 1,024   790m 1,024
//   norm, cuBLASLt, conv   2.46       4.92-4.97  9.24         6.31
//   wide_in.cu, conv       2.36       4.96-4.98  9.12         6.11
//   this                   2.28       4.77-4.78  8.87         5.99
// At 1.4b's 768 rows, which fill the turns as well, an earlier form took 8.22 beside 7.12 and 7.53;
// today's was not timed there, nor at 790m's 640. So tiles of 64 are for 512 and 1,024 rows.
//
// Groups together, steps in fp16, ms, old and new library in turns, three times, all within 0.2%:
//                130m 1,024 (96)  370m 512 (64)  790m 512 (96)  130m 512 (48)  790m 256 (48)
//   before       1.553            2.301          3.556          0.983          2.322
//   together     1.522            2.281          3.505          1.000          2.387
// (Before: wide_in.cu and conv.cu, of 370m turns of 64.) So not in tiles of 48, whose ends are as
// many for half of the products. Predicted were 3 us a layer of 130m where 1.3 came: of a tile's
// end nothing is hidden. With histories asked for in L2 by the idle warps 130m 1.511 (1.545 before,
// another run), but 370m 2.314 (2.293); with token rows shared by two blocks the same as without.
//
// 1.4b's 256 rows in tiles of 64 together 3.07 ms, 3.13 with cuBLASLt (one run).
//
// Where 2.8b's 512 rows spend it in a step (%globaltimer, us, the card held to 1.36 to 1.41 GHz by
// its 700 W): first tile 21 (18.7 by its instructions at that clock), second 22, beside which the
// first one's end takes 14 to 17, the last end 6: 0.7 until sums are scaled and packed, then for
// each of four stages 0.4 for z, 1.0 for x, its convolution and stores. Nothing there waits for
// histories.
//
// Tried and dropped: 96 to 256 rows of 2.8b and 1.4b so, in tiles of 40, 80 and 32 channels
// (large-steps.md).
//
// Tried and dropped, 2.8b b512, ms a step beside 8.70 to 8.78 in the same process, bits the same
// (*: with x_proj in tiles of 128 rows, large-steps.md, which alone costs 0.0 to 0.04):
// - the last end shared with the idle group (x and z of every second stage through the ring of
//   products): 8.85 *; the end takes as long. With room for all four stages' histories, x and z
//   apart from them, 8.76; so for 370m 2.270 (2.281), 1.4b 4.75 (4.78).
// - the same with five stages of products and two of histories: 8.83 to 8.86 *.
// - histories by cp.async of a warp in place of boxes: 9.0; 370m 2.37 where boxes give 2.28.
// - weights asked for in L2, a quarter of a tile by each row tile's block, by idle warps: 9.02 to
//   9.09 *.
// - L2 asked for states during the second tile: large-steps.md.
#include "wide_rows.cuh"

namespace ssm {

template <class SHAPE, class K> static cudaError_t run(device *d, int layer, const batch &b, K k) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    wide_rows_args e = {};
    e.n = b.n, e.channels = g.d_inner, e.rows = b.rows;
    e.xz = (bf16 *)d->xz, e.xc = (bf16 *)d->xc;
    e.ring = (bf16 *)d->ring + (size_t)layer * d->n_slots * 3 * g.d_inner;
    e.conv_weight = w.conv_weight, e.conv_bias = w.conv_bias;
    if (layer > 0) {
        e.squares = d->row_norms, e.n_squares = wide_out_squares(d, b.n);
        e.per_width = 1.f / g.d_model, e.eps = g.norm_eps;
    }
    if (!tensor_map(&e.ring_map, e.ring, e.channels, 3 * d->n_slots, SHAPE::COLS / 2, 3, false))
        return cudaErrorNotSupported;
    const place_set set = {layer, false};
    return wide_launch<SHAPE>(d, k, w.in_proj, d->u, b.n, 2 * g.d_inner, g.d_model, e,
                              wide_placed(d, b.n) ? &set : NULL, g.d_inner);
}
template <int HALF> static cudaError_t in_turns(device *d, int layer, const batch &b) {
    typedef rows_in_turns<HALF> SHAPE;
    return run<SHAPE>(d, layer, b, wide_turns_kernel<SHAPE, wide_rows_end<SHAPE>>);
}
template <int HALF> static cudaError_t together(device *d, int layer, const batch &b) {
    typedef rows_together<HALF> SHAPE;
    return run<SHAPE>(d, layer, b, wide_kernel<SHAPE, wide_rows_end<SHAPE>>);
}

struct rows_form {
    int half, most_turns; // channels of a tile; tiles of a block
    cudaError_t (*run)(device *, int, const batch &);
};
static const rows_form forms[] = {
    {96, 1, together<96>},
    {64, 1, together<64>},
    {80, 8, in_turns<80>},
    {64, 8, in_turns<64>},
};

// Of the blocks' time, nine tenths at least must be products'. Tiles of 64 in turns are for 512
// and 1,024 rows alone (above).
static bool fits(const device *d, int32_t n, const rows_form &f) {
    const int of_rows = ceil_div(n, 128), inner = d->g.d_inner;
    if (f.most_turns == 1) {
        const int tiles = of_rows * (inner / f.half);
        return inner % f.half == 0 && d->g.d_model <= 2048 && tiles <= d->n_sms &&
               tiles * 10 >= d->n_sms * 9;
    }
    if (n < 512 || d->g.d_model < 1024 || inner % (2 * f.half) != 0)
        return false;
    const int pairs = d->n_sms / 2, tiles = of_rows * (inner / (2 * f.half));
    return tiles * 10 >= ceil_div(tiles, pairs) * pairs * 9 && (f.half == 80 || of_rows % 4 == 0);
}
static const rows_form *form_of(const device *d, int32_t n) {
    for (const rows_form &f : forms) {
        if (fits(d, n, f))
            return &f;
    }
    return NULL;
}

bool wide_rows_fits(const device *d, const batch &b) {
    const int most = d->g.d_model > 2048 ? 768 : 1024; // rows
    return b.decode && b.n >= 256 && b.n <= most && d->g.d_conv == 4 && wide_kind_fits(d) &&
           form_of(d, b.n);
}

cudaError_t wide_rows(device *d, int layer, const batch &b) {
    return form_of(d, b.n)->run(d, layer, b);
}

} // namespace ssm
