// SPDX-License-Identifier: Apache-2.0
// The causal convolution with its SiLU, of decode rows and of prompts.
//
// Its state is a ring of d_conv - 1 raw inputs a channel: a decode step reads all and writes one,
// half the bytes of shifting. Bytes a row and channel: d_conv reads, two writes of T.
//
// A prompt is cut into tiles of CONV_TILE tokens; a thread slides 8 channels through a tile, or
// through a part of one where there are too few tiles to fill the card. Only a span's first tile
// reads the ring, so the thread that did leaves the span's last inputs there.
#include "cuda.h"
#include "util.cuh"

#include "types.cuh"

namespace ssm {

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

// A span's last inputs to its ring, by the only thread that read these channels of it; a fresh
// one's other entries to zero.
template <int V, class T>
__device__ __forceinline__ void leave_tail(const conv_args &a, const span &s, int c, const T *in,
                                           T *entries) {
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

// A thread slides over `part` tokens of a tile of one span. `in` is const and __restrict__, so its
// loads are constants to the compiler, which may move them above the wait; nvcc 13.0 does not
// (LDG.CONSTANT behind ACQBULK), and with ordinary ones it would not load four tokens ahead.
template <class T, int V>
__global__ void __launch_bounds__(128)
    conv4_tiles_kernel(conv_args a, const span *spans, const piece *tiles, int part,
                       const T *__restrict__ in, T *ring, T *__restrict__ out) {
    dependents_start();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const taps4<V> taps(a, c);
    const piece tile = tiles[blockIdx.y];
    const int skip = blockIdx.z * part, count = min(part, tile.count - skip);
    const int first = tile.first + skip;
    if (count <= 0)
        return;
    const span s = spans[tile.span];
    T *entries = ring + (size_t)s.slot * 3 * a.channels + c;
    const T *from = in + (size_t)first * a.in_pitch + c;
    T *to = out + (size_t)first * a.channels + c;
    float x[4][V];
    dependency_wait();
#pragma unroll
    for (int j = 1; j < 4; j++) { // the window before the tokens, as it will have moved
        const int before = s.first - (first - j);
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
    for (int t = 0; t < count; t++) {
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
    if (first == s.first)
        leave_tail<V>(a, s, c, in, entries);
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
__global__ void conv_tiles_kernel(conv_args a, const span *spans, const piece *tiles, int,
                                  const T *in, T *ring, T *out) {
    dependents_start();
    dependency_wait();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const piece tile = tiles[blockIdx.y];
    const span s = spans[tile.span];
    T *entries = ring + (size_t)s.slot * a.kept * a.channels + c;
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
    static_assert(CONV_TILE >= MAX_CONV - 1, "only a first tile reads the ring");
    if (tile.first == s.first)
        leave_tail<V>(a, s, c, in, entries);
}

template <class T, int V>
static cudaError_t conv_rows(device *d, const conv_args &a, const batch &b, const T *in, T *ring,
                             T *out) {
    const unsigned blocks = (unsigned)ceil_div(a.channels, V * 128);
    if (a.width != 4)
        return launch(d, conv_rows_kernel<T, V>, dim3(blocks, (unsigned)b.n_rows), 128, 0, true, a,
                      b.rows, b.n_rows, in, ring, out);
    const int each = b.n_rows * (int)blocks >= 16 * d->n_sms ? 2 : 1;
    return launch(d, conv4_rows_kernel<T, V>, dim3(blocks, (unsigned)ceil_div(b.n_rows, each)), 128,
                  0, true, a, b.rows, b.n_rows, each, in, ring, out);
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
    const bool tuned = a.width == 4;
    const int parts = tuned && b.n_tiles * (int)blocks < 2 * d->n_sms ? 4 : 1;
    return launch(d, tuned ? conv4_tiles_kernel<T, V> : conv_tiles_kernel<T, V>,
                  dim3(blocks, (unsigned)b.n_tiles, (unsigned)parts), 128, 0, true, a, b.spans,
                  b.tiles, CONV_TILE / parts, in, ring, out);
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
