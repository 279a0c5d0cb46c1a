// SPDX-License-Identifier: Apache-2.0
// The kernel of ssd_wgmma.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_SSD_WGMMA_KERNEL_CUH
#define SSM_KERNELS_CUDA_SSD_WGMMA_KERNEL_CUH

#include "cuda.h"
#include "util.cuh"
#include "wgmma_tiles.cuh"
#include "wide_hopper.cuh"

namespace ssm {

enum { P = 64, N = 128, CHUNK = 64, THREADS = 128, SLAB = CHUNK * 128 };

struct walk_args {
    const float *decay, *skip, *dt_bias; // [heads]
    const bf16 *xc;                      // [token row][conv_dim]: x, B, C
    const bf16 *in;                      // [token row][n_in]: z first, dt last
    bf16 *y;                             // [token row][d_inner]
    void *state;                         // S [slot][heads][P][N], this layer's
    float *carry; // [piece][heads][SSD_CARRY]: end state in the threads' order, sum of exponents
    int heads, groups, d_inner, conv_dim, n_in;
    float dt_min, dt_max;
};

#if SSM_HOPPER

struct decays { // c_t, delta_t, exp2(c_end - c_t) delta_t
    float sum[CHUNK], delta[CHUNK], weight[CHUNK];
};
struct walk_shared { // tiles as wgmma_tiles.cuh says; y is made in z's place
    char c[2][2 * SLAB], b[2][2 * SLAB], x[2][SLAB], s[2 * SLAB], z[SLAB];
    decays d[4]; // a warp
};

// 64 rows of SLABS * 64 numbers, rows from n on become zero; a warp fetches 16 of them.
template <int SLABS>
__device__ __forceinline__ void fetch_rows(char *tile, const bf16 *from, int pitch, int n) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int v = lane % (8 * SLABS);
#pragma unroll
    for (int i = 0; i < 4 * SLABS; i++) {
        const int r = warp * 16 + lane / (8 * SLABS) + i * (4 / SLABS);
        copy_async(tile + (v >> 3) * SLAB + swizzled(r, v),
                   from + (size_t)(r < n ? r : 0) * pitch + v * 8, r < n);
    }
}

// A chunk's decays, by every warp for itself. dt: bf16 of tokens 2 lane and 2 lane + 1; returns the
// exponents' sum.
__device__ __forceinline__ float make_decays(const walk_args &a, decays &s, const uint32_t (&dt)[2],
                                             float bias, float decay, int n) {
    const int lane = threadIdx.x & 31;
    float delta[2], sum[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        uint32_t bits = dt[i];
        asm volatile("" : "+r"(bits)); // converted here: where it is loaded, it would wait
        delta[i] = fminf(fmaxf(softplus(low_half(bits) + bias), a.dt_min), a.dt_max);
        delta[i] = 2 * lane + i < n ? delta[i] : 0.f;
        sum[i] = delta[i] * decay;
    }
    sum[1] += sum[0];
    float inclusive = sum[1];
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
        const float before = __shfl_up_sync(~0u, inclusive, o);
        inclusive += lane >= o ? before : 0.f;
    }
    const float end = __shfl_sync(~0u, inclusive, 31), before = inclusive - sum[1];
    const float c0 = before + sum[0], c1 = before + sum[1];
    *(float2 *)&s.sum[2 * lane] = make_float2(c0, c1);
    *(float2 *)&s.delta[2 * lane] = make_float2(delta[0], delta[1]);
    *(float2 *)&s.weight[2 * lane] =
        make_float2(exp2_fast(end - c0) * delta[0], exp2_fast(end - c1) * delta[1]);
    __syncwarp();
    return end;
}

// The state in bf16, [p][n], for C to meet.
__device__ __forceinline__ void stage_state(char *tile, const float (&h)[64]) {
    const int lane = threadIdx.x & 31, r = (threadIdx.x >> 5) * 16 + (lane & 15);
#pragma unroll
    for (int j = 0; j < 16; j += 2) {
        const int v = j + (lane >> 4);
        store_matrices(shared_address(tile + (v >> 3) * SLAB + swizzled(r, v)),
                       pack_bf16(h[4 * j], h[4 * j + 1]), pack_bf16(h[4 * j + 2], h[4 * j + 3]),
                       pack_bf16(h[4 * j + 4], h[4 * j + 5]),
                       pack_bf16(h[4 * j + 6], h[4 * j + 7]));
    }
}

// decay S + (weight x)^T B, issued.
__device__ __forceinline__ void add_chunk(float (&h)[64], uint32_t (&xw)[4][4], const char *x,
                                          uint32_t b, const decays &d, float end) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3;
#pragma unroll
    for (int k = 0; k < 4; k++) { // 16 of the head's channels by 16 tokens
        const int t = k * 16 + (lane & 7) + (lane >> 4) * 8;
        ldmatrix_transposed(xw[k], x + swizzled(t, warp * 2 + (lane >> 3 & 1)));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 w = *(const float2 *)&d.weight[k * 16 + (i >> 1) * 8 + 2 * q];
            xw[k][i] = pack_bf16(low_half(xw[k][i]) * w.x, high_half(xw[k][i]) * w.y);
        }
    }
    const float scale = exp2_fast(end);
#pragma unroll
    for (int i = 0; i < 64; i++)
        h[i] *= scale;
    wgmma_touch(h);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++)
        wgmma_down_128(h, xw[k], tile_descriptor(b + k * 2048, SLAB));
    wgmma_commit();
}

// M from G, as the operand of the product with X.
__device__ __forceinline__ void make_operand(const float (&m)[32], const decays &d,
                                             uint32_t (&out)[4][4]) {
    const int lane = threadIdx.x & 31, q = lane & 3, first = (threadIdx.x >> 5) * 16;
    const int row = first + (lane >> 2);
    const float c0 = d.sum[row], c1 = d.sum[row + 8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int t = j * 8 + 2 * q;
        uint32_t lo = 0, hi = 0;
        if (j * 8 < first + 16) {
            const float2 c = *(const float2 *)&d.sum[t], w = *(const float2 *)&d.delta[t];
            const float v0 = t <= row ? m[4 * j] * (exp2_fast(c0 - c.x) * w.x) : 0.f;
            const float v1 = t + 1 <= row ? m[4 * j + 1] * (exp2_fast(c0 - c.y) * w.y) : 0.f;
            const float v2 = t <= row + 8 ? m[4 * j + 2] * (exp2_fast(c1 - c.x) * w.x) : 0.f;
            const float v3 = t + 1 <= row + 8 ? m[4 * j + 3] * (exp2_fast(c1 - c.y) * w.y) : 0.f;
            lo = pack_bf16(v0, v1), hi = pack_bf16(v2, v3);
        }
        out[j >> 1][(j & 1) * 2] = lo, out[j >> 1][(j & 1) * 2 + 1] = hi;
    }
}

// D and the gate; y takes z's place in its tile.
__device__ __forceinline__ void gate(const float (&y)[32], const char *x_tile, char *z_tile,
                                     float skip) {
    const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = swizzled(row + i * 8, j) + (lane & 3) * 4;
            const uint32_t x = *(const uint32_t *)(x_tile + at);
            const uint32_t z = *(const uint32_t *)(z_tile + at);
            const float low = y[4 * j + 2 * i] + skip * low_half(x);
            const float high = y[4 * j + 2 * i + 1] + skip * high_half(x);
            *(uint32_t *)(z_tile + at) =
                pack_bf16(low * silu(low_half(z)), high * silu(high_half(z)));
        }
    }
}

template <class S, bool LOAD> __device__ __forceinline__ void move_state(S *state, float (&h)[64]) {
    const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5) * 16 + (lane >> 2);
#pragma unroll
    for (int j = 0; j < 32; j++) {
        S *at = state + (row + (j & 1) * 8) * N + (j >> 1) * 8 + 2 * (lane & 3);
        float v[2] = {h[2 * j], h[2 * j + 1]};
        if (LOAD)
            load<2>(at, v), h[2 * j] = v[0], h[2 * j + 1] = v[1];
        else
            store<2>(at, v);
    }
}

// One head of one piece. Y: with outputs, from the true state; otherwise S alone, from zero.
template <class S, bool Y>
__device__ __forceinline__ void walk(const walk_args &a, walk_shared &s, const span &sp,
                                     const piece &p) {
    const int head = blockIdx.x, group = head / (a.heads / a.groups);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const float bias = a.dt_bias[head], decay = a.decay[head], skip = a.skip[head];
    const bool begins = p.index == sp.first_piece, ends = p.first + p.count == sp.first + sp.count;
    decays &d = s.d[warp];
    S *state = (S *)a.state + ((size_t)sp.slot * a.heads + head) * P * N;
    float *carry = a.carry + ((size_t)p.index * a.heads + head) * SSD_CARRY;
    const bf16 *x_at = a.xc + (size_t)p.first * a.conv_dim + head * P;
    const bf16 *b_at = a.xc + (size_t)p.first * a.conv_dim + a.d_inner + group * N;
    const bf16 *z_at = a.in + (size_t)p.first * a.n_in + head * P;
    const bf16 *dt_at = a.in + (size_t)p.first * a.n_in + a.n_in - a.heads + head;
    auto fetch = [&](int buffer, int done) {
        const int n = p.count - done;
        const size_t at = (size_t)done * a.conv_dim;
        fetch_rows<1>(s.x[buffer], x_at + at, a.conv_dim, n);
        fetch_rows<2>(s.b[buffer], b_at + at, a.conv_dim, n);
        if (Y)
            fetch_rows<2>(s.c[buffer], b_at + a.groups * N + at, a.conv_dim, n);
    };
    uint32_t dt[2];
    auto fetch_dt = [&](int done) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int t = min(done + 2 * lane + i, p.count - 1);
            dt[i] = *(const unsigned short *)(dt_at + (size_t)t * a.n_in);
        }
    };
    fetch(0, 0);
    copies_commit();
    fetch_dt(0);
    float h[64] = {}, total = 0;
    if (Y && begins && !sp.fresh)
        move_state<S, true>(state, h);
    for (int k = sp.first_piece; Y && k < p.index; k++) {
        const float *c = a.carry + ((size_t)k * a.heads + head) * SSD_CARRY;
        const float scale = exp2_fast(c[P * N]);
#pragma unroll
        for (int i = 0; i < 64; i++)
            h[i] = scale * h[i] + c[i * THREADS + threadIdx.x];
    }
    if (Y)
        stage_state(s.s, h);
    for (int done = 0, buffer = 0; done < p.count; done += CHUNK, buffer ^= 1) {
        const int n = min((int)CHUNK, p.count - done);
        const bool more = done + CHUNK < p.count;
        copies_wait<0>();
        fence_async();
        __syncthreads(); // chunk and state are there; nobody reads the other buffer any more
        if (Y) {
            fetch_rows<1>(s.z, z_at + (size_t)done * a.n_in, a.n_in, n);
            copies_commit();
        }
        const float end = make_decays(a, d, dt, bias, decay, n);
        total += end;
        if (more) {
            fetch(buffer ^ 1, done + CHUNK);
            fetch_dt(done + CHUNK);
        }
        copies_commit();
        const uint32_t x = shared_address(s.x[buffer]), b = shared_address(s.b[buffer]);
        float y[32], m[32];
        uint32_t xw[4][4], operand[4][4];
        if (Y) {
            const uint32_t c = shared_address(s.c[buffer]), state_tile = shared_address(s.s);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const uint32_t at = (k >> 2) * SLAB + (k & 3) * 32;
                wgmma_64(m, tile_descriptor(c + at, 16), tile_descriptor(b + at, 16), k > 0);
            }
            wgmma_commit();
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const uint32_t at = (k >> 2) * SLAB + (k & 3) * 32;
                wgmma_64(y, tile_descriptor(c + at, 16), tile_descriptor(state_tile + at, 16),
                         k > 0);
            }
            wgmma_commit();
        }
        add_chunk(h, xw, s.x[buffer], b, d, end);
        if (Y) {
            wgmma_wait<2>();
            wgmma_touch(m);
            make_operand(m, d, operand);
            wgmma_wait<1>();
            wgmma_touch(y);
            const int row = warp * 16 + (lane >> 2);
            const float scale[2] = {exp2_fast(d.sum[row]), exp2_fast(d.sum[row + 8])};
#pragma unroll
            for (int i = 0; i < 32; i++)
                y[i] *= scale[i >> 1 & 1];
            wgmma_touch(y);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++)
                wgmma_down_64(y, operand[k], tile_descriptor(x + k * 2048, 16));
            wgmma_commit();
        }
        wgmma_wait<0>();
        wgmma_touch(h);
        if (!Y)
            continue;
        wgmma_touch(y);
        copies_wait<1>(); // z, whose rows each warp fetched for itself
        __syncwarp();
        gate(y, s.x[buffer], s.z, skip);
        __syncthreads(); // nobody multiplies by the state any more
        if (more)
            stage_state(s.s, h);
        bf16 *y_at = a.y + (size_t)(p.first + done) * a.d_inner + head * P;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int v = lane & 7, r = warp * 16 + (lane >> 3) + i * 4;
            if (r < n)
                *(uint4 *)(y_at + (size_t)r * a.d_inner + v * 8) =
                    *(const uint4 *)(s.z + swizzled(r, v));
        }
        __syncwarp();
    }
    if (ends) {
        move_state<S, false>(state, h);
    } else if (!Y || begins) {
#pragma unroll
        for (int i = 0; i < 64; i++)
            carry[i * THREADS + threadIdx.x] = h[i];
        if (threadIdx.x == 0)
            carry[P * N] = total;
    }
}

#endif

template <class S, scan_pass PASS>
__global__ void __launch_bounds__(THREADS, 2)
    walk_kernel(walk_args a, const span *spans, const piece *pieces) {
#if SSM_HOPPER
    extern __shared__ char memory[];
    walk_shared &s = *(walk_shared *)(memory + (-shared_address(memory) & 1023));
    dependents_start();
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    const bool begins = p.index == sp.first_piece, ends = p.first + p.count == sp.first + sp.count;
    dependency_wait();
    if (PASS == SCAN_WHOLE || begins == (PASS == SCAN_FIRST))
        walk<S, true>(a, s, sp, p);
    else if (PASS == SCAN_FIRST && !ends)
        walk<S, false>(a, s, sp, p);
#endif
}

} // namespace ssm

#endif
