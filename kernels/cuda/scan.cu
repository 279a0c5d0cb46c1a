// SPDX-License-Identifier: Apache-2.0
// Mamba-1 over many tokens of some sequences, in bf16 with 16 states: the tuned scan. Its other
// shapes and types are scan_any.cu's.
//
// Sequential in time, parallel over channels and states, 16 tokens a tile. Four lanes share C
// channels and own 4 states of each; a warp has 8 C channels (k * 8 + its quad), a block of four
// warps 32 C. dt_proj's products come out of the matrix units with a lane's channels in its own
// registers: softplus and the times x happen there, delta and delta x cross to the scan through
// shared memory as four numbers of two channels. Then a token costs a lane one read of B, one of C
// and C / 2 of those for 4 C states, and what four tokens come to is exchanged among the four
// lanes, so that each applies D and the gate to one token of every channel.
//
// Floor: the special unit, 16 exponentials a token and channel and 4 for softplus and SiLU, at 16 a
// clock and SM: 56 us a layer for 2,048 tokens of 5,120 channels on an H200. Instructions come
// next, bytes, at 8 a token and channel, are far below.
//
// C: many channels a lane read less and compute more between two waits, few give more warps: 5 for
// large models, 2 or 1 where those would leave schedulers empty (choose). Read by ncu at C 5: the
// special unit is busy 59% of the cycles, instructions are issued in 62%, with two warps a
// scheduler.
//
// Ladder, us a layer on an H200, 2.8b 8 / 1 prompts of 2,048, 130m 8 / 1:
//   a channel and 8 states a lane, 2 blocks an SM        1136 / 249
//   two channels, 4 states, five blocks an SM            875 / 209      432 / 68
//   + C channels by the products' layout, one pass over  888 / 228      414 / 70
//     delta (C 5; 130m C 2)
//   + softplus without branches: 20 of them had run one  782 / 187      374 / 67
//     after the other
//   + addresses once a piece                             767 / 182
//   + dt's loads without branches: the compiler waited   762 / 190      323 / 63
//     for each where it stood; 130m in eight at C 1 (H100)
// Tried and dropped: a share of the exponentials by a polynomial on the FMA pipe, -2% in pieces
// alone, +2% in whole scans (instructions bind as much); the gate of four tokens one round later,
// +3% at C 5; eight or 16 tokens unrolled, +2% and +15% (instruction cache).
//
// With too few sequences to fill the card prompts are cut into pieces (pieces.cu), whose ends cost
// the exponentials twice. Where that or a whole scan takes longer, scan_roles.cu's kernel is used:
// which is decided by the model and the number of prompts alone.
#include "scan.cuh"

namespace ssm {

enum { WARPS = 4, THREADS = WARPS * 32, STATES = SCAN_STATES, A_ROW = THREADS / TILE };

// Shared memory of a block, in this order. x becomes y; its and z's tiles have spare rows above.
template <int C> struct scan_layout {
    static constexpr int CHANNELS = WARPS * 8 * C;
    static constexpr int PITCH = CHANNELS + 8; // of x and z: rows apart by 16 bytes in banks
    static constexpr int PAIRS = TILE * 8 * C; // a warp's delta and delta x

    static size_t bytes(int rank) {
        return (size_t)(CHANNELS + 2 * TILE) * weight_pitch(rank) + WARPS * PAIRS * 8 +
               2 * TILE * (2 * PITCH * sizeof(bf16) + 2 * STATES * sizeof(float));
    }
};

// delta and delta x of a tile; past the n-th token 0, which changes no state. dt, w: this lane's
// row of the tile's dt and of the warp's dt_proj.
template <int C>
__device__ __forceinline__ void make_pairs(const scan_pairs<C> &to, const char *dt, const char *w,
                                           const bf16 *x_tile, int pitch, int x_pitch, int rank,
                                           int n, const float2 (&bias)[C]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float c[C][4];
#pragma unroll
    for (int k = 0; k < C; k++)
        c[k][0] = c[k][2] = bias[k].x, c[k][1] = c[k][3] = bias[k].y;
    for (int at = q * 16; at < rank * 2 + q * 16; at += 64) { // rows end in zeros
        const uint4 lo = *(const uint4 *)(dt + at), hi = *(const uint4 *)(dt + 8 * pitch + at);
#pragma unroll
        for (int k = 0; k < C; k++) {
            const uint4 b = *(const uint4 *)(w + k * 8 * pitch + at);
            mma(c[k], lo.x, hi.x, lo.y, hi.y, b.x, b.y);
            mma(c[k], lo.z, hi.z, lo.w, hi.w, b.z, b.w);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int r = g + half * 8;
        float d[2][C], dx[2][C];
#pragma unroll
        for (int k = 0; k < C; k++) {
            const uint32_t x = *(const uint32_t *)(x_tile + r * x_pitch + k * 8 + 2 * q);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                d[i][k] = softplus_straight(r < n ? c[k][half * 2 + i] : -1e30f);
                dx[i][k] = d[i][k] * (i == 0 ? low_half(x) : high_half(x));
            }
        }
        to.put(r, 2 * q, d[0], dx[0]);
        to.put(r, 2 * q + 1, d[1], dx[1]);
    }
}

// One piece of a prompt. Y: with outputs, from the true state; otherwise its end alone, from zero.
// carry [piece][N + 1][channels]: such ends and the sums of delta. DT: vectors of dt a thread.
template <class S, bool Y, int C, int DT>
__device__ __forceinline__ void scan_piece(const mamba_args &a, const span &sp, const piece &p,
                                           float *carry, char *memory) {
    typedef scan_layout<C> L;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int first = blockIdx.x * L::CHANNELS, mine = first + warp * 8 * C;
    const int pitch = weight_pitch(a.rank);
    const bool begins = p.index == sp.first_piece, ends = p.first + p.count == sp.first + sp.count;
    char *w = memory, *dts = w + L::CHANNELS * pitch;
    char *pair_memory = dts + 2 * TILE * pitch;
    const scan_pairs<C> pair((float *)(pair_memory + warp * L::PAIRS * 8));
    bf16 *xs = (bf16 *)(pair_memory + WARPS * L::PAIRS * 8), *zs = xs + 2 * TILE * L::PITCH;
    float *bcs = (float *)(zs + 2 * TILE * L::PITCH);

    stage_dt_proj(a, w, first, L::CHANNELS);
    const int pad = (32 - a.rank % 32) % 32 / 8; // vectors of zeros behind each row
    for (int i = threadIdx.x; i < (L::CHANNELS + 2 * TILE) * pad; i += THREADS)
        *(uint4 *)(w + i / pad * pitch + a.rank * 2 + i % pad * 16) = make_uint4(0, 0, 0, 0);

    // What a thread fetches of each tile: C vectors of x and z a row and warp, B and C, dt.
    constexpr int VECTORS = (C + 1) / 2;
    int row[VECTORS], to[VECTORS];
    uint32_t from[VECTORS];
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
        const int i = lane + 32 * j, r = i / C, v = i % C;
        const bool live = r < TILE && mine + v * 8 < a.channels;
        row[j] = live ? r : TILE;
        from[j] = live ? (uint32_t)(p.first + r) * a.channels + mine + v * 8 : 0;
        to[j] = (live ? r : 0) * L::PITCH + warp * 8 * C + v * 8;
    }
    auto fetch = [&](int buffer, int at, int n) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            const bool live = row[j] < n;
            const uint32_t x = live ? from[j] : 0;
            const uint32_t z = live ? x + (uint32_t)(at + row[j] + 1) * a.channels : 0;
            if (C % 2 == 0 || lane + 32 * j < TILE * C) {
                copy_async(xs + buffer * TILE * L::PITCH + to[j], (const bf16 *)a.x + x, live);
                if (Y)
                    copy_async(zs + buffer * TILE * L::PITCH + to[j], (const bf16 *)a.xz + z, live);
            }
            from[j] += TILE * a.channels;
        }
        const int r = threadIdx.x / 8, v = threadIdx.x % 8;
        static_assert(THREADS == TILE * 8, "a vector of B and C a thread");
        copy_async(bcs + (buffer * TILE + r) * 2 * STATES + v * 4,
                   a.xdb + (uint32_t)(at + (r < n ? r : 0)) * a.n_x + a.rank + v * 4, r < n);
        copies_commit();
    };
    const int dt_row = threadIdx.x / A_ROW, dt_at = threadIdx.x % A_ROW * 4;
    float4 dt[DT];
    auto dt_load = [&](int at, int n) { // no branch: the compiler would wait for it there
        const float *line = a.xdb + (uint32_t)(at + (dt_row < n ? dt_row : 0)) * a.n_x;
#pragma unroll
        for (int j = 0; j < DT; j++)
            dt[j] = *(const float4 *)(line + min(dt_at + j * A_ROW * 4, a.rank - 4));
    };
    auto dt_store = [&](int buffer) {
#pragma unroll
        for (int j = 0; j < DT; j++) {
            const int v = dt_at + j * A_ROW * 4;
            if (v < a.rank)
                *(uint2 *)(dts + (buffer * TILE + dt_row) * pitch + v * 2) =
                    make_uint2(pack_bf16(dt[j].x, dt[j].y), pack_bf16(dt[j].z, dt[j].w));
        }
    };
    fetch(0, p.first, min((int)TILE, p.count));
    dt_load(p.first, min((int)TILE, p.count));
    dt_store(0);

    float decay[C][4] = {}, h[C][4] = {}, skip[C] = {}, sum[C] = {};
    float2 bias[C] = {};
    const size_t carry_pitch = (size_t)(STATES + 1) * a.channels;
#pragma unroll
    for (int k = 0; k < C; k++) {
        const int channel = mine + k * 8 + g;
        if (mine + k * 8 >= a.channels)
            continue;
        skip[k] = a.skip[channel];
        bias[k] = *(const float2 *)(a.dt_bias + mine + k * 8 + 2 * q);
        load<4>(a.decay + (size_t)channel * STATES + q * 4, decay[k]);
        if (Y && begins && !sp.fresh)
            load<4>((S *)a.state + ((size_t)sp.slot * a.channels + channel) * STATES + q * 4, h[k]);
        for (int j = sp.first_piece; Y && j < p.index; j++) {
            const float *end = carry + j * carry_pitch + channel;
#pragma unroll
            for (int i = 0; i < 4; i++)
                h[k][i] = exp2_fast(end[(size_t)STATES * a.channels] * decay[k][i]) * h[k][i] +
                          end[(size_t)(q * 4 + i) * a.channels];
        }
    }
    for (int t = 0, buffer = 0; t < p.count; t += TILE, buffer ^= 1) {
        const int n = min((int)TILE, p.count - t), at = p.first + t;
        const bool more = t + TILE < p.count;
        copies_wait();
        __syncthreads(); // this tile is there, and nobody reads the other buffer any more
        if (more) {
            fetch(buffer ^ 1, at + TILE, min((int)TILE, p.count - t - TILE));
            dt_load(at + TILE, min((int)TILE, p.count - t - TILE));
        }
        bf16 *x_tile = xs + buffer * TILE * L::PITCH + warp * 8 * C;
        const bf16 *z_tile = zs + buffer * TILE * L::PITCH + warp * 8 * C;
        make_pairs<C>(pair, dts + (buffer * TILE + g) * pitch, w + (warp * 8 * C + g) * pitch,
                      x_tile, pitch, L::PITCH, a.rank, n, bias);
        __syncwarp();
        const float *bc = bcs + buffer * TILE * 2 * STATES + q * 4;
#pragma unroll 1
        for (int r0 = 0; r0 < TILE; r0 += 4) {
            float y[C][4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float d[C], dx[C], b[4], c[4];
                pair.get(r0 + j, g, d, dx);
                load<4>(bc + (r0 + j) * 2 * STATES, b);
                if (Y)
                    load<4>(bc + (r0 + j) * 2 * STATES + STATES, c);
#pragma unroll
                for (int k = 0; k < C; k++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        h[k][i] = exp2_fast(d[k] * decay[k][i]) * h[k][i] + dx[k] * b[i];
                        if (Y)
                            y[k][j] = i == 0 ? h[k][0] * c[0] : y[k][j] + h[k][i] * c[i];
                    }
                    if (!Y)
                        sum[k] += d[k];
                }
            }
#pragma unroll
            for (int k = 0; Y && k < C; k++) {
                const int here = (r0 + q) * L::PITCH + k * 8 + g;
                const float x = to_float(x_tile[here]), z = to_float(z_tile[here]);
                x_tile[here] = from_float<bf16>((exchange4<1, 2>(y[k], q) + skip[k] * x) * silu(z));
            }
        }
        if (more)
            dt_store(buffer ^ 1);
        __syncwarp();
#pragma unroll
        for (int j = 0; Y && j < VECTORS; j++) {
            const int i = lane + 32 * j, r = i / C, v = i % C;
            if (r < n && mine + v * 8 < a.channels)
                *(uint4 *)((bf16 *)a.y + (size_t)(at + r) * a.channels + mine + v * 8) =
                    *(const uint4 *)(x_tile + r * L::PITCH + v * 8);
        }
    }
#pragma unroll
    for (int k = 0; k < C; k++) {
        const int channel = mine + k * 8 + g;
        if (mine + k * 8 >= a.channels)
            continue;
        if (ends) {
            store<4>((S *)a.state + ((size_t)sp.slot * a.channels + channel) * STATES + q * 4,
                     h[k]);
        } else if (!Y || begins) {
            float *end = carry + p.index * carry_pitch + channel;
#pragma unroll
            for (int i = 0; i < 4; i++)
                end[(size_t)(q * 4 + i) * a.channels] = h[k][i];
            if (q == 0)
                end[(size_t)STATES * a.channels] = sum[k];
        }
    }
}

template <class S, scan_pass PASS, int C, int DT, int BLOCKS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    scan_kernel(mamba_args a, const span *spans, const piece *pieces, float *carry) {
    extern __shared__ __align__(16) char memory[];
    dependents_start();
    const piece p = pieces[blockIdx.y];
    const span sp = spans[p.span];
    dependency_wait();
    if (PASS == SCAN_WHOLE || (p.index == sp.first_piece) == (PASS == SCAN_FIRST))
        scan_piece<S, true, C, DT>(a, sp, p, carry, memory);
    else if (PASS == SCAN_FIRST && p.first + p.count != sp.first + sp.count)
        scan_piece<S, false, C, DT>(a, sp, p, carry, memory);
}

// ---- host side

bool scan_fits(const device *d) {
    const ssm_geometry &g = d->g;
    return d->weight_type == SSM_DTYPE_BF16 && d->arch >= 80 && g.d_state == STATES &&
           g.dt_rank % 8 == 0 && g.dt_rank <= 256 && g.d_inner % 8 == 0;
}

// Blocks an SM, by registers and shared memory.
static constexpr int blocks_a_sm(int c) {
    return c == 5 ? 2 : c == 2 ? 3 : 4;
}
static int32_t blocks_of(const device *d, int c) {
    return ceil_div(d->g.d_inner, WARPS * 8 * c);
}

// C. Whole prompts: 5 if that fills the card twice over every scheduler, else the one that fills
// it. Pieces fill it by themselves.
static int choose(const device *d, int32_t n_spans, bool split) {
    const bool high_rank = d->g.dt_rank > 160; // dt and dt_proj take 5's room
    if (split)
        return d->g.d_inner >= 4096 && !high_rank ? 5 : 2;
    const int32_t n = d->n_sms;
    if (!high_rank && n_spans * blocks_of(d, 5) * 20 >= blocks_a_sm(5) * n * 17)
        return 5;
    return high_rank || n_spans * blocks_of(d, 2) * 5 >= blocks_a_sm(2) * n * 3 ? 2 : 1;
}

// Cycles a token of these kernels, roughly: 40 in pieces, 19 to 24 in whole prompts, for each 8
// channels of an SM.
static float cycles(const device *d, int32_t n_spans, const grain &g) {
    const float a_group = n_spans * g.blocks < g.enough    ? 40
                          : choose(d, n_spans, false) == 5 ? 19
                                                           : 24;
    return a_group * (float)n_spans * (float)d->g.d_inner / (float)(8 * d->n_sms);
}

static grain grain_of(const device *d, int32_t n_spans) {
    const int c = choose(d, n_spans, true);
    const int32_t card = blocks_a_sm(c) * d->n_sms;
    return {blocks_of(d, c), card, card / 4, TILE, 4};
}

static bool in_roles(const device *d, int32_t n_spans) {
    return scan_fits(d) && scan_roles_win(d, n_spans, cycles(d, n_spans, grain_of(d, n_spans)));
}

bool scan_grain(const device *d, int32_t n_spans, grain *out) {
    if (d->g.kind == SSM_BLOCK_MAMBA2) {
        *out = {d->g.n_heads, 2 * d->n_sms, d->n_sms, 64, 2};
        return ssd_wgmma_fits(d);
    }
    if (d->g.d_state != STATES)
        return false;
    *out = grain_of(d, n_spans);
    return !in_roles(d, n_spans);
}

template <class S, int C, int DT>
static cudaError_t run(device *d, int layer, const batch &b, scan_pass pass) {
    constexpr int BLOCKS = blocks_a_sm(C);
    const mamba_args a = mamba_arguments(d, layer, 1);
    auto kernel = scan_kernel<S, SCAN_WHOLE, C, DT, BLOCKS>;
    if constexpr (C > 1) {
        kernel = pass == SCAN_FIRST   ? scan_kernel<S, SCAN_FIRST, C, DT, BLOCKS>
                 : pass == SCAN_FINAL ? scan_kernel<S, SCAN_FINAL, C, DT, BLOCKS>
                                      : kernel;
    }
    const dim3 grid((unsigned)blocks_of(d, C), (unsigned)b.n_pieces);
    const size_t shared = scan_layout<C>::bytes(a.rank);
    const cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return rc ? rc : launch(d, kernel, grid, THREADS, shared, true, a, b.spans, b.pieces, d->carry);
}

template <class S>
static cudaError_t scan_run(device *d, int layer, const batch &b, scan_pass pass) {
    if (!scan_fits(d))
        return mamba_scan_any(d, layer, b, pass);
    const int rank = d->g.dt_rank;
    switch (choose(d, b.n_spans, b.split)) {
    case 5:
        return run<S, 5, 5>(d, layer, b, pass);
    case 2:
        return rank <= 160 ? run<S, 2, 5>(d, layer, b, pass) : run<S, 2, 8>(d, layer, b, pass);
    default:
        return rank <= 64 ? run<S, 1, 2>(d, layer, b, pass) : run<S, 1, 5>(d, layer, b, pass);
    }
}

cudaError_t mamba_scan(device *d, int layer, const batch &b) {
    if (in_roles(d, b.n_spans))
        return scan_roles(d, layer, b);
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        if (!b.split)
            return scan_run<S>(d, layer, b, SCAN_WHOLE);
        const cudaError_t rc = scan_run<S>(d, layer, b, SCAN_FIRST);
        return rc ? rc : scan_run<S>(d, layer, b, SCAN_FINAL);
    });
}

} // namespace ssm
