// SPDX-License-Identifier: Apache-2.0
// The logits of a step on Hopper: y [token][vocab] = u [token][d_model] W^T, bf16 in, fp32 out, in
// place of cuBLASLt's product (to 64 tokens where there is no copy in 12 bits: head_packed.cu).
// Where wide_out.cu made u, a token's sums are scaled by its norm here and norm_f has no kernel;
// and as this takes part in programmatic dependent launch, the first weights are on their way
// before the last layer is done.
//
// A block makes tiles of 128 (64) tokens by 192 columns, as wide_turns.cuh does: a warp asks for
// stages of 64 columns of k by tensor map into a ring, two groups of four warps take turns, each
// multiplies a tile alone and stores it beside the other's product. Tiles of 192 columns are 262 a
// row of tiles for the vocabulary of these models: 132 SMs have 15.88, 7.94, 3.97 or 1.98 of them
// at 1,024, 512, 256 and 128 tokens. Row tiles go first, so weights come from memory once, and
// blocks of two row tiles next to each other share them, each asking for half.
//
// The last tile begins 192 columns before the vocabulary's end: some columns are made twice, with
// the same bits. So nothing is masked but rows. Sums go from registers to memory, 32 bytes of a
// row by four lanes. A group keeps its tokens' scales: with 132 SMs and 1, 2, 4 or 8 row tiles its
// next tile is of the same tokens.
//
// us on one H200 (2026-11-28), chains of this product alone, 50,280 columns, medians of five, each
// chain of 1.3 ms behind 1.5 ms of idle time; scales were made for each tile then:
//   tokens x d_model  1,024 x 768  512 x 2,560  384 x 1,024  256 x 768  192 x 2,560  128 x 768
//   cuBLASLt          143.9        196.9        76.3         47.6       94.3         37.2
//   this              129.6        189.2        70.2         40.5       97.2 *       29.7
//   tokens x d_model  96 x 2,560   64 x 2,560   64 x 768     16 x 768   8 x 2,560    1 x 768
//   cuBLASLt          82.6         76.8         32.7         29.2       69.7         28.0
//   this              69.4         66.0         24.1         22.5       64.1 **      21.6
// * left to cuBLASLt, as are all steps of two row tiles of widths above 1,024. ** stores by 16
// bytes a lane (below), in another run. Not measured: 192 tokens of 768, 256 of 1,024, vocabularies
// that do not fill the card. In steps, fp16 states, ms, old and new library in turns: 130m 1,024
// rows 1.511 to 1.488, 256 0.742 to 0.738; 2.8b 512 8.718 to 8.711, 64 2.291 to 2.285.
//
// Where 1,024 x 768 spends it, cycles of a block by clock64: without stores 154,000 where the
// matrix units need 147,500, at 1.59 GHz: 102 us. With them 188,000 at 1.54 GHz: the 98 KB of a
// tile take a group 9,000, as long as its product, so nothing that one of them waits for is hidden.
// A kernel that does nothing else stores a tile in 8,100 so (2.9 TB/s), in 6,200 by 16 bytes a lane
// (3.65), in 6,100 by bulk copies of 768 bytes (3.8; where rows begin at multiples of 128 bytes,
// which these do not, 5,900 and 4.0).
//
// Tried and dropped, us of 1,024 x 768:
//   this 129.6; weights shared by none 132.9; tokens shared 130.5
//   shared by none: st.cs 132.2; 16 bytes a lane by another order of weight rows in shared memory
//   (a map of five dimensions) 138.5; stores by tensor map in boxes of 24 columns, four stages,
//   139.9 (weights shared 131.8); weights first to leave L2 167.0, asked for in L2 a tile ahead
//   136.9 for comparison: stores to 13 MB that stay in L2 127.6, weights from 5 MB 128.1, both
//   120.9
// 64 x 2,560 (66.0): weights not first to leave L2 69.2; both groups on a tile of 384 columns, so
// that tokens come half as often, 68.4; tokens shared by pairs 68.7.
//
// Open: a tile's sums through shared memory, stored by a warp of its own while their group goes on.
#include "wide_kernel.cuh"

namespace ssm {

template <int MT_, int SHARE_> struct head_shape {
    static constexpr int MT = MT_, COLS = 192, SHARE = SHARE_, TOKENS = 64 * MT, WARPS = 4;
    static constexpr int X_BYTES = TOKENS * 128, W_BYTES = COLS * 128;
    static constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr int ROOM = (WIDE_SHARED - WIDE_BARRIERS) / STAGE_BYTES;
    static constexpr int STAGES = ROOM < WIDE_MOST_STAGES ? ROOM : WIDE_MOST_STAGES;
    static constexpr int BYTES = STAGES * STAGE_BYTES + WIDE_BARRIERS;
};

struct head_args {
    CUtensorMap x, w; // boxes of all tokens, of a block's part of the columns; 64 of k
    float *y;         // [token][cols]
    // What a token's sums are multiplied by: 1 / its root mean square, from partial sums.
    const float *squares; // [token][n_squares] or NULL
    int n_squares;
    float per_width, eps;
    int tokens, cols, pieces;   // of x, of y, of k
    int row_tiles, tiles, band; // row tiles of SHARE blocks; such that share a walk over columns
};

struct head_tile {
    int token0, col0;
};

#if SSM_HOPPER

template <class SHAPE>
__device__ __forceinline__ head_tile head_tile_at(const head_args &a, int i, int rank) {
    const int of_band = a.band * (a.tiles / a.row_tiles), band = i / of_band;
    const int rows = min(a.band, a.row_tiles - band * a.band), at = i - band * of_band;
    const int row = (band * a.band + at % rows) * SHAPE::SHARE + rank;
    return {row * SHAPE::TOKENS, min(at / rows * SHAPE::COLS, a.cols - SHAPE::COLS)};
}

// A box of weights, first to leave L2 where one block alone has them.
template <class SHAPE>
__device__ __forceinline__ void head_weights(const head_args &a, int column, const head_tile &t,
                                             int rank, uint32_t to, uint32_t full,
                                             uint64_t policy) {
    constexpr int PART = SHAPE::COLS / SHAPE::SHARE;
    if constexpr (SHAPE::SHARE > 1)
        copy_box_to((1u << SHAPE::SHARE) - 1, to + rank * PART * 128, &a.w, column,
                    t.col0 + rank * PART, full);
    else if (a.row_tiles == 1)
        copy_box(to, &a.w, column, t.col0, full, policy);
    else
        copy_box(to, &a.w, column, t.col0, full);
}

// One warp: x and weights of all tiles.
template <class SHAPE, class RING>
__device__ __forceinline__ void head_produce(const head_args &a, RING ring, int rank) {
    const int n = a.pieces, ahead = min(n, SHAPE::STAGES), step = gridDim.x / SHAPE::SHARE;
    const uint64_t policy = policy_once();
    const auto weights = [&](const head_tile &t, int p, int s) {
        const uint32_t at = ring.slots + s * SHAPE::STAGE_BYTES + SHAPE::X_BYTES;
        barrier_expect(ring.full + s * 8, SHAPE::STAGE_BYTES);
        head_weights<SHAPE>(a, p * WIDE_PIECE, t, rank, at, ring.full + s * 8, policy);
    };
    const auto inputs = [&](const head_tile &t, int p, int s) {
        copy_box(ring.slots + s * SHAPE::STAGE_BYTES, &a.x, p * WIDE_PIECE, t.token0,
                 ring.full + s * 8);
    };
    int i = blockIdx.x / SHAPE::SHARE, p = ahead;
    head_tile t = head_tile_at<SHAPE>(a, i, rank);
    if (SHAPE::SHARE > 1)
        cluster_wait(); // the peers' barriers are there, for it is weights that go to them
    wide_ask_first(ring, ahead, &a.x, t, weights, inputs, [] {});
    ring.skip(ahead);
#pragma unroll 1
    for (;; p = 0) {
        wide_ask(ring, p, n, t, weights, inputs);
        i += step;
        if (i >= a.tiles)
            break;
        t = head_tile_at<SHAPE>(a, i, rank);
    }
    dependents_start();
    if (SHAPE::SHARE > 1) { // what peers tell this block has come before it ends
        for (int k = 0; k < SHAPE::STAGES; k++, ring.next())
            barrier_wait(ring.empty + ring.stage * 8, ring.phase ^ 1);
    }
}

template <int MT>
__device__ __forceinline__ void head_scales(const head_args &a, int first, int q,
                                            float (&by)[MT][2]) {
#pragma unroll
    for (int k = 0; k < 2 * MT; k++)
        by[k / 2][k % 2] = wide_scale(a, first + k / 2 * 64 + k % 2 * 8, q);
}

// to: of the lane's first token.
template <class SHAPE>
__device__ __forceinline__ void head_store(const head_args &a, int first, float *to,
                                           const float (&by)[SHAPE::MT][2],
                                           const float (&acc)[SHAPE::MT][SHAPE::COLS / 2]) {
#pragma unroll
    for (int m = 0; m < SHAPE::MT; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int token = m * 64 + h * 8;
            float *row = to + (size_t)token * a.cols;
            if (first + token >= a.tokens)
                continue;
#pragma unroll
            for (int j = 0; j < SHAPE::COLS / 8; j++) {
                const float *sums = &acc[m][j * 4 + h * 2];
                *(float2 *)(row + j * 8) = make_float2(sums[0] * by[m][h], sums[1] * by[m][h]);
            }
        }
    }
}

// A group of four warps: every second tile of the block's. As in wide_turns.cuh, a group waits for
// its stages only when the other one has taken all that come before: `turn`, a barrier a group.
template <class SHAPE, class RING>
__device__ __forceinline__ void head_consume(const head_args &a, RING ring, uint32_t turn,
                                             int group, int rank) {
    const int step = gridDim.x / SHAPE::SHARE;
    const uint32_t mine = turn + group * 8, others = turn + (group ^ 1) * 8;
    bool first = group == 0; // nothing comes before
    if (group == 1)
        ring.skip(a.pieces);
    int phase = 0, scaled = -1; // the tile's first token whose scales these are
    float by[SHAPE::MT][2];
    const int q = ring.lane % 4, own = ring.warp * 16 + ring.lane / 4;
#pragma unroll 1
    for (int i = blockIdx.x / SHAPE::SHARE + group * step; i < a.tiles; i += 2 * step) {
        const head_tile t = head_tile_at<SHAPE>(a, i, rank);
        float acc[SHAPE::MT][SHAPE::COLS / 2];
        if (t.token0 != scaled)
            head_scales<SHAPE::MT>(a, t.token0 + own, q, by), scaled = t.token0;
        if (!first)
            barrier_wait(mine, phase), phase ^= 1;
        first = false;
        wide_multiply<SHAPE>(ring, a.pieces, 0, acc, [&](int p) {
            if (p == a.pieces - 1 && ring.lane == 0)
                barrier_arrive(others);
        });
        const int token = t.token0 + own;
        float *to = a.y + (size_t)token * a.cols + t.col0 + 2 * q;
        head_store<SHAPE>(a, token, to, by, acc);
        ring.skip(a.pieces);
    }
}

#endif

template <class SHAPE>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    head_kernel(const __grid_constant__ head_args a) {
#if SSM_HOPPER
    extern __shared__ __align__(1024) char shared[];
    const int warp = threadIdx.x / 32, rank = blockIdx.x % SHAPE::SHARE;
    wide_ring<SHAPE::STAGES, SHAPE::STAGE_BYTES, SHAPE::SHARE> ring;
    ring.slots = shared_address(shared);
    ring.full = ring.slots + SHAPE::STAGES * SHAPE::STAGE_BYTES;
    ring.empty = ring.full + WIDE_MOST_STAGES * 8;
    const uint32_t turn = ring.empty + WIDE_MOST_STAGES * 8;
    ring.stage = ring.phase = ring.oldest = 0, ring.warp = warp % 4, ring.lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < SHAPE::STAGES; i++) {
            barrier_init(ring.full + i * 8, 1);
            barrier_init(ring.empty + i * 8, SHAPE::WARPS * SHAPE::SHARE);
        }
        for (int i = 0; i < 2; i++)
            barrier_init(turn + i * 8, SHAPE::WARPS);
        barriers_ready();
    }
    __syncthreads();
    if (SHAPE::SHARE > 1)
        cluster_arrive();
    if (warp < WIDE_WARPS) {
        more_registers<232>();
        if (SHAPE::SHARE > 1) { // lane i tells block i of those that share weights
            cluster_wait();
            ring.empty = peer_address(ring.empty, ring.lane % SHAPE::SHARE);
        }
        dependency_wait();
        head_consume<SHAPE>(a, ring, turn, warp / 4, rank);
    } else {
        fewer_registers<40>();
        if (warp == WIDE_WARPS)
            head_produce<SHAPE>(a, ring, rank);
        else if (SHAPE::SHARE > 1)
            cluster_wait();
    }
#endif
}

// ---- launches

template <class SHAPE> static cudaError_t run(const device *d, int32_t n, head_args a) {
    const int k = d->g.d_model;
    a.y = d->logits, a.per_width = 1.f / k, a.eps = d->g.norm_eps;
    a.tokens = n, a.cols = d->g.vocab_size, a.pieces = ceil_div(k, WIDE_PIECE);
    a.row_tiles = ceil_div(n, SHAPE::TOKENS * SHAPE::SHARE);
    a.tiles = a.row_tiles * ceil_div(a.cols, SHAPE::COLS);
    a.band = a.row_tiles < 16 ? a.row_tiles : 16;
    if (!tensor_map(&a.x, d->u, k, n, WIDE_PIECE, SHAPE::TOKENS, true) ||
        !tensor_map(&a.w, d->lm_head, k, a.cols, WIDE_PIECE, SHAPE::COLS / SHAPE::SHARE, true))
        return cudaErrorNotSupported;
    const int most = d->n_sms / SHAPE::SHARE, clusters = a.tiles < most ? a.tiles : most;
    cluster_launch launch(d, dim3((unsigned)(clusters * SHAPE::SHARE)), WIDE_THREADS, SHAPE::BYTES,
                          SHAPE::SHARE, BESIDE_PREDECESSOR);
    return launch.run(head_kernel<SHAPE>, a);
}

bool head_fits(const device *d, int32_t n) {
    const bool two = n > 128 && n <= 256; // row tiles
    return !is_lti(d) && (!two || d->g.d_model <= 1024) && d->weight_type == SSM_DTYPE_BF16 &&
           d->arch == 90 && d->g.d_model % 8 == 0 && d->g.vocab_size % 2 == 0 &&
           d->g.vocab_size >= head_shape<2, 1>::COLS;
}

cudaError_t head(device *d, int32_t n, const row_squares &squares) {
    head_args a = {};
    a.squares = squares.sums, a.n_squares = squares.n;
    return n <= 64                     ? run<head_shape<1, 1>>(d, n, a)
           : ceil_div(n, 128) % 2 == 0 ? run<head_shape<2, 2>>(d, n, a)
                                       : run<head_shape<2, 1>>(d, n, a);
}

} // namespace ssm
