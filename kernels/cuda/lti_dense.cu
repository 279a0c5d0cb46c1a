// SPDX-License-Identifier: Apache-2.0
// S4: a dense matrix a channel, [j][i] so that neighbouring threads read neighbouring rows'
// numbers.
//
// Rows: a block takes one channel of 4 or 16 rows, so that a matrix (16 KB for a state of 64) is
// read from L2 once for them; threads share out its rows i and, where there are fewer than threads,
// its columns j, whose partial sums are added in a fixed order.
//
// Spans: a block runs one channel through one span, a token after the other: four threads a row,
// their sixteen numbers of it in registers up to a state of 64, the state in shared memory; a warp
// of its own reads C s of the token before meanwhile. One barrier a token.
#include "lti.cuh"

namespace ssm {

enum {
    DENSE_THREADS = 256,
    STEP_ROWS = 32,     // up to so many rows 4 a block, then 16
    MANY_NUMBERS = 192, // widest state of 16 rows: shared memory
    QUAD = 4,
    KEPT = 16,
    INPUTS = 256,
};

struct dense_args {
    const float *ab, *bb, *c, *skip; // [channel][j][i], [channel][n] twice, [channel]
    float *state;                    // [slot][channel][n]
    int n, width;
    bool lower; // nothing above the diagonal
    const float *residual, *norm;
    float eps;
    const float *u; // normed, of spans: [token row][width], or by channel
    size_t u_token, u_channel;
    bool tail; // what is no whole column of a convolution alone
    void *y;   // T [token row][width]
};

static dense_args dense_of(const device *d, int layer) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    dense_args a = {};
    a.ab = w.lti.ab, a.bb = w.lti.bb, a.c = w.lti.c, a.skip = w.skip, a.lower = w.lti.lower;
    a.n = g.d_state, a.width = g.d_model;
    a.state = (float *)d->state + (size_t)layer * d->n_slots * g.d_model * g.d_state;
    a.residual = d->residual, a.norm = w.norm, a.eps = g.norm_eps;
    a.u = d->lti_u, a.y = d->y;
    return a;
}

// ---- rows

// Old states of the block's rows, [n][ROWS], zeros for those that are none, and their inputs.
template <int ROWS>
__device__ __forceinline__ void dense_stage(const dense_args &a, const row *rows, int first, int n,
                                            float *s, float *u) {
    const int ch = blockIdx.x, lane = threadIdx.x & 31;
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const row r = rows[first + min(k, n - 1)];
        const float *from = a.state + ((size_t)max(r.slot, 0) * a.width + ch) * a.n;
        for (int i = threadIdx.x; i < a.n; i += DENSE_THREADS)
            s[i * ROWS + k] = k >= n || r.slot < 0 || r.fresh ? 0.f : from[i];
    }
    dependency_wait();
    for (int k = threadIdx.x >> 5; k < n; k += DENSE_THREADS / 32) {
        const float *x = a.residual + (size_t)rows[first + k].at * a.width;
        const float sum = square_sum(x, a.width);
        if (lane == 0)
            u[k] = x[ch] * rsqrtf(sum / a.width + a.eps) * a.norm[ch];
    }
    __syncthreads();
}

template <class T, int ROWS>
__global__ void __launch_bounds__(DENSE_THREADS)
    dense_rows_kernel(dense_args a, const row *rows, int n_rows) {
    extern __shared__ float s[]; // [n][ROWS], then the new ones' part in y [DENSE_THREADS][ROWS]
    __shared__ float u[ROWS], part[DENSE_THREADS][ROWS + 1];
    dependents_start();
    const int ch = blockIdx.x, first = blockIdx.y * ROWS, n = min(ROWS, n_rows - first);
    dense_stage<ROWS>(a, rows, first, n, s, u);
    const int across = min((a.n + 31) / 32 * 32, (int)DENSE_THREADS);
    const int split = DENSE_THREADS / across, js = threadIdx.x / across;
    const int i_own = threadIdx.x % across;
    const float *ab = a.ab + (size_t)ch * a.n * a.n;
    float *y = s + a.n * ROWS; // of row k: [k][across], summed over i0
    for (int i = threadIdx.x; i < ROWS * across; i += DENSE_THREADS)
        y[i] = 0;
    for (int i0 = 0; i0 < a.n; i0 += across) {
        const int i = i0 + i_own, past = a.lower ? min(i + 1, a.n) : a.n;
        float sum[ROWS] = {};
        for (int j = js; i < a.n && js < split && j < past; j += split) {
            const float m = ab[(size_t)j * a.n + i];
            float old[ROWS];
            load<ROWS>(s + j * ROWS, old);
#pragma unroll
            for (int k = 0; k < ROWS; k++)
                sum[k] = fmaf(m, old[k], sum[k]);
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++)
            part[threadIdx.x][k] = sum[k];
        __syncthreads();
        for (int e = threadIdx.x; e < n * across; e += DENSE_THREADS) {
            const int k = e / across, own = e % across, number = i0 + own;
            if (number >= a.n)
                continue;
            float now = a.bb[(size_t)ch * a.n + number] * u[k];
            for (int p = 0; p < split; p++)
                now += part[p * across + own][k];
            const int slot = rows[first + k].slot;
            if (slot >= 0)
                a.state[((size_t)slot * a.width + ch) * a.n + number] = now;
            y[e] = fmaf(a.c[(size_t)ch * a.n + number], now, y[e]);
        }
        __syncthreads();
    }
    for (int k = threadIdx.x >> 5; k < n; k += DENSE_THREADS / 32) {
        float all = 0;
        for (int i = threadIdx.x & 31; i < across; i += 32)
            all += y[k * across + i];
        all = warp_sum(all);
        const row r = rows[first + k];
        if ((threadIdx.x & 31) == 0 && r.slot >= 0)
            ((T *)a.y)[(size_t)r.at * a.width + ch] = from_float<T>(gelu(all + a.skip[ch] * u[k]));
    }
}

cudaError_t lti_dense_rows(device *d, int layer, const batch &b) {
    const dense_args a = dense_of(d, layer);
    const int across = min(ceil_div(a.n, 32) * 32, (int)DENSE_THREADS);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const auto run = [&](auto kernel, int rows) {
            const dim3 grid((unsigned)a.width, (unsigned)ceil_div(b.n_rows, rows));
            return launch(d, kernel, grid, DENSE_THREADS,
                          (size_t)rows * (a.n + across) * sizeof(float), b.decode, a, b.rows,
                          b.n_rows);
        };
        return b.n_rows <= STEP_ROWS || a.n > MANY_NUMBERS ? run(dense_rows_kernel<T, 4>, 4)
                                                           : run(dense_rows_kernel<T, 16>, 16);
    });
}

// ---- spans

// C s, by the extra warp.
__device__ __forceinline__ float dense_read(const dense_args &a, const float *c, const float *s) {
    float sum = 0;
    for (int i = threadIdx.x & 31; i < a.n; i += 32)
        sum = fmaf(c[i], s[i], sum);
    return warp_sum(sum);
}

template <class T, bool KEEP>
__global__ void __launch_bounds__(DENSE_THREADS + 32)
    dense_scan_kernel(dense_args a, const span *spans) {
    extern __shared__ float s[]; // [2][n]
    __shared__ float u[INPUTS];
    const int ch = blockIdx.x, q = threadIdx.x % QUAD, i_own = threadIdx.x / QUAD;
    const bool reads = threadIdx.x >= DENSE_THREADS; // the extra warp
    const span sp = spans[blockIdx.y];
    const float *ab = a.ab + (size_t)ch * a.n * a.n, *c = a.c + (size_t)ch * a.n;
    float *slot = a.state + ((size_t)sp.slot * a.width + ch) * a.n;
    float kept[KEPT];
    if (KEEP) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const int j = k * QUAD + q;
            kept[k] = !reads && i_own < a.n && j < a.n ? ab[(size_t)j * a.n + i_own] : 0.f;
        }
    }
    const int done = a.tail ? sp.count / LTI_PART * LTI_PART : 0; // tokens
    if (done == sp.count)
        return;
    for (int i = threadIdx.x; i < a.n; i += blockDim.x)
        s[i] = sp.fresh && done == 0 ? 0.f : slot[i];
    const float skip = a.skip[ch];
    int now = 0;
    for (int t0 = done; t0 < sp.count; t0 += INPUTS) {
        const int some = min((int)INPUTS, sp.count - t0);
        const float *from = a.u + (size_t)(sp.first + t0) * a.u_token + ch * a.u_channel;
        T *to = (T *)a.y + (size_t)(sp.first + t0) * a.width + ch;
        __syncthreads();
        for (int t = threadIdx.x; t < some; t += blockDim.x)
            u[t] = from[(size_t)t * a.u_token];
        __syncthreads();
        for (int t = 0; t < some; t++, now ^= 1) {
            const float *old = s + now * a.n;
            float *next = s + (now ^ 1) * a.n;
            if (reads) { // what the token before came to
                const float y = t > 0 ? dense_read(a, c, old) : 0.f;
                if (t > 0 && threadIdx.x == DENSE_THREADS)
                    to[(size_t)(t - 1) * a.width] = from_float<T>(gelu(y + skip * u[t - 1]));
            } else if (KEEP) {
                float sum = 0;
#pragma unroll
                for (int k = 0; k < KEPT; k++)
                    sum = fmaf(kept[k], k * QUAD + q < a.n ? old[k * QUAD + q] : 0.f, sum);
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                if (q == 0 && i_own < a.n)
                    next[i_own] = fmaf(a.bb[(size_t)ch * a.n + i_own], u[t], sum);
            } else {
                for (int i0 = 0; i0 < a.n; i0 += DENSE_THREADS / QUAD) {
                    const int i = i0 + i_own, past = i < a.n ? (a.lower ? i + 1 : a.n) : 0;
                    float sum = 0;
                    for (int j = q; j < past; j += QUAD)
                        sum = fmaf(ab[(size_t)j * a.n + i], old[j], sum);
                    sum += __shfl_xor_sync(~0u, sum, 1);
                    sum += __shfl_xor_sync(~0u, sum, 2);
                    if (q == 0 && i < a.n)
                        next[i] = fmaf(a.bb[(size_t)ch * a.n + i], u[t], sum);
                }
            }
            __syncthreads();
        }
        if (reads) { // the last one of this part
            const float y = dense_read(a, c, s + now * a.n);
            if (threadIdx.x == DENSE_THREADS)
                to[(size_t)(some - 1) * a.width] = from_float<T>(gelu(y + skip * u[some - 1]));
        }
    }
    for (int i = threadIdx.x; i < a.n; i += blockDim.x)
        slot[i] = s[now * a.n + i];
}

cudaError_t lti_dense_scan(device *d, int layer, const batch &b) {
    dense_args a = dense_of(d, layer);
    a.tail = b.columns > 0;
    a.u_token = a.tail ? 1 : (size_t)a.width;
    a.u_channel = a.tail ? (size_t)b.n : 1;
    const dim3 grid((unsigned)a.width, (unsigned)b.n_spans);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        auto kernel = a.n <= KEPT * QUAD ? dense_scan_kernel<T, true> : dense_scan_kernel<T, false>;
        return launch(d, kernel, grid, DENSE_THREADS + 32, 2 * (size_t)a.n * sizeof(float), false,
                      a, b.spans);
    });
}

} // namespace ssm
