// SPDX-License-Identifier: Apache-2.0
// The scan in roles: scan warps go through the tokens, makers prepare tiles for them and finish
// what they leave. scan_roles.cu says why, and for which prompts. Here a scan warp has all states
// of its channels; in scan_quarters.cuh four share them.
#ifndef SSM_KERNELS_CUDA_SCAN_ROLES_CUH
#define SSM_KERNELS_CUDA_SCAN_ROLES_CUH

#include "bulk.cuh"
#include "scan.cuh"

namespace ssm {

// A block: WARPS scan warps, the last FULL of C groups of 8 channels, the others of C - 1; TEAMS
// teams of SIZE makers. Each team has a stage of shared memory; each maker of it the groups of
// WARPS / SIZE scan warps, which lie side by side: its part. DT: 32s of dt_proj's rank.
template <int C, int FULL, int N_WARPS, int TEAMS, int TEAM_SIZE, int DT> struct scan_shape {
    static constexpr int WARPS = N_WARPS, STAGES = TEAMS, SIZE = TEAM_SIZE;
    static constexpr int SHORT = WARPS - FULL, GROUPS = C * WARPS - SHORT;
    static constexpr int CHANNELS = GROUPS * 8;
    static constexpr int PART = GROUPS / SIZE, PART_SHORT = SHORT / SIZE;
    static constexpr int THREADS = (WARPS + TEAMS * SIZE) * 32;
    static constexpr int ROUND = 8; // tokens of a scan warp's block of code
    static_assert(GROUPS % SIZE == 0 && WARPS % SIZE == 0 && SHORT % SIZE == 0, "parts");

    // A stage, floats: pairs (delta, delta x) by group, token and channel; xdb: dt, then B and C,
    // rows four banks apart; x and z, bf16, rows as far.
    static constexpr int GROUP = TILE * 8 * 2;
    static constexpr int BC_AT = DT * 32, XDB_PITCH = BC_AT + 2 * SCAN_STATES + 4;
    static constexpr int X_PITCH = CHANNELS % 16 == 8 ? CHANNELS : CHANNELS + 8;
    static constexpr int STAGE = GROUPS * GROUP + TILE * XDB_PITCH + TILE * X_PITCH;

    // Bytes of a block: D and dt_proj's bias, dt_proj (rows are odd multiples of 64 bytes, zeros
    // past the rank), stages, their barriers.
    static constexpr int WEIGHT_PITCH = (DT | 1) * 64;
    static constexpr size_t BYTES =
        (size_t)CHANNELS * (8 + WEIGHT_PITCH) + TEAMS * ((size_t)STAGE * 4 + 16);

    // The first group of a part's j-th warp.
    static __device__ __forceinline__ int group_of(int part, int j) {
        return part * PART + j * (C - 1) + max(0, j - PART_SHORT);
    }
};

// ---- the two roles

template <int C, int FULL, int WARPS, int TEAMS, int SIZE, int DT> struct scan_block {
    typedef scan_shape<C, FULL, WARPS, TEAMS, SIZE, DT> shape, form;
    static constexpr int ROUND = shape::ROUND;

    const mamba_args &a;
    const span &sp;
    float *skip, *bias;
    char *weights;
    float *stages;
    uint32_t barriers; // of stage i: it is full at 16 i, it is done at 16 i + 8
    int first;         // channel of the block

    __device__ __forceinline__ scan_block(const mamba_args &args, const span &s, char *memory)
        : a(args), sp(s), skip((float *)memory), bias(skip + shape::CHANNELS),
          weights((char *)(bias + shape::CHANNELS)),
          stages((float *)(weights + shape::CHANNELS * shape::WEIGHT_PITCH)),
          barriers(shared_address(stages + TEAMS * shape::STAGE)),
          first(blockIdx.x * shape::CHANNELS) {
    }
    // D, bias and dt_proj of the block's channels; asynchronous.
    __device__ __forceinline__ void stage_weights() const {
        for (int i = threadIdx.x; i < shape::CHANNELS; i += blockDim.x) {
            const bool live = first + i < a.channels;
            skip[i] = live ? a.skip[first + i] : 0;
            bias[i] = live ? a.dt_bias[first + i] : 0;
        }
        for (int i = threadIdx.x; i < shape::CHANNELS * DT * 4; i += blockDim.x) {
            const int c = i / (DT * 4), k = i % (DT * 4) * 8;
            const bool live = first + c < a.channels && k < a.rank;
            copy_async(weights + c * shape::WEIGHT_PITCH + k * 2,
                       (const bf16 *)a.dt_proj + (live ? (size_t)(first + c) * a.rank + k : 0),
                       live);
        }
        copies_commit();
    }

    // Pairs of a group; y [TILE][8] takes their place from the first token on, always behind those
    // that are still to be read.
    __device__ __forceinline__ float *pairs_of(int stage, int group) const {
        return stages + stage * shape::STAGE + group * shape::GROUP;
    }
    __device__ __forceinline__ float *xdb_of(int stage) const {
        return pairs_of(stage, shape::GROUPS);
    }
    __device__ __forceinline__ bf16 *x_of(int stage) const {
        return (bf16 *)(xdb_of(stage) + TILE * shape::XDB_PITCH);
    }
    __device__ __forceinline__ bf16 *z_of(int stage) const {
        return x_of(stage) + TILE * shape::X_PITCH;
    }
    __device__ __forceinline__ int tiles() const {
        return (sp.count + TILE - 1) / TILE;
    }

    // -- scan warps: a lane has states 4 q .. of the channels 8 k + g. Bits 0 and 3 of its number
    // are q, the others g: a 16-byte read of what a q shares takes two cycles where lanes 2 apart
    // share it, an 8-byte read of what a g shares one where neighbours do; otherwise twice that.

    enum { Q_ONE = 1, Q_TWO = 8 };
    static __device__ __forceinline__ int quarter(int lane) {
        return (lane & 1) | (lane >> 2 & 2);
    }
    static __device__ __forceinline__ int column(int lane) {
        return (lane >> 1 & 3) | (lane >> 2 & 4);
    }

    // Where y of a token and a group's first channel is behind that group's pairs: the places of
    // four tokens are turned by the group, so that neighbours' are in other banks.
    static __device__ __forceinline__ int y_at(int row, int group) {
        return row / 4 * 32 + (row + group) % 4 * 8;
    }

    template <int N>
    static __device__ __forceinline__ void scan_tile(float *memory, const float *bc, int group,
                                                     const float (&decay)[N][4], float (&h)[N][4]) {
        const int lane = threadIdx.x & 31, q = quarter(lane), g = column(lane);
        const float *pairs = memory + g * 2;
        int to[N];
#pragma unroll
        for (int k = 0; k < N; k++)
            to[k] = k * shape::GROUP + y_at(q, group + k) + g;
        // A round begins with its first token's numbers there: they are read, and its decays made,
        // in the round before.
        float b[4], c[4], dx[N], e[N][4];
        auto next = [&](const float *pair_row, const float *bc_row) {
            load<4>(bc_row, b);
            load<4>(bc_row + SCAN_STATES, c);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float d[2];
                load<2>(pair_row + k * shape::GROUP, d);
                dx[k] = d[1];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    e[k][i] = exp2_fast(d[0] * decay[k][i]);
            }
        };
        next(pairs, bc);
#pragma unroll 1
        for (int t0 = 0; t0 < TILE; t0 += ROUND) {
            float sums[ROUND / 4][N]; // stored last: a store would hold up the loads behind it
#pragma unroll
            for (int r0 = 0; r0 < ROUND; r0 += 4) {
                float y[N][4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
#pragma unroll
                    for (int k = 0; k < N; k++) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            h[k][i] = e[k][i] * h[k][i] + dx[k] * b[i];
                            y[k][j] = i == 0 ? h[k][0] * c[0] : y[k][j] + h[k][i] * c[i];
                        }
                    }
                    next(pairs + (r0 + j + 1) * 16, bc + (r0 + j + 1) * shape::XDB_PITCH);
                }
#pragma unroll
                for (int k = 0; k < N; k++)
                    sums[r0 / 4][k] = exchange4<Q_ONE, Q_TWO>(y[k], q);
            }
#pragma unroll
            for (int r0 = 0; r0 < ROUND; r0 += 4) {
#pragma unroll
                for (int k = 0; k < N; k++)
                    memory[to[k] + r0 * 8] = sums[r0 / 4][k];
            }
            bc += ROUND * shape::XDB_PITCH, pairs += ROUND * 16, memory += ROUND * 8;
        }
    }

    // States of a warp's N groups, which begin with this one.
    template <class T> __device__ __forceinline__ T *state_of(int channel) const {
        return (T *)a.state + ((size_t)sp.slot * a.channels + channel) * SCAN_STATES;
    }
    template <class T, int N>
    __device__ __forceinline__ void begin(int group, float (&decay)[N][4], float (&h)[N][4]) const {
        const int lane = threadIdx.x & 31, q = quarter(lane);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int channel = first + (group + k) * 8 + column(lane);
            if (channel >= a.channels)
                continue;
            load<4>(a.decay + (size_t)channel * SCAN_STATES + q * 4, decay[k]);
            if (!sp.fresh)
                load<4>(state_of<T>(channel) + q * 4, h[k]);
        }
    }
    template <class T, int N>
    __device__ __forceinline__ void end(int group, const float (&h)[N][4]) const {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int channel = first + (group + k) * 8 + column(lane);
            if (channel < a.channels)
                store<4>(state_of<T>(channel) + quarter(lane) * 4, h[k]);
        }
    }
    template <class T, int N> __device__ __forceinline__ void scan_groups(int group) const {
        const int lane = threadIdx.x & 31;
        float decay[N][4] = {}, h[N][4] = {};
        begin<T>(group, decay, h);
        for (int t = 0, stage = 0, turn = 0; t < tiles(); t++) {
            barrier_wait(barriers + stage * 16, turn);
            scan_tile(pairs_of(stage, group), xdb_of(stage) + shape::BC_AT + quarter(lane) * 4,
                      group, decay, h);
            __syncwarp();
            if (lane == 0)
                barrier_arrive(barriers + stage * 16 + 8);
            stage = stage + 1 == TEAMS ? 0 : stage + 1;
            turn ^= stage == 0;
        }
        end<T>(group, h);
    }
    template <class T> __device__ __forceinline__ void scan(int warp) const {
        const int group = shape::group_of(warp / 2 % SIZE, warp % 2 + warp / (2 * SIZE) * 2);
        if constexpr (shape::SHORT > 0) {
            if (warp < shape::SHORT) {
                scan_groups<T, C - 1>(group);
                return;
            }
        }
        scan_groups<T, C>(group);
    }

    // -- makers: a team makes every TEAMS-th tile, and y of what the scan leaves of it

    // This lane's vectors of a part of a tile's x, z and y: 8 channels of a token each.
    struct vector {
        int token, group;

        __device__ __forceinline__ explicit vector(int lane)
            : token(lane / shape::PART), group(lane % shape::PART) {
        }
        __device__ __forceinline__ void next() {
            group += 32 % shape::PART, token += 32 / shape::PART;
            if (group >= shape::PART)
                group -= shape::PART, token++;
        }
    };

    // Asks for a part of a tile: rows of xdb, groups of x and z. Rows past the last are the last.
    __device__ __forceinline__ void fetch(int stage, int part, int t) const {
        const int lane = threadIdx.x & 31, at = sp.first + t * TILE;
        const int last = min((int)TILE, sp.count - t * TILE) - 1;
        constexpr int ROWS = TILE / SIZE;
        // eight lanes a row: a vector of B and C each, then dt's
        const int begin = part * ROWS + lane / 8, v = lane % 8 * 4;
        float *to = xdb_of(stage) + begin * shape::XDB_PITCH + v;
#pragma unroll
        for (int r = 0; r < ROWS; r += 4, to += 4 * shape::XDB_PITCH) {
            const float *from = a.xdb + (uint32_t)(at + min(begin + r, last)) * a.n_x + v;
            copy_async(to + shape::BC_AT, from + a.rank, true);
#pragma unroll
            for (int i = 0; i < DT; i++) {
                const bool live = i * 32 + v < a.rank;
                copy_async(to + i * 32, from + (live ? i * 32 : 0), live);
            }
        }
        const int begin_group = part * shape::PART, channel = first + begin_group * 8;
        for (vector i(lane); i.token < TILE; i.next()) {
            const bool live = channel + i.group * 8 < a.channels;
            const int place = i.token * shape::X_PITCH + (begin_group + i.group) * 8;
            const uint32_t row = (uint32_t)(at + min(i.token, last)) * a.channels;
            const uint32_t from = live ? row + channel + i.group * 8 : 0;
            copy_async(x_of(stage) + place, (const bf16 *)a.x + from, live);
            copy_async(z_of(stage) + place, (const bf16 *)a.xz + (from + row + a.channels), live);
        }
        copies_commit();
    }

    // dt of tokens g and g + 8 as the matrix instruction wants them, zeros past the rank.
    __device__ __forceinline__ void pack_dt(int stage, uint4 (&dt)[2][DT]) const {
        const int lane = threadIdx.x & 31, q = lane & 3, g = lane >> 2;
#pragma unroll
        for (int i = 0; i < DT; i++) {
            const int k = i * 32 + q * 8;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float v[8];
                load<8>(xdb_of(stage) + (g + 8 * r) * shape::XDB_PITCH + k,
                        v); // zeros past the rank
                dt[r][i] = pack_bf16(v);
            }
        }
    }

    // delta and delta x of AT groups, which begin with this one.
    template <int AT>
    __device__ __forceinline__ void make_pairs(int stage, int group, int n,
                                               const uint4 (&dt)[2][DT]) const {
        const int lane = threadIdx.x & 31, q = lane & 3, g = lane >> 2;
        float c[AT][4];
#pragma unroll
        for (int k = 0; k < AT; k++) {
            const float2 v = *(const float2 *)(bias + (group + k) * 8 + 2 * q);
            c[k][0] = c[k][2] = v.x, c[k][1] = c[k][3] = v.y;
        }
        const char *w = weights + (group * 8 + g) * shape::WEIGHT_PITCH + q * 16;
#pragma unroll
        for (int i = 0; i < DT; i++) {
#pragma unroll
            for (int k = 0; k < AT; k++) {
                const uint4 b = *(const uint4 *)(w + k * 8 * shape::WEIGHT_PITCH + i * 64);
                const uint4 lo = dt[0][i], hi = dt[1][i];
                mma(c[k], lo.x, hi.x, lo.y, hi.y, b.x, b.y);
                mma(c[k], lo.z, hi.z, lo.w, hi.w, b.z, b.w);
            }
        }
        const bf16 *x_tile = x_of(stage) + g * shape::X_PITCH + group * 8 + 2 * q;
        float *to = pairs_of(stage, group) + g * 16 + q * 4;
#pragma unroll
        for (int k = 0; k < AT; k++) {
#pragma unroll
            for (int half = 0; half < 2; half++) { // past the last token 0, which changes no state
                const uint32_t x = *(const uint32_t *)(x_tile + half * 8 * shape::X_PITCH + k * 8);
                float d0 = softplus_straight(c[k][half * 2]),
                      d1 = softplus_straight(c[k][half * 2 + 1]);
                *(float4 *)(to + k * shape::GROUP + half * 128) =
                    make_float4(d0, d0 * low_half(x), d1, d1 * high_half(x));
            }
        }
        if (n < TILE) {
            __syncwarp();
#pragma unroll 1
            for (int k = 0; k < AT; k++)
                for (int i = n * 4 + lane; i < TILE * 4; i += 32)
                    *(float4 *)(pairs_of(stage, group + k) + i * 4) = make_float4(0, 0, 0, 0);
        }
    }

    __device__ __forceinline__ void finish(int stage, int part, int at, int n) const {
#pragma unroll 1
        for (vector i(threadIdx.x & 31); i.token < n; i.next()) {
            const int row = i.token, group = part * shape::PART + i.group;
            if (first + group * 8 >= a.channels)
                continue;
            float x[8], v[8], d[8], y[8];
            load<8>(pairs_of(stage, group) + y_at(row, group), y);
            load<8>(skip + group * 8, d);
            load<8>(x_of(stage) + row * shape::X_PITCH + group * 8, x);
            load<8>(z_of(stage) + row * shape::X_PITCH + group * 8, v);
#pragma unroll
            for (int i = 0; i < 8; i++)
                y[i] = (y[i] + d[i] * x[i]) * silu(v[i]);
            store<8>((bf16 *)a.y + (size_t)(at + row) * a.channels + first + group * 8, y);
        }
    }

    __device__ __forceinline__ void team_sync(int stage) const {
        if (SIZE == 1)
            __syncwarp();
        else
            named_sync(stage + 1, SIZE * 32);
    }
    __device__ __forceinline__ void run_maker(int maker) const {
        const int lane = threadIdx.x & 31, stage = maker / SIZE, part = maker % SIZE;
        constexpr int AT = shape::PART % 5 == 0   ? 5
                           : shape::PART % 4 == 0 ? 4
                           : shape::PART % 3 == 0 ? 3
                                                  : 2;
        static_assert(shape::PART % AT == 0, "");
        if (stage < tiles())
            fetch(stage, part, stage);
        for (int t = stage, turn = 0; t < tiles(); t += TEAMS, turn ^= 1) {
            const int at = sp.first + t * TILE, n = min((int)TILE, sp.count - t * TILE);
            copies_wait();
            team_sync(stage);
            uint4 dt[2][DT];
            pack_dt(stage, dt);
#pragma unroll 1
            for (int k = 0; k < shape::PART; k += AT)
                make_pairs<AT>(stage, part * shape::PART + k, n, dt);
            __syncwarp();
            if (lane == 0)
                barrier_arrive(barriers + stage * 16);
            barrier_wait(barriers + stage * 16 + 8, turn);
            finish(stage, part, at, n);
            __syncwarp();
            if (t + TEAMS < tiles())
                fetch(stage, part, t + TEAMS);
        }
    }
};

// B: a scan_block, or what makes more of one (scan_quarters.cuh).
template <class T, class B>
__global__ void __launch_bounds__(B::form::THREADS, 1)
    scan_roles_kernel(mamba_args a, const span *spans) {
    typedef typename B::form form;
    extern __shared__ __align__(16) char memory[];
    dependents_start();
    const span sp = spans[blockIdx.y];
    const B block(a, sp, memory);
    block.stage_weights();
    if (threadIdx.x < form::STAGES) {
        barrier_init(block.barriers + threadIdx.x * 16, form::SIZE);
        barrier_init(block.barriers + threadIdx.x * 16 + 8, form::WARPS);
    }
    copies_wait();
    __syncthreads();
    dependency_wait();
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be one in all lanes
    if (warp < form::WARPS)
        block.template scan<T>(warp);
    else
        block.run_maker(warp - form::WARPS);
}

} // namespace ssm

#endif
