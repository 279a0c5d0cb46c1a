// SPDX-License-Identifier: Apache-2.0
// What resident_*.cuh share: arguments, how a block's shared memory is dealt, and how blocks wait
// for each other. See resident.cu for the design.
#ifndef SSM_KERNELS_CUDA_RESIDENT_CUH
#define SSM_KERNELS_CUDA_RESIDENT_CUH

#include "advance.cuh"
#include "cuda.h"
#include "packed_format.h"
#include "wgmma.cuh"

namespace ssm {

enum {
    RESIDENT_LAYERS = 64, // most; arguments of a launch are at most 32,764 bytes
    RESIDENT_ROWS = 64,
    RESIDENT_TALL_ROWS = 128, // resident_tall.cu
    RESIDENT_BLOCKS = 128,
    RESIDENT_CLUSTERS = 64,
    RESIDENT_WARPS = 8, // that work
    RESIDENT_WORKERS = RESIDENT_WARPS * 32,
    RESIDENT_THREADS = RESIDENT_WORKERS + 128, // three of these warps ask for what workers read
    X_WARPS = 2,                               // of them, for token rows
    RESIDENT_SHARED = 227 << 10,
    FLIGHT = 80 << 10,       // bytes that a block's ring may have under way,
    MORE_FLIGHT = 100 << 10, // of 1.4b's and 2.8b's bf16 weights, beyond a few rows, and
    AHEAD = 160 << 10,       // that L2 is asked for in front of it
    ASKED = 16               // barriers of slots with states (wait_asked)
};

struct resident_weights {   // of a layer, as boxes
    CUtensorMap in, x, out; // x: of x_proj; Mamba-2: in_proj's again, in eights of rows
};

struct resident_layer {
    const bf16 *dt_proj;
    const float *conv_weight, *conv_bias, *dt_bias, *decay, *skip; // as layer_weights
    const float *next_norm; // of the layer that follows, or before the head
    const char *packed_in, *packed_out;
    float packed_in_by, packed_out_by; // what sums of these are multiplied by
};

// Something that blocks tell each other, in 128 bytes of its own.
struct resident_counter {
    unsigned n, unused[31];
};
struct resident_args {
    const int32_t *ids, *drawn; // tokens: embed's
    const bf16 *embedding;      // [id][d_model]
    const float *first_norm;
    const row *rows;
    float *residual;                // [token][d_model]
    bf16 *u, *y;                    // [token][d_model], [token][d_inner]
    bf16 *ring;                     // [layer][slot][d_conv - 1][d_inner]
    char *state;                    // S [layer][slot][d_inner][16]
    size_t ring_pitch, state_pitch; // numbers of a layer, bytes of a layer
    void *scratch;                  // resident_scratch and what is behind it
    int tokens, n_layers, width;    // width: d_conv
    float eps, bc_dt_eps; // the latter of the norms of dt, B and C; below 0: there are none
    resident_weights weights[RESIDENT_LAYERS];
    resident_layer layers[RESIDENT_LAYERS];
    float gate_eps; // Mamba-2: of the gated norm
};

// Of a width of 32 CHANNELS, a cluster's channels; MOST: token rows, 64 or 128. P: in_proj's and
// out_proj's weights are packed (resident_packed.cuh): of 16 rows at most. T: for as many, too.
template <int CHANNELS, int MOST, bool P = false, bool T = P> struct resident_shape {
    enum {
        NW = CHANNELS,
        PACKED = P,
        ROWS = MOST,
        EXCHANGED = T, // x_proj's sums and y are told without releases (resident_exchanges.cuh)
        FEW = P && T && NW > 64, // room for no more rows than these, slots as small as packed ones
        MANY = P && !T,          // packed, of more rows: resident_packed_rows.cuh
        HALF_ROWS = FEW ? 16 : MOST / 2, // room for a rank's, in sixteens
        OWN_ROWS = T ? 16 : HALF_ROWS,   // that there can be, the same
        SETS = (MOST + 63) / 64,         // of 64 token rows, a matrix instruction's
        TALL = SETS > 1,
        HALVES = false, // the tokens are dealt to the ranks by eights
        APART = false,  // rows of x that no second group has
        GATED = false,
        WIDE = NW == 128,                         // falcon-mamba-7b's
        NORMS = WIDE,                             // dt, B and C may be normed (falcon_mamba)
        SMALL = (WIDE && !P) || TALL,             // slots, or there were room for two or three
        OUT_TILES = SMALL ? 32 : 16,              // of out_proj's rows
        OUT_SPLITS = RESIDENT_BLOCKS / OUT_TILES, // of its columns
        // A width's forms take turns at one scratch: as many as any of them has
        MOST_TILES = WIDE ? 32 : OUT_TILES,
        MOST_SPLITS = WIDE ? 8 : OUT_SPLITS,
        SQUARE_ROWS = (TALL ? ROWS : RESIDENT_ROWS) * MOST_TILES / OUT_TILES,
        TILE_ROWS = 32 * NW / OUT_TILES,
        OUT_GROUP = TALL ? TILE_ROWS : TILE_ROWS / 2, // rows of a group of warps
        WIDTH = 32 * NW,                              // d_model
        INNER = 64 * NW,                              // d_inner
        CONV = INNER,                                 // channels of the convolution
        RANK = 2 * NW,                                // dt_rank
        N_X = RANK + 32,
        IN_PIECES = NW / 4, // pieces of 64 columns of a block's share
        OUT_PIECES = NW / OUT_SPLITS,
        SLOT = FEW || MANY ? NW / 16 * PACKED_TILE : TILE_ROWS * 128,
        X_STAGES = MANY && WIDE ? 256 / MOST
                   : MANY       ? NW / 4 // all of u's
                   : SMALL      ? 4
                                : 6,                // of token rows
        X_STAGE = MOST * 128,                  // 64 columns of all token rows
        X_PROJ_ROWS = MANY || (WIDE && P) ? 96 // of x_proj, and
                      : SMALL || FEW      ? 64
                                          : 128,
        DT_ROWS = MANY || (WIDE && P) ? 48
                  : SMALL || FEW      ? 32
                                      : 64, // of dt_proj in a slot of the ring
        X_SLOTS = (N_X + X_PROJ_ROWS - 1) / X_PROJ_ROWS,
        DT_SLOTS = (NW + DT_ROWS - 1) / DT_ROWS,
        // in_proj: slots of all rows of x, or of z, and one or two pieces of columns (packed: half
        // of the rows and twice as many)
        A_SLOT = TILE_ROWS / NW,
        IN_SLOTS = IN_PIECES / A_SLOT,
        // packed: a stage a slot
        X_BARRIERS = SMALL || MANY || (int)X_STAGES > (int)IN_SLOTS ? (int)X_STAGES : (int)IN_SLOTS,
        KEPT_SLOTS = X_STAGES / A_SLOT,                // of x, whose token rows z begins with
        GROUP_ROWS = TALL ? NW : (NW / 8 + 1) / 2 * 8, // of a group of warps
        IN_BLOCKS = GROUP_ROWS / 8,
        EXTRA = 0, // rows behind a cluster's rows of x
        X_ROWS = NW + EXTRA,
        X_GROUP = GROUP_ROWS,
        X_BLOCKS = X_GROUP / 8,
        PITCH = NW + 8,                            // of a token's x and z
        DT_PITCH = (RANK * 2 + 63) / 64 * 64 | 64, // bytes: odd multiples of 64
        BC_PITCH = 32 + 4,
        // bytes
        FROM_PEER = 8 * IN_BLOCKS * 256, // bytes of x's or z's sums
        // both; where x's were, constants, later delta and delta x
        DELTAS = 8 * (NW * HALF_ROWS),
        PEER = 2 * FROM_PEER > DELTAS ? 2 * FROM_PEER : DELTAS,
        ACTS = HALF_ROWS * PITCH * 2,
        SUMMED = HALF_ROWS * (DT_PITCH + BC_PITCH * 4), // x_proj's sums
        SHARE = HALF_ROWS * N_X * 4,
        // the share of x_proj, a 64th of all shares, its sums
        STAGED = SHARE > SUMMED ? SHARE : SUMMED,
        CONSTANTS = NW * 18 * 4,               // of the states: decay, skip, bias of delta
        SCALES = MANY ? 2 * HALF_ROWS * 4 : 0, // of tokens, each group's
        BESIDE = X_STAGES * X_STAGE + PEER + 2 * ACTS + STAGED + SCALES,
        BARRIERS = NW > 32 && !MANY ? 512 : 640,
        ROOM = (RESIDENT_SHARED - BESIDE - BARRIERS) / SLOT,
        SLOTS = ROOM < 16 ? ROOM : 16,
        BYTES = SLOTS * SLOT + BESIDE + BARRIERS,
        SLOTS_MOST = P ? SLOTS - 2 : SLOTS, // packed_shape: turns
        UNDER_WAY = !P && !T && (NW == 64 || NW == 80) ? MORE_FLIGHT : FLIGHT, // bytes
        SLOTS_FLIGHT = UNDER_WAY / SLOT < SLOTS_MOST ? UNDER_WAY / SLOT : SLOTS_MOST,
        // Asking L2 for others delays what is under way where that is two slots at most, and costs
        // 130m's few rows 2%, whose ring holds most of a layer
        SLOTS_AHEAD = (MANY && MOST > 32) || (T && NW == 24) ? 0 : AHEAD / SLOT,
        // x_proj's totals, of a rank: zeros between launches, whether a step uses them or not
        X_TOTALS = TALL ? 0 : 8 * N_X,
        // numbers in front of out_proj's shares (resident_scratch)
        BEFORE_SHARES = 4 * X_TOTALS + 2 * RESIDENT_CLUSTERS * HALF_ROWS * N_X +
                        2 * HALF_ROWS * 32 + HALF_ROWS * RANK
    };
    static_assert(IN_PIECES % 2 == 0 && X_STAGES % 2 == 0, "two pieces a slot, or a turn");
    static_assert(X_PROJ_ROWS * NW * 2 <= SLOT && DT_ROWS * RANK * 2 <= SLOT, "slots");
    static_assert((int)X_SLOTS <= (int)SLOTS && (int)DT_SLOTS <= (int)SLOTS, "all at once");
    static_assert((int)IN_PIECES >= (int)X_STAGES, "some of x to begin z with");
    static_assert((int)CONSTANTS <= (int)FROM_PEER, "where x's sums were");
    static_assert((2 * SLOTS + 2 * X_BARRIERS + 22) * 8 <= BARRIERS, "their room");
    static_assert((int)BYTES <= (int)RESIDENT_SHARED, "all");

    // Where a token row's 16 bytes of a share of x_proj lie in the row, so that eight rows' are
    // written at once.
    static __host__ __device__ constexpr int swizzled(int row, int unit) {
        return N_X % 32 == 0 ? unit ^ row % 8 : unit ^ row / 2 % 4;
    }
    static_assert(N_X % 16 == 0, "fours of units");
};

template <class SHAPE> struct resident_scratch {
    typedef SHAPE shape;
    enum { WIPED = 4 + shape::MOST_SPLITS + shape::MOST_TILES }; // counters, at a launch's begin

    resident_counter parts[2]; // a rank's blocks have left their shares of x_proj's sums
    resident_counter sums[2];  // and these are added up
    resident_counter y[shape::MOST_SPLITS];     // as many blocks as there are tiles have left y
    resident_counter shares[shape::MOST_TILES]; // and as splits their shares of out_proj's sums
    resident_counter input; // all blocks have left the next layer's input; 0 between launches
    float squares[SHAPE::SQUARE_ROWS][shape::OUT_TILES]; // of the residual, by tile
    // and behind it
    // uint64_t x_totals[2][X_TOTALS] (resident_exchanges.cuh)
    // float x_parts[2][RESIDENT_CLUSTERS][HALF_ROWS][n_x]
    // float bc[2][HALF_ROWS][32], bf16 dt[2][HALF_ROWS][dt_rank]: x_proj's sums
    // float shares[OUT_SPLITS][SHAPE::ROWS][d_model]
};

#if SSM_HOPPER

// ---- blocks wait for each other

__device__ __forceinline__ void workers_sync() {
    asm volatile("bar.sync 1, 256;" ::: "memory");
}
// One thread, behind a barrier of those whose writes it announces.
__device__ __forceinline__ void count_up(resident_counter *c) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(&c->n) : "memory");
}
// Ends the launch with an error rather than never, some seconds on.
__device__ __forceinline__ void count_wait(const resident_counter *c, int target) {
#pragma unroll 1
    for (int tries = 0; tries < 1 << 22; tries++) {
        int n;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(&c->n) : "memory");
        if (n >= target)
            return;
    }
    __trap();
}
// Eight bytes to all blocks; once their return has been looked at, a count needs no release, which
// would wait for what the copy engine loads, too. PTX's model does not promise that; the exchange
// has been done in L2 by then, where counts are and whence others read.
__device__ __forceinline__ uint64_t exchange(void *p, uint32_t lo, uint32_t hi) {
    uint64_t before;
    asm volatile("{\n.reg .b64 v;\n"
                 "mov.b64 v, {%2,%3};\n"
                 "atom.relaxed.gpu.global.exch.b64 %0, [%1], v;\n}"
                 : "=l"(before)
                 : "l"(p), "r"(lo), "r"(hi)
                 : "memory");
    return before;
}
__device__ __forceinline__ uint64_t exchange(void *p, const uint4 &v) { // in two halves
    return exchange(p, v.x, v.y) | exchange((uint2 *)p + 1, v.z, v.w);
}
__device__ __forceinline__ uint32_t exchange_one(float *p, float v) {
    uint32_t before;
    asm volatile("atom.relaxed.gpu.global.exch.b32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(p), "r"(__float_as_uint(v))
                 : "memory");
    return before;
}
// A warp: once all of its exchanges have returned these. False: they are this very word, so that
// nothing is known.
__device__ __forceinline__ bool exchanged(uint64_t before) {
    return __any_sync(~0u, before != 0x7fffdeadbeef7fff);
}
// By one thread, behind a barrier of those whose exchanges it announces.
__device__ __forceinline__ void count_exchanged(resident_counter *c, bool back) {
    if (back)
        asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(&c->n) : "memory");
    else
        count_up(c);
}
// All workers.
__device__ __forceinline__ void workers_wait(const resident_counter *c, int target) {
    if (threadIdx.x == 0)
        count_wait(c, target);
    workers_sync();
}
// ---- loads that stay where they stand

__device__ __forceinline__ float2 load_pair(const float *p) {
    float2 v;
    asm volatile("ld.global.nc.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p));
    return v;
}
__device__ __forceinline__ uint32_t load_word(const bf16 *p) {
    uint32_t v;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
// Written by other blocks of this launch: from L2.
__device__ __forceinline__ float4 load_shared_sum(const float *p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
__device__ __forceinline__ float2 load_shared_pair(const float *p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}
template <int N> __device__ __forceinline__ words<N> load_shared_words(const void *p) {
    words<N> v;
    if constexpr (N == 4)
        asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                     : "l"(p)
                     : "memory");
    else
        asm volatile("ld.global.cg.v2.u32 {%0,%1}, [%2];"
                     : "=r"(v.w[0]), "=r"(v.w[1])
                     : "l"(p)
                     : "memory");
    return v;
}
__device__ __forceinline__ void scale4(float4 &v, float by) {
    v.x *= by, v.y *= by, v.z *= by, v.w *= by;
}
__device__ __forceinline__ void add4(float4 &a, const float4 &b) {
    a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w;
}

// A place in a ring of N.
template <int N> struct turn {
    int at = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++at == N)
            at = 0, phase ^= 1;
    }
    __device__ __forceinline__ void skip(int n) {
        for (at += n; at >= N; at -= N)
            phase ^= 1;
    }
};

enum { NO_LIMIT = 0x7fffffff };

// Every other eight.
__device__ __forceinline__ int token_of(int rank, int at) {
    return at / 8 * 16 + rank * 8 + at % 8;
}

// A block: what all its threads know.
template <class SHAPE> struct resident_block {
    typedef SHAPE shape;
    int rank, cluster, tile, split; // of the cluster, the card; of out_proj
    int mine;                       // token rows that this rank ends, in eights: every other eight
    char *memory;
    uint32_t slots, x_ring, full, empty, x_full, x_empty, arrived, z_arrived, go, y_go, told, open,
        constants, limit, asked;

    __device__ __forceinline__ resident_block(char *p, int tokens) {
        rank = blockIdx.x % 2, cluster = blockIdx.x / 2;
        tile = blockIdx.x % shape::OUT_TILES, split = blockIdx.x / shape::OUT_TILES;
        mine = shape::HALVES ? tokens / 2 : (tokens / 8 + 1 - rank) / 2 * 8;
        memory = p;
        slots = shared_address(p), x_ring = slots + shape::SLOTS * shape::SLOT;
        full = slots + shape::BYTES - shape::BARRIERS, empty = full + shape::SLOTS * 8;
        x_full = empty + shape::SLOTS * 8, x_empty = x_full + shape::X_BARRIERS * 8;
        arrived = x_empty + shape::X_BARRIERS * 8, z_arrived = arrived + 8 * 8,
        go = z_arrived + 8 * 8, y_go = go + 8, told = y_go + 8, open = told + 8,
        constants = open + 8, limit = constants + 8, asked = limit + 8;
    }
    __device__ __forceinline__ char *slot(int i) const {
        return memory + i * shape::SLOT;
    }
    __device__ __forceinline__ char *x_place() const {
        return memory + shape::SLOTS * shape::SLOT;
    }
    __device__ __forceinline__ char *peer_place() const {
        return x_place() + shape::X_STAGES * shape::X_STAGE;
    }
    __device__ __forceinline__ bf16 *x() const { // [HALF_ROWS][PITCH]
        return (bf16 *)(peer_place() + shape::PEER);
    }
    __device__ __forceinline__ bf16 *z() const {
        return (bf16 *)(peer_place() + shape::PEER + shape::ACTS);
    }
    __device__ __forceinline__ char *staged() const {
        return peer_place() + shape::PEER + 2 * shape::ACTS;
    }
    __device__ __forceinline__ void init() const { // one thread
        for (int i = 0; i < shape::SLOTS; i++)
            barrier_init(full + i * 8, 1), barrier_init(empty + i * 8, RESIDENT_WARPS);
        for (int i = 0; i < shape::X_BARRIERS; i++)
            barrier_init(x_full + i * 8, X_WARPS * 32),
                barrier_init(x_empty + i * 8, RESIDENT_WARPS);
        for (int i = 0; i < 8; i++)
            barrier_init(arrived + i * 8, 1), barrier_init(z_arrived + i * 8, 1);
        barrier_init(go, 1), barrier_init(y_go, 1);
        barrier_init(told, RESIDENT_WARPS), barrier_init(open, 1), barrier_init(constants, 1);
        if (shape::HALVES) {
            for (int i = 0; i < ASKED; i++)
                barrier_init(asked + i * 8, 1);
        }
        ask_up_to(shape::SLOTS_FLIGHT); // until the first input is counted
        barriers_ready();
    }
    // The rank's token row `at` (0 to mine - 1) among all.
    __device__ __forceinline__ int token(int at) const {
        return shape::HALVES ? rank * mine + at : token_of(rank, at);
    }
    // All threads: the token rows that nobody fetches, which are multiplied, too: zeros take the
    // matrix units half the energy of what an earlier kernel has left here.
    __device__ __forceinline__ void clear_absent(int tokens) const {
        if constexpr (shape::HALVES) {
#pragma unroll 1
            for (int i = threadIdx.x; i < shape::X_STAGES * shape::X_STAGE / 16;
                 i += RESIDENT_THREADS) {
                const int row = i / 8 % 64;
                if (row / 16 * 8 + row % 8 >= mine)
                    ((uint4 *)x_place())[i] = make_uint4(0, 0, 0, 0);
            }
            fence_async();
            return;
        }
        const int from = tokens * 8, n = shape::X_STAGE / 16 - from; // 16 bytes of a stage
#pragma unroll 1
        for (int i = threadIdx.x; i < shape::X_STAGES * n; i += RESIDENT_THREADS)
            ((uint4 *)x_place())[i / n * (shape::X_STAGE / 16) + from + i % n] =
                make_uint4(0, 0, 0, 0);
        fence_async();
    }
    // Until the slot with a layer's k-th token's states was asked for. A warp that does not wait
    // for each slot needs it: a slot's barrier knows odd passes from even ones alone. There are as
    // many of these as the ring can have slots.
    __device__ __forceinline__ void wait_asked(int layer, int k) const {
        const int n = (mine - k % ASKED + ASKED - 1) / ASKED; // times a layer comes to this one
        barrier_wait(asked + k % ASKED * 8, (layer * n + k / ASKED) & 1);
    }
    // The ring's slot, counted from the launch's start, from which on nothing is asked for: one
    // thread of those that work.
    __device__ __forceinline__ void ask_up_to(int n) const {
        asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(limit), "r"(n) : "memory");
    }
    __device__ __forceinline__ int asked_up_to() const {
        int n;
        asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(n) : "r"(limit) : "memory");
        return n;
    }
};

template <class SHAPE>
__device__ __forceinline__ resident_scratch<SHAPE> &scratch_of(const resident_args &a) {
    return *(resident_scratch<SHAPE> *)a.scratch;
}
template <class SHAPE> __device__ __forceinline__ float *x_parts_of(const resident_args &a) {
    return (float *)(&scratch_of<SHAPE>(a) + 1) + 4 * SHAPE::X_TOTALS;
}
template <class SHAPE> __device__ __forceinline__ float *bc_of(const resident_args &a, int rank) {
    typedef SHAPE shape;
    return x_parts_of<SHAPE>(a) + 2 * RESIDENT_CLUSTERS * shape::HALF_ROWS * shape::N_X +
           rank * shape::HALF_ROWS * 32;
}
template <class SHAPE> __device__ __forceinline__ bf16 *dt_of(const resident_args &a, int rank) {
    typedef SHAPE shape;
    return (bf16 *)bc_of<SHAPE>(a, 2) + rank * shape::HALF_ROWS * shape::RANK;
}
template <class SHAPE> __device__ __forceinline__ float *shares_of(const resident_args &a) {
    if constexpr (SHAPE::GATED)
        return (float *)(&scratch_of<SHAPE>(a) + 1) + SHAPE::BEFORE_SHARES;
    else
        return (float *)dt_of<SHAPE>(a, 2); // the same, but as a number it makes other code
}

#endif

// Bytes of a shape's scratch.
template <class SHAPE> static size_t resident_shape_bytes() {
    const size_t floats =
        (size_t)SHAPE::BEFORE_SHARES + (size_t)SHAPE::OUT_SPLITS * SHAPE::ROWS * SHAPE::WIDTH;
    return sizeof(resident_scratch<SHAPE>) + floats * sizeof(float);
}

// resident_tall.cu: steps of 65 to 128 rows, with a scratch of their own.
cudaError_t resident_tall_layers(device *d, const batch &b, row_squares *left);

// resident_heads.cu: steps of Mamba-2, with resident.cu's scratch.
bool resident_heads_room(const device *d);
int32_t resident_heads_fewest(const device *d); // rows, if there is room
int32_t resident_heads_most(const device *d);
size_t resident_heads_bytes(const device *d);
cudaError_t resident_heads_layers(device *d, const batch &b, row_squares *left);
// resident_heads_replay.cu: those that do not write states every token.
bool resident_heads_replay_room(const device *d);
cudaError_t resident_heads_replay_layers(device *d, const batch &b, row_squares *left);
// resident_heads_packed.cu: those of few rows whose weights are packed.
bool resident_heads_packs(const device *d); // whether it has the model's width
bool resident_heads_packed_room(const device *d);
cudaError_t resident_heads_packed_layers(device *d, const batch &b, row_squares *left);

} // namespace ssm

#endif
