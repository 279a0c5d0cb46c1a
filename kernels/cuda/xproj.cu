// SPDX-License-Identifier: Apache-2.0
// Mamba-1's x_proj of more than 64 rows and of prompts of more than 8 tokens on Hopper: sums
// [token][dt_rank + 2 N] of d_inner columns (2.8b 192 x 5,120, 130m 80 x 1,536). Few weight rows:
// columns must be shared to fill the card.
//
// - A block takes 64 tokens, the matrix instruction's first operand, and 48 to 96 weight rows, its
//   second; a cluster of 8, 4 or 2 blocks shares the columns. One warp fills a ring of stages of 64
//   columns by tensor map, x first and the weight rows behind it. Weights depend on nothing: what
//   the ring holds of them is asked for before the wait for the kernel before.
// - Sums meet in shared memory by bulk copies, a share of the tokens a block.
// - The columns are 8 parts in every form. A block adds up a part after the other and the parts as
//   a tree, the cluster goes on with the same tree: a token's bits depend on nothing but its inputs
//   and weights, neither on its place nor on how many tokens the step has (as long as this kernel
//   takes it).
// - One block an SM: the hardware puts two of a cluster on an SM where they fit, with most of the
//   card idle (16 blocks on 8 SMs), and such a cluster takes 20 to 50% longer. So a block asks for
//   a little more than half of an SM's shared memory, and a form must have no more clusters than
//   the card holds so (30 of 4, 15 of 8 on an H200, although it has 132 SMs). In decode steps one
//   of the advance's blocks still finds room beside it and starts when x_proj's inputs are there:
//   2 to 2.5 us less.
//
// Bytes: x once a row tile, weights once a token tile, from L2 for the most part: at 512 rows of
// 2.8b 328 KB a block, at 70 KB/us.
//
// us a layer, in a chain of a kernel that writes x, x_proj and the advance (rows) or one that
// sweeps L2 (tokens), over the same chain without x_proj; H200 (2026-11-28). Medium: what medium.cu
// did for 65 to 1,024 rows, where blocks met on an SM. In brackets the form, weight rows / splits:
//                      cuBLASLt  medium  this               cuBLASLt  this
//   2.8b, 96 rows      7.6       5.2     3.6 (48/8)   128 tokens  6.5   3.7 (48/8)
//         256          8.8       5.7     4.2 (64/8)   512         7.6   5.6 (64/4)
//         512          9.9       7.2     5.7 (64/4)   1,024       8.3   8.8 (96/4, two an SM)
//         1,024        10.5      13.4    8.0 (64/4 *) 2,048       10.8  10.8 (96/2)
//   1.4b, 512          9.0               5.2 (80/4)   2,048       9.7   7.2 (80/2)
//   130m, 256          5.8       3.8     2.8 (80/8)   512         4.2   2.8 (80/8)
//         1,024        6.7       5.4     3.3 (80/4)   2,048       4.9   4.4 (80/2)
//   falcon-7b                                         256         7.5   6.9 (96/8)
//   * two blocks an SM
// In steps, ms, f16 states, beside the tree before it in one run: 2.8b b128 4.43 to 4.26, b512 9.10
// to 9.02, 130m b256 0.787 to 0.756, b1024 1.711 to 1.666, prefill 1x2048 2.70 to 2.65.
//
// Where 2.8b's 512 rows spend it (64/4, %globaltimer): first stage 0.4 us behind the wait, last
// 4.6, peers' sums 5.4, done 5.8.
//
// Tried and dropped, us as above:
// - prompts of thousands: 128 tokens by all 192 rows a block, no splits: 50.7 at 16,384 tokens of
//   2.8b, cuBLASLt 50.5 (168 MB from memory); 130m 12.7 and 14.1. 2,048 tokens, 128 x 192 in
//   clusters of 4 on 64 SMs: 15.0 (the matrix units' rate, 9.6 of it, and 86 KB of sums a block
//   through the cluster in 4), 128 x 96 two an SM 14.5; cuBLASLt 10.6.
// - tiles of x or of weights for two or four blocks by multicast: never faster (50.6 at 16,384
//   tokens, 14.8 at 2,048), and 80 with arrivals at peers' barriers as release.cluster.
// - all of an SM's shared memory: 0.7 us less at 512 rows, 1.2 more behind it, where the advance
//   could not begin.
// - dt in bf16 beside the sums, so that no block of the advance or scan has to convert: the bytes
//   are few (5 of 84 KB a tile of the advance), and the warps that stage dt there are others than
//   those that wait for states. Predicted below 1% of a step; not built.
//
// Open: medium.cu's own x_proj, where resident.cu does not fit. In the second chain, started as in
// a decode step, medium / this: 2.8b 16 rows 3.8 / 2.9, 64 rows 5.8 / 3.3, 370m 2.9 / 2.4 and 2.5 /
// 2.4, 130m 2.3 / 2.5 and 2.8 / 2.5. Not tried in steps.
#include "clusters.cuh"
#include "medium.cuh"
#include "xproj_kernel.cuh"

namespace ssm {

// Shared memory of a block: more than half an SM's, so that blocks of a cluster do not meet on an
// SM, and so little that one of the advance's blocks finds room beside it; or half.
enum { ONE_AN_SM = 114 << 10, TWO_AN_SM = 113 << 10 };
// A block's pieces of the columns, at most: beyond, cuBLASLt is faster. Clusters of two are for
// steps of a thousand tokens and more, where it takes longer, too.
static int most_pieces(int splits) {
    return splits == 2 ? 32 : 20;
}

struct xproj_form {
    int rows, splits; // weight rows a block, blocks a cluster
    cudaError_t (*run)(const device *d, int layer, const batch &b, int shared);
};

template <int ROWS, int SPLITS>
static cudaError_t run(const device *d, int layer, const batch &b, int shared) {
    typedef xproj_shape<ROWS, SPLITS> shape;
    auto kernel = xproj_kernel<ROWS, SPLITS>;
    const int cols = d->g.d_inner;
    xproj_args a = {};
    a.out = d->xdb, a.n_rows = d->n_x, a.tokens = b.n, a.early = b.decode;
    xproj_deal<shape>(cols, shared, &a);
    static_assert(shape::SUMS <= TWO_AN_SM - XPROJ_BARRIERS, "the sums find room");
    CUtensorMap w_map, x_map;
    if (!tensor_map(&w_map, d->layers[layer].x_proj, cols, a.n_rows, XPROJ_PIECE, ROWS, true) ||
        !tensor_map(&x_map, d->xc, cols, a.tokens, XPROJ_PIECE, XPROJ_TOKENS, true))
        return cudaErrorNotSupported;
    const dim3 grid((unsigned)(ceil_div(a.tokens, XPROJ_TOKENS) * SPLITS),
                    (unsigned)ceil_div(a.n_rows, ROWS));
    cluster_launch launch(d, grid, XPROJ_THREADS, shared, SPLITS, BESIDE_PREDECESSOR);
    return launch.run(kernel, w_map, x_map, a);
}

// The first that the card holds at once is taken.
static const xproj_form forms[] = {
    {48, 8, run<48, 8>}, {64, 8, run<64, 8>}, {80, 8, run<80, 8>},
    {96, 8, run<96, 8>}, {64, 4, run<64, 4>}, {80, 4, run<80, 4>},
    {96, 4, run<96, 4>}, {80, 2, run<80, 2>}, {96, 2, run<96, 2>},
};

// Clusters that are there at once with a block an SM: the card's parts have 14 to 18 SMs.
static int clusters_of(const device *d, int splits) {
    return splits == 2 ? d->n_sms / 2 : (d->n_sms - 12) / splits;
}

static int padded(int n, int rows) {
    return ceil_div(n, rows) * rows;
}

// Forms that multiply few rows of zeros.
static bool divides(const device *d, const xproj_form &f) {
    int least = padded(d->n_x, f.rows);
    for (const xproj_form &other : forms)
        least = padded(d->n_x, other.rows) < least ? padded(d->n_x, other.rows) : least;
    return padded(d->n_x, f.rows) < least + 16;
}

static const xproj_form *choose(const device *d, const batch &b, int *shared) {
    const int tiles = ceil_div(b.n, XPROJ_TOKENS), pieces = ceil_div(d->g.d_inner, XPROJ_PIECE);
    *shared = ONE_AN_SM;
    for (const xproj_form &f : forms) {
        if (divides(d, f) && pieces <= most_pieces(f.splits) * f.splits &&
            tiles * ceil_div(d->n_x, f.rows) <= clusters_of(d, f.splits))
            return &f;
    }
    *shared = TWO_AN_SM;
    for (const xproj_form &f : forms) {
        if (b.decode && f.splits == 4 && divides(d, f) &&
            pieces <= most_pieces(f.splits) * f.splits &&
            tiles * ceil_div(d->n_x, f.rows) <= 2 * clusters_of(d, f.splits))
            return &f;
    }
    return NULL;
}

bool xproj_fits(const device *d, const batch &b) {
    const ssm_geometry &g = d->g;
    int shared;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch == 90 && g.kind == SSM_BLOCK_MAMBA &&
           b.n > 8 && g.d_inner % 8 == 0 && g.d_inner >= XPROJ_PARTS * XPROJ_PIECE &&
           d->n_x % 4 == 0 && choose(d, b, &shared) != NULL;
}

cudaError_t xproj(device *d, int layer, const batch &b) {
    int shared;
    const xproj_form *f = choose(d, b, &shared);
    return f->run(d, layer, b, shared);
}

} // namespace ssm
