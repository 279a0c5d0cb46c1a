// SPDX-License-Identifier: Apache-2.0
// The internal form of a model: geometry and borrowed weight tensors, the same for every
// architecture file in engine/model and for every backend. Plain data, no I/O, no ownership: the
// memory behind it belongs to a ssm_model (a file's mapping) and outlives every device loaded from
// it.
//
// The step, one layer, one token (see DESIGN in README; sources: Gu and Dao 2023, algorithm 2; Dao
// and Gu 2024, section 6; the official state-spaces code):
//
// SSM_BLOCK_MAMBA
//     u = norm(residual); x, z = split(in_proj u + in_bias)       x first, then z
//     x = silu(conv(last d_conv raw x) + conv_bias)
//     dt, B, C = split(x_proj x, [dt_rank, N, N])                 bc_dt_norm: each RMS-normed, no
//     weight delta = softplus(dt_proj dt + dt_bias) h = exp(delta A) h + delta x B;  y = (h . C + D
//     x) silu(z);  A = -exp(A_log) residual += out_proj y + out_bias
//
// SSM_BLOCK_MAMBA2
//     z, xBC, dt = split(in_proj u + in_bias, [d_inner, d_inner + 2 G N, H])
//     x, B, C = split(silu(conv(last d_conv raw xBC) + conv_bias), [d_inner, G N, G N])
//     delta = clamp(softplus(dt + dt_bias), dt_min, dt_max)       one a head
//     h = exp(delta A) h + delta x (outer) B;  y = h . C + D x;   head i uses group i / (H / G)
//     y = groupnorm(y silu(z)) gate_norm                          RMS over each of G groups of
//     d_inner / G residual += out_proj y + out_bias
//
// SSM_BLOCK_S4D, SSM_BLOCK_S4, SSM_BLOCK_H3: linear and time-invariant, the ancestors (Gu et al.
// 2021 and 2022, Fu et al. 2023). Dt = exp(log_dt); lti.h makes Ab and Bb of Dt, A and B in fp64.
//     u = norm(residual)
//     S4D   s = Ab s + Bb u;  y = 2 Re(sum_n C s) + D u             a channel: s complex [N / 2]
//     S4    s = Ab s + Bb u;  y = C . s + D u                       a channel: s [N], Ab [N][N]
//           both: (a, b) = halves of out_proj gelu(y) + out_bias;  residual += a sigmoid(b)
//     H3    q, k, v = q_proj u + q_bias, ...
//           s = (0, s_0, .., s_{N-2}) + shift_B k;  k' = sum_n shift_C s_n + shift_D k
//           head h, a and b below head_dim: S[h,a,b] = Ab_h S + Bb_h k'[h d + a] v[h d + b]
//           y[b heads + h] = sum_a q[h d + a] (2 Re(sum_n C_h S) + D_h k'[h d + a] v[h d + b])
//           residual += out_proj y + out_bias
//
// RMS norms: v / sqrt(mean(v^2) + eps) * w, in fp32. Logits: lm_head norm_f(residual). conv is
// causal and depthwise: out[t] = sum_j conv_weight[c][j] * raw[t - (d_conv - 1) + j].
#ifndef SSM_KERNELS_WEIGHTS_H
#define SSM_KERNELS_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include <ssm/dtype.h>

// Row-major [rows][cols], contiguous. data is aligned to its element only. data NULL: absent.
typedef struct ssm_tensor {
    const void *data;
    ssm_dtype dtype;    // F32, F16 or BF16
    int64_t rows, cols; // a vector is rows x 1
} ssm_tensor;

typedef enum ssm_block_kind {
    SSM_BLOCK_MAMBA,
    SSM_BLOCK_MAMBA2,
    SSM_BLOCK_S4D,
    SSM_BLOCK_S4,
    SSM_BLOCK_H3,
} ssm_block_kind;

// How x' = A x + B u becomes s = Ab s + Bb u over a step of Dt. Files may ask for the first two;
// the others are there to be compared.
typedef enum ssm_rule {
    SSM_RULE_ZOH,
    SSM_RULE_BILINEAR,
    SSM_RULE_EULER,
    SSM_RULE_RK4,
} ssm_rule;

typedef struct ssm_geometry {
    ssm_block_kind kind;
    int32_t n_layers, d_model, d_inner, d_state, d_conv;
    int32_t dt_rank;                     // MAMBA
    int32_t n_heads, head_dim, n_groups; // MAMBA2: d_inner = n_heads * head_dim
    int32_t vocab_size;
    int32_t conv_dim; // channels of the convolution: d_inner, or d_inner + 2 * n_groups * d_state
    // S4D, S4: d_inner = conv_dim = d_model, d_conv = 1: there is no convolution. H3: d_model =
    // n_heads * head_dim, d_inner = d_model * head_dim pairs (h, a, b), and the shift SSM stands
    // where the convolution does: conv_dim = d_model, d_conv = d_state + 1.
    ssm_rule rule;   // S4D, S4, H3
    float norm_eps;  // of norm and norm_f
    float gate_eps;  // MAMBA2: of gate_norm
    bool bc_dt_norm; // MAMBA: falcon_mamba
    float bc_dt_eps;
    float dt_min, dt_max; // MAMBA2: bounds of delta; dt_max may be INFINITY
} ssm_geometry;

// What S4D, S4 and H3 have instead of in_proj to dt_bias. N is d_state; [2] are real and imaginary
// part.
typedef struct ssm_lti {
    ssm_tensor log_dt;         // S4D, S4 [d_model]; H3 [n_heads]
    ssm_tensor A_imag;         // S4D [d_model][N / 2]; H3 [n_heads][N / 2]; with A_log as real part
    ssm_tensor A;              // S4 [N][N]
    ssm_tensor B;              // S4 [N]; H3 [n_heads][N / 2][2]
    ssm_tensor C;              // S4D [d_model][N / 2][2]; S4 [d_model][N]; H3 [n_heads][N / 2][2]
    ssm_tensor q_proj, q_bias; // H3 [d_model][d_model], [d_model]; so the next two
    ssm_tensor k_proj, k_bias;
    ssm_tensor v_proj, v_bias;
    ssm_tensor shift_B, shift_C; // H3 [d_model][N]
    ssm_tensor shift_D;          // H3 [d_model]
} ssm_lti;

typedef struct ssm_layer {
    ssm_tensor norm;                   // [d_model]
    ssm_tensor in_proj, in_bias;       // [2 d_inner | 2 d_inner + 2 G N + H][d_model]
    ssm_tensor conv_weight, conv_bias; // [conv_dim][d_conv]; bias may be absent
    ssm_tensor x_proj;                 // MAMBA [dt_rank + 2 N][d_inner]
    ssm_tensor dt_proj;                // MAMBA [d_inner][dt_rank]
    ssm_tensor dt_bias;                // MAMBA [d_inner]; MAMBA2 [H]
    ssm_tensor A_log;                  // MAMBA [d_inner][N]; MAMBA2 [H]; log -Re A as A_imag
    ssm_tensor D;                      // MAMBA [d_inner]; MAMBA2, H3 [H]; S4D, S4 [d_model]
    ssm_tensor gate_norm;              // MAMBA2 [d_inner]
    ssm_tensor out_proj, out_bias; // [d_model][d_inner]; S4D, S4 [2 d_model][d_model]; H3 square
    ssm_lti lti;                   // S4D, S4, H3; last: hashes of other kinds end before it
} ssm_layer;

typedef struct ssm_weights {
    ssm_geometry geometry;
    ssm_tensor embedding; // [vocab][d_model]
    ssm_tensor norm_f;    // [d_model]
    ssm_tensor lm_head;   // [vocab][d_model]; the embedding's tensor if tied
    const ssm_layer *layers;
} ssm_weights;

// ---- state, in the canonical form in which it leaves a device: fp32, by layer:
//     conv [n_layers][conv_dim][d_conv - 1]          the last raw inputs, oldest first
//     ssm  MAMBA  [n_layers][d_inner][d_state]
//          MAMBA2 [n_layers][n_heads][head_dim][d_state]
//          S4D    [n_layers][d_model][N / 2][2], S4 [n_layers][d_model][N]
//          H3     [n_layers][n_heads][head_dim][head_dim][N / 2][2]; its conv is the shift SSM's s
// all of conv first, then all of ssm. A state after fewer than d_conv - 1 tokens has zeros in
// front.

// S4D, S4 or H3: linear and time-invariant.
bool ssm_block_is_lti(ssm_block_kind kind);

// The type as stored of what a --weight-dtype stands for: in_proj, or an LTI layer's out_proj.
ssm_dtype ssm_weights_dtype(const ssm_weights *weights);

// Floats of each part, of one session.
size_t ssm_state_conv_floats(const ssm_geometry *geometry);
size_t ssm_state_ssm_floats(const ssm_geometry *geometry);

// Element i of a tensor as fp32.
float ssm_tensor_get(const ssm_tensor *tensor, size_t i);

// n elements from i on as fp32.
void ssm_tensor_read(const ssm_tensor *tensor, size_t i, size_t n, float *out);

#endif
