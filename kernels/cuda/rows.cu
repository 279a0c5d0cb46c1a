// SPDX-License-Identifier: Apache-2.0
// Row by row work between the products: embedding, norms, biases.
//
// A step kernel's inputs are mostly in L2 (a layer's activations at 512 rows are 30 MB), so these
// cost a launch and a pass each; with few rows they are fused into the products (skinny.cu).
//
// A prompt's norm is a warp a row: a block a row leaves a quarter of it idle at d 768 and stops at
// two barriers (53 us for 16,384 rows where the bytes need 18, 73 at d 2,560 of 60). Bytes: 4 read
// and 2 written a number. Rows go from the last to the first: the last that out_proj wrote are in
// L2. us in the step (CUPTI, H200, bf16), rows x d:
//                                          16,384 x 2,560  2,048  16,384 x 768  2,048
//   first row first, weights behind it     75.2 to 75.8    12.5   21.2          4.3
//   weights in shared memory, asked for
//   before the wait                        69.7            10.0   19.6
//     last row first                       65.7            9.8    19.1          4.0
//       four warps a block, 96 registers   61.5            9.6    19.4
//   the next row on its way by cp.async    59.5 to 61.3    10.3   19.6
#include "cuda.h"
#include "util.cuh"

#include "types.cuh"

namespace ssm {

// residual [n][d] fp32 = embedding [token][d]
template <class T>
__global__ void embed_kernel(const int32_t *tokens, const int32_t *drawn, const T *table,
                             float *residual, int d) {
    dependents_start();
    dependency_wait();
    const int32_t token = known_token(tokens[blockIdx.x], drawn);
    const T *from = table + (size_t)token * d;
    float *to = residual + (size_t)blockIdx.x * d;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        to[i] = to_float(from[i]);
}

cudaError_t embed(device *d, const batch &b) {
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        return launch(d, embed_kernel<T>, dim3((unsigned)b.n), 256, 0, false, b.tokens, d->drawn,
                      (const T *)d->embedding, d->residual, d->g.d_model);
    });
}

// out [n][d] T = in [gather[n]][d] fp32, RMS-normed over d, times weight. A block a row.
template <class T>
__global__ void norm_kernel(const float *in, const int32_t *gather, const float *weight, T *out,
                            int d, float eps) {
    __shared__ float scratch[32];
    dependents_start();
    dependency_wait();
    const size_t row = gather ? (size_t)gather[blockIdx.x] : blockIdx.x;
    const float *x = in + row * d;
    T *o = out + (size_t)blockIdx.x * d;
    float sum = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        sum += x[i] * x[i];
    const float scale = rsqrtf(block_sum(sum, scratch) / d + eps);
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        o[i] = from_float<T>(x[i] * scale * weight[i]);
}

// A block's row x, normed, to out; x itself to copy, where COPY. d is a multiple of 4 and
// at most 4 * 256 * NORM_CHUNKS: the row stays in registers.
enum { NORM_CHUNKS = 8, NORM_ROWS = 1024 }; // NORM_ROWS: from here on a warp a row
template <bool COPY, class X, class T>
__device__ __forceinline__ void norm_row4(const X *x, const float *weight, float *copy, T *out,
                                          int d, float eps) {
    __shared__ float scratch[32];
    float v[NORM_CHUNKS][4], sum = 0;
#pragma unroll
    for (int c = 0; c < NORM_CHUNKS; c++) {
        const int i = (c * 256 + threadIdx.x) * 4;
        if (i < d) {
            load<4>(x + i, v[c]);
            sum += v[c][0] * v[c][0] + v[c][1] * v[c][1] + v[c][2] * v[c][2] + v[c][3] * v[c][3];
        }
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / d + eps);
#pragma unroll
    for (int c = 0; c < NORM_CHUNKS; c++) {
        const int i = (c * 256 + threadIdx.x) * 4;
        if (i < d) {
            float w[4];
            load<4>(weight + i, w);
            if (COPY)
                store<4>(copy + i, v[c]);
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[c][k] *= scale * w[k];
            store<4>(out + i, v[c]);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(256) norm_kernel4(const float *in, const int32_t *gather,
                                                    const float *weight, T *out, int d, float eps) {
    dependents_start();
    dependency_wait();
    const size_t row = gather ? (size_t)gather[blockIdx.x] : blockIdx.x;
    norm_row4<false>(in + row * d, weight, (float *)NULL, out + (size_t)blockIdx.x * d, d, eps);
}

// A warp a row, the last rows first, for d a multiple of 4 and at most 128 CHUNKS: prompts.
// WARPS a block, so many that registers hold 20 rows an SM of the widest, 32 of the narrowest.
template <class T, int CHUNKS, int WARPS>
__global__ void __launch_bounds__(WARPS * 32, WARPS == 4    ? 5
                                              : CHUNKS == 8 ? 4
                                                            : 3)
    norm_rows_kernel(const float *in, const float *weight, T *out, int n, int d, float eps) {
    __shared__ float4 weights[CHUNKS * 32];
    dependents_start();
    for (int i = threadIdx.x; i < d / 4; i += WARPS * 32)
        weights[i] = ((const float4 *)weight)[i];
    __syncthreads();
    const int lane = threadIdx.x & 31;
    const int row = n - 1 - (int)(blockIdx.x * WARPS + (threadIdx.x >> 5));
    dependency_wait();
    if (row < 0)
        return;
    const float *x = in + (size_t)row * d;
    T *o = out + (size_t)row * d;
    float v[CHUNKS][4], sum = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int i = (c * 32 + lane) * 4;
        if (i < d)
            load<4>(x + i, v[c]);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if ((c * 32 + lane) * 4 < d)
            sum += v[c][0] * v[c][0] + v[c][1] * v[c][1] + v[c][2] * v[c][2] + v[c][3] * v[c][3];
    }
    const float scale = rsqrtf(warp_sum(sum) / d + eps);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int i = (c * 32 + lane) * 4;
        if (i < d) {
            const float4 w = weights[c * 32 + lane];
            v[c][0] *= scale * w.x, v[c][1] *= scale * w.y;
            v[c][2] *= scale * w.z, v[c][3] *= scale * w.w;
            store<4>(o + i, v[c]);
        }
    }
}

// embed and norm_kernel4 in one: the same sums, the row read once. 2.7 us less a step of 130m's
// 1,024 rows (H200).
template <class T>
__global__ void __launch_bounds__(256)
    embed_norm_kernel4(const int32_t *tokens, const int32_t *drawn, const T *table,
                       const float *weight, float *residual, T *out, int d, float eps) {
    dependents_start();
    dependency_wait();
    const int32_t token = known_token(tokens[blockIdx.x], drawn);
    norm_row4<true>(table + (size_t)token * d, weight, residual + (size_t)blockIdx.x * d,
                    out + (size_t)blockIdx.x * d, d, eps);
}

cudaError_t embed_norm(device *d, const batch &b) {
    const int width = d->g.d_model;
    if (b.n > NORM_ROWS || width % 4 != 0 || width > 1024 * NORM_CHUNKS) {
        const cudaError_t rc = embed(d, b);
        return rc ? rc : norm(d, d->layers[0].norm, d->residual, NULL, d->u, b.n, true);
    }
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        return launch(d, embed_norm_kernel4<T>, dim3((unsigned)b.n), 256, 0, false, b.tokens,
                      d->drawn, (const T *)d->embedding, d->layers[0].norm, d->residual, (T *)d->u,
                      d->g.d_model, d->g.norm_eps);
    });
}

template <class T>
static cudaError_t norm_rows(device *d, const float *weight, const float *in, T *out, int32_t n) {
    const int width = d->g.d_model, warps = width <= 2048 ? 8 : 4;
    auto kernel = width <= 1024   ? norm_rows_kernel<T, 8, 8>
                  : width <= 2048 ? norm_rows_kernel<T, 16, 8>
                                  : norm_rows_kernel<T, 20, 4>;
    return launch(d, kernel, dim3((unsigned)ceil_div(n, warps)), warps * 32, 0, true, in, weight,
                  out, n, width, d->g.norm_eps);
}

cudaError_t norm(device *d, const float *weight, const float *in, const int32_t *gather, void *out,
                 int32_t n, bool overlap) {
    const int width = d->g.d_model;
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        if (!gather && n > NORM_ROWS && width % 4 == 0 && width <= 20 * 128)
            return norm_rows(d, weight, in, (T *)out, n);
        auto kernel =
            width % 4 == 0 && width <= 1024 * NORM_CHUNKS ? norm_kernel4<T> : norm_kernel<T>;
        return launch(d, kernel, dim3((unsigned)n), 256, 0, overlap, in, gather, weight, (T *)out,
                      width, d->g.norm_eps);
    });
}

// y [n][groups][width] T, gated already: RMS-normed over each group, times weight, in place.
template <class T>
__global__ void gated_norm_kernel(T *y, const float *weight, int width, float eps) {
    __shared__ float scratch[32];
    dependents_start();
    dependency_wait();
    T *x = y + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * width;
    const float *w = weight + (size_t)blockIdx.x * width;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float v = to_float(x[i]);
        sum += v * v;
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        x[i] = from_float<T>(to_float(x[i]) * scale * w[i]);
}

// The same for widths of at most 8 * 256 * GATED_CHUNKS, a multiple of 8.
enum { GATED_CHUNKS = 4 };
template <class T>
__global__ void __launch_bounds__(256)
    gated_norm_kernel8(T *y, const float *weight, int width, float eps) {
    __shared__ float scratch[32];
    dependents_start();
    dependency_wait();
    T *x = y + ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * width;
    const float *w = weight + (size_t)blockIdx.x * width;
    float v[GATED_CHUNKS][8], sum = 0;
#pragma unroll
    for (int c = 0; c < GATED_CHUNKS; c++) {
        const int i = (c * 256 + threadIdx.x) * 8;
        if (i < width) {
            load<8>(x + i, v[c]);
#pragma unroll
            for (int k = 0; k < 8; k++)
                sum += v[c][k] * v[c][k];
        }
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
#pragma unroll
    for (int c = 0; c < GATED_CHUNKS; c++) {
        const int i = (c * 256 + threadIdx.x) * 8;
        if (i < width) {
            float g[8];
            load<8>(w + i, g);
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[c][k] *= scale * g[k];
            store<8>(x + i, v[c]);
        }
    }
}

cudaError_t gated_norm(device *d, const layer_weights &w, void *y, int32_t n, bool overlap) {
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const int width = d->g.d_inner / d->g.n_groups;
        auto kernel = width % 8 == 0 && width <= 2048 * GATED_CHUNKS ? gated_norm_kernel8<T>
                                                                     : gated_norm_kernel<T>;
        return launch(d, kernel, dim3((unsigned)d->g.n_groups, (unsigned)n), 256, 0, overlap,
                      (T *)y, w.gate_norm, width, d->g.gate_eps);
    });
}

template <class T> __global__ void bias_kernel(T *out, const float *bias, int cols) {
    T *o = out + (size_t)blockIdx.x * cols;
    for (int i = threadIdx.x; i < cols; i += blockDim.x)
        o[i] = from_float<T>(to_float(o[i]) + bias[i]);
}

cudaError_t add_bias(device *d, const float *bias, void *out, ssm_dtype type, int32_t n,
                     int32_t cols) {
    return with_type(type, [&](auto t) {
        typedef decltype(t) T;
        return launch(d, bias_kernel<T>, dim3((unsigned)n), 256, 0, false, (T *)out, bias, cols);
    });
}

// xdb [splits][n][R + 2 N] fp32: partial sums are added up into the first, then dt, B and C are
// RMS-normed each, without weights (falcon_mamba). A warp a row.
__global__ void small_norms_kernel(float *xdb, int n, int rank, int states, int n_splits,
                                   size_t split_pitch, float eps) {
    dependents_start();
    dependency_wait();
    const int r = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (r >= n)
        return;
    float *p = xdb + (size_t)r * (rank + 2 * states);
    for (int part = 0; part < 3; part++) {
        const int width = part == 0 ? rank : states;
        float sum = 0;
        for (int i = lane; i < width; i += 32) {
            float v = p[i];
            for (int s = 1; s < n_splits; s++)
                v += p[s * split_pitch + i];
            p[i] = v;
            sum += v * v;
        }
        const float scale = rsqrtf(warp_sum(sum) / width + eps);
        for (int i = lane; i < width; i += 32)
            p[i] *= scale;
        p += width;
    }
}

cudaError_t small_norms(device *d, int32_t n, int32_t n_splits) {
    return launch(d, small_norms_kernel, dim3((unsigned)ceil_div(n, 4)), 128, 0, true, d->xdb, n,
                  d->g.dt_rank, d->g.d_state, n_splits, (size_t)SPLIT_ROWS * d->n_x,
                  d->g.bc_dt_eps);
}

} // namespace ssm
