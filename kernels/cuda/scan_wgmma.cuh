// SPDX-License-Identifier: Apache-2.0
// The kernel of scan_wgmma.cu, which has the design, by role.
#ifndef SSM_KERNELS_CUDA_SCAN_WGMMA_CUH
#define SSM_KERNELS_CUDA_SCAN_WGMMA_CUH

#include "scan.cuh"
#include "wide_hopper.cuh"

namespace ssm {

struct scan_maps { // boxes of TILE tokens and half of a block's channels, or of B and C
    CUtensorMap x, z, bc, y;
};

// A block: WARPS scan warps, the first FULL of two sets of 16 channels, the others of one; then
// TEAMS groups of four makers. K16: 16s of dt_proj's rank.
template <int FULL_, int WARPS_, int TEAMS_, int K16_> struct scan_wgmma_shape {
    static constexpr int FULL = FULL_, WARPS = WARPS_, TEAMS = TEAMS_, K16 = K16_;
    static constexpr int SET = 16, CHANNELS = (FULL + WARPS) * SET, HALF = CHANNELS / 2;
    static constexpr int STATES = SCAN_STATES / 2; // of a lane
    static constexpr int M64 = (CHANNELS + 63) / 64;
    static constexpr int TEAM = 128, THREADS = WARPS * 32 + TEAMS * TEAM;
    static_assert(WARPS % 4 == 0, "a team is a warp group");
    static_assert(HALF % (2 * SET) == 0 && HALF <= 256, "boxes");

    // Bytes of shared memory. A stage: x and z, each in halves, B and C; rows of a token.
    static constexpr int STAGES = 3, DELTAS = 2;
    static constexpr int ROW = HALF * 2, BOX = TILE * ROW, Z_AT = 2 * BOX, BC_AT = 4 * BOX;
    static constexpr int BC_ROW = 2 * SCAN_STATES * 4, STAGE = BC_AT + TILE * BC_ROW;
    // Operands of the products: 8 rows of 16 bytes behind each other, then their next 16 bytes.
    static constexpr int ROW_GROUP = 2 * K16 * 128;
    static constexpr int WEIGHTS = M64 * 8 * ROW_GROUP, DT = TILE / 8 * ROW_GROUP;
    // delta: rows of a token, 16 bytes more than their channels, so that what makers store at once
    // is in different banks.
    static constexpr int DELTA_ROW = CHANNELS * 4 + 16, DELTA = TILE * DELTA_ROW;
    static constexpr int WEIGHTS_AT = STAGES * STAGE, DT_AT = WEIGHTS_AT + WEIGHTS;
    static constexpr int DELTA_AT = DT_AT + TEAMS * DT;
    static constexpr int ZERO_AT = DELTA_AT + DELTAS * DELTA, ZEROS = 4; // rows of no delta
    static constexpr int BIAS_AT = ZERO_AT + ZEROS * DELTA_ROW;          // of dt_proj
    static constexpr int BARRIERS_AT = BIAS_AT + M64 * 64 * 4;
    static constexpr int BYTES = BARRIERS_AT + (2 * STAGES + DELTAS) * 8;
    static_assert(STAGE % 128 == 0 && BYTES <= 227 << 10, "shared memory");
};

#if SSM_HOPPER

// An operand as above, by the address of its first 16 bytes.
__device__ __forceinline__ uint64_t operand_at(uint32_t address, int row_group) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(128 >> 4) << 16 |
           (uint64_t)(row_group >> 4) << 32;
}

template <class S> struct scan_wgmma_block {
    static constexpr int STATES = S::STATES;

    const mamba_args &a;
    const scan_maps &maps;
    const span sp;
    char *memory;
    uint32_t base, barriers; // base: memory's address
    int first, n_tiles;

    __device__ __forceinline__ scan_wgmma_block(const mamba_args &args, const scan_maps &m,
                                                const span &s, char *shared)
        : a(args), maps(m), sp(s), memory(shared), base(shared_address(shared)),
          barriers(base + S::BARRIERS_AT), first(blockIdx.x * S::CHANNELS),
          n_tiles((s.count + TILE - 1) / TILE) {
    }
    // Of a stage: its tile is there, and is scanned with y in z's place; of delta: it is made.
    __device__ __forceinline__ uint32_t full(int stage) const {
        return barriers + stage * 8;
    }
    __device__ __forceinline__ uint32_t done(int stage) const {
        return barriers + (S::STAGES + stage) * 8;
    }
    __device__ __forceinline__ uint32_t made(int buffer) const {
        return barriers + (2 * S::STAGES + buffer) * 8;
    }
    static __device__ __forceinline__ int next_of(int stage) {
        return stage + 1 == S::STAGES ? 0 : stage + 1;
    }
    __device__ __forceinline__ int tokens(int tile) const {
        return min((int)TILE, sp.count - tile * TILE);
    }

    // All threads: dt_proj of the block's channels, zeros past the last and past the rank.
    __device__ __forceinline__ void prepare() const {
        char *to = memory + S::WEIGHTS_AT;
        for (int i = threadIdx.x; i < S::M64 * 64 * 2 * S::K16; i += S::THREADS) {
            const int r = i % 8 + i / (16 * S::K16) * 8, v = i / 8 % (2 * S::K16);
            const bool live = r < S::CHANNELS && first + r < a.channels && v * 8 < a.rank;
            copy_async(to + r / 8 * S::ROW_GROUP + v * 128 + r % 8 * 16,
                       (const bf16 *)a.dt_proj + (live ? (size_t)(first + r) * a.rank + v * 8 : 0),
                       live);
        }
        copies_commit();
        for (int i = threadIdx.x; i < S::ZEROS * S::DELTA_ROW / 4; i += S::THREADS)
            *(float *)(memory + S::ZERO_AT + i * 4) = 0;
        for (int i = threadIdx.x; i < S::M64 * 64; i += S::THREADS)
            *(float *)(memory + S::BIAS_AT + i * 4) =
                i < S::CHANNELS && first + i < a.channels ? a.dt_bias[first + i] : 0;
        if (threadIdx.x < S::STAGES) {
            barrier_init(full(threadIdx.x), 1);
            barrier_init(done(threadIdx.x), S::WARPS);
        }
        if (threadIdx.x < S::DELTAS)
            barrier_init(made(threadIdx.x), S::TEAM / 32);
        barriers_ready();
        copies_wait();
        fence_async(); // of dt_proj, for the matrix units
    }

    // -- scan warps: a lane has eight states of a place's channels: of two and a token at a time,
    // or of one and two tokens. Either way the two lanes of a place have two sums to exchange, of
    // which each finishes one.

    // Orders nothing, so that loads behind it are not held up; fence_async() does.
    __device__ __forceinline__ void store_y(int at, float v) const {
        asm volatile("st.shared.u16 [%0], %1;" ::"r"(base + at),
                     "h"(__bfloat16_as_ushort(from_float<bf16>(v))));
    }
    __device__ __forceinline__ float load_bf16(int at) const {
        return __uint_as_float((uint32_t) * (const uint16_t *)(memory + at) << 16);
    }

    template <class T, int N> __device__ __forceinline__ void scan_sets(int set) const {
        constexpr int TOKENS = 2 / N, ROUND = 4 * TOKENS; // of a body, of straight code
        const int lane = threadIdx.x & 31, q = lane % 2, place = lane / 2;
        const int in_block = set * S::SET + place * N, channel = first + in_block;
        float decay[N][STATES] = {}, h[N][STATES] = {};
        T *state =
            (T *)a.state + ((size_t)sp.slot * a.channels + channel) * SCAN_STATES + q * STATES;
        const bool live = channel < a.channels; // both or none
#pragma unroll
        for (int k = 0; k < N && live; k++) {
            load<STATES>(a.decay + (size_t)(channel + k) * SCAN_STATES + q * STATES, decay[k]);
            if (!sp.fresh)
                load<STATES>(state + k * SCAN_STATES, h[k]);
        }
        const float skip = live ? a.skip[channel + (N == 2 ? q : 0)] : 0;

        // A body begins with states that its first token's decays are in, and with all else of its
        // tokens; delta and x are read a body earlier, so that the next decays can be made beside
        // this one's sums. row, bc: from a stage's first.
        float b[TOKENS][STATES], c[TOKENS][STATES], d[2], x[2], dx[2], own_x, second;
        const int delta0 = S::DELTA_AT + in_block * 4, bc0 = S::BC_AT + q * STATES * 4;
        const int x0 = in_block / S::HALF * S::BOX + in_block % S::HALF * 2;
        const int own = S::Z_AT + x0 + (N == 2 ? q * 2 : q * S::ROW); // what this lane finishes
        auto fetch_bc = [&](int bc) {
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float *from = (const float *)(memory + bc0 + bc + t * S::BC_ROW);
                load<STATES>(from, b[t]);
                load<STATES>(from + SCAN_STATES, c[t]);
            }
        };
        auto fetch_dx = [&](int row, int delta) {
            if constexpr (N == 2) {
                const float2 v = *(const float2 *)(memory + delta0 + delta);
                const uint32_t w = *(const uint32_t *)(memory + x0 + row);
                d[0] = v.x, d[1] = v.y, x[0] = low_half(w), x[1] = high_half(w);
            } else {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    d[i] = *(const float *)(memory + delta0 + delta + i * S::DELTA_ROW);
                    x[i] = load_bf16(x0 + row + i * S::ROW);
                }
            }
        };
        auto use_dx = [&]() {
            dx[0] = d[0] * x[0], dx[1] = d[1] * x[1], own_x = q ? x[1] : x[0], second = d[1];
        };
        barrier_wait(full(0), 0);
        barrier_wait(made(0), 0);
        int stage = 0, turn = 0, buffer = 0, buffer_turn = 0;
        int row = 0, bc = 0, delta = 0; // of a round, from a stage's or a buffer's first
        fetch_bc(bc);
        fetch_dx(row, delta);
#pragma unroll
        for (int k = 0; k < N; k++) {
#pragma unroll
            for (int i = 0; i < STATES; i++)
                h[k][i] *= exp2_fast(d[k] * decay[k][i]);
        }
        use_dx();
        fetch_dx(TOKENS * S::ROW, TOKENS * S::DELTA_ROW);
        auto body = [&](int at, int next_bc, int ahead, int ahead_delta) {
            const float z = load_bf16(at + own), finished_x = own_x;
            float y[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int k = N == 2 ? j : 0, token = N == 2 ? 0 : j;
                const float next = N == 2 ? d[j] : j == 0 ? second : d[0];
#pragma unroll
                for (int i = 0; i < STATES; i++) {
                    const float v = h[k][i] + dx[j] * b[token][i];
                    y[j] = i == 0 ? v * c[token][0] : y[j] + v * c[token][i];
                    h[k][i] = v * exp2_fast(next * decay[k][i]);
                }
            }
            use_dx();
            fetch_bc(next_bc);
            fetch_dx(ahead, ahead_delta);
            const float sum = (q ? y[1] : y[0]) + __shfl_xor_sync(~0u, q ? y[0] : y[1], 1);
            store_y(at + own, (sum + skip * finished_x) * silu(z));
        };
#pragma unroll 1
        for (int t = 0; t < n_tiles; t++) {
            const int tile_stage = stage;
#pragma unroll 1
            for (int i = 0; i < TILE; i += ROUND) {
                int then = row + ROUND * S::ROW, then_bc = bc + ROUND * S::BC_ROW;
                const int delta_now = delta;
                delta += ROUND * S::DELTA_ROW;
                if (i + ROUND == TILE) {
                    stage = next_of(stage), turn ^= stage == 0;
                    buffer ^= 1, buffer_turn ^= buffer == 0;
                    then = then_bc = stage * S::STAGE, delta = S::ZERO_AT - S::DELTA_AT;
                    if (t + 1 < n_tiles) { // otherwise the last states' decays are 1
                        barrier_wait(full(stage), turn);
                        barrier_wait(made(buffer), buffer_turn);
                        delta = buffer * S::DELTA;
                    }
                }
#pragma unroll
                for (int j = 0; j < ROUND; j += TOKENS) {
                    const int bc_at = j + TOKENS, at = j + 2 * TOKENS; // what is read
                    body(row + j * S::ROW,
                         bc_at < ROUND ? bc + bc_at * S::BC_ROW
                                       : then_bc + (bc_at - ROUND) * S::BC_ROW,
                         at < ROUND ? row + at * S::ROW : then + (at - ROUND) * S::ROW,
                         at < ROUND ? delta_now + at * S::DELTA_ROW
                                    : delta + (at - ROUND) * S::DELTA_ROW);
                }
                row = then, bc = then_bc;
            }
            fence_async();
            __syncwarp();
            if (lane == 0)
                barrier_arrive(done(tile_stage));
        }
#pragma unroll
        for (int k = 0; k < N && live; k++)
            store<STATES>(state + k * SCAN_STATES, h[k]);
    }
    template <class T> __device__ __forceinline__ void scan(int warp) const {
        if (warp < S::FULL)
            scan_sets<T, 2>(2 * warp);
        else
            scan_sets<T, 1>(S::FULL + warp);
    }

    // -- makers: softplus(dt_proj dt + bias) of a tile while the ones before are scanned; a team's
    // first warp copies, too. Teams take tiles in turns.

    // One thread. Tokens behind the span's last are there, too.
    __device__ __forceinline__ void ask_tile(int tile, int stage) const {
        const int row = sp.first + tile * TILE;
        const uint32_t to = base + stage * S::STAGE, at = full(stage);
        barrier_expect(at, S::STAGE);
        copy_box(to, &maps.x, first, row, at);
        copy_box(to + S::BOX, &maps.x, first + S::HALF, row, at);
        copy_box(to + S::BC_AT, &maps.bc, a.rank, row, at);
        copy_box(to + S::Z_AT, &maps.z, a.channels + first, row, at);
        copy_box(to + S::Z_AT + S::BOX, &maps.z, a.channels + first + S::HALF, row, at);
    }
    // One warp.
    __device__ __forceinline__ void store_tile(int tile, int stage) const {
        const int lane = threadIdx.x & 31, row = sp.first + tile * TILE, n = tokens(tile);
        const uint32_t from = base + stage * S::STAGE + S::Z_AT;
        if (n == TILE) {
            if (one_lane()) {
                store_box(&maps.y, first, row, from);
                store_box(&maps.y, first + S::HALF, row, from + S::BOX);
                stores_commit();
                stores_read<0>();
            }
        } else if (lane < n) {
            bf16 *to = (bf16 *)a.y + (size_t)(row + lane) * a.channels + first;
#pragma unroll 1
            for (int half = 0; half < 2; half++) {
                const int live = min((int)S::HALF, a.channels - first - half * S::HALF);
                if (live > 0)
                    store_run(to + half * S::HALF, from + half * S::BOX + lane * S::ROW,
                              (uint32_t)live * 2);
            }
            stores_commit();
        }
        __syncwarp();
    }

    // dt of a tile in bf16, as the products want it: two or three times 8 numbers of a token a
    // thread, zeros past the rank.
    __device__ __forceinline__ void stage_dt(int tile, int at, int thread) const {
        const int row = thread & 15;
        const float *from =
            a.xdb + (size_t)(sp.first + tile * TILE + min(row, tokens(tile) - 1)) * a.n_x;
#pragma unroll
        for (int i = 0; i < 2 * S::K16; i += 8) {
            const int v = thread / 16 + i;
            float dt[8] = {};
            if (v * 8 < a.rank)
                load<8>(from + v * 8, dt);
            if (v < 2 * S::K16)
                *(uint4 *)(memory + at + row / 8 * S::ROW_GROUP + v * 128 + row % 8 * 16) =
                    pack_bf16(dt);
        }
    }
    // A tile's tokens behind the last: no delta, which changes no state, and all else numbers.
    __device__ __forceinline__ void clear_rows(int stage, int delta, int n, int thread) const {
        char *at = memory + stage * S::STAGE;
        for (int i = thread; i < (TILE - n) * (S::ROW / 16); i += S::TEAM) {
            const int byte = n * S::ROW + i * 16;
            *(uint4 *)(at + byte) = make_uint4(0, 0, 0, 0);
            *(uint4 *)(at + S::BOX + byte) = make_uint4(0, 0, 0, 0);
        }
        for (int i = thread; i < (TILE - n) * (S::BC_ROW / 16); i += S::TEAM)
            *(uint4 *)(at + S::BC_AT + n * S::BC_ROW + i * 16) = make_uint4(0, 0, 0, 0);
        for (int i = thread; i < (TILE - n) * (S::DELTA_ROW / 16); i += S::TEAM)
            *(uint4 *)(memory + delta + n * S::DELTA_ROW + i * 16) = make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void team_sync(int team) const {
        named_sync(team + 1, S::TEAM);
    }

    __device__ __forceinline__ void make_tile(int t, int team, int thread) const {
        const int lane = thread & 31, g = lane >> 2, q = lane & 3, row0 = thread / 32 * 16 + g;
        const int n = tokens(t), dt_at = S::DT_AT + team * S::DT;
        stage_dt(t, dt_at, thread);
        fence_async();
        team_sync(team);
        const float *bias = (const float *)(memory + S::BIAS_AT) + row0;
        float v[S::M64][8];
#pragma unroll
        for (int m = 0; m < S::M64; m++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                v[m][i] = bias[m * 64 + i / 2 % 2 * 8];
                asm volatile("" : "+f"(v[m][i])); // before the fence
            }
        }
        const uint64_t w = operand_at(base + S::WEIGHTS_AT, S::ROW_GROUP);
        // known to be one in all lanes
        const uint64_t x = operand_at(__reduce_or_sync(~0u, base + dt_at), S::ROW_GROUP);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < S::K16; k++) {
#pragma unroll
            for (int m = 0; m < S::M64; m++)
                wgmma(v[m], w + (m * 8 * S::ROW_GROUP + k * 256) / 16, x + k * 256 / 16);
        }
        wgmma_commit();
        wgmma_wait<0>();
        team_sync(team); // each warp has read dt, whose place is written again two tiles on
#pragma unroll
        for (int m = 0; m < S::M64; m++) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                asm volatile("" : "+f"(v[m][i])::"memory");
                v[m][i] = softplus_straight(v[m][i]);
            }
        }
        const int delta = S::DELTA_AT + t % S::DELTAS * S::DELTA;
        if (t >= S::DELTAS) // there is room
            barrier_wait(done((t - S::DELTAS) % S::STAGES), (t - S::DELTAS) / S::STAGES & 1);
        char *to = memory + delta + 2 * q * S::DELTA_ROW + row0 * 4;
#pragma unroll
        for (int m = 0; m < S::M64; m++) {
#pragma unroll
            for (int i = 0; i < 8; i++) { // token of 8: i % 2, channels of 8: i / 2 % 2
                if ((m + 1) * 64 <= S::CHANNELS || m * 64 + row0 + (i & 2) * 4 < S::CHANNELS)
                    *(float *)(to + (i / 4 * 8 + i % 2) * S::DELTA_ROW +
                               (m * 64 + (i & 2) * 4) * 4) = v[m][i];
            }
        }
        if (n < TILE) {
            barrier_wait(full(t % S::STAGES), t / S::STAGES & 1);
            team_sync(team);
            clear_rows(t % S::STAGES, delta, n, thread);
        }
        __syncwarp();
        if (lane == 0)
            barrier_arrive(made(t % S::DELTAS));
    }

    __device__ __forceinline__ void run_makers(int maker) const { // warp
        const int thread = (threadIdx.x - S::WARPS * 32) % S::TEAM, team = maker * 32 / S::TEAM;
        if (team == 0 && thread < 32 && one_lane()) {
            for (int t = 0; t < min(n_tiles, (int)S::STAGES); t++)
                ask_tile(t, t);
        }
#pragma unroll 1
        for (int t = team; t < n_tiles + S::DELTAS; t += S::TEAMS) {
            if (t < n_tiles)
                make_tile(t, team, thread);
            const int from = t - S::DELTAS, stage = from % S::STAGES;
            if (from >= 0 && thread < 32) {
                barrier_wait(done(stage), from / S::STAGES & 1);
                store_tile(from, stage);
                if (from + S::STAGES < n_tiles && one_lane())
                    ask_tile(from + S::STAGES, stage);
            }
        }
        if (thread < 32)
            stores_done();
    }
};

#endif

template <class T, class S>
__global__ void __launch_bounds__(S::THREADS, 1)
    scan_wgmma_kernel(const __grid_constant__ scan_maps maps, const __grid_constant__ mamba_args a,
                      const span *spans) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char wgmma_memory[];
    dependents_start();
    const scan_wgmma_block<S> block(a, maps, spans[blockIdx.y], wgmma_memory);
    block.prepare();
    __syncthreads();
    dependency_wait();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be one in all lanes
    if (warp < S::WARPS)
        block.template scan<T>(warp);
    else
        block.run_makers(warp - S::WARPS);
#endif
}

} // namespace ssm

#endif
