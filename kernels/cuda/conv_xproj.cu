// SPDX-License-Identifier: Apache-2.0
// Mamba-1's convolution and x_proj of prompts in one kernel on Hopper, in bf16: what x_proj
// multiplies is in shared memory already, the convolution's output is read once less, and there is
// no cuBLASLt, whose kernels begin when the one before has ended.
//
// - A tile is N virtual rows: all spans behind each other, each with three rows in front of its
//   tokens for its history. Where the card has room for it no tile has two spans; otherwise spans
//   begin at multiples of eight rows, so that a history is read in one tile only. Histories come
//   from the slots' rings, or are zeros from past the end of them, as rows like any other: nothing
//   in the convolution knows of spans. Rows that are no token are made and not stored.
// - A block walks the channels in pieces of 64. One warp asks for a tile's rows (boxes of all rows,
//   or of 32, 8 and 1) with the taps, one for x_proj's weights, GROUPS groups of four warps
//   convolve a piece each, one group multiplies, one lane stores: rings of stages and barriers
//   between them, and no barrier of all threads. A thread has four channels of N / 8 neighbouring
//   rows, all asked of shared memory before the first is used, so that many tokens are under way.
//   No thread that convolves has a load from memory under way: its fence would wait for it.
// - Weight rows are the matrix instruction's first operand, 64 at a time, the tile's rows its
//   second: their number need only be a multiple of 8. 72 rows in clusters of four, which share the
//   channels, take 2,048 tokens with 29 of the 30 clusters that a card of 132 SMs holds at once.
// - Sums go by pairs of tokens to the block of the cluster that adds them up, as a tree.
//
// A token's sums come in an order that the step's bucket alone decides. Steps whose spans need more
// tiles than the card holds, or with decode rows among them, are convolved by conv.cu and
// multiplied by the same kernel without its convolution (GROUPS 0): the same bits.
//
// us a layer (H200, 2026-11-28) from in_proj's end, by CUPTI in steps, and in a chain with a kernel
// that writes xz (its time taken off, in part from another run), cuBLASLt's best of eight for
// x_proj:
//                                    two kernels, in a step   this     two, in a chain   this
//   2.8b, 1 x 2,048 (72/4)           32.9                     26.9 *   25.6              23.3
//         2 x 2,048 (64/2)                                             41.2              36.4
//         8 x 2,048 (128/1)                                            135               110
//   130m, 8 x 2,048 (128/1)          50.1                     37.1     43.0              36.9
// * with stages 4, 5, 6 and peers' sums in the rings' place, behind a barrier of the cluster; in
// the chain 1 us slower than as it is now
// Steps, ms, in turns in one process: 2.8b 1 x 2,048 25.13 and 24.41 * (best 24.18 and 24.00), 130m
// 8 x 2,048 10.89 and 10.51. 130m 1 x 2,048 9.4 and 9.5 us, 1.983 and 1.996 ms: not taken.
//
// Where 2.8b's 1 x 2,048 spends it, us from the wait's end (median block): convolved 15.6,
// multiplied 16.6, peers' sums added up 20.0. With two groups 16.6, 17.2 and 20.5; these without
// the special functions convolved 14.6, without them, products and stores 9.2. A piece of 72 rows
// is 1,000 cycles of shared memory's port by count and 576 of the special functions' unit, and
// takes 1,600; x_proj alone (GROUPS 0) 800.
//
// Tried and dropped: two groups that convolve, 27.2 us in the step; three stages for weights at
// 128/1 of 2.8b, 119 in the chain where four take 110 (they come late beside the stream of inputs);
// tiles with two spans where it could do without, with stores to shared memory that keep the next
// token's loads behind them, 139 there.
// Not tried: weights by multicast to pairs of tiles, tokens as the first operand (150 of the 1,000
// cycles less), sums by bulk copies as in xproj.cu (in the first form 0.6 us less than now from
// the last product on).
//
// Trap: a barrier tells odd passes from even ones only, so a stage of inputs must always be the
// same group's: where three stages were shared by two groups, one went ahead of the other's pass
// and launches failed.
#include "clusters.cuh"
#include "conv_xproj.h"
#include "conv_xproj_kernel.cuh"
#include "medium.cuh"

namespace ssm {

template <class S>
static cudaError_t run(const device *d, int layer, const batch &b, int tiles, int most_tiles) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const int channels = g.d_inner;
    cx_args a = {};
    a.bias = w.conv_bias, a.in = (const bf16 *)d->xz;
    a.ring = (bf16 *)d->ring + (size_t)layer * d->n_slots * 3 * channels;
    a.sums = d->xdb, a.channels = channels, a.pieces = channels / CX_PIECE;
    a.n_x = d->n_x, a.n_slots = d->n_slots, a.n_spans = b.n_spans, a.tokens = b.n;
    a.in_pitch = (size_t)d->n_in, a.spans = b.spans, a.most_tiles = most_tiles;
    cx_maps maps;
    bool ok = tensor_map(&maps.w, w.x_proj, channels, d->n_x, CX_PIECE, d->n_x, true);
    for (int i = 0; i < (S::CONV ? (int)CX_BOXES : 1); i++)
        ok = ok && tensor_map(&maps.out[i], d->xc, channels, b.n, CX_PIECE,
                              cx_box_rows(i, S::N, S::N), true);
    if (S::CONV) {
        for (int i = 0; i < CX_BOXES; i++)
            ok = ok && tensor_map(&maps.x[i], d->xz, d->n_in, b.n, CX_PIECE,
                                  cx_box_rows(i, S::X_ROWS, S::N), false);
        ok =
            ok &&
            tensor_map(&maps.x[CX_HISTORY], a.ring, channels, d->n_slots * 3, CX_PIECE, 1, false) &&
            tensor_map_of(&maps.taps, w.conv_weight, true, channels, 4, CX_PIECE, 4, 0);
    }
    if (!ok)
        return cudaErrorNotSupported;
    cluster_launch launch(d, dim3((unsigned)(tiles * S::SPLITS)), S::THREADS, S::BYTES, S::SPLITS,
                          BESIDE_PREDECESSOR);
    return launch.run(conv_xproj_kernel<S>, maps, a);
}

struct cx_form {
    int weights, channels, fewest, most; // weight rows / 64, channels, tokens of a step's bucket
    int rows, splits;
    cudaError_t (*joint)(const device *d, int layer, const batch &b, int tiles, int most_tiles);
    cudaError_t (*alone)(const device *d, int layer, const batch &b, int tiles, int most_tiles);
};

// MT, channels, fewest and most tokens, N, SPLITS; GROUPS and stages of weights, tiles, inputs, of
// both; stages of weights and tiles of x_proj alone
template <int MT, int N, int SPLITS, int GROUPS, int W, int TILES, int X, int W_ALONE, int T_ALONE>
constexpr cx_form form_of(int channels, int fewest, int most) {
    return {MT,
            channels,
            fewest,
            most,
            N,
            SPLITS,
            run<cx_shape<MT, N, SPLITS, GROUPS, W, TILES, X>>,
            run<cx_shape<MT, N, SPLITS, 0, W_ALONE, T_ALONE, 1>>};
}

// As measured; of fewer tokens a form takes as long.
static const cx_form forms[] = {
    form_of<3, 72, 4, 3, 3, 4, 6, 5, 5>(5120, 1537, 2048),
    form_of<3, 64, 2, 3, 4, 5, 6, 5, 5>(5120, 3585, 4096),
    form_of<3, 128, 1, 2, 4, 3, 4, 5, 6>(5120, 14337, 16384),
    form_of<2, 128, 1, 2, 4, 4, 4, 5, 6>(1536, 13313, 16384),
};

// Tiles of n virtual rows that a step's spans take (cx_list): at most, if spans may meet in a tile,
// and otherwise.
static int tiles_together(const batch &b, int n) {
    return ceil_div(b.n_tiles * CONV_TILE + b.n_spans * CX_ALIGN - CX_BEFORE, n);
}
static int tiles_apart(const batch &b, int n) {
    return b.n_tiles * CONV_TILE / n + b.n_spans;
}

// Tiles that are there at once with a block an SM: the card's parts have 14 to 18 SMs.
static int most_tiles(const device *d, const cx_form &f) {
    return f.splits == 4 ? (d->n_sms - 12) / 4 : d->n_sms / f.splits;
}

static const cx_form *form_for(const device *d, const batch &b) {
    const ssm_geometry &g = d->g;
    if (g.kind != SSM_BLOCK_MAMBA || d->weight_type != SSM_DTYPE_BF16 || d->arch != 90 ||
        g.d_conv != 4 || d->n_x % 4 != 0 || b.decode)
        return NULL;
    for (const cx_form &f : forms) {
        if (ceil_div(d->n_x, 64) == f.weights && g.d_inner == f.channels && b.n >= f.fewest &&
            b.n <= f.most && ceil_div(b.n, f.rows) <= most_tiles(d, f))
            return &f;
    }
    return NULL;
}

bool conv_xproj_fits(const device *d, const batch &b) {
    const cx_form *f = form_for(d, b);
    return f && b.n_rows == 0 && b.n_spans > 0 && tiles_together(b, f->rows) <= most_tiles(d, *f);
}

cudaError_t conv_xproj(device *d, int layer, const batch &b) {
    const cx_form *f = form_for(d, b);
    const int most = most_tiles(d, *f), together = tiles_together(b, f->rows);
    const int apart = tiles_apart(b, f->rows) < most ? tiles_apart(b, f->rows) : most;
    return f->joint(d, layer, b, apart > together ? apart : together, most);
}

bool xproj_of_prompts_fits(const device *d, const batch &b) {
    return form_for(d, b) != NULL;
}

cudaError_t xproj_of_prompts(device *d, int layer, const batch &b) {
    const cx_form *f = form_for(d, b);
    return f->alone(d, layer, b, ceil_div(b.n, f->rows), 0);
}

} // namespace ssm
