// SPDX-License-Identifier: Apache-2.0
// Mamba-1 over many tokens of some sequences, in bf16 with 16 states: the tuned scan. Its other
// shapes and types are scan_any.cu's.
//
// Sequential in time, parallel over channels and states: any cut of a prompt at tile boundaries
// gives the same bits. A tile is 16 tokens; a lane owns 4 states each of two channels, four lanes a
// pair of channels, a warp 16 channels, a block 64. So a token costs a lane three 16-byte reads of
// shared memory (B, C, and delta and delta x of both channels) for eight states: with one channel
// and eight states a lane they took as long as the exponentials. Sums of two tokens and two
// channels become one a lane by halving and exchanging; that lane applies D and the gate.
//
// Floor: the special unit, 16 exponentials a token and channel and 4 for softplus and SiLU, at 16 a
// clock and SM: 56 us a layer for 2,048 tokens of 5,120 channels on an H200. Issue slots come next
// (some 73 instructions a token and warp); bytes, at 8 a token and channel, are far below.
//
// Ladder, us a layer, 2,048 tokens of 2.8b, 8 prompts / 1 prompt (local and final pass):
//   a channel and 8 states a lane, 2 blocks an SM       142 / 107 + 142
//   two channels, 4 states a lane (predicted 75)        125 / 95 + 130
//   + five blocks an SM, one buffer                     109 / 85 + 118
//   + the pairs' places swapped by row                  109
// Read by ncu: shared memory's pipe is busy 78% of the cycles, the special unit 51%. A 16-byte read
// that all lanes share still takes four cycles; dt_proj's products are a third of them.
//
// With too few sequences to fill the card a span is cut into pieces: local scans from zero leave
// end state and sum of delta, a carry pass chains them (the decay of a piece is exp2(A sum delta)),
// final scans start from the carried state. That costs the exponentials twice.
#include "mamba.cuh"

namespace ssm {

enum {
    SCAN_THREADS = 128,
    SCAN_CHANNELS = 64,
    SCAN_STATES = 16,
    SCAN_BLOCKS = 5 // an SM
};

struct scan_shared {
    char *dt_proj; // [channels] rows of weight_pitch bytes
    float4 *pair;  // [TILE][channels / 2] delta of two channels, delta x of both
    float *xdb;    // [buffers][TILE][xdb_pitch]
    bf16 *x, *z;   // [buffers][TILE][channels]; x becomes y
};

static size_t scan_bytes(int rank, int n_x, int buffers) {
    return (size_t)SCAN_CHANNELS * weight_pitch(rank) + TILE * SCAN_CHANNELS * sizeof(float2) +
           (size_t)buffers * TILE *
               (xdb_pitch(n_x) * sizeof(float) + 2 * SCAN_CHANNELS * sizeof(bf16));
}

__device__ __forceinline__ scan_shared carve_scan(char *p, int rank, int n_x, int buffers) {
    scan_shared s;
    s.dt_proj = p, p += SCAN_CHANNELS * weight_pitch(rank);
    s.pair = (float4 *)p, p += TILE * SCAN_CHANNELS * sizeof(float2);
    s.xdb = (float *)p, p += buffers * TILE * xdb_pitch(n_x) * sizeof(float);
    s.x = (bf16 *)p, p += buffers * TILE * SCAN_CHANNELS * sizeof(bf16);
    s.z = (bf16 *)p;
    return s;
}

// Where a warp's pair i of token r lies: rows' places differ, so that a column of rows, which is
// what the matrix instruction leaves in eight lanes, does not fall into one bank.
__device__ __forceinline__ int pair_at(int r, int i) {
    return r * (SCAN_CHANNELS / 2) + (i ^ (r & 3) << 1);
}

// x, z and x_proj's sums of the n token rows from `at` on, zeros after them; asynchronous.
template <bool Z>
__device__ __forceinline__ void fetch_tile(const mamba_args &a, const scan_shared &s, int buffer,
                                           int at, int n, int first) {
    constexpr int A_ROW = SCAN_THREADS / TILE; // threads
    static_assert(A_ROW * 8 == SCAN_CHANNELS, "a vector of x a thread");
    const int r = threadIdx.x / A_ROW, t = threadIdx.x % A_ROW;
    const size_t row = (size_t)at + (r < n ? r : 0);
    const bool live = r < n && first + t * 8 < a.channels;
    const size_t column = live ? first + t * 8 : 0;
    const int to = (buffer * TILE + r) * SCAN_CHANNELS + t * 8;
    copy_async(s.x + to, (const bf16 *)a.x + row * a.channels + column, live);
    if (Z)
        copy_async(s.z + to, (const bf16 *)a.xz + (row * 2 + 1) * a.channels + column, live);
    float *xdb = s.xdb + (buffer * TILE + r) * xdb_pitch(a.n_x);
    for (int v = t; v < a.n_x / 4; v += A_ROW)
        copy_async(xdb + v * 4, a.xdb + row * a.n_x + v * 4, r < n);
    copies_commit();
}

// delta and delta x of a tile for the warp's channels; past the n-th token 0, which changes no
// state.
__device__ __forceinline__ void make_pairs(const mamba_args &a, const scan_shared &s,
                                           const float *xdb, const bf16 *x_tile, float4 *pair,
                                           int n, float2 bias) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    delta_of_warp<2>(a, s.dt_proj + warp * 16 * weight_pitch(a.rank), xdb, xdb_pitch(a.n_x),
                     [&](int r, int c, float v0, float v1) {
                         *(float2 *)&pair[pair_at(r, c / 2)] = make_float2(v0, v1);
                     });
    __syncwarp();
#pragma unroll
    for (int r = lane / 8; r < TILE; r += 4) {
        float4 &p = pair[pair_at(r, lane % 8)];
        const float2 before = *(const float2 *)&p;
        const uint32_t x = *(const uint32_t *)(x_tile + r * SCAN_CHANNELS + lane % 8 * 2);
        const float d0 = r < n ? softplus(before.x + bias.x) : 0.f;
        const float d1 = r < n ? softplus(before.y + bias.y) : 0.f;
        p = make_float4(d0, d1, d0 * low_half(x), d1 * high_half(x));
    }
    __syncwarp();
}

// One token: two channels' states move on, their sums of h C are returned (not in a local pass).
template <int PASS>
__device__ __forceinline__ float2 scan_token(float (&h)[2][4], const float (&decay)[2][4],
                                             const float4 &p, const float *bc) {
    float b[4], c[4];
    float2 y = {0, 0};
    load<4>(bc, b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        h[0][i] = exp2_fast(p.x * decay[0][i]) * h[0][i] + p.z * b[i];
        h[1][i] = exp2_fast(p.y * decay[1][i]) * h[1][i] + p.w * b[i];
    }
    if (PASS != SCAN_LOCAL) {
        load<4>(bc + SCAN_STATES, c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            y.x += h[0][i] * c[i], y.y += h[1][i] * c[i];
    }
    return y;
}

// Four values of each of four lanes to one sum a lane: lane q gets value q.
__device__ __forceinline__ float exchange4(const float (&v)[4], int q) {
    const bool two = q & 2, one = q & 1;
    float keep0 = two ? v[2] : v[0], keep1 = two ? v[3] : v[1];
    keep0 += __shfl_xor_sync(~0u, two ? v[0] : v[2], 2);
    keep1 += __shfl_xor_sync(~0u, two ? v[1] : v[3], 2);
    return (one ? keep1 : keep0) + __shfl_xor_sync(~0u, one ? keep0 : keep1, 1);
}

// carry [piece][N + 1][channels]: end state of a local scan (then: the state that the piece begins
// with) and the sum of delta.
template <class S, int PASS>
__global__ void __launch_bounds__(SCAN_THREADS, SCAN_BLOCKS)
    scan_kernel(mamba_args a, const span *spans, const piece *pieces, float *carry, int buffers) {
    extern __shared__ __align__(16) char memory[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3;
    const int first = blockIdx.x * SCAN_CHANNELS, c = lane / 4 * 2; // of the warp's channels
    const int mine = first + warp * 16, channel = mine + c;
    const bool live = channel < a.channels; // channels are even in number
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    const bool last = p.first + p.count == sp.first + sp.count;
    if (PASS == SCAN_LOCAL && last)
        return; // nothing follows from its end
    const scan_shared s = carve_scan(memory, a.rank, a.n_x, buffers);
    float *kept = carry + ((size_t)p.index * (SCAN_STATES + 1) + q * 4) * a.channels + channel;
    S *state = (S *)a.state + ((size_t)sp.slot * a.channels + channel) * SCAN_STATES + q * 4;

    stage_dt_proj(a, s.dt_proj, first, SCAN_CHANNELS);
    fetch_tile<PASS != SCAN_LOCAL>(a, s, 0, p.first, min((int)TILE, p.count), first);
    float decay[2][4] = {}, h[2][4] = {}, skip = 0;
    float2 bias = {0, 0}, sum = {0, 0};
    if (mine + lane % 8 * 2 < a.channels)
        bias = *(const float2 *)(a.dt_bias + mine + lane % 8 * 2);
    if (live) {
        skip = a.skip[channel + (q & 1)];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            load<4>(a.decay + (size_t)(channel + k) * SCAN_STATES + q * 4, decay[k]);
            if (PASS == SCAN_WHOLE && !sp.fresh)
                load<4>(state + k * SCAN_STATES, h[k]);
            if (PASS == SCAN_FINAL) {
#pragma unroll
                for (int i = 0; i < 4; i++)
                    h[k][i] = kept[(size_t)i * a.channels + k];
            }
        }
    }
    for (int t = 0, buffer = 0; t < p.count; t += TILE) {
        const int n = min((int)TILE, p.count - t), at = p.first + t, pitch = xdb_pitch(a.n_x);
        copies_wait();
        __syncthreads(); // this tile is there, and nobody reads the other buffer any more
        auto fetch_next = [&] {
            if (t + TILE < p.count)
                fetch_tile<PASS != SCAN_LOCAL>(a, s, buffer, at + TILE,
                                               min((int)TILE, p.count - t - TILE), first);
        };
        const float *xdb = s.xdb + buffer * TILE * pitch;
        bf16 *x_tile = s.x + buffer * TILE * SCAN_CHANNELS + warp * 16;
        const bf16 *z_tile = s.z + buffer * TILE * SCAN_CHANNELS + warp * 16;
        float4 *pair = s.pair + warp * 8;
        buffer ^= buffers - 1;
        if (buffers == 2)
            fetch_next();
        make_pairs(a, s, xdb, x_tile, pair, n, bias);
        const float *bc = xdb + a.rank + q * 4;
#pragma unroll 4
        for (int r = 0; r < TILE; r += 2, bc += 2 * pitch) {
            const float4 p0 = pair[pair_at(r, lane / 4)];
            const float4 p1 = pair[pair_at(r + 1, lane / 4)];
            const float2 y0 = scan_token<PASS>(h, decay, p0, bc);
            const float2 y1 = scan_token<PASS>(h, decay, p1, bc + pitch);
            if (PASS == SCAN_LOCAL) {
                sum.x += p0.x + p1.x, sum.y += p0.y + p1.y;
                continue;
            }
            const float v[4] = {y0.x, y0.y, y1.x, y1.y};
            const float y = exchange4(v, q);
            const int to = (r + (q >> 1)) * SCAN_CHANNELS + c + (q & 1);
            const float x = to_float(x_tile[to]), z = to_float(z_tile[to]);
            x_tile[to] = from_float<bf16>((y + skip * x) * silu(z));
        }
        if (PASS != SCAN_LOCAL) {
            __syncwarp();
            const int r = lane / 2, part = lane % 2 * 8;
            if (r < n && mine + part < a.channels)
                *(uint4 *)((bf16 *)a.y + (size_t)(at + r) * a.channels + mine + part) =
                    *(const uint4 *)(x_tile + r * SCAN_CHANNELS + part);
        }
        if (buffers == 1) {
            __syncthreads(); // nobody reads the buffer any more
            fetch_next();
        }
    }
    if (!live)
        return;
    if (PASS == SCAN_LOCAL) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            *(float2 *)(kept + (size_t)i * a.channels) = make_float2(h[0][i], h[1][i]);
        if (q == 0)
            *(float2 *)(kept + (size_t)SCAN_STATES * a.channels) = sum;
    } else if (last) {
        store<4>(state, h[0]);
        store<4>(state + SCAN_STATES, h[1]);
    }
}

// Chains the pieces of each span: a piece's end state becomes the state that it begins with.
template <class S>
__global__ void __launch_bounds__(SCAN_THREADS)
    carry_kernel(mamba_args a, const span *spans, float *__restrict__ carry) {
    constexpr int AHEAD = 8, N = SCAN_STATES;
    const int channel = blockIdx.x * SCAN_THREADS + threadIdx.x, v = blockIdx.z;
    if (channel >= a.channels)
        return;
    const span sp = spans[blockIdx.y];
    const float decay = a.decay[(size_t)channel * N + v];
    const size_t pitch = (size_t)(N + 1) * a.channels;
    const S *state = (const S *)a.state + ((size_t)sp.slot * a.channels + channel) * N + v;
    float *p = carry + (size_t)sp.first_piece * pitch + channel;
    float h = sp.fresh ? 0.f : to_float(*state);
    for (int k = 0; k < sp.n_pieces; k += AHEAD) {
        float end[AHEAD], sum[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const float *at = p + (size_t)min(k + i, sp.n_pieces - 1) * pitch;
            end[i] = at[(size_t)v * a.channels], sum[i] = at[(size_t)N * a.channels];
        }
#pragma unroll
        for (int i = 0; i < AHEAD && k + i < sp.n_pieces; i++) {
            p[(size_t)(k + i) * pitch + (size_t)v * a.channels] = h;
            h = exp2_fast(sum[i] * decay) * h + end[i];
        }
    }
}

static bool fits(const device *d) {
    const ssm_geometry &g = d->g;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch >= 80 && g.d_state == SCAN_STATES &&
           g.dt_rank % 8 == 0 && g.dt_rank <= 256 && g.d_inner % 8 == 0;
}

template <class S>
static cudaError_t pass_over(device *d, int layer, const batch &b, scan_pass pass) {
    if (!fits(d))
        return mamba_scan_any(d, layer, b, pass);
    const mamba_args a = mamba_arguments(d, layer, 1);
    auto kernel = pass == SCAN_WHOLE   ? scan_kernel<S, SCAN_WHOLE>
                  : pass == SCAN_LOCAL ? scan_kernel<S, SCAN_LOCAL>
                                       : scan_kernel<S, SCAN_FINAL>;
    const dim3 grid((unsigned)ceil_div(a.channels, SCAN_CHANNELS), (unsigned)b.n_pieces);
    // A second buffer where it does not cost a block an SM.
    const size_t most = (size_t)(228 / SCAN_BLOCKS - 1) << 10;
    const int buffers = scan_bytes(a.rank, a.n_x, 2) <= most ? 2 : 1;
    const size_t shared = scan_bytes(a.rank, a.n_x, buffers);
    const cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return rc ? rc
              : launch(d, kernel, grid, SCAN_THREADS, shared, false, a, b.spans, b.pieces, d->carry,
                       buffers);
}

template <class S> static cudaError_t scan_run(device *d, int layer, const batch &b) {
    if (!b.split)
        return pass_over<S>(d, layer, b, SCAN_WHOLE);
    const mamba_args a = mamba_arguments(d, layer, 1);
    const dim3 grid((unsigned)ceil_div(a.channels, SCAN_THREADS), (unsigned)b.n_spans, SCAN_STATES);
    cudaError_t rc = pass_over<S>(d, layer, b, SCAN_LOCAL);
    if (rc == cudaSuccess)
        rc = launch(d, carry_kernel<S>, grid, SCAN_THREADS, 0, false, a, b.spans, d->carry);
    return rc ? rc : pass_over<S>(d, layer, b, SCAN_FINAL);
}

cudaError_t mamba_scan(device *d, int layer, const batch &b) {
    return with_state_type(d->state_type,
                           [&](auto s) { return scan_run<decltype(s)>(d, layer, b); });
}

} // namespace ssm
