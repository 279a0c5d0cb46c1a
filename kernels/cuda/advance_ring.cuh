// SPDX-License-Identifier: Apache-2.0
// Pieces of advance_ring.cu: how a block's shared memory is laid out, which tiles it walks, and
// what a lane makes of a row.
#ifndef SSM_KERNELS_CUDA_ADVANCE_RING_CUH
#define SSM_KERNELS_CUDA_ADVANCE_RING_CUH

#include "advance.cuh"
#include "hopper.cuh"

namespace ssm {

enum {
    ROW_WARPS = 8,
    DELTA_WARPS = 4, // a group that can give registers to the others
    DELTA_THREADS = DELTA_WARPS * 32,
    ADVANCE_RING_THREADS = ROW_WARPS * 32 + DELTA_THREADS,
    ROW_REGISTERS = 88, // of 80 at launch: without spills the others need no more than 64
    DELTA_REGISTERS = 64,
    MOST_ROW_STAGES = 5,
    MOST_MEMORY = 112 << 10 // two blocks an SM, or one beside one of xproj.cu's
};

// Named barriers. The first two are pairs: for a tile's first eight rows and for its last.
enum { DELTA_IS_THERE = 1, DELTA_IS_READ = 3, DT_IS_THERE = 5 };

// A lane owns 64 bytes of a row: two channels in fp16, one in fp32. COLS: warps along the channels.
template <class S, int COLS = 2> struct advance_ring_shape {
    enum {
        V = 16 / sizeof(S),       // states of a 16-byte part
        PARTS = 16 / V,           // of a channel
        OWN = 4 / PARTS,          // channels a lane
        OF_WARP = 32 * OWN,       // channels
        CHANNEL = 16 * sizeof(S), // bytes
        STAGE = 32 * 64,          // bytes: a warp's channels of a row
        COLUMNS = COLS,
        GROUPS = ROW_WARPS / COLUMNS, // warps along the rows
        CHANNELS = COLUMNS * OF_WARP, // of a block
        ROWS = TILE / GROUPS,         // of a tile a warp
        DELTA_PITCH = CHANNELS + 8    // floats: rows' banks apart
    };
};

// Where a block's shared memory holds what, in bytes; barriers of the rings come first.
struct advance_ring_layout {
    int dt_proj; // bf16 [channels], rows of weight_pitch
    int bias;    // [channels]
    int dt;      // bf16 [TILE], rows of weight_pitch
    int bc;      // [2][TILE][32] B, C
    int delta;   // [TILE][DELTA_PITCH] after softplus
    int ring;    // [ROW_WARPS][stages][STAGE]
    int stages, end;
};

// The ring takes what is left behind `at`.
template <class S, int COLS = 2> static void put_ring(advance_ring_layout *l, int at) {
    const int stages = ROW_WARPS * advance_ring_shape<S, COLS>::STAGE; // bytes, one of each warp
    l->ring = (at + 127) / 128 * 128;
    l->stages = (MOST_MEMORY - l->ring) / stages;
    l->stages = l->stages < MOST_ROW_STAGES ? l->stages : MOST_ROW_STAGES;
    l->end = l->ring + l->stages * stages;
}

template <class S, int COLS = 2> static advance_ring_layout advance_ring_layout_of(int rank) {
    typedef advance_ring_shape<S, COLS> shape;
    advance_ring_layout l;
    l.dt_proj = ROW_WARPS * MOST_ROW_STAGES * 8;
    l.bias = l.dt_proj + shape::CHANNELS * weight_pitch(rank);
    l.dt = l.bias + shape::CHANNELS * 4;
    l.bc = l.dt + TILE * weight_pitch(rank);
    l.delta = l.bc + 2 * TILE * 32 * 4;
    put_ring<S, COLS>(&l, l.delta + TILE * shape::DELTA_PITCH * 4);
    return l;
}

// A block's share of all columns' rows, tile after tile: up to 16 rows of a column.
struct advance_ring_tiles {
    int at, end, n_rows;
    int column, row, count; // count 0: no more, and the column is the last one

    __device__ __forceinline__ advance_ring_tiles(int columns, int n_rows) : n_rows(n_rows) {
        const int64_t all = (int64_t)columns * n_rows;
        at = (int)(all * blockIdx.x / gridDim.x);
        end = (int)(all * (blockIdx.x + 1) / gridDim.x);
        next();
    }
    __device__ __forceinline__ void next() {
        column = min(at, end - 1) / n_rows;
        row = at - column * n_rows;
        count = min(min((int)TILE, end - at), n_rows - row);
        at += count;
    }
};

#if SSM_HOPPER

// A row's states on their way back, a group of their own; first to leave L2.
__device__ __forceinline__ void store_states(void *to, uint32_t from, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, "
                 "%3;" ::"l"(to),
                 "r"(from), "r"(bytes), "l"(policy_once())
                 : "memory");
}

// Two bf16 the other way round, where `swapped`.
__device__ __forceinline__ uint32_t halves_of(uint32_t pair, bool swapped) {
    return swapped ? __funnelshift_l(pair, pair, 16) : pair;
}

// OWN channels' inputs or outputs, a number of 16 bits each.
template <int OWN> __device__ __forceinline__ uint32_t load_inputs(const bf16 *p) {
    return OWN == 2 ? *(const uint32_t *)p : *(const uint16_t *)p;
}

// A lane's channels.
template <class S> struct own_channels {
    typedef advance_ring_shape<S> shape;
    static constexpr int PARTS = shape::PARTS, V = shape::V, OWN = shape::OWN;
    // A lane takes its four parts in another order than its neighbours: no two meet in a bank.
    int turn;
    bool swapped; // its second channel first
    float decay[OWN][16], skip[OWN];

    __device__ __forceinline__ own_channels(int lane)
        : turn(lane >> 1 & 3), swapped(OWN == 2 && (lane >> 2 & 1)) {
    }

    __device__ __forceinline__ void load_constants(const mamba_args &a, int first) {
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const int channel = first + (swapped ? OWN - 1 - o : o);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                float part[V];
                load<V>(a.decay + (size_t)channel * 16 + (p ^ (turn & (PARTS - 1))) * V, part);
#pragma unroll
                for (int v = 0; v < V; v++)
                    decay[o][p * V + v] = part[v];
            }
            skip[o] = a.skip[channel];
        }
    }

    // One token on. states: this lane's 64 bytes; bc: the row's B and C; delta, x, z: of the
    // channels as they lie. Returns y.
    __device__ __forceinline__ uint32_t advance(char *states, const float *bc,
                                                const float *delta_of, uint32_t x,
                                                uint32_t z) const {
        float delta[OWN], dx[OWN], y[OWN];
        load<OWN>(delta_of, delta);
        if (swapped) {
            const float first = delta[0];
            delta[0] = delta[OWN - 1], delta[OWN - 1] = first;
        }
        x = halves_of(x, swapped), z = halves_of(z, swapped);
#pragma unroll
        for (int o = 0; o < OWN; o++) {
            const float xf = o ? high_half(x) : low_half(x);
            dx[o] = delta[o] * xf, y[o] = skip[o] * xf;
        }
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const float *part = bc + (p ^ (turn & (PARTS - 1))) * V;
            float b[V], c[V];
            load<V>(part, b);
            load<V>(part + 16, c);
#pragma unroll
            for (int o = 0; o < OWN; o++) {
                S *of = (S *)(states + ((o * PARTS + p) ^ turn) * 16);
                float h[V];
                load<V>(of, h);
#pragma unroll
                for (int v = 0; v < V; v++) {
                    h[v] = exp2_fast(delta[o] * decay[o][p * V + v]) * h[v] + dx[o] * b[v];
                    y[o] += h[v] * c[v];
                }
                store<V>(of, h);
            }
        }
#pragma unroll
        for (int o = 0; o < OWN; o++)
            y[o] *= silu(o ? high_half(z) : low_half(z));
        return halves_of(pack_bf16(y[0], y[OWN - 1]), swapped);
    }
};

#endif

} // namespace ssm

#endif
