// SPDX-License-Identifier: Apache-2.0
// All layers of a batch, as launches on the device's stream: run as they are for a mixed step,
// captured into a graph for a decode bucket. Launches a layer:
//
//   solo.cu           one row of mamba-130m's and 370m's widths: one launch for all layers
//   few.cu      3     up to 8 decode rows on Hopper and later
//   skinny.cu   4     elsewhere and in odd shapes (Mamba-2: 3)
//   resident.cu       to 64 rows of Mamba-1's published widths (2.8b: from 5 on): one launch for
//                     all layers
//   medium.cu   4     to 64 rows (Mamba-2: 16)
//   product.cu  6 up  otherwise: norm, in_proj, conv, x_proj (xproj.cu, to a thousand tokens or
//                     more), advance and / or scan, out_proj
//
// Where a large step's time goes, us a layer by CUPTI, 2.8b, H200 for rows, H100 for prompts,
// before xproj.cu (an H200's cuBLASLt takes 51 and 11 for the prompts' x_proj):
//                       norm  in_proj  conv  x_proj  advance, scan  out_proj  sum with what is
//   512 rows, f16        3.5   37.8     9.9   9.5     61 (6 beside    23.1    140     between
//                                                     x_proj)
//   8 x 2,048            93    1,095    133   74      949            586      2,940
//   1 x 2,048            13    138      20    13      90, 191 beside 76       456
//
// Tried and dropped, ms a step on an H200 if nothing else is said. Products wait for the matrix
// units and advances for the memory, so two halves of a step, side by side on two streams, should
// gain. They do not, neither in rows nor in prompts. Measured before building it, by two devices
// with half of the rows or prompts each on two threads of one process:
//                        2.8b f16  b512   b1024   f32 b512  8 x 2,048   130m b1024  8 x 2,048
//   whole                          9.11   17.29   12.58     183.1       1.765       12.79
//   in halves                      9.87   17.50   12.75     189.8       1.885       13.50
//   + advance in 132 / 66 blocks   9.74 / 11.3
// A product of cuBLASLt takes all registers and shared memory of its SMs, an advance all registers
// of its own: their blocks never share an SM, so only their ends overlap (12 us of 150 a layer),
// and weights are read twice and products are half as large. Halves by medium.cu's kernels, which
// do share SMs with an advance: 20.3 ms at b512 where this takes 10.4 (H100), as much as twice the
// 10.3 that they take for 256 rows alone. What could still gain is a product at full rate in half
// an SM's registers.
//
// cuBLASLt has no better algorithms: it offers eight for these shapes, and other splits and
// clusters than those of its best three end at the same 35.0 us (in_proj, 512 rows) and 19.4
// (out_proj) in a chain of their own. In a step they take 37.8 and 23.1, beside what the advance
// left to be written back.
//
// Own products for large steps (two groups of warps, at a tile of 256 x 160 (130m: 128 x 192)
// together or at one of 128 x 160 (192) each in turn; stages of 64 columns by tensor map, tokens
// shared by pairs of blocks at 2.8b from 2,048 on), us with a plain end, in a chain of their own,
// H200:
//                          2.8b in_proj, 512  2,048  16,384   130m in_proj, 1,024  2,048  16,384
//   cuBLASLt                      36.6        134.5   1,029                 8.7    15.9     100
//   together                      36.7        136.6   1,103                 9.3    16.1     117
//   in turns                      37.0        137.3   1,104                 8.9    14.5     103
// Together they keep the matrix units busy 95% to 99% of the cycles between a tile's first and last
// stage; the clock is 1.35 to 1.7 GHz there, of 1.98: most likely the card's limit of 700 W (its
// draw was not read). So a plain product gains nothing, nor does hiding its end past one wave at
// 2.8b; what can gain is what follows it. For prompts that did not: norm's scale and convolution in
// in_proj (167.5 us where norm, product and convolution take 178.6 in a chain, 1 x 2,048) and the
// next layer's input in out_proj (75.4 for 72.7 and a norm of 13) together took 25.8 ms a prompt
// where this took 24.4. Why is not known: times by kernel in the step were not taken.
// Of 512 decode rows (norm, product, convolution 45.8 for 49.8; out_proj with u 23.0 for 20.4 and
// 3.1) a step took 8.85 ms for 8.92; not measured in turns since x_proj and the advance are faster.
//
// Convolution and x_proj in one kernel (blocks of 32 rows or 64 or 128 tokens that walk the
// channels in pieces of 64: inputs by cp.async into a ring, four channels of four tokens a thread,
// wgmma of one piece beside the convolution of the next, a cluster's sums by bulk copies; right in
// every case tried), us against the two kernels' sum:
//             512 rows 2.8b   1,024 rows 130m   8 x 2,048 2.8b   130m       1 x 2,048 2.8b   130m
//   H200      20.7 (18)       12.4              201 (187)        55         40 (33)          12.8
//   H100, tiles of 64 / 128                     195 / 216 (207)  57 / 61 (68)   37 (33)      12
// In steps 2% faster at 130m 8 x 2,048 (13.29 against 13.55, H100), slower elsewhere (b512, one
// prompt: 1 to 3%). A piece takes 1.8 us for 64 tokens whatever is multiplied and by whom outputs
// are stored, where its instructions need 0.4 by count: something waits for a trip to memory. Not
// looked into: fence.proxy.async behind cp.async that are still under way (inputs by tensor map
// would tell). Letting a scan start early cost 45 to 58 us a layer: most likely its blocks pile up
// on the few SMs that have room.
//
// in_proj with the convolution behind its sums in one kernel (wgmma; a tile takes x and z of the
// same channels, weights as two boxes; rows' histories fetched during the columns; prompts' seams
// between tiles by a small kernel behind it; cuBLASLt's and conv.cu's bits in every case compared),
// us a layer in chains of these alone with cold weights, H200, 2.8b; in brackets without the norm:
//                                  256 rows    512         768         1,024       1 x 2,048
//   norm, cuBLASLt, conv.cu        30.6 (28.1) 49.8 (46.3) 76.0 (69.6) 95.1 (87.3) 178.6 (160.3)
//   norm, tiles of 128 by a group
//     of warps, the other's end
//     beside                       31.8 (28.5) 49.2 (45.3) 67.2 (63.1) 89.2 (82.1) 184.8 (162.2)
// Tiles of 256 by both groups, another run: 46.8 (49.6 by three kernels) at 512, 97.1 (96.6) at
// 1,024, 172.4 (165.1) and 8 x 2,048 1,478 (1,219). 130m so: 1,024 rows 19.0 (18.8), 1 x 2,048 29.6
// (26.7), 8 x 2,048 207 (158). Scaling sums by squares that the out_proj before leaves, in place of
// the norm: 45.8 at 512 rows, 84.0 at 1,024; a step with such an out_proj: 2.8b b512 8.92 to 8.85
// ms, 1 x 2,048 24.4 to 25.8; b1024 not run. Behind the columns a tile of 256 takes 7.8 us, most
// likely its bytes: 31 MB at 512 rows, which conv.cu moves in 8.5 us and which move here when all
// blocks end. Histories of 64 rows take one warp 2.2 us as boxes, 2.4 by cp.async.
#include "cuda.h"

namespace ssm {

static int biases(device *d, const float *bias, void *out, ssm_dtype type, int32_t n, int32_t cols,
                  ssm_error *err) {
    return bias ? device_check(d, add_bias(d, bias, out, type, n, cols), "bias", err) : 0;
}

static int advance(device *d, int layer, const batch &b, int32_t n_splits, bool fold_norm,
                   ssm_error *err) {
    if (d->g.kind == SSM_BLOCK_MAMBA) {
        SSM_CUDA(d, mamba_advance(d, layer, b, n_splits), err);
        if (b.n_spans > 0)
            SSM_CUDA(d, mamba_scan(d, layer, b), err);
        return 0;
    }
    SSM_CUDA(d, mamba2_advance(d, layer, b, fold_norm), err);
    if (b.n_spans > 0)
        SSM_CUDA(d, mamba2_scan(d, layer, b), err);
    return 0;
}

static int wide_layer(device *d, int layer, const batch &b, ssm_error *err) {
    const layer_weights &w = d->layers[layer];
    SSM_CUDA(d, norm(d, w.norm, d->residual, NULL, d->u, b.n, true), err);
    SSM_TRY(product(d, PRODUCT_IN, w.in_proj, d->u, d->xz, b.n, err));
    SSM_TRY(biases(d, w.in_bias, d->xz, d->weight_type, b.n, d->n_in, err));
    SSM_CUDA(d, conv(d, layer, b), err);
    if (d->g.kind == SSM_BLOCK_MAMBA) {
        if (xproj_fits(d, b))
            SSM_CUDA(d, xproj(d, layer, b), err);
        else
            SSM_TRY(product(d, PRODUCT_X, w.x_proj, d->xc, d->xdb, b.n, err));
        if (d->g.bc_dt_norm)
            SSM_CUDA(d, small_norms(d, b.n, 1), err);
    }
    SSM_TRY(advance(d, layer, b, 1, false, err));
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        SSM_CUDA(d, gated_norm(d, w, d->y, b.n, true), err);
    SSM_TRY(product(d, PRODUCT_OUT, w.out_proj, d->y, d->residual, b.n, err));
    return biases(d, w.out_bias, d->residual, SSM_DTYPE_F32, b.n, d->g.d_model, err);
}

static int skinny_layer(device *d, int layer, const batch &b, ssm_error *err) {
    SSM_CUDA(d, skinny_in(d, layer, b), err);
    int32_t splits = 1;
    if (d->g.kind == SSM_BLOCK_MAMBA) {
        SSM_CUDA(d, skinny_x(d, layer, b), err);
        splits = skinny_x_splits(d);
        if (d->g.bc_dt_norm) {
            SSM_CUDA(d, small_norms(d, b.n, splits), err);
            splits = 1;
        }
    }
    const bool mamba2 = d->g.kind == SSM_BLOCK_MAMBA2, fold_norm = mamba2 && d->g.n_groups == 1;
    SSM_TRY(advance(d, layer, b, splits, fold_norm, err));
    if (mamba2 && !fold_norm)
        SSM_CUDA(d, gated_norm(d, d->layers[layer], d->y, b.n, b.decode), err);
    SSM_CUDA(d, skinny_out(d, layer, b, fold_norm), err);
    return 0;
}

static int few_layer(device *d, int layer, const batch &b, ssm_error *err) {
    const bool mamba2 = d->g.kind == SSM_BLOCK_MAMBA2, fold_norm = mamba2 && d->g.n_groups == 1;
    SSM_CUDA(d, few_in(d, layer, b), err);
    if (mamba2)
        SSM_CUDA(d, mamba2_advance(d, layer, b, fold_norm), err);
    else
        SSM_CUDA(d, few_advance(d, layer, b), err);
    if (mamba2 && !fold_norm)
        SSM_CUDA(d, gated_norm(d, d->layers[layer], d->y, b.n, b.decode), err);
    SSM_CUDA(d, few_out(d, layer, b, fold_norm), err);
    return 0;
}

static int few_step(device *d, const batch &b, ssm_error *err) {
    SSM_CUDA(d, few_embed(d, b), err);
    for (int i = 0; i < d->g.n_layers; i++)
        SSM_TRY(few_layer(d, i, b, err));
    SSM_CUDA(d, few_head(d, b, 0), err);
    return 0;
}

static int solo_step(device *d, const batch &b, ssm_error *err) {
    SSM_CUDA(d, solo_layers(d, b), err);
    SSM_CUDA(d, few_head(d, b, solo_squares(d)), err);
    return 0;
}

static int medium_layer(device *d, int layer, const batch &b, ssm_error *err) {
    SSM_CUDA(d, medium_in(d, layer, b), err);
    if (d->g.kind == SSM_BLOCK_MAMBA) {
        SSM_CUDA(d, medium_x(d, layer, b), err);
        if (d->g.bc_dt_norm)
            SSM_CUDA(d, small_norms(d, b.n, 1), err);
    }
    SSM_TRY(advance(d, layer, b, 1, false, err));
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        SSM_CUDA(d, gated_norm(d, d->layers[layer], d->y, b.n, b.decode), err);
    SSM_CUDA(d, medium_out(d, layer, b), err);
    return 0;
}

int forward(device *d, const batch &b, ssm_error *err) {
    if (is_lti(d))
        return lti_forward(d, b, err);
    if (b.decode && solo_fits(d, b.n))
        return solo_step(d, b, err);
    const bool resident = b.decode && resident_fits(d, b.n);
    if (!resident && b.decode && few_fits(d, b.n))
        return few_step(d, b, err);
    const bool medium = b.decode && medium_fits(d, b.n);
    const bool skinny = !medium && b.decode && skinny_fits(d, b.n);
    SSM_CUDA(d, embed(d, b), err);
    if (resident)
        SSM_CUDA(d, resident_layers(d, b), err);
    for (int i = 0; !resident && i < d->g.n_layers; i++)
        SSM_TRY(medium   ? medium_layer(d, i, b, err)
                : skinny ? skinny_layer(d, i, b, err)
                         : wide_layer(d, i, b, err));
    if (b.n_logits == 0)
        return 0;
    if (skinny) {
        SSM_CUDA(d, skinny_head(d, b), err);
        return 0;
    }
    SSM_CUDA(d, norm(d, d->norm_f, d->residual, b.logit_tokens, d->u, b.n_logits, true), err);
    return product(d, PRODUCT_HEAD, d->lm_head, d->u, d->logits, b.n_logits, err);
}

} // namespace ssm
