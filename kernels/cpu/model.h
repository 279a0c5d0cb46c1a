// SPDX-License-Identifier: Apache-2.0
// A model packed for the CPU: what each thread owns, and the layout of a slot.
#ifndef SSM_KERNELS_CPU_MODEL_H
#define SSM_KERNELS_CPU_MODEL_H

#include <ssm/error.h>

#include "kernels.h"
#include "kernels/backend.h"
#include "kernels/lti.h"
#include "pack.h"
#include "pool.h"

// The same of a layer of S4D, S4 or H3 (lti_model.c), its channels being those of d_model; see
// lti_kernels.h for the layouts.
typedef struct cpu_lti_part {
    cpu_slice out_a, out_b;                   // S4D, S4: the rows of each half
    cpu_slice q, k, v, out;                   // H3; out's columns in the order of our channels
    const float *poles;                       // S4D, H3 [blocks][N / 2][6][16]
    const float *ab, *bb, *c;                 // S4 [blocks][...]
    const float *d;                           // [blocks][16]
    const float *shift_b, *shift_c, *shift_d; // H3 [blocks][N][16], [blocks][16]
    const float *spectra, *powers, *input, *output; // of lti_block, [blocks][...]
    const float *pairs;                             // H3 of lti_pairs.c, [own heads][...]
} cpu_lti_part;

// One thread's share of a layer: a range of blocks of d_inner (its channels), of the convolution's
// other channels, and of the rows of each projection.
typedef struct cpu_part {
    cpu_slice in_x, in_z; // rows of its channels
    cpu_slice in_bc;      // MAMBA2: of B, C and dt
    cpu_slice x_proj;     // MAMBA: of dt, B and C
    cpu_slice dt_proj;    // MAMBA: rows of its channels
    cpu_slice out_proj;
    const float *conv_weight, *conv_bias; // of its channels: [blocks][d_conv][16], [blocks][16]
    const float *bc_conv_weight, *bc_conv_bias; // MAMBA2: of its blocks of B and C
    const float *a;                             // [blocks][N or 1][16]
    const float *d;                             // [blocks][16]
    cpu_lti_part lti;
} cpu_part;

typedef struct cpu_range {
    int32_t first, end;
} cpu_range;

typedef struct cpu_thread {
    cpu_range inner; // blocks of d_inner
    cpu_range bc;    // MAMBA2: blocks of B, C and dt; MAMBA: rows of x_proj in blocks
    cpu_range model; // blocks of d_model
    cpu_range vocab; // blocks of the vocabulary
    cpu_part *parts; // [n_layers]
    cpu_slice head;
    cpu_arena arena;
    bool failed; // to pack: no memory
} cpu_thread;

typedef struct cpu_model {
    ssm_geometry g;
    const ssm_weights *weights; // borrowed: rows of the embedding are read from it
    const cpu_kernels *kernels;
    cpu_format format;   // of in_proj, out_proj and the head, where AUTO says nothing else
    cpu_form form;       // of their activations
    cpu_form small_form; // MAMBA: of x_proj's and dt_proj's activations
    int32_t model_blocks, inner_blocks, vocab_blocks;
    // Blocks of dt, B and C: MAMBA of x_proj (dt, B, C), MAMBA2 of in_proj (B, C, dt).
    int32_t bc_blocks, b_block, c_block, dt_block;
    int32_t conv_blocks;              // of a slot: inner, MAMBA2 then B and C
    int32_t (*lane_group)[CPU_LANES]; // MAMBA2 [inner_blocks][16]: first row of B of each lane
    const float **norm, **gate_norm;  // [n_layers] of whole blocks
    const float *norm_f;
    cpu_arena shared; // norms
    ssm_prompt_form prompt_form;
    int32_t lti_least;          // tokens from which a prompt runs as a convolution
    float lti_twiddles[256][2]; // [LTI_BLOCK]
    bool is_lower;              // S4: no layer has anything above the diagonal
    lti_diagonal *diagonal;     // S4D, H3 [n_layers], while loading
    lti_dense *dense;           // S4 [n_layers], while loading
    ssm_tensor *lti_out;        // H3 [n_layers], while loading: out_proj, its columns in our order
    size_t ahead_bytes;         // of weights that a thread's second-level cache has room for
    int n_threads;
    cpu_thread *threads; // [n_threads]
} cpu_model;

// What --weight-dtype and --activation-dtype come to; SSM_EUNSUPPORTED names what does not go.
int cpu_model_choose(cpu_model *model, const ssm_weights *weights,
                     const ssm_device_options *options, ssm_error *err);

// Packs on the pool's threads, each its own part. 0 or SSM_ENOMEM.
int cpu_model_load(cpu_model *model, cpu_pool *pool);
void cpu_model_dispose(cpu_model *model);

uint64_t cpu_model_bytes(const cpu_model *model);

// The i-th of n equal shares of [0, blocks).
cpu_range cpu_share(int32_t blocks, int i, int n);

// Floats of a slot, [layer][conv then ssm]: conv [conv_blocks][d_conv - 1][16], ssm
// [inner_blocks][d_state][16].
size_t cpu_slot_conv_floats(const cpu_model *model); // of one layer
size_t cpu_slot_ssm_floats(const cpu_model *model);  // of one layer

#endif
