// SPDX-License-Identifier: Apache-2.0
// All layers of a batch, as launches on the device's stream: run as they are for a mixed step,
// captured into a graph for a decode bucket. Launches a layer:
//
//   solo.cu           one row of mamba-130m's and 370m's widths: one launch for all layers
//   solo_large.cu     one row of 790m's, 1.4b's, 2.8b's and falcon-mamba-7b's: the same
//                     (solo_large_mamba2.cu: of mamba2-370m's to 2.7b's, mamba-codestral-7b's)
//   few.cu      3     up to 8 decode rows on Hopper and later (few_packed.cu: in_proj and out_proj
//                     of up to 4 rows of 1.4b, 2.8b, mamba2-1.3b and 2.7b)
//   skinny.cu   4     elsewhere and in odd shapes (Mamba-2: 3)
//   resident.cu       5 to 64 rows of Mamba-1's published widths (1.4b, 2.8b: from 3 on, 790m,
//                     falcon-mamba-7b: from 2): one launch for all layers (resident_packed.cuh: to
//                     16 of large ones but falcon; resident_tall.cu: 65 to 128, not of falcon)
//   resident_heads.cu 2 to 64 rows of Mamba-2's (130m: 3 to 24, 370m: 5 to 40; fp32 states: to 8,
//                     130m's from 5): the same (resident_heads_packed.cu: to 16 of all but 130m)
//   medium.cu   4     to 64 rows (Mamba-2: 3, in_proj, advance and out_proj; of 7b from 1 or 2)
//   product.cu  6 up  otherwise: norm, in_proj, conv, x_proj (xproj.cu, to a thousand tokens or
//                     more), advance and / or scan, out_proj
//   wide.cuh    5 up  such steps of Mamba-1 in bf16 on Hopper, to 3,072 or 4,096 tokens: in_proj
//                     and out_proj with the norm between them
//   conv_xproj.cu     convolution and x_proj of such steps in one, of some sizes
//
// and the head: head_packed.cu on Hopper to 64 tokens and head.cu beyond, few.cu's, skinny.cu's, or
// product.cu behind norm_f.
//
// Where a large step's time goes, and what was tried to make it less (halves beside each other,
// products of our own with the convolution in them, convolution and x_proj in one kernel, all
// layers in one launch): tests/bench/results/large-steps.md.
#include "conv_xproj.h"
#include "wide.h"

namespace ssm {

static int biases(device *d, const float *bias, void *out, ssm_dtype type, int32_t n, int32_t cols,
                  ssm_error *err) {
    return bias ? device_check(d, add_bias(d, bias, out, type, n, cols), "bias", err) : 0;
}

// Whether the gated norm of few rows is left to out_proj, which scales its sums: not by group.
static bool folds_norm(const device *d) {
    return d->g.kind == SSM_BLOCK_MAMBA2 && d->g.n_groups == 1;
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

// Whether the last of wide_layer()'s out_proj leaves what the head scales by norm_f.
static bool head_norms(const device *d, const batch &b) {
    return b.decode && head_fits(d, b.n) && (wide_rows_fits(d, b) || wide_fits(d, b));
}

static int wide_layer(device *d, int layer, const batch &b, ssm_error *err) {
    const layer_weights &w = d->layers[layer];
    const bool rows = wide_rows_fits(d, b), own = rows || wide_fits(d, b);
    if (!own && layer > 0)
        SSM_CUDA(d, norm(d, w.norm, d->residual, NULL, d->u, b.n, true), err);
    if (rows) {
        SSM_CUDA(d, wide_rows(d, layer, b), err);
    } else if (own) {
        SSM_CUDA(d, wide_in(d, layer, b.n), err);
    } else {
        SSM_TRY(product(d, PRODUCT_IN, w.in_proj, d->u, d->xz, b.n, err));
        SSM_TRY(biases(d, w.in_bias, d->xz, d->weight_type, b.n, d->n_in, err));
    }
    const bool joint = conv_xproj_fits(d, b);
    if (joint)
        SSM_CUDA(d, conv_xproj(d, layer, b), err);
    else if (!rows)
        SSM_CUDA(d, conv(d, layer, b), err);
    if (d->g.kind == SSM_BLOCK_MAMBA) {
        if (!joint && xproj_of_prompts_fits(d, b))
            SSM_CUDA(d, xproj_of_prompts(d, layer, b), err);
        else if (!joint && xproj_fits(d, b))
            SSM_CUDA(d, xproj(d, layer, b), err);
        else if (!joint)
            SSM_TRY(product(d, PRODUCT_X, w.x_proj, d->xc, d->xdb, b.n, err));
        if (d->g.bc_dt_norm)
            SSM_CUDA(d, small_norms(d, b.n, 1), err);
    }
    SSM_TRY(advance(d, layer, b, 1, false, err));
    if (d->g.kind == SSM_BLOCK_MAMBA2)
        SSM_CUDA(d, gated_norm(d, w, d->y, b.n, true), err);
    const void *y = d->g.kind == SSM_BLOCK_MAMBA ? mamba_y(d, b) : d->y;
    if (own) {
        const float *next = layer + 1 < d->g.n_layers ? d->layers[layer + 1].norm
                            : head_norms(d, b)        ? d->norm_f
                                                      : NULL;
        SSM_CUDA(d, wide_out(d, layer, y, b.n, next, rows), err);
        return 0;
    }
    SSM_TRY(product(d, PRODUCT_OUT, w.out_proj, y, d->residual, b.n, err));
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
    const bool mamba2 = d->g.kind == SSM_BLOCK_MAMBA2, fold_norm = folds_norm(d);
    SSM_TRY(advance(d, layer, b, splits, fold_norm, err));
    if (mamba2 && !fold_norm)
        SSM_CUDA(d, gated_norm(d, d->layers[layer], d->y, b.n, b.decode), err);
    SSM_CUDA(d, skinny_out(d, layer, b, fold_norm), err);
    return 0;
}

static int few_layer(device *d, int layer, const batch &b, ssm_error *err) {
    const bool mamba2 = d->g.kind == SSM_BLOCK_MAMBA2, fold_norm = folds_norm(d);
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

// Of a step whose last out_proj left r w and sums of r's squares, few_out()'s or as many as
// few_head() says.
static cudaError_t few_logits(device *d, const batch &b, int n_squares) {
    if (!head_packed_fits(d, b.n))
        return few_head(d, b, n_squares);
    const int n = n_squares > 0 ? n_squares : few_squares(d, b.n);
    return head_packed(d, b.n, {d->out_squares, n, d->n_sms});
}

static int few_step(device *d, const batch &b, ssm_error *err) {
    SSM_CUDA(d, few_embed(d, b), err);
    for (int i = 0; i < d->g.n_layers; i++)
        SSM_TRY(few_layer(d, i, b, err));
    SSM_CUDA(d, few_logits(d, b, 0), err);
    return 0;
}

static int solo_step(device *d, const batch &b, ssm_error *err) {
    SSM_CUDA(d, solo_layers(d, b), err);
    SSM_CUDA(d, few_logits(d, b, solo_squares(d)), err);
    return 0;
}

static int medium_layer(device *d, int layer, const batch &b, ssm_error *err) {
    SSM_CUDA(d, medium_in(d, layer, b), err);
    if (d->g.kind == SSM_BLOCK_MAMBA) {
        SSM_CUDA(d, medium_x(d, layer, b), err);
        if (d->g.bc_dt_norm)
            SSM_CUDA(d, small_norms(d, b.n, 1), err);
    }
    const bool mamba2 = d->g.kind == SSM_BLOCK_MAMBA2, fold_norm = folds_norm(d);
    SSM_TRY(advance(d, layer, b, 1, fold_norm, err));
    if (mamba2 && !fold_norm)
        SSM_CUDA(d, gated_norm(d, d->layers[layer], d->y, b.n, b.decode), err);
    SSM_CUDA(d, medium_out(d, layer, b, fold_norm), err);
    return 0;
}

// left: what the last layer left to scale logits by, of a decode step, if anything.
static int logits(device *d, const batch &b, const row_squares &left, bool skinny, ssm_error *err) {
    const bool packed = head_packed_fits(d, b.n_logits), own = packed || head_fits(d, b.n_logits);
    if (skinny && !packed) {
        SSM_CUDA(d, skinny_head(d, b), err);
        return 0;
    }
    if (!left.sums || !own)
        SSM_CUDA(d, norm(d, d->norm_f, d->residual, b.logit_tokens, d->u, b.n_logits, true), err);
    if (!own)
        return product(d, PRODUCT_HEAD, d->lm_head, d->u, d->logits, b.n_logits, err);
    SSM_CUDA(d, packed ? head_packed(d, b.n_logits, left) : head(d, b.n_logits, left), err);
    return 0;
}

int forward(device *d, const batch &b, ssm_error *err) {
    if (is_lti(d))
        return lti_forward(d, b, err);
    if (b.decode && solo_fits(d, b.n))
        return solo_step(d, b, err);
    const bool resident = b.decode && resident_fits(d, b.n);
    const bool medium = b.decode && medium_fits(d, b.n);
    if (!resident && !medium && b.decode && few_fits(d, b.n))
        return few_step(d, b, err);
    const bool skinny = !resident && !medium && b.decode && skinny_fits(d, b.n);
    row_squares left = {};
    if (resident)
        SSM_CUDA(d, resident_layers(d, b, &left), err);
    else if (medium || skinny)
        SSM_CUDA(d, embed(d, b), err);
    else
        SSM_CUDA(d, embed_norm(d, b), err);
    for (int i = 0; !resident && i < d->g.n_layers; i++)
        SSM_TRY(medium   ? medium_layer(d, i, b, err)
                : skinny ? skinny_layer(d, i, b, err)
                         : wide_layer(d, i, b, err));
    if (!resident && !medium && !skinny && head_norms(d, b))
        left.sums = d->row_norms, left.n = left.pitch = wide_out_squares(d, b.n);
    return b.n_logits > 0 ? logits(d, b, left, skinny, err) : 0;
}

} // namespace ssm
