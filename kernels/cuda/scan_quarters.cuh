// SPDX-License-Identifier: Apache-2.0
// The scan in roles for few channels an SM: four scan warps share the states of all channels of a
// block, a quarter each, so that any number of groups of 8 channels falls evenly on the four
// schedulers. scan_roles.cu says for which prompts.
//
// A lane has one state of a channel of each group. y, the sum over a channel's states, is what such
// a division makes dear by shuffles; the matrix units take it: four tokens' states of 8 channels
// times C are one m16n8k8 of tf32. Rows: the channels of the first and third token, then of the
// second and fourth; k: the warp's four states of the first or second token, then of the third or
// fourth; columns: C of eight tokens, zeros where they are not the row's. So two of a lane's four
// sums, even tokens' in rows below 8 and odd ones' above, are y of its channel, the others nothing.
// The four warps' sums are added by the makers, who find them where dt was. Products cut operands
// to 11 bits: y is 1.660e-3 from fp64 (bf16's own rounding: 1.654e-3), states as in scan.cu.
//
// What binds with 40 channels is shared memory, 78 wavefronts a token of 80 cycles (read by ncu):
// delta and delta x are read by all four warps, and a read of what four lanes share takes a cycle
// for 64 bytes. With 16 it is 34 of 40, but what a scan warp waits for counts as much: a tile is
// straight code without an exit, for what the matrix units have begun must be there before a
// branch. us a layer with 40 / 16 channels:
//   exits between the halves of a tile, two scan warps a scheduler     96.1 / 47.6
//   one                                                                 106 / 46.8
//   a tile without, y taken four tokens later; two                     96.2 / 44.8
//   one                                                                96.3 / 44.0
// Tried and dropped, of the first of these: two stages a maker, so that it asks for inputs before
// it waits for the scan, 117 to 128 with the 4 or 5 makers that there is room for / 48.8; 10 makers
// 102, 12 / 47.6; reading six tokens ahead instead of three / 48.3; dt_proj by wgmma, four makers
// together, 107; dt_proj in registers and rows fetched in one line / 47.4; a whole group and a
// quarter of the fifth a warp, 105.
#ifndef SSM_KERNELS_CUDA_SCAN_QUARTERS_CUH
#define SSM_KERNELS_CUDA_SCAN_QUARTERS_CUH

#include "scan_roles.cuh"

namespace ssm {

// d [16][8] += a [16][8] b [8][8], cut to tf32.
__device__ __forceinline__ void mma_tf32(float (&d)[4], float a0, float a1, float a2, float a3,
                                         uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
          "r"(__float_as_uint(a3)), "r"(b0), "r"(b1));
}

// C for that, rounded, and larger by what states lose on average by being cut: mantissas m are as
// likely as 1 / m, so 2^-11 / (2 ln 2).
__device__ __forceinline__ uint32_t readout_c(float c) {
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(c * (1.f + 0x1p-11f * 0.7213475f)));
    return bits;
}

// A block of G groups of 8 channels. PARTS scan warps a scheduler share the groups, the first part
// has the more of them. Each maker has a stage; one more takes what scan warps leave when there is
// no tile before.
template <int G, int PARTS, int MAKERS, int DT>
struct quarters_shape : scan_shape<1, G, G, MAKERS + 1, 1, DT> {
    static constexpr int WARPS = 4 * PARTS, MOST = (G + PARTS - 1) / PARTS;
    static constexpr int THREADS = (WARPS + MAKERS) * 32;
    static_assert(4 * 8 * G <= DT * 32, "y takes dt's place");
};

template <int G, int PARTS, int MAKERS, int DT>
struct scan_quarters : scan_block<1, G, G, MAKERS + 1, 1, DT> {
    typedef quarters_shape<G, PARTS, MAKERS, DT> form;
    typedef typename scan_quarters::scan_block base;
    typedef typename base::shape shape;
    using base::a, base::sp, base::first, base::barriers, base::skip, base::pairs_of, base::xdb_of;
    using base::x_of, base::tiles;

    __device__ __forceinline__ scan_quarters(const mamba_args &args, const span &s, char *memory)
        : base(args, s, memory) {
    }

    // -- scan warps: four states, one a lane, of N groups of which `at` is the first.
    template <class T, int N> __device__ __forceinline__ void scan_part(int at, int quarter) const {
        int lane = threadIdx.x & 31;
        asm volatile("" : "+r"(lane)); // not read again
        const int q = lane & 3, g = lane >> 2, s = 4 * quarter + q, channel = first + at * 8 + g;
        float decay[N], h[N][8] = {}; // of tokens, modulo 8
        T *state = (T *)a.state + ((size_t)sp.slot * a.channels + channel) * SCAN_STATES + s;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const bool live = channel + k * 8 < a.channels;
            decay[k] = live ? a.decay[(size_t)(channel + k * 8) * SCAN_STATES + s] : 0;
            h[k][7] = live && !sp.fresh ? to_float(state[k * 8 * SCAN_STATES]) : 0;
        }
        uint32_t mask[4]; // of the columns of two tokens
#pragma unroll
        for (int t = 0; t < 4; t++) {
            mask[t] = g / 2 == t ? ~0u : 0;
            asm volatile("" : "+r"(mask[t]));
        }
        // A token's row is read AHEAD tokens before it is used, its decays are made BEFORE.
        constexpr int AHEAD = 3, BEFORE = 2;
        float d[4][N], dx[4][N], e[4][N], b[4], c, y[2][N][4] = {};
        const int pairs_at = at * shape::GROUP + g * 2;
        const int xdb_at = G * shape::GROUP, b_at = xdb_at + shape::BC_AT + s;
        const int c_at = b_at + SCAN_STATES + g * shape::XDB_PITCH;
        const int y_at = xdb_at + 2 * q * shape::XDB_PITCH + quarter * shape::CHANNELS + at * 8 + g;
        auto fetch_row = [&](const float *memory, int t) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                const float2 v = *(const float2 *)(memory + pairs_at + k * shape::GROUP + t * 16);
                d[t % 4][k] = v.x, dx[t % 4][k] = v.y;
            }
            b[t % 4] = memory[b_at + t * shape::XDB_PITCH];
        };
        auto make_row = [&](int t) {
#pragma unroll
            for (int k = 0; k < N; k++)
                e[t % 4][k] = exp2_fast(d[t % 4][k] * decay[k]);
        };
        auto c_of = [&](const float *memory, int half) {
            return memory[c_at + half * 8 * shape::XDB_PITCH];
        };
        auto leave = [&](float *memory, int half) {
            float *to = memory + y_at + half * 8 * shape::XDB_PITCH;
#pragma unroll
            for (int k = 0; k < N; k++)
                to[k * 8] = y[half][k][0], to[k * 8 + shape::XDB_PITCH] = y[half][k][3];
        };
        auto read_out = [&](int half, int i, uint32_t rounded) { // four tokens
            const uint32_t b0 = rounded & mask[i / 2], b1 = rounded & mask[i / 2 + 1];
#pragma unroll
            for (int k = 0; k < N; k++) {
#pragma unroll
                for (int l = 0; l < 4 && i == 0; l++)
                    y[half][k][l] = 0;
                mma_tf32(y[half][k], h[k][i], h[k][i + 1], h[k][i + 2], h[k][i + 3], b0, b1);
            }
        };
        const int n = tiles();
        int stage = 0, turn = 0;
        // Before the first tile comes the stage that is nobody's.
        float *memory = pairs_of(0, 0), *last = pairs_of(MAKERS, 0);
        uint32_t barrier = barriers, last_barrier = barriers + MAKERS * 16, c0, c1 = 0;
        auto done = [&]() {
            leave(last, 1);
            __syncwarp();
            if (lane == 0)
                barrier_arrive(last_barrier + 8);
        };
        barrier_wait(barrier, 0);
#pragma unroll
        for (int t = 0; t < AHEAD; t++)
            fetch_row(memory, t);
#pragma unroll
        for (int t = 0; t < BEFORE; t++)
            make_row(t);
        c = c_of(memory, 0);
#pragma unroll 1
        for (int i = 0; i < n; i++) {
            stage = stage + 1 == MAKERS ? 0 : stage + 1;
            turn ^= stage == 0;
            float *next = pairs_of(stage, 0);
            const uint32_t next_barrier = barriers + stage * 16;
            bool full = false;
            c0 = readout_c(c);
            // What the matrix units come to is not there at once: nothing near needs it.
#pragma unroll
            for (int t = 0; t < TILE; t++) {
#pragma unroll
                for (int k = 0; k < N; k++)
                    h[k][t % 8] = e[t % 4][k] * h[k][(t + 7) % 8] + dx[t % 4][k] * b[t % 4];
                make_row(t + BEFORE);
                if (t == 8)
                    full = barrier_test(next_barrier, turn);
                if (t == TILE - AHEAD && !full)
                    barrier_wait(next_barrier, turn);
                fetch_row(t < TILE - AHEAD ? memory : next, (t + AHEAD) % TILE);
                if (t == 1)
                    read_out(1, 4, c1);
                if (t == 5)
                    read_out(0, 0, c0);
                if (t == 9)
                    read_out(0, 4, c0);
                if (t == 4)
                    done(), c = c_of(memory, 1);
                if (t == 8)
                    c1 = readout_c(c);
                if (t == 12)
                    leave(memory, 0), read_out(1, 0, c1);
                if (t == TILE - AHEAD)
                    c = c_of(next, 0);
            }
            last = memory, last_barrier = barrier;
            memory = next, barrier = next_barrier;
        }
        read_out(1, 4, c1);
        done();
#pragma unroll
        for (int k = 0; k < N; k++)
            if (channel + k * 8 < a.channels)
                state[k * 8 * SCAN_STATES] = from_float<T>(h[k][7]);
    }
    template <class T> __device__ __forceinline__ void scan(int warp) const {
        constexpr int REST = G - form::MOST;
        if constexpr (REST == form::MOST)
            scan_part<T, REST>(warp / 4 * REST, warp % 4);
        else if (PARTS == 1 || warp < 4)
            scan_part<T, form::MOST>(0, warp % 4);
        else if constexpr (REST > 0)
            scan_part<T, REST>(form::MOST, warp % 4);
    }

    // -- makers

    // Sixteen tokens at a time, so that neighbours' reads meet other banks.
    __device__ __forceinline__ void finish(int stage, int at, int n) const {
        const int lane = threadIdx.x & 31, token = lane % TILE;
        const float *from = xdb_of(stage) + token * shape::XDB_PITCH;
        const bf16 *x_from = x_of(stage) + token * shape::X_PITCH;
#pragma unroll 1
        for (int group = lane / TILE; group < G; group += 2) {
            const int i = group * 8, channel = first + i;
            if (token >= n || channel >= a.channels)
                continue;
            float x[8], v[8], d[8], y[4][8], out[8];
#pragma unroll
            for (int w = 0; w < 4; w++)
                load<8>(from + w * shape::CHANNELS + i, y[w]);
            load<8>(skip + i, d);
            load<8>(x_from + i, x);
            load<8>(x_from + TILE * shape::X_PITCH + i, v);
#pragma unroll
            for (int j = 0; j < 8; j++)
                out[j] = (((y[0][j] + y[1][j]) + (y[2][j] + y[3][j])) + d[j] * x[j]) * silu(v[j]);
            store<8>((bf16 *)a.y + (size_t)(at + token) * a.channels + channel, out);
        }
    }

    __device__ __forceinline__ void run_maker(int stage) const {
        const int lane = threadIdx.x & 31, n = tiles();
        int t = stage;
        if (t < n)
            base::fetch(stage, 0, t);
        for (int turn = 0; t < n; t += MAKERS, turn ^= 1) {
            const int count = min((int)TILE, sp.count - t * TILE);
            copies_wait();
            __syncwarp();
            uint4 dt[2][DT];
            base::pack_dt(stage, dt);
            base::template make_pairs<G>(stage, 0, count, dt);
            __syncwarp();
            if (lane == 0)
                barrier_arrive(barriers + stage * 16);
            barrier_wait(barriers + stage * 16 + 8, turn);
            finish(stage, sp.first + t * TILE, count);
            __syncwarp();
            if (t + MAKERS < n)
                base::fetch(stage, 0, t + MAKERS);
        }
        if (t == n && lane == 0) // scan warps look a tile ahead
            barrier_arrive(barriers + stage * 16);
    }
};

} // namespace ssm

#endif
