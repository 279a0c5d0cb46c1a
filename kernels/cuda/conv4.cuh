// SPDX-License-Identifier: Apache-2.0
// The convolution's kernels of the published width, four taps; conv.cu has the design.
#ifndef SSM_KERNELS_CUDA_CONV4_CUH
#define SSM_KERNELS_CUDA_CONV4_CUH

#include "mamba.cuh"

namespace ssm {

struct conv_args {
    const float *weight; // [d_conv][channels]
    const float *bias;   // [channels]
    int channels, width; // width: d_conv
    int kept;            // d_conv - 1, entries of the ring
    size_t in_pitch;     // of a token row of `in`
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

// A thread has 16 bytes of channels.
enum { CONV_THREADS = 128, CONV_ROWS = 2 }; // of a block; of a thread, at most

// ring [slot][3][channels] T of this layer, in [token row][in_pitch] T, out [row][channels] T. All
// that a thread reads is asked for before it uses any, the ring before the wait.
template <class T>
__global__ void __launch_bounds__(CONV_THREADS)
    conv4_rows_kernel(conv_args a, const row *rows, int n, int rows_a_thread, const T *in, T *ring,
                      T *out) {
    constexpr int V = 16 / sizeof(T);
    dependents_start();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    row r[CONV_ROWS];
    uint4 before[CONV_ROWS][3], now[CONV_ROWS];
#pragma unroll
    for (int i = 0; i < CONV_ROWS; i++) {
        const int at = blockIdx.y * rows_a_thread + i;
        r[i].slot = -1;
        if (i < rows_a_thread && at < n)
            r[i] = rows[at];
        if (r[i].slot < 0)
            continue;
        const T *entries = ring + (size_t)r[i].slot * 3 * a.channels + c;
#pragma unroll
        for (int j = 1; j < 4; j++) {
            const int e = r[i].ring - j < 0 ? r[i].ring - j + 3 : r[i].ring - j;
            before[i][j - 1] = load_once(entries + (size_t)e * a.channels);
        }
    }
    const taps4<V> taps(a, c);
    dependency_wait();
#pragma unroll
    for (int i = 0; i < CONV_ROWS; i++) {
        if (r[i].slot >= 0)
            now[i] = *(const uint4 *)(in + (size_t)r[i].at * a.in_pitch + c);
    }
#pragma unroll
    for (int i = 0; i < CONV_ROWS; i++) {
        if (r[i].slot < 0)
            continue;
        T *entries = ring + (size_t)r[i].slot * 3 * a.channels + c;
        float x[4][V], sum[V];
        load<V>((const T *)&now[i], x[0]);
#pragma unroll
        for (int j = 1; j < 4; j++) {
            const uint4 words = r[i].fresh ? make_uint4(0, 0, 0, 0) : before[i][j - 1];
            load<V>((const T *)&words, x[j]);
        }
        taps.apply(x, sum);
        store<V>(out + (size_t)r[i].at * a.channels + c, sum);
#pragma unroll
        for (int e = 0; e < 3; e++) { // what lies before a sequence reads as zero from now on
            if (e == r[i].ring)
                *(uint4 *)(entries + (size_t)e * a.channels) = now[i];
            else if (r[i].fresh)
                *(uint4 *)(entries + (size_t)e * a.channels) = make_uint4(0, 0, 0, 0);
        }
    }
}

// A thread slides over `part` tokens of a tile of one span, the last first: many tiles.
enum { CONV_GROUP = 4 }; // tokens that are waited for at a time
template <class T>
__global__ void __launch_bounds__(CONV_THREADS, 5)
    conv4_tiles_kernel(conv_args a, const span *spans, const piece *tiles, int part, const T *in,
                       T *ring, T *out) {
    constexpr int V = 16 / sizeof(T), GROUPS = CONV_TILE / CONV_GROUP;
    extern __shared__ uint4 inputs[]; // [3 before the tokens, then these][thread]
    dependents_start();
    const int c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (c >= a.channels)
        return;
    const int parts = CONV_TILE / part, index = gridDim.y - 1 - blockIdx.y;
    const piece tile = tiles[index / parts];
    const int skip = index % parts * part, count = min(part, tile.count - skip);
    const int first = tile.first + skip;
    if (count <= 0)
        return;
    const span s = spans[tile.span];
    T *entries = ring + (size_t)s.slot * 3 * a.channels + c;
    const T *from = in + (size_t)first * a.in_pitch + c;
    T *to = out + (size_t)first * a.channels + c;
    const auto mine = [&](int t) { return inputs + (t + 3) * blockDim.x + threadIdx.x; };
    dependency_wait();
#pragma unroll
    for (int j = 3; j > 0; j--) { // the window before the tokens
        const int before = s.first - (first - j);
        const T *entry = entries + (size_t)((s.ring - before + 3) % 3) * a.channels;
        copy_async(mine(-j), before <= 0 ? from - (size_t)j * a.in_pitch : entry,
                   before <= 0 || !s.fresh);
    }
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
#pragma unroll
        for (int t = g * CONV_GROUP; t < (g + 1) * CONV_GROUP; t++) {
            if (t < count)
                copy_async(mine(t), from + (size_t)t * a.in_pitch, true);
        }
        copies_commit();
    }
    const taps4<V> taps(a, c);
    float x[4][V];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        if (g == 0) {
            copies_wait<GROUPS - 1>();
#pragma unroll
            for (int j = 1; j < 4; j++) // as it will have moved
                load<V>((const T *)mine(-j), x[j - 1]);
        } else if (g == 1) {
            copies_wait<GROUPS - 2>();
        } else if (g == 2) {
            copies_wait<GROUPS - 3>();
        } else {
            copies_wait();
        }
        static_assert(GROUPS == 4, "waits");
#pragma unroll
        for (int t = g * CONV_GROUP; t < (g + 1) * CONV_GROUP; t++) {
            if (t >= count)
                continue;
#pragma unroll
            for (int j = 3; j > 0; j--) {
#pragma unroll
                for (int k = 0; k < V; k++)
                    x[j][k] = x[j - 1][k];
            }
            load<V>((const T *)mine(t), x[0]);
            float sum[V];
            taps.apply(x, sum);
            store<V>(to + (size_t)t * a.channels, sum);
        }
    }
    if (first == s.first)
        leave_tail<V>(a, s, c, in, entries);
}

// The same by registers alone, where tiles are few: four inputs are under way while the four before
// them are used.
template <class T>
__global__ void __launch_bounds__(CONV_THREADS, 4)
    conv4_parts_kernel(conv_args a, const span *spans, const piece *tiles, int part, const T *in,
                       T *ring, T *out) {
    constexpr int V = 16 / sizeof(T);
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
    uint4 window[4], ahead[CONV_GROUP] = {}; // the inputs before the tokens
    const T *places[4];
    bool zero[4];
#pragma unroll
    for (int j = 1; j < 4; j++) {
        const int before = s.first - (first - j);
        const T *entry = entries + (size_t)((s.ring - before + 3) % 3) * a.channels;
        places[j] = before <= 0 ? from - (size_t)j * a.in_pitch : entry;
        zero[j] = before > 0 && s.fresh;
    }
    dependency_wait();
    const auto ask = [&](int at) {
#pragma unroll
        for (int t = 0; t < CONV_GROUP; t++) {
            if (at + t < count)
                ahead[t] = *(const uint4 *)(from + (size_t)(at + t) * a.in_pitch);
        }
    };
    ask(0);
#pragma unroll
    for (int j = 1; j < 4; j++)
        window[j] = zero[j] ? make_uint4(0, 0, 0, 0) : *(const uint4 *)places[j];
    float x[4][V];
#pragma unroll
    for (int j = 1; j < 4; j++) // as it will have moved
        load<V>((const T *)&window[j], x[j - 1]);
#pragma unroll 1
    for (int at = 0; at < count; at += CONV_GROUP) {
        uint4 now[CONV_GROUP];
#pragma unroll
        for (int t = 0; t < CONV_GROUP; t++)
            now[t] = ahead[t];
        ask(at + CONV_GROUP);
        uint4 done[CONV_GROUP];
#pragma unroll
        for (int t = 0; t < CONV_GROUP; t++) { // past the end: not stored
#pragma unroll
            for (int j = 3; j > 0; j--) {
#pragma unroll
                for (int k = 0; k < V; k++)
                    x[j][k] = x[j - 1][k];
            }
            load<V>((const T *)&now[t], x[0]);
            float sum[V];
            taps.apply(x, sum);
            store<V>((T *)&done[t], sum);
        }
#pragma unroll
        for (int t = 0; t < CONV_GROUP; t++) { // behind all four: branches would keep them apart
            if (at + t < count)
                *(uint4 *)(to + (size_t)(at + t) * a.channels) = done[t];
        }
    }
    if (first == s.first)
        leave_tail<V>(a, s, c, in, entries);
}

} // namespace ssm

#endif
