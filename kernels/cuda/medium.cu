// SPDX-License-Identifier: Apache-2.0
// Products for 9 to 64 rows on Hopper (Mamba-2 of 2,048 channels and more: from 5 on, or from 3
// where few_packed.cu has no weights; models of 7b: any), where resident.cu and resident_heads.cu
// do not fit (fp32 states of Mamba-2, biases, other widths): the weights once, at the rate of the
// memory, with what comes before and after them in the same launch (medium_kernel.cuh).
//
// - Token rows are the matrix instruction's first operand (64, however many there are), weight rows
//   its second: those come in any multiple of 8, so every block gets an even share. Two groups of
//   four warps own half of a block's weight rows each.
// - A ring of stages of 64 columns, x first and the weight rows behind it, is filled by one thread
//   by tensor map. Weights depend on nothing: as much as the ring holds is asked for before the
//   wait for the kernel before. A block takes at most half of an SM's shared memory and registers,
//   so the next kernel's blocks fill their rings while this one works.
// - A cluster of SPLITS blocks takes tile_rows weight rows, each of its blocks an even part of the
//   columns, or every block would read all of x. Sums go to shared memory, a share of the tokens to
//   each peer by the copy engine, and are added up in order of rank: the same bits in every run.
// - After in_proj: the convolution, whose history is asked for when the ring is free; a block's
//   first group takes rows of x and its second rows of z (Mamba-1), so that blocks have even work.
//   After out_proj: the norm of what was gated, if it has one group (sums scaled by the squares
//   that the advance left, so that nobody norms), the residual, and the next layer's input:
//   residual times norm weight, and a token's sum of squares over the tile, by which in_proj scales
//   its sums. Only the first layer has a norm of its own.
// - x_proj: few weights, so blocks share the tokens too. It lets the advance start only when
//   in_proj is done: x and z may be read before the wait (advance_short.cu).
//
// Bytes: the weights once, x once a tile of rows (L2). Floor: weights / 4.4 TB/s.
//
// Ladder, ms a step, fp16 states, one H200 (2026-11-27); the last line in one run beside its
// predecessor at 130m (0.519, 0.758, b1024 1.850), elsewhere against tests/bench/results:
//                                                    2.8b b16  b32   b64   b512 130m b16  b64
//   cp.async and clusters to 16 rows, then cuBLASLt      3.14  3.49  3.76  9.58     0.52  0.76
//   + this ring, peers read by 16-byte loads             2.76  3.13  3.65           0.45  0.64
//   + tokens of x_proj dealt, advance_short.cu           2.88  3.16  3.68           0.53  0.62
//   + sums by st.async, history by cp.async; a stage     2.87  3.23  4.00           0.40  0.52
//     fewer in in_proj (16 bytes too many)
//   + sums by bulk copies, that stage, x and z even      2.73  2.84  3.44  9.20     0.41  0.48
// Boxes of weights whose maps let L2 take 128 bytes from memory and not 256, which are the next
// box's, too: memory gives 4.64 TB/s and not 4.3 by a bench of boxes alone, and mamba2-2.7b's steps
// of 16 rows take 2.675 ms (2.776; another card 2.661, 2.777; H200, fp16 states).
// Mamba-2: before (to 8 rows few.cu, to 16 this behind a gated norm, then cuBLASLt) and this from 3
// or 9 to 64 rows without that norm, in turns on one H200 (2026-11-29), fp16 states; four rows of
// 2.7b 2.53 and 2.25; in brackets what is left to few.cu:
//                      b8             b16            b32            b64
//   2.7b               3.20   2.36    2.68   2.65    3.38   3.13    4.23   4.26
//   2.7b, fp32 states  2.98   2.59    2.97   2.97    4.30   3.86    5.80   5.70
//   1.3b               1.50   1.39    1.57   1.56    2.06   1.83    2.62   2.50
//   780m               1.10  (1.13)   1.24   1.20    1.69   1.41    2.10   1.94
//   370m               0.77  (0.86)   0.98   0.92    1.38   1.08    1.55   1.34
//   130m               0.40  (0.38)   0.44   0.41    0.60   0.44    0.71   0.57
// With a token's squares added up by a warp in one trip (before: a thread, one after the other),
// another card: 2.7b fp16 b8 2.36 to 2.31, b16 2.65 to 2.56, b32 3.13 to 3.04, b64 4.26 to 4.24,
// four rows 2.25 to 2.21; 1.3b b8 1.39 to 1.35, b16 1.56 to 1.49. out_proj by clusters of 4 in
// place of 8, in one run: 2.7b b8 2.29 to 2.34, b16 2.55 to 2.66, but b32 3.02 to 2.99, b64 4.21
// to 4.15; 1.3b b16 1.49 to 1.59. in_proj without a cluster, 96 rows a block: b8 2.29 to 2.52, b64
// 4.21 to 4.40. The advance in half of an SM, so that out_proj's ring fills beside it: replay.cu.
//
// Models of 7b, fp16 states, one H200, before (skinny.cu) and this: falcon-mamba-7b b2 5.62, 4.90,
// b4 6.20, 4.95, b8 7.34, 5.09; mamba-codestral-7b b1 6.52, 4.41, b2 6.33, 4.47.
//
// Where a layer of 2.7b goes (CUPTI, us that a kernel ends after the one before it; in brackets the
// time of its bytes at 4.5 TB/s): 8 rows in_proj 16.6 (12), advance 7.0 (3), out_proj 11.7 (6); 16
// rows 18.1, 10.4 (5), 10.2; 64 rows 24.7, 25.1 (20), 14.9. Each kernel loses 4 to 6 us at its
// ends, whatever lies in its ring by then. All layers in one launch since: resident_heads.cu.
//
// Predicted for the first rung: 3.0 at 2.8b b64, 2.4 at b16. In_proj alone in a chain of itself
// takes 18.8 us at 64 rows and 16.9 at 16, 12.6 more for every further 52 MB (4.15 TB/s): what is
// missing is not the rate but the ends, 6 us a kernel.
//
// Read off by %globaltimer, 2.8b b64, us: in_proj's columns take 13.5 behind the wait (42 MB are
// not in the rings: 10), out_proj's 8 to 10 (beside the next in_proj's 10 MB). From the last column
// to the last block's end, by what the cluster's blocks give each other sums with:
//                                                    in_proj  x_proj  out_proj
//   16-byte loads, barrier.cluster with release          5        3       5 to 7
//     (each release is a MEMBAR.ALL.GPU, of which a kernel had two)
//   st.async from registers (32-byte packets, 9 KB/us)   8        1.5     6
//   bulk copies (H100)                                   6.5      3       4.5
// What is left of in_proj's is the convolution: 5 tokens a thread, one after the other.
//
// Tried and dropped: clusters of 4 with 320 rows and of 16 (in_proj 22, out_proj 18.8 us against
// 18.8 and 12.6 in such a chain); 16 clusters of 8, of which the card holds 15 at once; asking L2
// for 4 pieces behind the ring (+1%) or all (+15%), for the advance's states during x_proj (+3% at
// b512, +10% at b128, H100), for the convolution's rings during in_proj (+2%, H100); loops unrolled
// over a thread's tokens (25 KB of code that runs once a launch). 128 rows as two operands of
// 64: 5.10 ms where cuBLASLt takes 4.73; 512 rows: in_proj 43 us against 39, out_proj 37
// against 28.
//
// Open: whether blocks of a cluster meet on an SM (xproj.cu: they do, at 20 to 50%); tokens shared
// by multicast, so that more than 64 rows pay; the convolution's tail; rows beyond the tokens are a
// stage's weights, where zeros would take the matrix units half the energy (resident.cu).
#include <cudaTypedefs.h>

#include "clusters.cuh"
#include "few.cuh"
#include "medium_kernel.cuh"

namespace ssm {

enum { MOST_ROWS = 176, SEVEN_B = 4096 }; // the latter: d_model of falcon-mamba-7b and codestral

// How a product is dealt to the card.
struct medium_plan {
    int splits, tiles, tile_rows, tile_tokens;
};

// Clusters of so many blocks that are there at once if each SM has one block. The card's parts
// have 16 to 18 SMs, so larger clusters leave some over.
static int clusters_of(const device *d, int splits) {
    return splits == 1 ? d->n_sms : splits == 2 ? d->n_sms / 2 : (d->n_sms - 12) / splits;
}

static medium_plan plan_of(const device *d, medium_after after, int rows, int tokens) {
    // Mamba-2 of 2,560 channels (2.7b): out_proj 8 to 16 rows by eight, more by four (above).
    const bool four = d->g.kind == SSM_BLOCK_MAMBA2 && d->g.d_model >= 2560 && tokens > 16;
    const int splits = after == MEDIUM_IN ? 2 : after == MEDIUM_OUT && four ? 4 : 8;
    if (after == MEDIUM_SUMS) // few rows: tokens fill the card
        return {splits, ceil_div(rows, 48), 48, 16};
    int tile_rows = ceil_div(ceil_div(rows, clusters_of(d, splits)), 16) * 16;
    tile_rows = tile_rows < MOST_ROWS ? tile_rows : MOST_ROWS;
    return {splits, ceil_div(rows, tile_rows), tile_rows, tokens};
}

// ---- launches

static PFN_cuTensorMapEncodeTiled_v12000 map_encoder(void) {
    void *found = NULL;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t rc = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                            cudaEnableDefault, &result);
    return rc == cudaSuccess ? (PFN_cuTensorMapEncodeTiled_v12000)found : NULL;
}

bool tensor_map_of(CUtensorMap *out, const void *base, bool fp32, int cols, int rows, int box_cols,
                   int box_rows, int swizzle, map_fetch fetch) {
    static const PFN_cuTensorMapEncodeTiled_v12000 encode = map_encoder();
    const cuuint64_t size[] = {(cuuint64_t)cols, (cuuint64_t)rows};
    const cuuint64_t pitch[] = {(cuuint64_t)cols * (fp32 ? sizeof(float) : sizeof(bf16))};
    const cuuint32_t box[] = {(cuuint32_t)box_cols, (cuuint32_t)box_rows}, step[] = {1, 1};
    return encode &&
           encode(out, fp32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                  (void *)base, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                  : swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                  : CU_TENSOR_MAP_SWIZZLE_NONE,
                  fetch == FETCH_128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                                     : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool tensor_map(CUtensorMap *out, const void *base, int cols, int rows, int box_cols, int box_rows,
                bool swizzle, map_fetch fetch) {
    return tensor_map_of(out, base, false, cols, rows, box_cols, box_rows, swizzle ? 128 : 0,
                         fetch);
}

template <int NW, int SPLITS, medium_after AFTER>
static cudaError_t run(const device *d, const void *w, const void *x, int cols,
                       const medium_plan &p, medium_args a) {
    auto kernel = medium_kernel<NW, SPLITS, AFTER>;
    a.tile_rows = p.tile_rows, a.box_tokens = p.tile_tokens;
    const int bytes = medium_deal(NW, SPLITS, AFTER, cols, &a);
    CUtensorMap w_map, x_map;
    if (!tensor_map(&w_map, w, cols, a.n_rows, PIECE, a.box_rows, true, FETCH_128) ||
        !tensor_map(&x_map, x, cols, a.tokens, PIECE, a.box_tokens, true))
        return cudaErrorNotSupported;
    const dim3 grid((unsigned)(p.tiles * SPLITS), (unsigned)ceil_div(a.tokens, a.box_tokens));
    cluster_launch launch(d, grid, MEDIUM_THREADS, bytes, SPLITS, BESIDE_PREDECESSOR);
    return launch.run(kernel, w_map, x_map, a);
}

template <int SPLITS, medium_after AFTER>
static cudaError_t run_any(const device *d, const void *w, const void *x, int cols,
                           const medium_args &a) {
    const medium_plan p = plan_of(d, AFTER, a.n_rows, a.tokens);
    if constexpr (AFTER == MEDIUM_OUT && SPLITS == 8) {
        if (p.splits == 4)
            return run_any<4, AFTER>(d, w, x, cols, a);
    }
    if constexpr (AFTER == MEDIUM_SUMS)
        return run<24, SPLITS, AFTER>(d, w, x, cols, p, a);
    else
        return p.tile_rows <= 48    ? run<24, SPLITS, AFTER>(d, w, x, cols, p, a)
               : p.tile_rows <= 96  ? run<48, SPLITS, AFTER>(d, w, x, cols, p, a)
               : p.tile_rows <= 160 ? run<80, SPLITS, AFTER>(d, w, x, cols, p, a)
                                    : run<88, SPLITS, AFTER>(d, w, x, cols, p, a);
}

// ---- a layer's products

// Where few.cu does not take them: of large Mamba-2 models its products lose more to each further
// row than eight rows cost here, unless their weights are packed. Models of 7b it does not take at
// all, and skinny.cu takes longer for one row of them than this for sixteen.
static int32_t fewest(const device *d) {
    if (d->g.d_model >= SEVEN_B)
        return solo_fits(d, 1) ? 2 : 1;
    if (d->g.kind != SSM_BLOCK_MAMBA2 || d->g.d_model < 2048)
        return FEW_ROWS + 1;
    return d->weights_packed && few_packed_fits(d, 4) ? 5 : 3;
}

int32_t medium_rows(const device *d, int32_t n) {
    const int32_t rows = (n + 7) / 8 * 8;
    return n >= fewest(d) && medium_fits(d, rows) ? rows : 0;
}

bool medium_fits(const device *d, int32_t n) {
    const ssm_geometry &g = d->g;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch == 90 && n >= fewest(d) &&
           n <= MOST_TOKENS && n % 8 == 0 && g.d_model % 8 == 0 && g.d_inner % 8 == 0 &&
           d->n_in % 4 == 0 && d->n_x % 4 == 0 && g.conv_dim % 8 == 0 && g.d_conv <= 4;
}

int32_t medium_tiles(const device *d) { // of out_proj, at most
    int32_t most = 0;
    if (d->weight_type != SSM_DTYPE_BF16 || d->arch != 90)
        return 0;
    for (int n = 8; n <= MOST_TOKENS; n += 8) {
        const int tiles = plan_of(d, MEDIUM_OUT, d->g.d_model, n).tiles;
        most = tiles > most ? tiles : most;
    }
    return most;
}

cudaError_t medium_in(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    medium_args a = {};
    a.n_rows = d->n_in, a.tokens = b.n, a.bias = w.in_bias;
    a.xz = (bf16 *)d->xz, a.xc = (bf16 *)d->xc, a.rows = b.rows;
    a.ring = (bf16 *)d->ring + (size_t)layer * d->n_slots * (g.d_conv - 1) * g.conv_dim;
    a.conv_weight = w.conv_weight, a.conv_bias = w.conv_bias;
    a.conv_first = g.kind == SSM_BLOCK_MAMBA2 ? g.d_inner : 0;
    a.channels = g.conv_dim, a.width = g.d_conv;
    if (layer == 0) {
        const cudaError_t rc = norm(d, w.norm, d->residual, NULL, d->u, b.n, true);
        if (rc != cudaSuccess)
            return rc;
    } else {
        a.squares = d->row_norms, a.n_squares = plan_of(d, MEDIUM_OUT, g.d_model, b.n).tiles;
        a.per_width = 1.f / g.d_model, a.eps = g.norm_eps;
    }
    return run_any<2, MEDIUM_IN>(d, w.in_proj, d->u, g.d_model, a);
}

cudaError_t medium_x(device *d, int layer, const batch &b) {
    medium_args a = {};
    a.n_rows = d->n_x, a.tokens = b.n, a.out = d->xdb;
    return run_any<8, MEDIUM_SUMS>(d, d->layers[layer].x_proj, d->xc, d->g.d_inner, a);
}

cudaError_t medium_out(device *d, int layer, const batch &b, bool fold_norm) {
    medium_args a = {};
    if (fold_norm) {
        a.squares = d->squares, a.n_squares = d->g.n_heads;
        a.per_width = 1.f / d->g.d_inner, a.eps = d->g.gate_eps;
    }
    a.n_rows = d->g.d_model, a.tokens = b.n, a.out = d->residual,
    a.bias = d->layers[layer].out_bias;
    if (layer + 1 < d->g.n_layers) {
        a.next_norm = d->layers[layer + 1].norm, a.u = (bf16 *)d->u;
        a.next_squares = d->row_norms;
    }
    return run_any<8, MEDIUM_OUT>(d, d->layers[layer].out_proj, d->y, d->g.d_inner, a);
}

} // namespace ssm
