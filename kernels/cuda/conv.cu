// SPDX-License-Identifier: Apache-2.0
// The causal convolution with its SiLU, of decode rows and of prompts.
//
// Its state is a ring of d_conv - 1 raw inputs a channel: a decode step reads all and writes one,
// half the bytes of shifting. Bytes a row and channel: d_conv reads, two writes of T.
//
// A prompt is cut into tiles of CONV_TILE tokens; a thread slides 16 bytes of channels through a
// tile or, in steps of fewer tokens, a part of one. Where there are many it asks for all inputs at
// once, into shared memory, and reads what it copied itself: no barrier, and how much is under way
// does not depend on registers. Tiles go from the last to the first: the last that in_proj wrote
// are in L2, and so will be the first that x_proj reads. Where tiles are few, loads to registers
// start earlier. Only a span's first tile reads the ring, so the thread that did leaves the span's
// last inputs there.
//
// Every load that is to be ahead is written ahead of its use. The compiler would do that for inputs
// that are const and __restrict__, and moves some of them above dependency_wait(): behind in_proj
// that lets this kernel start early rows came to other sums each time (tests/lint.sh).
//
// us a layer in the step (CUPTI, H200, bf16; cards and runs differ by 3%):
//                                        2.8b 8 x 2,048  1 x 2,048     130m 8 x  1 x    1 x 512
//   16 tokens by registers, 4 at a time  104.7 to 106.7  16.8 to 18.4  39.0      6.7    3.9
//   the same without arithmetic          85.6            12.6          27.3      5.9
//   by shared memory, first tile first   93.3            17.4          34.8      7.4
//     last first                         93.5 to 95.6    17.3          31.3      7.8
//       outputs evict-first; inputs too  94.8; 97.6                    32.6
//       without arithmetic               84.4                          25.9      5.1
//     blocks of 64 threads, last first   97.5            17.3          31.1
//       and parts of 8 tokens            105.8           16.0          33.0      6.7    5.1
//     a loop of four tokens              101.9 to 103.5  19.2          34.4      7.3    4.7
// At 130m x_proj behind it takes 16.1 us instead of 17.5 if tiles go from the last, at 2.8b the
// same. What is left above the bytes are issue slots: two special functions an output hold up other
// instructions for 3.7 cycles each (scan_roles.cu): by count 59 of 134 cycles for eight channels.
// So four tokens without a branch between them would be better, but spill with these registers.
// Few tiles of 130m behind wide_in.cu, from its end on, against a loop whose loads the compiler
// put ahead, as constant data: 1 x 2,048 4.9 and 5.4 us, in two parts; 1 x 512, in four, 3.5 and
// 3.1. Not looked into: whether ordinary loads wait for L1 to be emptied behind dependency_wait().
//
// Decode rows, us (b512 of 2.8b, b1024 of 130m, fp16 states) behind cuBLASLt's in_proj: two rows a
// thread in a loop 10.2 and 7.9; everything asked for before it is used 9.5 and 6.8 (the ring
// before or after the wait is the same), in blocks of 64 threads 7.5; four rows a thread 9.9 and
// 6.8; by cp.async 9.6 and 6.9. The rings asked of L2 by the norm before in_proj
// (cp.async.bulk.prefetch, 31 or 9 KB a row): 9.5 and 6.0, but the norm takes 7.1 instead of 3.5,
// and 5.1 instead of 3.8. Behind wide_in.cu, whose dependents begin early, b1024 of 130m is the
// same either way.
#include "conv4.cuh"

namespace ssm {

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
                                  T *ring, T *out) {
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

template <class T>
static cudaError_t conv4_rows(device *d, const conv_args &a, const batch &b, const T *in, T *ring,
                              T *out) {
    const int blocks = ceil_div(a.channels * (int)sizeof(T) / 16, CONV_THREADS);
    const int each = (int64_t)b.n_rows * blocks >= 8 * d->n_sms ? CONV_ROWS : 1;
    return launch(d, conv4_rows_kernel<T>,
                  dim3((unsigned)blocks, (unsigned)ceil_div(b.n_rows, each)), CONV_THREADS, 0, true,
                  a, b.rows, b.n_rows, each, in, ring, out);
}

template <class T>
static cudaError_t conv4_tiles(device *d, const conv_args &a, const batch &b, const T *in, T *ring,
                               T *out) {
    const int vectors = a.channels * (int)sizeof(T) / 16;
    const int narrow = ceil_div(vectors, CONV_THREADS / 2); // blocks of half the threads, a tile
    const int64_t all = (int64_t)b.n_tiles * narrow;
    if (all >= 8 * d->n_sms) {
        const int part = all >= 16 * d->n_sms ? CONV_TILE : CONV_TILE / 2;
        const int threads = part == CONV_TILE && narrow % 2 == 0 ? CONV_THREADS : CONV_THREADS / 2;
        const dim3 grid((unsigned)ceil_div(vectors, threads),
                        (unsigned)(b.n_tiles * (CONV_TILE / part)));
        return launch(d, conv4_tiles_kernel<T>, grid, threads, (size_t)(part + 3) * threads * 16,
                      true, a, b.spans, b.tiles, part, in, ring, out);
    }
    const unsigned blocks = (unsigned)ceil_div(vectors, CONV_THREADS);
    int parts = 4; // as many as the card holds at once, or nearly
    while (parts > 1 && b.n_tiles * (int)blocks * parts > 5 * d->n_sms)
        parts /= 2;
    return launch(d, conv4_parts_kernel<T>, dim3(blocks, (unsigned)b.n_tiles, (unsigned)parts),
                  CONV_THREADS, 0, true, a, b.spans, b.tiles, CONV_TILE / parts, in, ring, out);
}

template <class T, int V> static cudaError_t conv_run(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    const conv_args a = {w.conv_weight, w.conv_bias,  g.conv_dim,
                         g.d_conv,      g.d_conv - 1, (size_t)d->n_in};
    const T *in = (const T *)d->xz + (g.kind == SSM_BLOCK_MAMBA2 ? g.d_inner : 0);
    T *ring = (T *)d->ring + (size_t)layer * d->n_slots * (g.d_conv - 1) * g.conv_dim;
    T *out = (T *)d->xc;
    const bool tuned = V > 1 && a.width == 4;
    const unsigned blocks = (unsigned)ceil_div(g.conv_dim, V * 128);
    const cudaError_t rc = tuned
                               ? conv4_rows<T>(d, a, b, in, ring, out)
                               : launch(d, conv_rows_kernel<T, V>, dim3(blocks, (unsigned)b.n_rows),
                                        128, 0, true, a, b.rows, b.n_rows, in, ring, out);
    if (rc != cudaSuccess || b.n_spans == 0)
        return rc;
    return tuned ? conv4_tiles<T>(d, a, b, in, ring, out)
                 : launch(d, conv_tiles_kernel<T, V>, dim3(blocks, (unsigned)b.n_tiles), 128, 0,
                          true, a, b.spans, b.tiles, in, ring, out);
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
