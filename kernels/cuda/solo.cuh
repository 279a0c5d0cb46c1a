// SPDX-License-Identifier: Apache-2.0
// What solo_*.cuh share: arguments, which warp does what, how a block's shared memory is dealt. See
// solo.cu for the design, solo_large.cu and solo_large_mamba2.cu for those of larger models.
#ifndef SSM_KERNELS_CUDA_SOLO_CUH
#define SSM_KERNELS_CUDA_SOLO_CUH

#include "cuda.h"
#include "hopper.cuh"

namespace ssm {

enum {
    SOLO_BLOCKS = 8,  // of a cluster
    SOLO_LAYERS = 64, // most
};

struct solo_layer {
    const bf16 *in_proj, *x_proj, *dt_proj, *out_proj;
    const char *packed_in, *packed_out; // for solo_large.cu, if weights are packed
    uint32_t packed_in_by, packed_out_by;
    const float *conv_weight, *conv_bias, *dt_bias, *decay, *skip; // as layer_weights
    const float *next_norm; // of the layer that follows, or the last norm
    // Mamba-2: in_proj's rows of B, C and dt; the gated norm's weight
    const bf16 *rest;
    const float *gate_norm;
};

struct solo_args {
    const int32_t *tokens, *drawn;
    const row *rows;
    const bf16 *embedding;
    const float *first_norm;
    bf16 *ring;                     // [layer][slot][d_conv - 1][conv_dim]
    char *state;                    // S [layer][slot][d_inner][d_state]
    size_t ring_pitch, state_pitch; // numbers of a layer, bytes of a layer
    uint2 *packets;                 // solo_exchange.cuh
    unsigned *launches;             // so far
    bf16 *u;                        // [d_model] for the head
    float *squares;                 // [d_model / 16] partial sums
    int n_layers, width;            // width: d_conv
    float eps;
    float gate_eps, dt_min, dt_max; // Mamba-2
    float bc_dt_eps;                // of the norms of dt, B and C; below 0: there are none
    solo_layer layers[SOLO_LAYERS];
};

// solo_large.cu: the same of larger models; solo_large_mamba2.cu: of Mamba-2
enum { LARGE_BLOCKS = 128 };
bool solo_large_room(const device *d);
int solo_large_packets(const device *d);
cudaError_t solo_large_layers(const device *d, const solo_args &a);
bool solo_large_mamba2_room(const device *d);
int solo_large_mamba2_packets(const device *d);
cudaError_t solo_large_mamba2_layers(const device *d, const solo_args &a);

// M: d_model, CH: channels of a block, S: states' type.
template <int M, int CH, class S> struct solo_shape {
    enum {
        INNER = 2 * M,
        RANK = M / 16,
        N_X = RANK + 32,
        C = SOLO_BLOCKS * CH, // channels of a cluster
        C_PARTS = C / 32,
        CLUSTERS = INNER / C,
        OUT_ROWS = M / SOLO_BLOCKS,             // of out_proj a block has its cluster's columns of
        X_ROWS = N_X / SOLO_BLOCKS,             // of x_proj
        TILES = CH / 16,                        // of sixteen rows of in_proj's x, and of its z
        IN_WARPS = 8,                           // 0 on: in_proj
        SPLITS = IN_WARPS / TILES,              // of in_proj's columns
        IN_PARTS = M / 32 / SPLITS,             // of 32 columns a warp
        IN_AHEAD = IN_PARTS < 4 ? IN_PARTS : 4, // in registers before the input is there
        OUT_WARPS = OUT_ROWS / 16,
        BOTH = CH > 16,                                 // these warps do out_proj too
        NARROW = BOTH,                                  // solo_rows.cuh
        PATIENCE = BOTH ? 0 : 400,                      // cycles before packets are asked for
        OUT_WARP = BOTH ? 0 : IN_WARPS,                 // from here on: out_proj
        AFTER = BOTH ? IN_WARPS : OUT_WARP + OUT_WARPS, // after in_proj
        X_WARP = AFTER + 1,                             // x_proj
        STATE_WARP = X_WARP + 1,                        // states
        STATE_WARPS = CH / 8,
        ASK_WARP = STATE_WARP + STATE_WARPS, // asks for in_proj's rows
        THREADS = (ASK_WARP + 1) * 32,
        // bytes; in_proj's rows lie an odd multiple of 64 apart
        IN_PITCH = M * 2 + 64,
        IN = 2 * CH * IN_PITCH,
        // offsets behind the ring
        U = 0,                 // pairs of the layer's input, bf16, each with its squares' sum
        Y = U + M * 4,         // of the cluster, bf16
        XC = Y + C * 2,        // of the cluster: the convolution's output, bf16
        XDB = XC + C * 2,      // x_proj's sums
        PARTS = XDB + N_X * 4, // [x, z][SPLITS][CH] of in_proj's sums
        SQUARES = PARTS + 2 * SPLITS * CH * 4,
        OWN = SQUARES + (NARROW ? SPLITS * 4 : M * 2), // the block's x, and its input's scale
        BARRIERS = OWN + CH * 4 + 16,
        BESIDE = BARRIERS + 128,
        ROOM = (227 * 1024 - BESIDE) / IN,
        STAGES = ROOM < 3 ? ROOM : 3,
        BYTES = STAGES * IN + BESIDE,
        OUT_PACKETS = SOLO_BLOCKS * OUT_WARPS * CLUSTERS * 8,
        PACKETS = OUT_PACKETS + SOLO_BLOCKS * CLUSTERS * 8,
    };
    static_assert(INNER % C == 0 && IN_WARPS % TILES == 0 && M / 32 % SPLITS == 0, "shape");
    static_assert(OUT_ROWS % 16 == 0 && X_ROWS % 2 == 0, "pairs and tiles");
    static_assert(CLUSTERS <= 16 && CH <= 32 && X_ROWS <= 16, "lanes");
    static_assert(SPLITS == 4 || SPLITS == 8, "sums");
    static_assert(!BOTH || OUT_WARPS == IN_WARPS, "warps of both parts");
    static_assert(IN % 128 == 0 && BARRIERS % 16 == 0 && STAGES > 0, "shared memory");
};

} // namespace ssm

#endif
