// SPDX-License-Identifier: Apache-2.0
// Row by row work between the products: embedding, norms, biases, the causal convolution.
//
// A step kernel's inputs are mostly in L2 (a layer's activations at 512 rows are 30 MB), so these
// cost a launch and a pass each; with few rows they are fused into the products (skinny.cu).
//
// The convolution's state is a ring of d_conv - 1 raw inputs a channel: a decode step reads all and
// writes one, half the bytes of shifting. Bytes a row and channel: d_conv reads, two writes of T.
// A prefill writes the ring in a launch of its own, after every reader.
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
    int32_t token = tokens[blockIdx.x];
    if (token < 0)
        token = max(drawn[-1 - token], 0);
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

// The same for d a multiple of 4 and at most 4 * 256 * NORM_CHUNKS: the row stays in registers.
enum { NORM_CHUNKS = 8 };
template <class T>
__global__ void __launch_bounds__(256) norm_kernel4(const float *in, const int32_t *gather,
                                                    const float *weight, T *out, int d, float eps) {
    __shared__ float scratch[32];
    dependents_start();
    dependency_wait();
    const size_t row = gather ? (size_t)gather[blockIdx.x] : blockIdx.x;
    const float *x = in + row * d;
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
    T *o = out + (size_t)blockIdx.x * d;
#pragma unroll
    for (int c = 0; c < NORM_CHUNKS; c++) {
        const int i = (c * 256 + threadIdx.x) * 4;
        if (i < d) {
            float w[4];
            load<4>(weight + i, w);
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[c][k] *= scale * w[k];
            store<4>(o + i, v[c]);
        }
    }
}

cudaError_t norm(device *d, const float *weight, const float *in, const int32_t *gather, void *out,
                 int32_t n, bool overlap) {
    const int width = d->g.d_model;
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
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
    return launch(d, small_norms_kernel, dim3((unsigned)ceil_div(n, 4)), 128, 0, n_splits > 1,
                  d->xdb, n, d->g.dt_rank, d->g.d_state, n_splits, (size_t)SPLIT_ROWS * d->n_x,
                  d->g.bc_dt_eps);
}

// ---- convolution

struct conv_args {
    const float *weight; // [d_conv][channels]
    const float *bias;   // [channels]
    int channels, width; // width: d_conv
    int kept;            // d_conv - 1, entries of the ring
    size_t in_pitch;     // of a token row of `in`
};

// Sum over the taps for V channels from c on; history(j) gives raw inputs j tokens ago.
template <int V, class F>
__device__ __forceinline__ void convolve(const conv_args &a, int c, F history, float (&out)[V]) {
    load<V>(a.bias + c, out);
    for (int j = 0; j < a.width; j++) {
        float w[V], x[V];
        load<V>(a.weight + (size_t)(a.width - 1 - j) * a.channels + c, w);
        history(j, x);
#pragma unroll
        for (int k = 0; k < V; k++)
            out[k] += w[k] * x[k];
    }
#pragma unroll
    for (int k = 0; k < V; k++)
        out[k] = silu(out[k]);
}

// The published width with everything in registers: V channels' taps and bias, loaded once.
template <int V> struct taps4 {
    float weight[4][V], bias[V]; // weight[j]: of the input j tokens ago

    __device__ __forceinline__ taps4(const conv_args &a, int c) {
#pragma unroll
        for (int j = 0; j < 4; j++)
            load<V>(a.weight + (size_t)(3 - j) * a.channels + c, weight[j]);
        load<V>(a.bias + c, bias);
    }
    // x[j]: inputs j tokens ago
    __device__ __forceinline__ void apply(const float (&x)[4][V], float (&out)[V]) const {
#pragma unroll
        for (int k = 0; k < V; k++)
            out[k] = silu(bias[k] + weight[0][k] * x[0][k] + weight[1][k] * x[1][k] +
                          weight[2][k] * x[2][k] + weight[3][k] * x[3][k]);
    }
};

// ring [slot][3][channels] T of this layer, in [token row][in_pitch] T, out [row][channels] T
template <class T, int V>
__global__ void __launch_bounds__(128)
    conv4_rows_kernel(conv_args a, const row *rows, int n, int rows_a_thread,
                      const T *__restrict__ in, T *__restrict__ ring, T *__restrict__ out) {
    dependents_start();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const taps4<V> taps(a, c);
    dependency_wait();
    const int first = blockIdx.y * rows_a_thread, end = min(first + rows_a_thread, n);
#pragma unroll 2
    for (int i = first; i < end; i++) {
        const row r = rows[i];
        if (r.slot < 0)
            continue;
        T *entries = ring + (size_t)r.slot * 3 * a.channels + c;
        float x[4][V], sum[V];
        load<V>(in + (size_t)r.at * a.in_pitch + c, x[0]);
#pragma unroll
        for (int j = 1; j < 4; j++) {
            const int e = r.ring - j < 0 ? r.ring - j + 3 : r.ring - j;
            load<V>(entries + (size_t)e * a.channels, x[j]);
            if (r.fresh) {
#pragma unroll
                for (int k = 0; k < V; k++)
                    x[j][k] = 0;
            }
        }
        taps.apply(x, sum);
        store<V>(out + (size_t)r.at * a.channels + c, sum);
        const float zero[V] = {};
#pragma unroll
        for (int e = 0; e < 3; e++) { // what lies before a sequence reads as zero from now on
            if (e == r.ring)
                store<V>(entries + (size_t)e * a.channels, x[0]);
            else if (r.fresh)
                store<V>(entries + (size_t)e * a.channels, zero);
        }
    }
}

// A thread slides over a tile of up to CONV_TILE tokens of one span.
template <class T, int V>
__global__ void __launch_bounds__(128)
    conv4_tiles_kernel(conv_args a, const span *spans, const piece *tiles, const T *__restrict__ in,
                       const T *__restrict__ ring, T *__restrict__ out) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const taps4<V> taps(a, c);
    const piece tile = tiles[blockIdx.y];
    const span s = spans[tile.span];
    const T *entries = ring + (size_t)s.slot * 3 * a.channels + c;
    const T *from = in + (size_t)tile.first * a.in_pitch + c;
    T *to = out + (size_t)tile.first * a.channels + c;
    float x[4][V];
#pragma unroll
    for (int j = 1; j < 4; j++) { // the window before the tile, as it will have moved
        const int before = s.first - (tile.first - j);
        if (before <= 0) {
            load<V>(from - (size_t)j * a.in_pitch, x[j - 1]);
        } else if (!s.fresh) {
            load<V>(entries + (size_t)((s.ring - before + 3) % 3) * a.channels, x[j - 1]);
        } else {
#pragma unroll
            for (int k = 0; k < V; k++)
                x[j - 1][k] = 0;
        }
    }
#pragma unroll 4
    for (int t = 0; t < tile.count; t++) {
#pragma unroll
        for (int j = 3; j > 0; j--) {
#pragma unroll
            for (int k = 0; k < V; k++)
                x[j][k] = x[j - 1][k];
        }
        load<V>(from + (size_t)t * a.in_pitch, x[0]);
        float sum[V];
        taps.apply(x, sum);
        store<V>(to + (size_t)t * a.channels, sum);
    }
}

// Other widths. ring [slot][d_conv - 1][channels] T of this layer, in [token row][in_pitch] T, out
// [row][channels] T
template <class T, int V>
__global__ void conv_rows_kernel(conv_args a, const row *rows, int n, const T *in, T *ring,
                                 T *out) {
    dependents_start();
    dependency_wait();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    const int i = blockIdx.y;
    if (c >= a.channels || i >= n)
        return;
    const row r = rows[i];
    if (r.slot < 0)
        return;
    T *entries = ring + (size_t)r.slot * a.kept * a.channels + c;
    float raw[V], sum[V];
    load<V>(in + (size_t)r.at * a.in_pitch + c, raw);
    convolve<V>(
        a, c,
        [&](int j, float(&x)[V]) {
            if (j == 0) {
#pragma unroll
                for (int k = 0; k < V; k++)
                    x[k] = raw[k];
            } else if (r.fresh) {
#pragma unroll
                for (int k = 0; k < V; k++)
                    x[k] = 0;
            } else {
                const int e = r.ring - j < 0 ? r.ring - j + a.kept : r.ring - j;
                load<V>(entries + (size_t)e * a.channels, x);
            }
        },
        sum);
    const float zero[V] = {};
    for (int e = 0; e < a.kept; e++) { // what lies before a sequence reads as zero from now on
        if (e == r.ring)
            store<V>(entries + (size_t)e * a.channels, raw);
        else if (r.fresh)
            store<V>(entries + (size_t)e * a.channels, zero);
    }
    store<V>(out + (size_t)r.at * a.channels + c, sum);
}

// A thread runs V channels through a tile of up to CONV_TILE tokens of one span.
template <class T, int V>
__global__ void conv_tiles_kernel(conv_args a, const span *spans, const piece *tiles, const T *in,
                                  const T *ring, T *out) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const piece tile = tiles[blockIdx.y];
    const span s = spans[tile.span];
    const T *entries = ring + (size_t)s.slot * a.kept * a.channels + c;
    for (int t = tile.first; t < tile.first + tile.count; t++) {
        float sum[V];
        convolve<V>(
            a, c,
            [&](int j, float(&x)[V]) {
                const int before = s.first - (t - j); // > 0: that many tokens before this span
                if (before <= 0) {
                    load<V>(in + (size_t)(t - j) * a.in_pitch + c, x);
                } else if (s.fresh) {
#pragma unroll
                    for (int k = 0; k < V; k++)
                        x[k] = 0;
                } else {
                    const int e = (s.ring - before + a.kept) % a.kept;
                    load<V>(entries + (size_t)e * a.channels, x);
                }
            },
            sum);
        store<V>(out + (size_t)t * a.channels + c, sum);
    }
}

// The last inputs of each span to its ring; a fresh one's other entries to zero.
template <class T, int V>
__global__ void conv_tails_kernel(conv_args a, const span *spans, const T *in, T *ring) {
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const span s = spans[blockIdx.y];
    T *entries = ring + (size_t)s.slot * a.kept * a.channels + c;
    const float zero[V] = {};
    for (int j = 0; j < a.kept; j++) { // entry of the token j before the span's end
        float x[V];
        const int e = ((s.ring + s.count - 1 - j) % a.kept + a.kept) % a.kept;
        if (j < s.count) {
            load<V>(in + (size_t)(s.first + s.count - 1 - j) * a.in_pitch + c, x);
            store<V>(entries + (size_t)e * a.channels, x);
        } else if (s.fresh) {
            store<V>(entries + (size_t)e * a.channels, zero);
        }
    }
}

template <class T, int V>
static cudaError_t conv_rows(device *d, const conv_args &a, const batch &b, const T *in, T *ring,
                             T *out) {
    const unsigned blocks = (unsigned)ceil_div(a.channels, V * 128);
    if (a.width != 4)
        return launch(d, conv_rows_kernel<T, V>, dim3(blocks, (unsigned)b.n_rows), 128, 0, b.decode,
                      a, b.rows, b.n_rows, in, ring, out);
    const int each = b.n_rows * (int)blocks >= 16 * d->n_sms ? 2 : 1;
    return launch(d, conv4_rows_kernel<T, V>, dim3(blocks, (unsigned)ceil_div(b.n_rows, each)), 128,
                  0, b.decode, a, b.rows, b.n_rows, each, in, ring, out);
}

template <class T, int V> static cudaError_t conv_run(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const conv_args a = {w.conv_weight, w.conv_bias,  g.conv_dim,
                         g.d_conv,      g.d_conv - 1, (size_t)d->n_in};
    const T *in = (const T *)d->xz + (g.kind == SSM_BLOCK_MAMBA2 ? g.d_inner : 0);
    T *ring = (T *)d->ring + (size_t)layer * d->n_slots * (g.d_conv - 1) * g.conv_dim;
    T *out = (T *)d->xc;
    cudaError_t rc = conv_rows<T, V>(d, a, b, in, ring, out);
    if (rc != cudaSuccess || b.n_spans == 0)
        return rc;
    const unsigned blocks = (unsigned)ceil_div(g.conv_dim, V * 128);
    rc = launch(d, a.width == 4 ? conv4_tiles_kernel<T, V> : conv_tiles_kernel<T, V>,
                dim3(blocks, (unsigned)b.n_tiles), 128, 0, false, a, b.spans, b.tiles, in,
                (const T *)ring, out);
    if (rc != cudaSuccess)
        return rc;
    return launch(d, conv_tails_kernel<T, V>, dim3(blocks, (unsigned)b.n_spans), 128, 0, false, a,
                  b.spans, in, ring);
}

cudaError_t conv(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const bool vectors = g.conv_dim % 8 == 0 && d->n_in % 8 == 0 && g.d_inner % 8 == 0;
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        return vectors ? conv_run<T, 8>(d, layer, b) : conv_run<T, 1>(d, layer, b);
    });
}

} // namespace ssm
