// SPDX-License-Identifier: Apache-2.0
// The scan in roles: scan warps go through the tokens, makers prepare tiles for them and finish
// what they leave. scan_roles.cu says why, and for which prompts.
#ifndef SSM_KERNELS_CUDA_SCAN_ROLES_CUH
#define SSM_KERNELS_CUDA_SCAN_ROLES_CUH

#include "scan.cuh"

namespace ssm {

// Shared memory of a block: dt_proj of its channels, then a stage a maker.
template <int C, int WARPS, int MAKERS> struct scan_shape {
    static constexpr int GROUPS = C * WARPS, CHANNELS = GROUPS * 8;
    // A fifth scan warp shares a scheduler with the first: no maker there.
    static constexpr int IDLE = WARPS == 5 ? 8 : -1;
    static constexpr int THREADS = (WARPS + MAKERS + (IDLE >= 0)) * 32;
    static constexpr int PAIRS = TILE * 8 * C * 2; // floats: delta, delta x of a scan warp
    static constexpr int BC = TILE * 2 * SCAN_STATES;
    static constexpr int X_PITCH = CHANNELS % 16 == 8 ? CHANNELS : CHANNELS + 8;
    static constexpr int Y_PITCH = C % 2 ? 8 * C : 8 * C + 8;
    static constexpr int STAGE = WARPS * PAIRS + BC + TILE * X_PITCH / 2;

    static size_t bytes(int rank) {
        return (size_t)CHANNELS * weight_pitch(rank) + MAKERS * (STAGE * sizeof(float) + 16);
    }
};

// ---- barriers in shared memory. Each is used by turns: a waiter knows the parity of its turn.

__device__ __forceinline__ void turn_init(uint32_t at, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void turn_arrive(uint32_t at) {
    asm volatile("{.reg .b64 t; mbarrier.arrive.shared.b64 t, [%0];}" ::"r"(at) : "memory");
}
__device__ __forceinline__ void turn_wait(uint32_t at, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
                 "@!p bra WAIT;}" ::"r"(at),
                 "r"(parity)
                 : "memory");
#else
    asm volatile("{.reg .pred p;\nWAIT:\nmbarrier.test_wait.parity.shared.b64 p, [%0], %1;\n"
                 "@!p bra WAIT;}" ::"r"(at),
                 "r"(parity)
                 : "memory");
#endif
}

// Loads that are asked for where they stand.
__device__ __forceinline__ uint4 load_here(const void *p) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

// ---- the two roles

template <int C, int WARPS, int MAKERS> struct scan_block {
    typedef scan_shape<C, WARPS, MAKERS> shape;

    const mamba_args &a;
    const span &sp;
    char *weights;
    float *stages;
    uint32_t barriers; // of stage i: it is full at 16 i, it is done at 16 i + 8
    int first;         // channel of the block

    __device__ __forceinline__ scan_block(const mamba_args &args, const span &s, char *memory)
        : a(args), sp(s), weights(memory),
          stages((float *)(memory + shape::CHANNELS * weight_pitch(args.rank))),
          barriers(shared_address(stages + MAKERS * shape::STAGE)),
          first(blockIdx.x * shape::CHANNELS) {
    }
    // A scan warp's pairs; y [TILE][Y_PITCH] takes their place from the first token on, always
    // behind those that are still to be read.
    __device__ __forceinline__ float *pairs_of(int stage, int warp) const {
        return stages + stage * shape::STAGE + warp * shape::PAIRS;
    }
    __device__ __forceinline__ float *bc_of(int stage) const {
        return stages + stage * shape::STAGE + WARPS * shape::PAIRS;
    }
    __device__ __forceinline__ bf16 *x_of(int stage) const {
        return (bf16 *)(bc_of(stage) + shape::BC);
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

    __device__ __forceinline__ void scan_tile(float *memory, const float *bc,
                                              const float (&decay)[C][4], float (&h)[C][4]) const {
        const int lane = threadIdx.x & 31, q = quarter(lane), g = column(lane);
        const scan_pairs<C> pairs(memory);
        constexpr int KEPT = C <= 2 ? TILE / 4 : 1; // rounds whose y waits for the tile's end:
        float sums[KEPT][C];                        // a store would hold up the next round's loads
#pragma unroll(KEPT)
        for (int r0 = 0; r0 < TILE; r0 += 4) {
            float y[C][4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float d[C], dx[C], b[4], c[4];
                pairs.get(r0 + j, g, d, dx);
                load<4>(bc + (r0 + j) * 2 * SCAN_STATES, b);
                load<4>(bc + (r0 + j) * 2 * SCAN_STATES + SCAN_STATES, c);
#pragma unroll
                for (int k = 0; k < C; k++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        h[k][i] = exp2_fast(d[k] * decay[k][i]) * h[k][i] + dx[k] * b[i];
                        y[k][j] = i == 0 ? h[k][0] * c[0] : y[k][j] + h[k][i] * c[i];
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < C; k++) {
                const float sum = exchange4<Q_ONE, Q_TWO>(y[k], q);
                if (KEPT > 1)
                    sums[r0 / 4 % KEPT][k] = sum;
                else
                    memory[(r0 + q) * shape::Y_PITCH + k * 8 + g] = sum;
            }
        }
#pragma unroll
        for (int r = 0; r < KEPT && KEPT > 1; r++) {
#pragma unroll
            for (int k = 0; k < C; k++)
                memory[(r * 4 + q) * shape::Y_PITCH + k * 8 + g] = sums[r][k];
        }
    }

    template <class T> __device__ __forceinline__ void scan() const {
        const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = quarter(lane),
                  g = column(lane);
        const int channel = first + warp * 8 * C + g;
        T *at = (T *)a.state + ((size_t)sp.slot * a.channels + channel) * SCAN_STATES + q * 4;
        float decay[C][4] = {}, h[C][4] = {};
#pragma unroll
        for (int k = 0; k < C; k++) {
            if (channel + k * 8 >= a.channels)
                continue;
            load<4>(a.decay + (size_t)(channel + k * 8) * SCAN_STATES + q * 4, decay[k]);
            if (!sp.fresh)
                load<4>(at + k * 8 * SCAN_STATES, h[k]);
        }
        for (int t = 0, stage = 0, turn = 0; t < tiles(); t++) {
            turn_wait(barriers + stage * 16, turn);
            scan_tile(pairs_of(stage, warp), bc_of(stage) + q * 4, decay, h);
            __syncwarp();
            if (lane == 0)
                turn_arrive(barriers + stage * 16 + 8);
            stage = stage + 1 == MAKERS ? 0 : stage + 1;
            turn ^= stage == 0;
        }
#pragma unroll
        for (int k = 0; k < C; k++) {
            if (channel + k * 8 < a.channels)
                store<4>(at + k * 8 * SCAN_STATES, h[k]);
        }
    }

    // -- makers: each makes every MAKERS-th tile, and y of what the scan leaves of it

    // dt of tokens g and g + 8 as the matrix instruction wants them, zeros past the rank.
    template <int DT>
    __device__ __forceinline__ void load_dt(int at, const int (&rows)[2],
                                            uint4 (&raw)[2][DT][2]) const {
        const int q = threadIdx.x & 3;
#pragma unroll
        for (int i = 0; i < DT; i++) {
            const int k = i * 32 + q * 8;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float *from = a.xdb + (size_t)(at + rows[r]) * a.n_x + (k < a.rank ? k : 0);
                raw[r][i][0] = load_here(from);
                raw[r][i][1] = load_here(from + 4);
            }
        }
    }
    template <int DT>
    __device__ __forceinline__ void pack_dt(const uint4 (&raw)[2][DT][2],
                                            uint4 (&dt)[2][DT]) const {
        const int q = threadIdx.x & 3;
#pragma unroll
        for (int i = 0; i < DT; i++) {
            const bool live = i * 32 + q * 8 < a.rank;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const uint4 v = raw[r][i][0], w = raw[r][i][1];
                dt[r][i] = live ? make_uint4(pack(v.x, v.y), pack(v.z, v.w), pack(w.x, w.y),
                                             pack(w.z, w.w))
                                : make_uint4(0, 0, 0, 0);
            }
        }
    }
    static __device__ __forceinline__ uint32_t pack(uint32_t low, uint32_t high) {
        return pack_bf16(__uint_as_float(low), __uint_as_float(high));
    }

    // A tile of x or z by vectors of 8 channels: this lane's.
    enum { VECTORS = (TILE * shape::GROUPS + 31) / 32 };
    struct vectors {
        uint4 v[VECTORS];
    };
    __device__ __forceinline__ bool vector_at(int j, int *row, int *group) const {
        const int i = (threadIdx.x & 31) + 32 * j;
        *row = i / shape::GROUPS, *group = i % shape::GROUPS;
        return *row < TILE && first + *group * 8 < a.channels;
    }
    __device__ __forceinline__ void load_tile(const bf16 *from, size_t pitch, int at, int n,
                                              vectors *to) const {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            int row, group;
            const bool live = vector_at(j, &row, &group);
            const size_t i = live ? (size_t)(at + min(row, n - 1)) * pitch + first + group * 8 : 0;
            to->v[j] = load_here(from + i);
        }
    }
    __device__ __forceinline__ void store_x(int stage, const vectors &x) const {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            int row, group;
            vector_at(j, &row, &group);
            if (row < TILE)
                *(uint4 *)(x_of(stage) + row * shape::X_PITCH + group * 8) = x.v[j];
        }
    }

    // delta and delta x of some scan warps' channels.
    static constexpr int AT_ONCE = C == 1 ? WARPS : C == 2 && WARPS % 2 == 0 ? 2 : 1;
    template <int DT>
    __device__ __forceinline__ void make_pairs(int stage, int warp, int n,
                                               const uint4 (&dt)[2][DT]) const {
        const int lane = threadIdx.x & 31, q = lane & 3, g = lane >> 2;
        float c[AT_ONCE * C][4];
#pragma unroll
        for (int k = 0; k < AT_ONCE * C; k++) {
            const int channel = first + (warp * C + k) * 8 + 2 * q;
            const float2 bias = *(const float2 *)(a.dt_bias + (channel < a.channels ? channel : 0));
            c[k][0] = c[k][2] = bias.x, c[k][1] = c[k][3] = bias.y;
        }
        const int pitch = weight_pitch(a.rank);
        const char *w = weights + (warp * 8 * C + g) * pitch + q * 16;
#pragma unroll
        for (int i = 0; i < DT; i++) {
            if (i * 32 >= a.rank)
                break;
#pragma unroll
            for (int k = 0; k < AT_ONCE * C; k++) {
                const uint4 b = *(const uint4 *)(w + k * 8 * pitch + i * 64);
                const uint4 lo = dt[0][i], hi = dt[1][i];
                mma(c[k], lo.x, hi.x, lo.y, hi.y, b.x, b.y);
                mma(c[k], lo.z, hi.z, lo.w, hi.w, b.z, b.w);
            }
        }
        const bf16 *x_tile = x_of(stage) + warp * 8 * C + 2 * q;
#pragma unroll
        for (int s = 0; s < AT_ONCE; s++) {
            const scan_pairs<C> to(pairs_of(stage, warp + s));
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const int r = g + part * 8;
                float d[2][C], dx[2][C];
#pragma unroll
                for (int k = 0; k < C; k++) { // past the last token 0, which changes no state
                    const uint32_t x =
                        *(const uint32_t *)(x_tile + r * shape::X_PITCH + (s * C + k) * 8);
                    const float *v = c[s * C + k] + part * 2;
                    d[0][k] = softplus_straight(r < n ? v[0] : -1e30f);
                    d[1][k] = softplus_straight(r < n ? v[1] : -1e30f);
                    dx[0][k] = d[0][k] * low_half(x);
                    dx[1][k] = d[1][k] * high_half(x);
                }
                to.put(r, 2 * q, d[0], dx[0]);
                to.put(r, 2 * q + 1, d[1], dx[1]);
            }
        }
    }

    // z is there, x of the tile in shared memory, y in the place of pairs.
    __device__ __forceinline__ void finish(int stage, int at, int n, const vectors &z) const {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) {
            int row, group;
            const bool live = vector_at(j, &row, &group);
            if (!live || row >= n)
                continue;
            float x[8], v[8], skip[8], y[8];
            const float *sums = pairs_of(stage, group / C) + row * shape::Y_PITCH + group % C * 8;
            load<8>(sums, y);
            load<8>(a.skip + first + group * 8, skip);
            load<8>(x_of(stage) + row * shape::X_PITCH + group * 8, x);
            const uint32_t words[4] = {z.v[j].x, z.v[j].y, z.v[j].z, z.v[j].w};
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[2 * i] = low_half(words[i]), v[2 * i + 1] = high_half(words[i]);
#pragma unroll
            for (int i = 0; i < 8; i++)
                y[i] = (y[i] + skip[i] * x[i]) * silu(v[i]);
            store<8>((bf16 *)a.y + (size_t)(at + row) * a.channels + first + group * 8, y);
        }
    }

    template <int DT> __device__ __forceinline__ void run_maker(int maker) const {
        const int lane = threadIdx.x & 31, g = lane >> 2;
        for (int t = maker, turn = 0; t < tiles(); t += MAKERS, turn ^= 1) {
            const int at = sp.first + t * TILE, n = min((int)TILE, sp.count - t * TILE);
            const int rows[2] = {min(g, n - 1), min(g + 8, n - 1)};
            uint4 dt[2][DT], bc[TILE / 4];
            vectors z;
            {
                uint4 raw[2][DT][2];
                vectors x;
                load_dt<DT>(at, rows, raw);
                load_tile((const bf16 *)a.x, a.channels, at, n, &x);
#pragma unroll
                for (int i = 0; i < TILE / 4; i++)
                    bc[i] =
                        load_here(a.xdb + (size_t)(at + min((lane >> 3) + 4 * i, n - 1)) * a.n_x +
                                  a.rank + (lane & 7) * 4);
                pack_dt<DT>(raw, dt);
                store_x(maker, x);
            }
#pragma unroll
            for (int i = 0; i < TILE / 4; i++)
                *(uint4 *)(bc_of(maker) + ((lane >> 3) + 4 * i) * 2 * SCAN_STATES +
                           (lane & 7) * 4) = bc[i];
            __syncwarp();
#pragma unroll 1
            for (int warp = 0; warp < WARPS; warp += AT_ONCE)
                make_pairs<DT>(maker, warp, n, dt);
            load_tile((const bf16 *)a.xz + a.channels, 2 * (size_t)a.channels, at, n, &z);
            __syncwarp();
            if (lane == 0)
                turn_arrive(barriers + maker * 16);
            turn_wait(barriers + maker * 16 + 8, turn);
            finish(maker, at, n, z);
            __syncwarp();
        }
    }
};

} // namespace ssm

#endif
