// SPDX-License-Identifier: Apache-2.0
// What comes after few.cu's products, done by warps of its own while the next rows are multiplied:
// convolution, SiLU and the block's share of x_proj after in_proj; the residual, its product with
// the next norm's weight and its squares after out_proj. Before the step's data is there they fetch
// what does not depend on it.
//
// All loops over rows are kept rolled: three kernels of 40 to 60 KB of instructions take turns on
// an SM, and fetching them is a trip to L2 beside 4 TB/s of weights (130m b1: 0.220 ms unrolled,
// 0.213 rolled).
#ifndef SSM_KERNELS_CUDA_FEW_END_CUH
#define SSM_KERNELS_CUDA_FEW_END_CUH

#include "few.cuh"

#if SSM_BULK

namespace ssm {

struct few_shared {
    float *sums;   // [2][warp][token][CHUNK]
    float *before; // FEW_IN [token][most_rows] the convolution without its newest input
    float *tap;    // FEW_IN [most_rows] the newest input's weight
    char *x;       // FEW_IN_X [token][x_pitch]: the convolution's output, bf16
    char *x_proj;  // FEW_IN_X [n_x][w_pitch]
};

__device__ __forceinline__ few_shared carve(const few_args &a, char *at) {
    few_shared s;
    s.sums = (float *)at;
    at += a.buffers * RING_WARPS * a.batch * CHUNK * sizeof(float);
    s.x = at;
    s.x_proj = s.x + 8 * a.x_pitch;
    s.before = (float *)(s.x_proj + (size_t)a.n_x_fetched * a.w_pitch);
    s.tap = s.before + (size_t)a.batch * a.most_rows;
    return s;
}

// ---- after in_proj

__device__ __forceinline__ void fetch_before(const few_args &a, const few_shared &s, int first,
                                             int n, int t) {
    const int kept = a.width - 1;
#pragma unroll 1
    for (int o = t; o < n * a.batch; o += END_THREADS) {
        const int token = o / n, local = o - token * n, c = first + local - a.conv_first;
        if (c < 0 || c >= a.channels)
            continue;
        const row r = a.rows[token];
        const bf16 *entries = a.ring + (size_t)max(r.slot, 0) * kept * a.channels + c;
        float sum = a.conv_bias[c];
        if (r.slot >= 0 && !r.fresh) {
#pragma unroll
            for (int j = 1; j < 4; j++) {
                const int e = r.ring - j < 0 ? r.ring - j + kept : r.ring - j;
                if (j <= kept)
                    sum += a.conv_weight[(size_t)(kept - j) * a.channels + c] *
                           to_float(entries[(size_t)e * a.channels]);
            }
        }
        s.before[token * a.most_rows + local] = sum;
        if (token == 0)
            s.tap[local] = a.conv_weight[(size_t)kept * a.channels + c];
    }
}

// The ring's new entry and the activation.
__device__ __forceinline__ float convolve_last(const few_args &a, const row &r, int c, float raw,
                                               float before, float tap) {
    const int kept = a.width - 1;
    bf16 *entries = a.ring + (size_t)r.slot * kept * a.channels + c;
    const bf16 stored = from_float<bf16>(raw); // what the ring will give back
#pragma unroll 1
    for (int e = 0; e < kept; e++) {
        if (e == r.ring)
            entries[(size_t)e * a.channels] = stored;
        else if (r.fresh)
            entries[(size_t)e * a.channels] = from_float<bf16>(0.f);
    }
    return silu(before + tap * to_float(stored));
}

__device__ __forceinline__ float total(const few_args &a, const float *sums, int local, int token) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < RING_WARPS; w++)
        sum += sums[(w * a.batch + token) * CHUNK + local];
    return sum;
}

// `done`: the chunk's first row within its run, `first` within the matrix.
template <few_kind KIND>
__device__ __forceinline__ void after_in(const few_args &a, const few_shared &s, const float *sums,
                                         const float *scale, int run, int done, int n, int first,
                                         int t) {
#pragma unroll 1
    for (int o = t; o < n * a.batch; o += END_THREADS) {
        const int token = o / n, local = o - token * n, row_at = first + local;
        float sum = total(a, sums, local, token) * scale[token];
        if (a.bias)
            sum += a.bias[row_at];
        const int c = row_at - a.conv_first;
        if (run == 1 || c < 0 || c >= a.channels) {
            a.xz[(size_t)token * a.width_out + row_at] = from_float<bf16>(sum);
            continue;
        }
        const row r = a.rows[token];
        bf16 x = from_float<bf16>(0.f);
        if (r.slot >= 0) {
            x = from_float<bf16>(convolve_last(
                a, r, c, sum, s.before[token * a.most_rows + done + local], s.tap[done + local]));
            a.xc[(size_t)token * a.channels + c] = x;
        }
        if (KIND == FEW_IN_X)
            *(bf16 *)(s.x + token * a.x_pitch + (done + local) * 2) = x;
    }
}

// The block's channels of x_proj, on its way before the step's data is there.
__device__ __forceinline__ void fetch_x_proj(const few_args &a, const few_shared &s, int first,
                                             int n, int t) {
#pragma unroll 1
    for (int i = t; i < 2 * a.x_pitch; i += END_THREADS)
        ((uint32_t *)s.x)[i] = 0;
    const int parts = n / 4;
#pragma unroll 1
    for (int i = t; i < a.n_x * parts; i += END_THREADS) {
        const int r = i / parts, part = i - r * parts;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                         shared_address(s.x_proj + r * a.w_pitch + part * 8)),
                     "l"(a.x_proj + (size_t)r * a.channels + first + part * 4)
                     : "memory");
    }
}

// The block's channels' share of x_proj's sums, in fixed point: integers do not mind the order.
__device__ __forceinline__ void add_x_proj(const few_args &a, const few_shared &s, int n,
                                           int warp) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    unsigned long long *to =
        a.x_sums + ((size_t)(blockIdx.x % X_COPIES) * FEW_ROWS + g) * a.n_x + 2 * q;
    const int tiles = a.n_x / 8;
#pragma unroll 1
    for (int t0 = warp; t0 < tiles; t0 += X_TILES * END_WARPS) {
        const char *w = s.x_proj + (t0 * 8 + g) * a.w_pitch, *x = s.x + g * a.x_pitch;
        const int step = END_WARPS * 8 * a.w_pitch;
        float c[X_TILES][4] = {};
#pragma unroll 1
        for (int k = 2 * q; k - 2 * q < n; k += 16) {
            const uint32_t x0 = *(const uint32_t *)(x + k * 2);
            const uint32_t x1 = *(const uint32_t *)(x + k * 2 + 16);
#pragma unroll
            for (int t = 0; t < X_TILES; t++) {
                const char *from = w + (t0 + t * END_WARPS < tiles ? t * step : 0) + k * 2;
                uint32_t w0 = *(const uint32_t *)from, w1 = *(const uint32_t *)(from + 16);
                w0 = k < n ? w0 : 0, w1 = k + 8 < n ? w1 : 0;
                mma(c[t], x0, 0, x1, 0, w0, w1);
            }
        }
        if (g >= a.batch)
            continue;
#pragma unroll
        for (int t = 0; t < X_TILES; t++) {
            if (t0 + t * END_WARPS >= tiles)
                break;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                if (fabsf(c[t][i]) < X_MOST)
                    atomicAdd(to + (t0 + t * END_WARPS) * 8 + i,
                              (unsigned long long)__float2ll_rn(c[t][i] * X_ONE));
                else // infinities and NaN too: the row's sums are no numbers
                    atomicAdd(a.x_broken + g, 1u);
            }
        }
    }
}

// ---- after out_proj: the residual, its product with the next norm's weight, its square

// The residual and the next norm's weights of the block's rows, to shared memory.
__device__ __forceinline__ void fetch_residual(const few_args &a, const few_shared &s, int first,
                                               int n, int t) {
#pragma unroll 1
    for (int i = t; i < n * a.batch; i += END_THREADS) {
        const int token = i / n, local = i - token * n;
        s.before[token * a.most_rows + local] =
            __ldcg(a.residual + (size_t)token * a.width_out + first + local);
    }
}

// A warp a token, a lane a row.
__device__ __forceinline__ void after_out(const few_args &a, const few_shared &s, const float *sums,
                                          const float *scale, int done, int n, int first,
                                          int warp) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < (FEW_ROWS + END_WARPS - 1) / END_WARPS; i++) {
        const int token = warp + i * END_WARPS;
        if (token >= a.batch)
            break;
        float square = 0;
#pragma unroll 1
        for (int local = lane; local < n; local += 32) {
            const size_t at = (size_t)token * a.width_out + first + local;
            float r = total(a, sums, local, token) * (a.squares ? scale[token] : 1.f);
            r += s.before[token * a.most_rows + done + local];
            if (a.bias)
                r += a.bias[first + local];
            a.residual[at] = r;
            a.u[at] = from_float<bf16>(r * s.tap[done + local]);
            square += r * r;
        }
        square = warp_sum(square);
        float *to = a.squares_out + token * a.squares_pitch_out + blockIdx.x;
        if (lane == 0)
            *to = done ? *to + square : square;
    }
}

__device__ __forceinline__ void clear_x_sums(const few_args &a, int t) {
    const int n = X_COPIES * FEW_ROWS * a.n_x, step = gridDim.x * END_THREADS;
#pragma unroll 1
    for (int i = blockIdx.x * END_THREADS + t; i < n; i += step)
        a.x_sums[i] = 0;
    if (blockIdx.x == 0 && t < FEW_ROWS)
        a.x_broken[t] = 0;
}

// Sums of squares that others left, to a scale of each token's sums.
__device__ __forceinline__ void fetch_scales(const few_args &a, float *scale, int n_cols,
                                             int warp) {
    constexpr int AT_ONCE = 5, TOKENS = (FEW_ROWS + END_WARPS - 1) / END_WARPS;
    const int lane = threadIdx.x & 31;
    float sum[TOKENS] = {};
#pragma unroll 1
    for (int i = lane; i < a.n_squares; i += AT_ONCE * 32) {
        float v[TOKENS][AT_ONCE]; // a trip to L2 for all
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                const int token = warp + t * END_WARPS, at = i + j * 32;
                v[t][j] = token < a.batch && at < a.n_squares
                              ? __ldcg(a.squares + token * a.squares_pitch + at)
                              : 0.f;
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++)
                sum[t] += v[t][j];
        }
    }
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
        const int token = warp + t * END_WARPS;
        const float all = warp_sum(sum[t]);
        if (lane == 0 && token < a.batch)
            scale[token] = rsqrtf(all / n_cols + a.eps);
    }
}

enum { END_BARRIER = 1, FULL_BARRIER = 2, FREE_BARRIER = 4 }; // the last two: of each buffer

// The warps after the products.
template <few_kind KIND>
__device__ __forceinline__ void end_warps(const few_args &a, const few_shared &s, float *scale,
                                          const row_runs &runs, int n_cols) {
    const int t = threadIdx.x - RING_CONSUMERS, warp = t >> 5;
    const int first = runs.first[0], n = runs.count[0];
    if (KIND == FEW_IN || KIND == FEW_IN_X || KIND == FEW_IN_Z)
        fetch_before(a, s, first, n, t);
    if (KIND == FEW_IN_X)
        fetch_x_proj(a, s, first, n, t);
    if (KIND == FEW_OUT) {
        for (int i = t; i < n; i += END_THREADS)
            s.tap[i] = a.next_norm[first + i];
    }
    dependency_wait();
    if (KIND == FEW_OUT)
        fetch_residual(a, s, first, n, t);
    if (KIND == FEW_OUT && a.x_sums)
        clear_x_sums(a, t);
    if (a.squares)
        fetch_scales(a, scale, n_cols, warp);
    if (KIND == FEW_IN_X)
        asm volatile("cp.async.wait_all;" ::: "memory");
    named_sync(END_BARRIER, END_THREADS);

    int chunk = 0;
    const int n_runs = KIND == FEW_IN_X || KIND == FEW_IN_Z ? 2 : 1,
              chunks = (n + CHUNK - 1) / CHUNK * n_runs;
#pragma unroll 1
    for (int run = 0; run < n_runs; run++) {
#pragma unroll 1
        for (int done = 0; done < n; done += CHUNK, chunk++) {
            const int rows = min((int)CHUNK, n - done), buffer = chunk & 1;
            const float *sums = s.sums + buffer * RING_WARPS * a.batch * CHUNK;
            const int at = runs.first[run] + done;
            named_sync(FULL_BARRIER + buffer, RING_CONSUMERS + END_THREADS);
            if (KIND == FEW_OUT) {
                after_out(a, s, sums, scale, done, rows, at, warp);
            } else if (KIND == FEW_HEAD) {
#pragma unroll 1
                for (int o = t; o < rows * a.batch; o += END_THREADS) {
                    const int token = o / rows, local = o - token * rows;
                    a.residual[(size_t)token * a.width_out + at + local] =
                        total(a, sums, local, token) * scale[token];
                }
            } else {
                after_in<KIND>(a, s, sums, scale, run, done, rows, at, t);
            }
            if (chunk + 2 < chunks)
                named_arrive(FREE_BARRIER + buffer, RING_CONSUMERS + END_THREADS);
        }
        if (KIND == FEW_IN_X && run == 0) {
            named_sync(END_BARRIER, END_THREADS);
            add_x_proj(a, s, n, warp);
        }
    }
}

// What the kernel in between the last product and this one leaves no room to ask for: the rest of
// the last product's weights (its ring holds the first last_skip bytes of a block's).
__device__ __forceinline__ void ask_for_last(const few_args &a) {
    if (!a.last_weight)
        return;
    const int first = (int)((int64_t)blockIdx.x * a.last_rows / gridDim.x);
    const int end = (int)((int64_t)(blockIdx.x + 1) * a.last_rows / gridDim.x);
    ask_l2(a.last_weight + (size_t)first * a.last_row_bytes + a.last_skip,
           (end - first) * a.last_row_bytes - a.last_skip);
}

} // namespace ssm

#endif

#endif
