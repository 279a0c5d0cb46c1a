// SPDX-License-Identifier: Apache-2.0
// S4D, one token of each row: norm, poles, gelu.
//
// A block takes some channels of some rows. LANES threads share a channel, four poles each: their
// coefficients stay in registers for all rows of the block, the states of ROWS rows at a time are
// asked for at once, 16 bytes a load, those of the first rows before the kernel waits for its
// predecessor. Every block takes the norms of its rows for itself, a warp a row: 1.5 KB a row from
// L2 instead of a launch. Bytes a row: the states twice.
#include "lti.cuh"

namespace ssm {

enum { ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32, AT_ONCE = 4, MOST_BLOCK_ROWS = 16 };

struct row_args {
    pole_args p;
    const float *residual, *norm; // [token row][width], [width]
    float eps;
    void *y; // T [token row][width]
    const row *rows;
    int n_rows, rows_a_block;
};

// 1 / RMS of the residual of rows [first, end), to shared memory.
__device__ __forceinline__ void scales_of(const row_args &a, int first, int end, float *scale) {
    const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    for (int i = first + (threadIdx.x >> 5); i < end; i += warps) {
        const float sum = square_sum(a.residual + (size_t)a.rows[i].at * a.p.width, a.p.width);
        if (lane == 0)
            scale[i - first] = rsqrtf(sum / a.p.width + a.eps);
    }
    __syncthreads();
}

// n = 4 LANES.
template <class T, int LANES>
__global__ void __launch_bounds__(ROW_THREADS) pole_rows_kernel(row_args a) {
    constexpr int CHANNELS = ROW_THREADS / LANES;
    __shared__ float scale[MOST_BLOCK_ROWS];
    dependents_start();
    const int part = threadIdx.x % LANES, c = blockIdx.x * CHANNELS + threadIdx.x / LANES;
    const bool inside = c < a.p.width;
    const size_t own = (size_t)(inside ? c : 0) * a.p.n + 4 * part;
    float ab[8], bb[8], cc[8];
    load<8>((const float *)(a.p.ab + own), ab);
    load<8>((const float *)(a.p.bb + own), bb);
    load<8>((const float *)(a.p.c + own), cc);
    const float weight = inside ? a.norm[c] : 0.f, skip = inside ? a.p.skip[c] : 0.f;
    const int first = blockIdx.y * a.rows_a_block, end = min(first + a.rows_a_block, a.n_rows);
    for (int i0 = first; i0 < end; i0 += AT_ONCE) {
        float s[AT_ONCE][8];
        row r[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            r[k].slot = -1, r[k].fresh = 1, r[k].at = 0;
            if (i0 + k < end)
                r[k] = a.rows[i0 + k];
#pragma unroll
            for (int v = 0; v < 8; v++)
                s[k][v] = 0;
            if (inside && r[k].slot >= 0 && !r[k].fresh)
                load<8>((const float *)(a.p.state + (size_t)r[k].slot * a.p.slot_pairs + own),
                        s[k]);
        }
        if (i0 == first) {
            dependency_wait();
            scales_of(a, first, end, scale);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (r[k].slot < 0)
                continue; // of the whole block
            const size_t at = (size_t)r[k].at * a.p.width + c;
            const float u = inside ? a.residual[at] * scale[i0 + k - first] * weight : 0.f;
            float y = 0;
#pragma unroll
            for (int v = 0; v < 8; v += 2) {
                float2 one = make_float2(s[k][v], s[k][v + 1]);
                y += pole_step(make_float2(ab[v], ab[v + 1]), make_float2(bb[v], bb[v + 1]),
                               make_float2(cc[v], cc[v + 1]), u, one);
                s[k][v] = one.x, s[k][v + 1] = one.y;
            }
#pragma unroll
            for (int o = LANES / 2; o; o >>= 1)
                y += __shfl_xor_sync(~0u, y, o);
            if (!inside)
                continue;
            store<8>((float *)(a.p.state + (size_t)r[k].slot * a.p.slot_pairs + own), s[k]);
            if (part == 0)
                ((T *)a.y)[at] = from_float<T>(gelu(y + skip * u));
        }
    }
}

// Any number of poles: a warp a channel.
template <class T> __global__ void __launch_bounds__(ROW_THREADS) any_rows_kernel(row_args a) {
    __shared__ float scale[MOST_BLOCK_ROWS];
    dependents_start();
    dependency_wait();
    const int lane = threadIdx.x & 31, c = blockIdx.x * ROW_WARPS + (threadIdx.x >> 5);
    const int first = blockIdx.y * a.rows_a_block, end = min(first + a.rows_a_block, a.n_rows);
    scales_of(a, first, end, scale);
    if (c >= a.p.width)
        return;
    for (int i = first; i < end; i++) {
        const row r = a.rows[i];
        if (r.slot < 0)
            continue;
        const size_t at = (size_t)r.at * a.p.width + c, own = (size_t)c * a.p.n;
        const float u = a.residual[at] * scale[i - first] * a.norm[c];
        float2 *state = a.p.state + (size_t)r.slot * a.p.slot_pairs + own;
        float y = 0;
        for (int k = lane; k < a.p.n; k += 32) {
            float2 s = r.fresh ? make_float2(0, 0) : state[k];
            y += pole_step(a.p.ab[own + k], a.p.bb[own + k], a.p.c[own + k], u, s);
            state[k] = s;
        }
        y = warp_sum(y);
        if (lane == 0)
            ((T *)a.y)[at] = from_float<T>(gelu(y + a.p.skip[c] * u));
    }
}

cudaError_t lti_pole_rows(device *d, int layer, const batch &b) {
    row_args a = {};
    a.p = poles_of(d, layer);
    a.residual = d->residual, a.norm = d->layers[layer].norm, a.eps = d->g.norm_eps;
    a.y = d->y, a.rows = b.rows, a.n_rows = b.n_rows;
    a.rows_a_block = b.n_rows <= 32    ? 1
                     : b.n_rows <= 128 ? AT_ONCE
                     : b.n_rows <= 512 ? 2 * AT_ONCE
                                       : 4 * AT_ONCE;
    const unsigned parts = (unsigned)ceil_div(b.n_rows, a.rows_a_block);
    return with_type(d->weight_type, [&](auto t) {
        typedef decltype(t) T;
        const auto run = [&](auto kernel, int channels) {
            return launch(d, kernel, dim3((unsigned)ceil_div(a.p.width, channels), parts),
                          ROW_THREADS, 0, b.decode, a);
        };
        switch (a.p.n) {
        case 16:
            return run(pole_rows_kernel<T, 4>, ROW_THREADS / 4);
        case 32:
            return run(pole_rows_kernel<T, 8>, ROW_THREADS / 8);
        case 64:
            return run(pole_rows_kernel<T, 16>, ROW_THREADS / 16);
        case 128:
            return run(pole_rows_kernel<T, 32>, ROW_THREADS / 32);
        default:
            return run(any_rows_kernel<T>, ROW_WARPS);
        }
    });
}

} // namespace ssm
