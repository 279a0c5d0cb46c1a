// SPDX-License-Identifier: Apache-2.0
// Mamba-2's prompt on the matrix units (the SSD form; Dao and Gu 2024, section 6), bf16 operands,
// fp32 sums, for heads of 64 with 128 states. Everything else takes mamba2.cu's plain scan.
//
// A block owns one head of one span and walks it in chunks of 64 tokens, its state in registers all
// the way (64 x 128 fp32 over eight warps). With c the running sum of delta A log2 e in a chunk:
//
//     M = (C B^T) exp2(c_i - c_j) delta_j, j <= i        64 x 64, k 128
//     y = M X + exp2(c_i) C S^T + D x                    64 x 64, k 64 and 128
//     S = exp2(c_end) S + (exp2(c_end - c_t) delta_t X)^T B     64 x 128, k 64
//
// All exponents are <= 0. S is rounded to bf16 where it meets C, the state itself never is. Only x,
// B, C, dt and z come in and y goes out (gated); chunk states never reach memory. Chunks begin at
// the span's first token: a prompt cut elsewhere differs by bf16 rounding, about 1e-3.
#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

enum { SSD_P = 64, SSD_N = 128, SSD_Q = 64, SSD_THREADS = 256 };
enum { PITCH_N = SSD_N + 8, PITCH_P = SSD_P + 8, PITCH_Q = SSD_Q + 8 }; // 16 bytes on: no conflicts

struct ssd_args {
    const float *decay, *skip, *dt_bias; // [heads]
    const bf16 *xc;                      // [token row][conv_dim]: x, B, C
    const bf16 *in;                      // [token row][n_in]: z first, dt last
    bf16 *y;                             // [token row][d_inner]
    void *state;                         // S [slot][heads][P][N], this layer's
    int heads, groups, d_inner, conv_dim, n_in;
    float dt_min, dt_max;
};

struct ssd_shared {
    bf16 c[SSD_Q][PITCH_N], b[SSD_Q][PITCH_N], s[SSD_P][PITCH_N];
    bf16 x[SSD_Q][PITCH_P], xw[SSD_Q][PITCH_P], m[SSD_Q][PITCH_Q];
    float sum[SSD_Q], delta[SSD_Q], weight[SSD_Q]; // c_t, delta_t, exp2(c_end - c_t) delta_t
};

// Fragments of a 16 x 16 tile whose rows lie at `tile`; transposed: stored [k][row].
__device__ __forceinline__ void load_a(uint32_t (&r)[4], const bf16 *tile, int pitch) {
    const int lane = threadIdx.x & 31;
    ldmatrix(r, tile + (lane & 15) * pitch + (lane >> 4) * 8);
}
__device__ __forceinline__ void load_a_transposed(uint32_t (&r)[4], const bf16 *tile, int pitch) {
    const int lane = threadIdx.x & 31;
    ldmatrix_transposed(r, tile + ((lane & 7) + (lane >> 4) * 8) * pitch + (lane >> 3 & 1) * 8);
}
// Two tiles of 8 columns, k 16, stored [column][k]; transposed: stored [k][column].
__device__ __forceinline__ void load_b(uint32_t (&r)[4], const bf16 *tile, int pitch) {
    const int lane = threadIdx.x & 31;
    ldmatrix(r, tile + ((lane & 7) + (lane >> 4) * 8) * pitch + (lane >> 3 & 1) * 8);
}
__device__ __forceinline__ void load_b_transposed(uint32_t (&r)[4], const bf16 *tile, int pitch) {
    const int lane = threadIdx.x & 31;
    ldmatrix_transposed(r, tile + (lane & 15) * pitch + (lane >> 4) * 8);
}

__device__ __forceinline__ void mma_pair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
    mma(c0, a[0], a[1], a[2], a[3], b[0], b[1]);
    mma(c1, a[0], a[1], a[2], a[3], b[2], b[3]);
}

// Rows of `width` numbers to shared memory, 16 bytes a thread; rows from n on become zero.
template <int WIDTH>
__device__ __forceinline__ void load_rows(bf16 *to, int pitch, const bf16 *from, size_t from_pitch,
                                          int n) {
    constexpr int VECTORS = WIDTH / 8;
    for (int i = threadIdx.x; i < SSD_Q * VECTORS; i += SSD_THREADS) {
        const int r = i / VECTORS, v = i % VECTORS;
        uint4 data = make_uint4(0, 0, 0, 0);
        if (r < n)
            data = *(const uint4 *)(from + (size_t)r * from_pitch + v * 8);
        *(uint4 *)(to + r * pitch + v * 8) = data;
    }
}

// delta, its running sum times A and the weights of a chunk's tokens; the first warp's work.
__device__ __forceinline__ void chunk_decays(const ssd_args &a, ssd_shared &s, size_t at, int head,
                                             int n) {
    const int lane = threadIdx.x;
    float delta[2], sum[2];
    for (int i = 0; i < 2; i++) {
        const int t = lane * 2 + i;
        delta[i] = 0;
        if (t < n) {
            const float dt = to_float(a.in[(at + t) * a.n_in + a.n_in - a.heads + head]);
            delta[i] = fminf(fmaxf(softplus(dt + a.dt_bias[head]), a.dt_min), a.dt_max);
        }
        sum[i] = delta[i] * a.decay[head];
    }
    sum[1] += sum[0];
    float inclusive = sum[1];
    for (int o = 1; o < 32; o <<= 1) {
        const float before = __shfl_up_sync(~0u, inclusive, o);
        inclusive += lane >= o ? before : 0.f;
    }
    const float end = __shfl_sync(~0u, inclusive, 31), before = inclusive - sum[1];
    for (int i = 0; i < 2; i++) {
        const int t = lane * 2 + i;
        s.sum[t] = before + sum[i];
        s.delta[t] = delta[i];
        s.weight[t] = exp2_fast(end - (before + sum[i])) * delta[i];
    }
}

// M: a warp makes 16 rows by 32 columns.
__device__ __forceinline__ void make_m(ssd_shared &s, int warp) {
    const int i0 = warp / 2 * 16, j0 = warp % 2 * 32, lane = threadIdx.x & 31;
    const int g = lane >> 2, q = lane & 3;
    float c[4][4] = {};
    if (j0 <= i0 + 15) {
        for (int k = 0; k < SSD_N; k += 16) {
            uint32_t a[4], b[4];
            load_a(a, &s.c[i0][k], PITCH_N);
            for (int j = 0; j < 2; j++) {
                load_b(b, &s.b[j0 + j * 16][k], PITCH_N);
                mma_pair(c[2 * j], c[2 * j + 1], a, b);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = i0 + g + h * 8, column = j0 + j * 8 + 2 * q;
            float v[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int t = column + k;
                v[k] = t <= row ? c[j][2 * h + k] * exp2_fast(s.sum[row] - s.sum[t]) * s.delta[t]
                                : 0.f;
            }
            *(uint32_t *)&s.m[row][column] = pack_bf16(v[0], v[1]);
        }
    }
}

// y of a chunk: a warp makes 16 tokens by 32 of the head's channels.
__device__ __forceinline__ void make_y(const ssd_args &a, ssd_shared &s, int warp, size_t at,
                                       int head, int n) {
    const int i0 = warp / 2 * 16, p0 = warp % 2 * 32, lane = threadIdx.x & 31;
    const int g = lane >> 2, q = lane & 3;
    float c[4][4] = {};
    for (int k = 0; k < SSD_N; k += 16) {
        uint32_t f[4], b[4];
        load_a(f, &s.c[i0][k], PITCH_N);
        for (int j = 0; j < 2; j++) {
            load_b(b, &s.s[p0 + j * 16][k], PITCH_N);
            mma_pair(c[2 * j], c[2 * j + 1], f, b);
        }
    }
    const float scale[2] = {exp2_fast(s.sum[i0 + g]), exp2_fast(s.sum[i0 + g + 8])};
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            c[j][k] *= scale[k / 2];
    }
    for (int k = 0; k <= i0; k += 16) {
        uint32_t f[4], b[4];
        load_a(f, &s.m[i0][k], PITCH_Q);
        for (int j = 0; j < 2; j++) {
            load_b_transposed(b, &s.x[k][p0 + j * 16], PITCH_P);
            mma_pair(c[2 * j], c[2 * j + 1], f, b);
        }
    }
    const float skip = a.skip[head];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = i0 + g + h * 8;
        if (t >= n)
            continue;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int p = p0 + j * 8 + 2 * q, channel = head * SSD_P + p;
            const uint32_t z = *(const uint32_t *)(a.in + (at + t) * a.n_in + channel);
            const uint32_t x = *(const uint32_t *)&s.x[t][p];
            const float low = (c[j][2 * h] + skip * low_half(x)) * silu(low_half(z));
            const float high = (c[j][2 * h + 1] + skip * high_half(x)) * silu(high_half(z));
            *(uint32_t *)(a.y + (at + t) * a.d_inner + channel) = pack_bf16(low, high);
        }
    }
}

template <class S>
__global__ void __launch_bounds__(SSD_THREADS) ssd_kernel(ssd_args a, const span *spans) {
    extern __shared__ __align__(16) char memory[];
    ssd_shared &s = *(ssd_shared *)memory;
    const int head = blockIdx.x, group = head / (a.heads / a.groups);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
    const span sp = spans[blockIdx.y];
    const int p0 = warp / 2 * 16, n0 = warp % 2 * 64; // this warp's part of the state
    S *state =
        (S *)a.state + (((size_t)sp.slot * a.heads + head) * SSD_P + p0 + g) * SSD_N + n0 + 2 * q;
    float h[8][4] = {};
    if (!sp.fresh) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int k = 0; k < 4; k++)
                h[j][k] = to_float(state[(k / 2) * 8 * SSD_N + j * 8 + k % 2]);
        }
    }
    for (int done = 0; done < sp.count; done += SSD_Q) {
        const int n = min((int)SSD_Q, sp.count - done);
        const size_t at = (size_t)sp.first + done;
        const bf16 *row = a.xc + at * a.conv_dim;
        load_rows<SSD_P>(&s.x[0][0], PITCH_P, row + head * SSD_P, a.conv_dim, n);
        load_rows<SSD_N>(&s.b[0][0], PITCH_N, row + a.d_inner + group * SSD_N, a.conv_dim, n);
        load_rows<SSD_N>(&s.c[0][0], PITCH_N, row + a.d_inner + (a.groups + group) * SSD_N,
                         a.conv_dim, n);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            *(uint32_t *)&s.s[p0 + g][n0 + j * 8 + 2 * q] = pack_bf16(h[j][0], h[j][1]);
            *(uint32_t *)&s.s[p0 + g + 8][n0 + j * 8 + 2 * q] = pack_bf16(h[j][2], h[j][3]);
        }
        if (warp == 0)
            chunk_decays(a, s, at, head, n);
        __syncthreads();
        make_m(s, warp);
        for (int i = threadIdx.x; i < SSD_Q * SSD_P / 2; i += SSD_THREADS) {
            const int t = i / (SSD_P / 2), p = i % (SSD_P / 2) * 2;
            const uint32_t x = *(const uint32_t *)&s.x[t][p];
            *(uint32_t *)&s.xw[t][p] =
                pack_bf16(low_half(x) * s.weight[t], high_half(x) * s.weight[t]);
        }
        __syncthreads();
        make_y(a, s, warp, at, head, n);
        const float decay = exp2_fast(s.sum[SSD_Q - 1]);
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int k = 0; k < 4; k++)
                h[j][k] *= decay;
        }
        for (int k = 0; k < SSD_Q; k += 16) {
            uint32_t f[4], b[4];
            load_a_transposed(f, &s.xw[k][p0], PITCH_P);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                load_b_transposed(b, &s.b[k][n0 + j * 16], PITCH_N);
                mma_pair(h[2 * j], h[2 * j + 1], f, b);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int k = 0; k < 4; k++)
            state[(k / 2) * 8 * SSD_N + j * 8 + k % 2] = from_float<S>(h[j][k]);
    }
}

bool ssd_fits(const device *d) {
    const ssm_geometry &g = d->g;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch >= 80 && g.head_dim == SSD_P &&
           g.d_state == SSD_N && g.conv_dim % 8 == 0 && d->n_in % 2 == 0;
}

cudaError_t ssd_scan(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    ssd_args a = {};
    a.decay = w.decay, a.skip = w.skip, a.dt_bias = w.dt_bias;
    a.xc = (const bf16 *)d->xc, a.in = (const bf16 *)d->xz, a.y = (bf16 *)d->y;
    const size_t slots = (size_t)d->n_slots * g.d_inner * g.d_state;
    a.state = (char *)d->state + (size_t)layer * slots * type_bytes(d->state_type);
    a.heads = g.n_heads, a.groups = g.n_groups, a.d_inner = g.d_inner;
    a.conv_dim = g.conv_dim, a.n_in = d->n_in, a.dt_min = g.dt_min, a.dt_max = g.dt_max;
    const dim3 grid((unsigned)g.n_heads, (unsigned)b.n_spans);
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        const int shared = (int)sizeof(ssd_shared);
        const cudaError_t rc = cudaFuncSetAttribute(
            ssd_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
        return rc ? rc
                  : launch(d, ssd_kernel<S>, grid, SSD_THREADS, (size_t)shared, false, a, b.spans);
    });
}

} // namespace ssm
