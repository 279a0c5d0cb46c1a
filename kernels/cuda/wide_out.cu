// SPDX-License-Identifier: Apache-2.0
// out_proj of large steps on Hopper, where wide_in.cu follows: the product, the residual and the
// next layer's input in one launch, in place of cuBLASLt's product and a norm (wide.cuh;
// wide_out.cuh has what follows the sums). Also which steps are taken, and which way products are
// cut into tiles.
//
// Bytes: weights and y once, the residual read and written, u written. Measured beside cuBLASLt and
// the norm on one H200 (2026-11-28), chains of this product alone, cold weights, us:
//                         cuBLASLt + norm   this    by
//   2.8b    512 tokens    20.4 + 3.1        23.0    halves of k, 128 x 160 (256 x 96: 25.0)
//         2,048           72.7 + 13         75.4    pairs of 256 x 160 (turns of 128 x 160: 80.4)
//        16,384           553 + 93          637     the same (turns: 632)
//   130m  1,024           6.6 + 2.9         8.0     halves, 128 x 96 (128 x 192: 10.7)
//         2,048           9.7 + 4           12.7    halves, 128 x 192 (in steps pairs of 128 x 96
//                                                   are 1.8 us less)
//        16,384           63.4 + 18         74.3    turns of 128 x 192
// Read off by clocks: the matrix units are never short of operands (25,950 cycles for the 25,600 of
// 2.8b's 512 tokens), at 1.5 to 1.65 GHz, which is what 700 W allow. Of 23 us at 512 tokens 15.9
// are the product, 1.2 the meeting of the halves, 1.6 the end; the first stage comes 1.2 us after
// the kernel before. An end of 256 x 160 takes 9 to 13 us when all blocks write at once.
//
// The cycles of a way's ends are such that the model below puts the ways in the order that steps of
// five published widths at 512, 1,024 and 2,048 tokens did, every way forced in turn.
//
// Tried and dropped: halves in clusters of four that share tokens, too (the card holds 30 such
// clusters at once, 32 were needed: 40 us).
#include "wide_out.cuh"

namespace ssm {

template <class SHAPE>
static cudaError_t run(const device *d, const void *w, const void *y, int32_t n, wide_out_args e,
                       const place_set *set) {
    typedef wide_out_end<SHAPE> END;
    const int cols = d->g.d_model;
    e.tokens = n, e.cols = cols, e.n_squares = ceil_div(cols, SHAPE::N);
    if (!tensor_map_of(&e.residual, d->residual, true, cols, n, END::CHUNK, 16,
                       END::SWIZZLE ? 128 : 0) ||
        !tensor_map_of(&e.u, d->u, false, cols, n, END::CHUNK, 16, END::SWIZZLE ? 64 : 0))
        return cudaErrorNotSupported;
    return wide_launch<SHAPE>(d, wide_kernel<SHAPE, END>, w, y, n, cols, d->g.d_inner, e, set);
}

struct out_way {
    wide_way way;
    cudaError_t (*run)(const device *, const void *, const void *, int32_t, wide_out_args,
                       const place_set *);
    int squares_cols; // columns of a sum of squares
};
template <class SHAPE> constexpr out_way way_of(int end) {
    return {
        {SHAPE::TOKENS, SHAPE::COLS, SHAPE::SHARE, SHAPE::SPLITS, end, 0}, run<SHAPE>, SHAPE::N};
}
static const out_way ways[] = {
    way_of<wide_shape<2, 160, 2, 1>>(12500), way_of<wide_shape<1, 160, 1, 2>>(4800),
    way_of<wide_shape<1, 96, 1, 2>>(5500),   way_of<wide_shape<1, 96, 2, 1>>(4850),
    way_of<wide_shape<1, 128, 2, 1>>(5000),  way_of<wide_shape<1, 192, 2, 1>>(7500),
};

static const out_way *way_for(const device *d, int32_t n) {
    const out_way *best = NULL;
    int64_t least = 0;
    for (const out_way &w : ways) {
        const int64_t cycles = wide_cycles(d, w.way, n, d->g.d_model, d->g.d_inner);
        if (cycles > 0 && (!best || cycles < least))
            best = &w, least = cycles;
    }
    return best;
}

int32_t wide_out_squares(const device *d, int32_t n) {
    return ceil_div(d->g.d_model, way_for(d, n)->squares_cols);
}

cudaError_t wide_out(device *d, int layer, const void *y, int32_t n, const float *next_norm,
                     bool rows) {
    const place_set set = {layer, true};
    wide_out_args e = {};
    e.next_norm = next_norm, e.squares = d->row_norms;
    return way_for(d, n)->run(d, d->layers[layer].out_proj, y, n, e,
                              rows && wide_placed(d, n) ? &set : NULL);
}

// ---- which steps, and which way

enum { LEAST_TOKENS = 128, LEAST_WIDTH = 768, MOST_WIDTH = 2560 };
enum { ROWS_WIDTH = 1536, SMALL_WIDTH = 768, LEAST_ROWS = 256 }; // of wider than SMALL_WIDTH

// 0: not this way.
int64_t wide_cycles(const device *d, const wide_way &w, int32_t n, int cols, int k) {
    const int pieces = ceil_div(k, WIDE_PIECE), clusters = d->n_sms / (w.share * w.splits);
    if (pieces % w.splits != 0)
        return 0;
    const int64_t tiles = ceil_div(n, w.tokens) * ceil_div(cols, w.cols * w.share);
    const int64_t rounds = (tiles + clusters - 1) / clusters;
    const int end = w.end + (w.splits > 1 && rounds > 1 ? 1500 : 0); // another launch of blocks
    const int64_t one = (int64_t)pieces / w.splits * (w.tokens / 128) * w.cols * 4 + end;
    return rounds * one + w.last;
}

// As far as steps were measured to gain (tests/bench/results/large-steps.md).
static int most_tokens(const device *d) {
    return d->g.d_model < 2048 ? 4096 : 3072;
}

bool wide_kind_fits(const device *d) {
    const ssm_geometry &g = d->g;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch == 90 && g.kind == SSM_BLOCK_MAMBA &&
           g.d_model % 8 == 0 && g.d_inner % 8 == 0 && g.d_model >= LEAST_WIDTH &&
           g.d_model <= MOST_WIDTH && g.d_inner >= LEAST_WIDTH && !d->layers[0].in_bias &&
           !d->layers[0].out_bias;
}

bool wide_fits(const device *d, const batch &b) {
    return wide_kind_fits(d) && b.n >= LEAST_TOKENS && b.n <= most_tokens(d) &&
           (!b.decode || d->g.d_model <= SMALL_WIDTH ||
            (d->g.d_model <= ROWS_WIDTH && b.n >= LEAST_ROWS));
}

size_t wide_most_squares(const device *d, int32_t tokens) {
    const int most = most_tokens(d), n = tokens < most ? tokens : most;
    int parts = 0;
    for (const out_way &w : ways) {
        const int of_way = ceil_div(d->g.d_model, w.squares_cols);
        parts = of_way > parts ? of_way : parts;
    }
    return wide_kind_fits(d) ? (size_t)n * parts : 0;
}

} // namespace ssm
