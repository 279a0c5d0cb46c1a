// SPDX-License-Identifier: Apache-2.0
// A decode step of up to eight rows on Hopper and later (few.cu, advance_row.cu): what its kernels
// give each other.
#ifndef SSM_KERNELS_CUDA_FEW_CUH
#define SSM_KERNELS_CUDA_FEW_CUH

#include "ring.cuh"

namespace ssm {

enum {
    CHUNK = 40,               // weight rows whose sums are handed on at once
    X_TILES = 4,              // of eight rows of x_proj a warp at a time
    STREAM_GROUPS = 3,        // of eight rows of out_proj a block, at most
    FLIGHT_BYTES = 48 * 1024, // asked for ahead of the kernels before
};
enum few_kind { FEW_IN, FEW_IN_X, FEW_IN_Z, FEW_OUT, FEW_HEAD }; // _X, _Z: x, then z

// x_proj's sums in fixed point: one is 2^32, a block's share below 2^22.
constexpr float X_ONE = 4294967296.f, X_MOST = 4194304.f;

struct few_args {
    const bf16 *weight;               // [rows][n_cols]
    int n_rows, n_cols, unit, second; // rows dealt out in units; a second run's offset
    int batch, most_rows, width_out;  // width_out: of a token row of what comes out
    int n_slots, flight, buffers;     // of the ring, of sums
    const bf16 *x;                    // [token][n_cols]
    const float *squares;             // [token][squares_pitch]: partial sums, or NULL
    int n_squares, squares_pitch;
    float eps;
    const float *bias; // [rows] or NULL
    // in_proj
    bf16 *xz, *xc, *ring;
    const row *rows;
    const float *conv_weight, *conv_bias; // [d_conv][channels], [channels]
    int conv_first, channels, width;
    const bf16 *x_proj; // [n_x][channels]
    int n_x, n_x_fetched, x_pitch, w_pitch;
    unsigned long long *x_sums; // [X_COPIES][FEW_ROWS][n_x]
    unsigned *x_broken;         // [FEW_ROWS]
    // out_proj; head: residual is the logits
    float *residual;
    bf16 *u;
    const float *next_norm;
    float *squares_out; // [token][squares_pitch_out], one a block
    int squares_pitch_out;
    // of the out_proj before: what its blocks' rings do not hold, or NULL
    const char *last_weight;
    int last_rows, last_row_bytes, last_skip;
    bool alone; // a block an SM: nothing runs beside it
};

// Bytes of a block's shared memory behind the ring and the token rows.
inline size_t few_beside_ring(const few_args &a) {
    return a.buffers * RING_WARPS * a.batch * CHUNK * sizeof(float) +
           ((size_t)a.batch + 1) * a.most_rows * sizeof(float) + 16 + 8 * (size_t)a.x_pitch +
           (size_t)a.n_x_fetched * a.w_pitch;
}

// few_packed.cu: in_proj and out_proj if the device's weights are packed, with these arguments but
// for the ring's.
bool few_packed_fits(const device *d, int batch);
int few_packed_blocks(void);
cudaError_t few_packed_in(const device *d, int layer, const few_args &a);
cudaError_t few_packed_out(const device *d, int layer, const few_args &a);

// Shared memory beyond the default, and one split of it against the cache for all kernels of a
// step: kernels that want different splits do not share an SM.
template <class K> cudaError_t few_prepare(K kernel, size_t shared) {
    cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared);
    return rc;
}

} // namespace ssm

#endif
