// SPDX-License-Identifier: Apache-2.0
// head_packed.cu's kernels: a warp that asks for weights, groups of four that multiply a tile of 64
// rows of the vocabulary each.
#ifndef SSM_KERNELS_CUDA_HEAD_PACKED_CUH
#define SSM_KERNELS_CUDA_HEAD_PACKED_CUH

#include "packed.cuh"
#include "wgmma.cuh"

namespace ssm {

enum {
    HEAD_BARRIER = 1, // of those that multiply
    HEAD_FEW = 16,    // tokens whose rows lie in shared memory as a whole
    HEAD_SHARED = 227 << 10
};

// TOKENS: rows of u, at most; 8 or 16, then all of them lie in shared memory, or 32 or 64, which
// come piece by piece with the weights.
template <int TOKENS_> struct packed_head_shape {
    static constexpr int TOKENS = TOKENS_, SUMS = TOKENS / 2; // of a lane
    static constexpr bool FEW = TOKENS <= HEAD_FEW;
    static constexpr int GROUPS = TOKENS <= 32 ? 6 : 3; // of four warps: 64 want registers
    static constexpr int WARPS = 4 * GROUPS, THREADS = WARPS * 32 + 32;
    static constexpr int X_BYTES = FEW ? 0 : TOKENS * PACKED_HEAD_COLUMNS * 2; // of a stage
    static constexpr int STAGE_BYTES = X_BYTES + GROUPS * PACKED_HEAD_TILE;
    static_assert(X_BYTES % 1024 == 0 && STAGE_BYTES % 1024 == 0, "tiles of the matrix units");

    // Token rows in shared memory, so that eight rows' 16 bytes meet in no bank.
    static __host__ __device__ int x_pitch(int pieces) {
        return pieces * PACKED_HEAD_COLUMNS * 2 + 16;
    }
    static __host__ __device__ int beside(int pieces) { // bytes behind the ring's stages
        return TOKENS * 4 + (FEW ? TOKENS * x_pitch(pieces) : 0);
    }
    static __host__ __device__ int stages(int pieces) {
        return (HEAD_SHARED - beside(pieces)) / (STAGE_BYTES + 16);
    }
    static __host__ __device__ int bytes(int pieces) {
        return stages(pieces) * (STAGE_BYTES + 16) + beside(pieces);
    }
};

struct packed_head_args {
    CUtensorMap x;       // boxes of TOKENS rows by 64 columns, of more than HEAD_FEW
    const bf16 *u;       // [token][64 pieces]
    const char *weights; // packed_head_place()
    const float *by;     // [rows] what a row's sums are multiplied by
    float *y;            // [token][rows]
    // What a token's sums are multiplied by: 1 / its root mean square, from partial sums.
    const float *squares; // [token][squares_pitch], n_squares of them, or NULL
    int squares_pitch, n_squares;
    float per_width, eps;
    int tokens, rows, pieces, tiles; // of x, of the head; of 64 columns, of 64 rows
    int stages;
};

#if SSM_HOPPER

// Who fills the ring and who takes from it walk through it in step. Shared memory: the stages,
// their barriers, the tokens' scales, their rows.
template <class SHAPE> struct packed_head_ring {
    char *shared;
    uint32_t slots, full, empty;
    int n, stage, phase;

    __device__ __forceinline__ packed_head_ring(char *at, int stages)
        : shared(at), slots(shared_address(at)), full(slots + stages * SHAPE::STAGE_BYTES),
          empty(full + stages * 8), n(stages), stage(0), phase(0) {
    }
    __device__ __forceinline__ float *scales() const {
        return (float *)(shared + n * (SHAPE::STAGE_BYTES + 16));
    }
    __device__ __forceinline__ char *x() const {
        return (char *)(scales() + SHAPE::TOKENS);
    }
    __device__ __forceinline__ void init() const { // one thread
        for (int i = 0; i < n; i++) {
            barrier_init(full + i * 8, 1);
            barrier_init(empty + i * 8, SHAPE::WARPS);
        }
        barriers_ready();
    }
    __device__ __forceinline__ void next() {
        if (++stage == n)
            stage = 0, phase ^= 1;
    }
};

// A block's tiles: an even share of all, in passes of an even share of these.
template <class SHAPE> struct packed_head_tiles {
    int at, n, end; // of this pass; of all passes

    __device__ __forceinline__ explicit packed_head_tiles(const packed_head_args &a)
        : at((int)((int64_t)blockIdx.x * a.tiles / gridDim.x)), n(0),
          end((int)((int64_t)(blockIdx.x + 1) * a.tiles / gridDim.x)) {
        share();
    }
    __device__ __forceinline__ void next() {
        at += n;
        share();
    }
    __device__ __forceinline__ bool any() const {
        return n > 0;
    }

  private:
    __device__ __forceinline__ void share() {
        const int left = end - at, passes = (left + SHAPE::GROUPS - 1) / SHAPE::GROUPS;
        n = passes > 0 ? (left + passes - 1) / passes : 0;
    }
};

// One lane: stage after stage of the block's tiles, as soon as there is room. Weights wait for
// nobody. Where token rows come with them, which the kernel before makes, HEAD_AHEAD stages'
// weights are asked for before it is done: rows queue behind what was asked for before.
enum { HEAD_AHEAD = 2 };

template <class SHAPE> struct packed_head_asker {
    const packed_head_args &a;
    packed_head_ring<SHAPE> ring;
    uint64_t policy;

    __device__ __forceinline__ void weights(const packed_head_tiles<SHAPE> &t, int piece,
                                            int stage) const {
        const uint32_t full = ring.full + stage * 8;
        barrier_expect(full, SHAPE::X_BYTES + t.n * PACKED_HEAD_TILE);
#pragma unroll 1
        for (int i = 0; i < t.n; i++)
            copy_run(ring.slots + stage * SHAPE::STAGE_BYTES + SHAPE::X_BYTES +
                         i * PACKED_HEAD_TILE,
                     a.weights + ((size_t)(t.at + i) * a.pieces + piece) * PACKED_HEAD_TILE,
                     PACKED_HEAD_TILE, full, policy);
    }
    __device__ __forceinline__ void inputs(int piece, int stage) const {
        if constexpr (!SHAPE::FEW)
            copy_box(ring.slots + stage * SHAPE::STAGE_BYTES, &a.x, piece * PACKED_HEAD_COLUMNS, 0,
                     ring.full + stage * 8);
    }
    __device__ __forceinline__ void all() {
        packed_head_tiles<SHAPE> t(a);
        int ahead = 0, asked = 0;
        if constexpr (!SHAPE::FEW) {
            ahead = min(min((int)HEAD_AHEAD, ring.n), a.pieces);
            map_prefetch(&a.x);
            for (int i = 0; i < ahead; i++)
                weights(t, i, i);
            dependency_wait();
        }
#pragma unroll 1
        for (; t.any(); t.next()) {
#pragma unroll 1
            for (int piece = 0; piece < a.pieces; piece++, asked++, ring.next()) {
                if (asked >= ring.n)
                    barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
                if (asked >= ahead)
                    weights(t, piece, ring.stage);
                inputs(piece, ring.stage);
            }
        }
    }
};

// ---- those that multiply

// What the tokens' sums are multiplied by; all warps.
template <class SHAPE>
__device__ __forceinline__ void packed_head_scales(const packed_head_args &a, float *scales) {
    constexpr int A_WARP = (SHAPE::TOKENS + SHAPE::WARPS - 1) / SHAPE::WARPS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum[A_WARP] = {};
    for (int i = lane; i < a.n_squares; i += 32) {
#pragma unroll
        for (int k = 0; k < A_WARP; k++) { // all of them at once
            const int token = min(warp + k * SHAPE::WARPS, a.tokens - 1);
            sum[k] += __ldcg(a.squares + (size_t)token * a.squares_pitch + i);
        }
    }
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        const int token = warp + k * SHAPE::WARPS;
        sum[k] = warp_sum(sum[k]);
        if (lane == 0 && token < a.tokens)
            scales[token] = a.squares ? rsqrtf(sum[k] * a.per_width + a.eps) : 1.f;
    }
}
// The tokens' rows; all warps. There are sums of rows that no token has, which nobody reads.
template <class SHAPE>
__device__ __forceinline__ void packed_head_rows(const packed_head_args &a, char *x) {
    const int pitch = SHAPE::x_pitch(a.pieces);
    const int parts = a.pieces * PACKED_HEAD_COLUMNS / 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < a.tokens * parts; i += SHAPE::WARPS * 32) {
        const int token = i / parts, part = i - token * parts;
        *(uint4 *)(x + token * pitch + part * 16) = __ldcg((const uint4 *)a.u + i);
    }
}

// A lane's weights of a tile, two rows by 32 columns of each half: from its 16 bytes of each part
// to what four matrix instructions take.
__device__ __forceinline__ void packed_head_unpack(uint32_t (&w)[4][4], const char *from) {
    const uint4 e = *(const uint4 *)(from + 2 * PACKED_HEAD_PART);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint4 s = *(const uint4 *)(from + half * PACKED_HEAD_PART);
        const uint4 row = lifted(unpack(make_uint2(s.x, s.y), half ? e.z : e.x));
        const uint4 row8 = lifted(unpack(make_uint2(s.z, s.w), half ? e.w : e.y));
        w[2 * half][0] = row.x, w[2 * half][1] = row8.x;
        w[2 * half][2] = row.y, w[2 * half][3] = row8.y;
        w[2 * half + 1][0] = row.z, w[2 * half + 1][1] = row8.z;
        w[2 * half + 1][2] = row.w, w[2 * half + 1][3] = row8.w;
    }
}

// A warp: sixteen rows of its group's tile, all pieces of it.
template <class SHAPE> struct packed_head_worker {
    const packed_head_args &a;
    packed_head_ring<SHAPE> ring;
    int group, warp, lane;

    __device__ __forceinline__ void take() const {
        barrier_wait(ring.full + ring.stage * 8, ring.phase);
    }
    // Once the products of what was read from the stage are there, if anything was.
    __device__ __forceinline__ void give(bool mine, float sum) {
        if (lane == 0) {
            if (SHAPE::FEW && mine)
                barrier_arrive_after(ring.empty + ring.stage * 8, sum);
            else
                barrier_arrive(ring.empty + ring.stage * 8);
        }
        ring.next();
    }
    // d [16 rows][TOKENS] += the stage's weights times piece p of the tokens' rows.
    __device__ __forceinline__ void multiply(float (&d)[SHAPE::SUMS], int p) {
        const int at = ring.stage * SHAPE::STAGE_BYTES;
        uint32_t w[4][4];
        packed_head_unpack(w, ring.shared + at + SHAPE::X_BYTES + group * PACKED_HEAD_TILE +
                                  warp * PACKED_HEAD_WARP + lane * 16);
        if constexpr (SHAPE::FEW) {
            const int pitch = SHAPE::x_pitch(a.pieces);
            const char *x =
                ring.x() + lane % 8 * pitch + p * PACKED_HEAD_COLUMNS * 2 + lane / 8 * 16;
#pragma unroll
            for (int j = 0; j < SHAPE::TOKENS / 8; j++) {
                float(&c)[4] = *(float(*)[4])(d + j * 4);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    uint32_t r[4];
                    ldmatrix(r, x + j * 8 * pitch + half * 64);
                    const uint32_t(&v)[4] = w[2 * half], (&v1)[4] = w[2 * half + 1];
                    mma(c, v[0], v[1], v[2], v[3], r[0], r[1]);
                    mma(c, v1[0], v1[1], v1[2], v1[3], r[2], r[3]);
                }
            }
        } else {
            const uint64_t x = tile_at(ring.slots + at);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; k++) // 16 columns are 32 bytes
                wgmma_registers(d, w[k], x + k * 2);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_touch(d);
        }
    }
    __device__ __forceinline__ void store(const float (&d)[SHAPE::SUMS], int row, int h,
                                          float by) const {
        const float *scales = ring.scales();
#pragma unroll
        for (int i = 0; i < SHAPE::SUMS / 2; i++) {
            const int token = i / 2 * 8 + 2 * (lane % 4) + i % 2;
            if (token < a.tokens)
                a.y[(size_t)token * a.rows + row] =
                    d[i / 2 * 4 + h * 2 + i % 2] * by * scales[token];
        }
    }
    __device__ __forceinline__ void all() {
#pragma unroll 1
        for (packed_head_tiles<SHAPE> t(a); t.any(); t.next()) {
            const bool mine = group < t.n;
            const int row = (t.at + group) * PACKED_HEAD_ROWS + warp * 16 + lane / 4;
            float by[2], d[SHAPE::SUMS] = {};
#pragma unroll
            for (int h = 0; h < 2; h++)
                by[h] = mine && row + h * 8 < a.rows ? a.by[row + h * 8] : 0;
#pragma unroll 1
            for (int p = 0; p < a.pieces; p++) {
                take();
                if (mine)
                    multiply(d, p);
                give(mine, d[0]); // which all of a lane's weights have a part in
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (mine && row + h * 8 < a.rows)
                    store(d, row + h * 8, h, by[h]);
            }
        }
    }
};

#endif

template <class SHAPE>
__global__ void __launch_bounds__(SHAPE::THREADS, 1)
    packed_head_kernel(const __grid_constant__ packed_head_args a) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    const int warp = threadIdx.x / 32;
    packed_head_ring<SHAPE> ring(shared, a.stages);
    if (threadIdx.x == 0)
        ring.init();
    __syncthreads();
    if (warp == SHAPE::WARPS) {
        if (one_lane()) {
            packed_head_asker<SHAPE> asker{a, ring, policy_once()};
            asker.all();
        }
        __syncwarp();
        dependents_start();
        return;
    }
    dependency_wait();
    packed_head_scales<SHAPE>(a, ring.scales());
    if constexpr (SHAPE::FEW)
        packed_head_rows<SHAPE>(a, ring.x());
    named_sync(HEAD_BARRIER, SHAPE::WARPS * 32);
    packed_head_worker<SHAPE> worker{a, ring, warp / 4, warp % 4, (int)threadIdx.x % 32};
    worker.all();
#endif
}

} // namespace ssm

#endif
