// SPDX-License-Identifier: Apache-2.0
// S4D, S4 and H3: linear time-invariant layers, their launches and what they own on the device.
//
//                   few decode rows        more rows                spans of a prompt
//   S4D, S4 layer   norm, SSM, gelu  1     the same          1      norm, scan, gelu  2 or 4
//                   out_proj, gate   1     out_proj | gate   2      out_proj | gate   2
//   H3 layer        norm, q k v      1     norm, q k v, bias 3      the same          3
//                   both SSMs        1     the same          1      shift 2, scan 1 or 3
//                   out_proj         1     out_proj | bias   2      the same          2
//
// (Numbers are launches.) These models are small: all weights of ours stay in L2, so a step of few
// rows is launches and trips to L2, and a step of many is states. A row's states go through
// registers once a step (lti_rows.cu); its norm is taken again by every block of channels, 1.5 KB
// from L2 against a launch. Bytes a row and layer: the states twice, 8 N d_model (H3: 8 N d_model
// (1 + head_dim)).
//
// Numbers: discretised in fp64 by the code that all backends share (kernels/lti.h), then rounded to
// fp32. SSMs, norms, gates and the residual are fp32; projections and what goes into them have the
// weights' type. States are fp32 alone: with a radius of 0.9999 they are sums of ten thousand
// tokens. In a slot they lie in canonical form but for H3's shift SSM, which lies by number and not
// by channel: a snapshot of another backend goes on here.
//
// A prompt as a scan (lti_scan.cu): pieces of a span run from zeros at once, what each leaves is
// carried on by a power of Ab, and they run again from where they should have begun. Or as a
// convolution in blocks (lti_block.cu; H3's: lti_pairs.cu), chosen by tokens and spans of the step.
//
// Ladder, H200, shakespeare-s4d (bf16, state 786 KB), us a step:
//                                                        b1    b8    b64   b512  b2048
//   four launches a layer past 8 rows                    39    70    133   363   1,167
//   + few rows to 64, a row a block, loads before waits  37    60    113   354   1,134
// At 2,048 rows the SSMs are some 850 of them and move 3.5 to 4.1 TB/s. Dropped: out_proj with its
// gate on the matrix units, 8 to 12 us a layer where lti_few.cu takes 4 to 7 and cuBLASLt with a
// gate after it 9: with a warp for 8 outputs too few loads are under way.
#include "lti.cuh"

namespace ssm {

int lti_check_options(const device *d, ssm_error *err) {
    if (d->state_type == SSM_DTYPE_F32)
        return 0;
    return ssm_error_set(err, SSM_EUNSUPPORTED, "state_dtype",
                         "s4d, s4 and h3 models have f32 states, not %s",
                         ssm_dtype_name(d->state_type));
}

// ---- memory

enum {
    SCAN_BLOCKS = 4,    // an SM that a scan should have
    LEAST_PIECE = 64,   // tokens
    BLOCK_PIECE = 4096, // of a convolution
    H3_SCAN = 3072,     // a step's tokens from which H3 scans
};

static int32_t blocks_a_piece(const device *d) {
    return ceil_div(d->g.d_model, 32);
}

// Measured (H200, shakespeare-s4d and copying-s4d): a scan's time is its tokens', a convolution's a
// third of that and what eleven microseconds a span are worth, as its blocks make P, Q and K once
// but fill a tile for each span. S4's scan has nothing to set against a whole column. H3 (H100,
// induction-h3): a convolution is up to 11% faster to 2,048 tokens, from 4,096 on there is nothing
// between them.
static bool convolves(const device *d, int32_t n_spans, int32_t tokens) {
    const ssm_prompt_form form = d->options.prompt_form;
    const bool h3 = d->g.kind == SSM_BLOCK_H3;
    if (n_spans == 0 || form == SSM_PROMPT_SCAN || !(h3 ? lti_pairs_fit(d) : lti_block_fits(d)))
        return false;
    if (form == SSM_PROMPT_CONVOLUTION)
        return true;
    if (h3)
        return tokens < H3_SCAN;
    const int64_t least =
        d->g.kind == SSM_BLOCK_S4 ? LTI_PART * (int64_t)n_spans : 1024 * (int64_t)n_spans - 896;
    return tokens >= least;
}

// Tokens of a piece. S4's states follow one another alone: no powers of a matrix for any number of
// tokens. H3's pieces are a scan's in both forms.
int32_t lti_plan_spans(const device *d, int32_t n_spans, int32_t tokens, batch *b) {
    const bool convolved = convolves(d, n_spans, tokens);
    const bool blocks_only = convolved && d->g.kind != SSM_BLOCK_H3;
    if (convolved)
        b->columns = tokens / n_spans > 32 * LTI_PART ? 64 : 32;
    if (d->g.kind == SSM_BLOCK_S4)
        return INT32_MAX;
    const int64_t blocks = blocks_only ? d->g.d_model : blocks_a_piece(d);
    const int64_t card = (blocks_only ? 3 : SCAN_BLOCKS) * (int64_t)d->n_sms;
    if (n_spans * blocks >= card / 2)
        return INT32_MAX;
    const int64_t length = ceil_div(tokens * blocks, card);
    const int64_t least = blocks_only ? BLOCK_PIECE : LEAST_PIECE;
    return ceil_div(length < least ? least : length, LTI_PART) * LTI_PART;
}

static int32_t most_pieces(const device *d) {
    const int64_t by_card = 3 * (int64_t)SCAN_BLOCKS * d->n_sms / (2 * blocks_a_piece(d)) + 2;
    const int64_t by_tokens = d->max_tokens / LEAST_PIECE + d->max_tokens / 2 + 1;
    return (int32_t)(by_card < by_tokens ? by_card : by_tokens);
}

int lti_list_activations(device *d, activation *out) {
    const ssm_geometry *g = &d->g;
    const size_t t = type_bytes(d->weight_type), f = sizeof(float);
    const size_t n = (size_t)step_bucket(d->max_tokens), rows = (size_t)d->max_rows;
    const size_t state = (size_t)g->d_inner * g->d_state * f;
    int i = 0;
    out[i++] = {(void **)&d->residual, n * g->d_model * f};
    out[i++] = {&d->u, (n > rows ? n : rows) * g->d_model * t};
    out[i++] = {&d->xz, n * d->n_in * f};
    out[i++] = {(void **)&d->lti_u, n * g->d_model * f};
    out[i++] = {&d->y, n * g->d_model * t};
    out[i++] = {(void **)&d->carry, g->kind == SSM_BLOCK_S4 ? 0 : (size_t)most_pieces(d) * state};
    out[i++] = {(void **)&d->logits, (rows + d->kept_rows) * g->vocab_size * f};
    return i;
}

// ---- layers

static int gated_layer(device *d, int layer, const batch &b, bool few, ssm_error *err) {
    const layer_weights &w = d->layers[layer];
    const bool dense = d->g.kind == SSM_BLOCK_S4;
    if (b.n_spans > 0 && b.columns > 0) { // writes every token row of y
        SSM_CUDA(d, lti_convolve(d, layer, b), err);
        if (dense)
            SSM_CUDA(d, lti_dense_scan(d, layer, b), err);
    } else if (b.n_spans > 0) {
        SSM_CUDA(d, lti_norm(d, w.norm, b.n), err);
        SSM_CUDA(d, dense ? lti_dense_scan(d, layer, b) : lti_pole_scan(d, layer, b), err);
    }
    if (b.n_rows > 0)
        SSM_CUDA(d, dense ? lti_dense_rows(d, layer, b) : lti_pole_rows(d, layer, b), err);
    if (few) {
        SSM_CUDA(d, lti_few_out(d, layer, b), err);
        return 0;
    }
    SSM_TRY(product(d, PRODUCT_OUT, w.out_proj, d->y, d->xz, b.n, err));
    SSM_CUDA(d, lti_gate(d, layer, b.n), err);
    return 0;
}

static int h3_layer(device *d, int layer, const batch &b, bool few, ssm_error *err) {
    const layer_weights &w = d->layers[layer];
    if (few) {
        SSM_CUDA(d, lti_few_in(d, layer, b), err);
    } else {
        SSM_CUDA(d, norm(d, w.norm, d->residual, NULL, d->u, b.n, b.decode), err);
        SSM_TRY(product(d, PRODUCT_IN, w.in_proj, d->u, d->xz, b.n, err));
        SSM_CUDA(d, add_bias(d, w.in_bias, d->xz, SSM_DTYPE_F32, b.n, d->n_in), err);
    }
    if (b.n_rows > 0)
        SSM_CUDA(d, lti_pair_rows(d, layer, b), err);
    if (b.n_spans > 0) {
        SSM_CUDA(d, lti_shift(d, layer, b), err);
        SSM_CUDA(d, b.columns > 0 ? lti_convolve_pairs(d, layer, b) : lti_pole_scan(d, layer, b),
                 err);
    }
    if (few) {
        SSM_CUDA(d, lti_few_out(d, layer, b), err);
        return 0;
    }
    SSM_TRY(product(d, PRODUCT_OUT, w.out_proj, d->y, d->residual, b.n, err));
    SSM_CUDA(d, add_bias(d, w.out_bias, d->residual, SSM_DTYPE_F32, b.n, d->g.d_model), err);
    return 0;
}

int lti_forward(device *d, const batch &b, ssm_error *err) {
    const bool few = b.decode && lti_few_fits(d, b.n);
    SSM_CUDA(d, embed(d, b), err);
    for (int i = 0; i < d->g.n_layers; i++)
        SSM_TRY(d->g.kind == SSM_BLOCK_H3 ? h3_layer(d, i, b, few, err)
                                          : gated_layer(d, i, b, few, err));
    if (b.n_logits == 0)
        return 0;
    if (few) {
        SSM_CUDA(d, lti_few_head(d, b), err);
        return 0;
    }
    SSM_CUDA(d, norm(d, d->norm_f, d->residual, b.logit_tokens, d->u, b.n_logits, b.decode), err);
    return product(d, PRODUCT_HEAD, d->lm_head, d->u, d->logits, b.n_logits, err);
}

} // namespace ssm
