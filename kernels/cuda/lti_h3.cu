// SPDX-License-Identifier: Apache-2.0
// H3's own: its shift SSM, and one token of each row through both SSMs.
//
// Rows: a block takes one head of one row. Its keys' shift states move on by one place, k' comes of
// the old ones (K_0 holds D and B C of the new input); then each warp takes an output channel b:
// its lanes go over a and the poles, which lie side by side.
//
// Spans: what the shift SSM answers to an input is over after N tokens, so k' is a convolution with
// N numbers, all tokens at once, and for the first N tokens what the old state still says. The new
// state is N sums over the last inputs: a launch of its own, after every reader of the old one.
#include "lti.cuh"

namespace ssm {

enum { PAIR_THREADS = 256, SHIFT_WARPS = 8 };

struct shift_args {
    const float *b, *c, *k; // [N][width]
    float *state;           // [slot][N][width], this layer's
    int n, width;
    const float *in; // q, k, v [token row][3 width]
    float *out;      // k' [token row][width]
};

static shift_args shift_of(const device *d, int layer) {
    const lti_weights &w = d->layers[layer].lti;
    shift_args a = {};
    a.b = w.shift_b, a.c = w.shift_c, a.k = w.shift_k;
    a.state = shift_state(d, layer), a.n = d->g.d_state, a.width = d->g.d_model;
    a.in = (const float *)d->xz, a.out = d->lti_u;
    return a;
}

// ---- rows

// Moves the head's shift states on and leaves k' in shared memory. old: [N][head_dim]
__device__ __forceinline__ void shift_head(const shift_args &a, const row &r, int head, int dim,
                                           float *old, float *key) {
    float *state = a.state + (size_t)r.slot * a.n * a.width + head * dim;
    for (int i = threadIdx.x; i < a.n * dim; i += PAIR_THREADS)
        old[i] = r.fresh ? 0.f : state[(size_t)(i / dim) * a.width + i % dim];
    dependency_wait();
    __syncthreads();
    const float *k = a.in + (size_t)r.at * 3 * a.width + a.width + head * dim;
    for (int i = threadIdx.x; i < a.n * dim; i += PAIR_THREADS) {
        const size_t at = (size_t)(i / dim) * a.width + i % dim;
        state[at] = fmaf(a.b[at + head * dim], k[i % dim], i >= dim ? old[i - dim] : 0.f);
    }
    for (int i = threadIdx.x; i < dim; i += PAIR_THREADS) {
        const int c = head * dim + i;
        float sum = a.k[c] * k[i];
        for (int n = 1; n < a.n; n++)
            sum = fmaf(a.c[(size_t)n * a.width + c], old[(n - 1) * dim + i], sum);
        key[i] = sum;
    }
    __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(PAIR_THREADS)
    pair_rows_kernel(shift_args a, pole_args p, const row *rows, void *y) {
    extern __shared__ float old[]; // [N][head_dim], then k' [head_dim]
    dependents_start();
    const int head = blockIdx.x, dim = p.head_dim, lane = threadIdx.x & 31;
    const row r = rows[blockIdx.y];
    if (r.slot < 0) {
        dependency_wait();
        return;
    }
    float *key = old + a.n * dim;
    shift_head(a, r, head, dim, old, key);
    const float *q = a.in + (size_t)r.at * 3 * a.width + head * dim, *v = q + 2 * a.width;
    const float2 *ab = p.ab + (size_t)head * p.n, *bb = p.bb + (size_t)head * p.n;
    const float2 *c = p.c + (size_t)head * p.n;
    for (int b = threadIdx.x >> 5; b < dim; b += PAIR_THREADS / 32) {
        float2 *state = p.state + (size_t)r.slot * p.slot_pairs +
                        ((size_t)head * dim * dim + b) * p.n; // of a = 0
        float sum = 0;
        for (int i = lane; i < dim * p.n; i += 32) {
            const int e = i / p.n, n = i % p.n;
            float2 *at = state + (size_t)e * dim * p.n + n;
            float2 s = r.fresh ? make_float2(0, 0) : *at;
            sum = fmaf(q[e], pole_step(ab[n], bb[n], c[n], key[e] * v[b], s), sum);
            *at = s;
        }
        for (int e = lane; e < dim; e += 32)
            sum = fmaf(q[e] * p.skip[head], key[e] * v[b], sum);
        sum = warp_sum(sum);
        if (lane == 0)
            ((T *)y)[(size_t)r.at * a.width + b * p.heads + head] = from_float<T>(sum);
    }
}

cudaError_t lti_pair_rows(device *d, int layer, const batch &b) {
    const shift_args a = shift_of(d, layer);
    const pole_args p = poles_of(d, layer);
    const size_t shared = (size_t)(a.n + 1) * p.head_dim * sizeof(float);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        return launch(d, pair_rows_kernel<T>, dim3((unsigned)p.heads, (unsigned)b.n_rows),
                      PAIR_THREADS, shared, b.decode, a, p, b.rows, d->y);
    });
}

// ---- spans

// A thread a channel, a block a tile of tokens.
__global__ void shift_kernel(shift_args a, const span *spans, const piece *tiles) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= a.width)
        return;
    const piece tile = tiles[blockIdx.y];
    const span s = spans[tile.span];
    const float *in = a.in + a.width + c, *state = a.state + (size_t)s.slot * a.n * a.width + c;
    for (int t = 0; t < tile.count; t++) {
        const int row = tile.first + t, done = row - s.first + 1; // inputs up to this one
        float sum = 0;
        for (int l = 0; l < min(a.n, done); l++)
            sum = fmaf(a.k[(size_t)l * a.width + c], in[(size_t)(row - l) * 3 * a.width], sum);
        for (int i = 0; !s.fresh && i + done < a.n; i++)
            sum = fmaf(a.c[(size_t)(i + done) * a.width + c], state[(size_t)i * a.width], sum);
        a.out[(size_t)row * a.width + c] = sum;
    }
}

// The new states, last number first: number n needs number n - count of the old ones.
__global__ void shift_state_kernel(shift_args a, const span *spans) {
    const int c = blockIdx.x * 32 + threadIdx.x;
    const bool inside = c < a.width;
    const span s = spans[blockIdx.y];
    float *state = a.state + (size_t)s.slot * a.n * a.width + c;
    const float *last = a.in + (size_t)(s.first + s.count - 1) * 3 * a.width + a.width + c;
    for (int top = a.n - 1; top >= 0; top -= SHIFT_WARPS) {
        const int n = top - (int)threadIdx.y;
        float sum = 0;
        if (inside && n >= 0) {
            if (n >= s.count && !s.fresh)
                sum = state[(size_t)(n - s.count) * a.width];
            for (int m = max(0, n - s.count + 1); m <= n; m++)
                sum = fmaf(a.b[(size_t)m * a.width + c], last[-(ptrdiff_t)(n - m) * 3 * a.width],
                           sum);
        }
        __syncthreads();
        if (inside && n >= 0)
            state[(size_t)n * a.width] = sum;
        __syncthreads();
    }
}

cudaError_t lti_shift(device *d, int layer, const batch &b) {
    const shift_args a = shift_of(d, layer);
    const cudaError_t rc =
        launch(d, shift_kernel, dim3((unsigned)ceil_div(a.width, 64), (unsigned)b.n_tiles), 64, 0,
               false, a, b.spans, b.tiles);
    if (rc != cudaSuccess)
        return rc;
    shift_state_kernel<<<dim3((unsigned)ceil_div(a.width, 32), (unsigned)b.n_spans),
                         dim3(32, SHIFT_WARPS), 0, d->stream>>>(a, b.spans);
    return cudaGetLastError();
}

} // namespace ssm
