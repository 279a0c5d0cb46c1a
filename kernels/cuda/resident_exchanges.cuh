// SPDX-License-Identifier: Apache-2.0
// How blocks of resident.cu tell each other x_proj's sums and y where there are up to 16 token rows
// (resident_shape::EXCHANGED). Else they write, release and count; and a release waits for all that
// the SM's copy engine has been asked for, so that the ring stands still meanwhile, or it takes
// some microseconds.
//
// - x_proj's shares are added to totals (totals.cuh) by who has them, and a 64th of a rank's is
//   taken by the warp that carries them: no place for 64 shares, nothing to add up.
// - What is then told, and y, is exchanged with what was in its place; once the answers are back it
//   is counted (resident.cuh, exchange). Mamba-2's B, C and dt, so too (resident_heads_in.cuh).
// - So of a layer's four stops of the ring one is left, from out_proj's end until the next input is
//   counted.
// - dt, B and C are fetched by the warp that carries, beside z.
//
// H200 (2026-11-29), fp16 states, ms a step, in turns in one run, without and with:
//            b4           b8           b16                        b8           b16
//   2.8b     1.591 1.528  1.613 1.547  1.665 1.604    370m        0.682 0.616  0.668 0.617
//   1.4b                  1.002 0.890  1.002 0.909    130m                     0.322 0.294
//   790m                  0.764 0.695  0.779 0.739    2.8b, fp32  1.672 1.573
//   falcon   4.037 3.946               4.213 4.175
// (1.4b, 790m and 370m b16: the right ones are another run's, with what x_proj's and dt_proj's
// products were spared of rows that there never are, which was 1 to 4% of it.)
//
// What of it gains, 2.8b b8, 1.4b b8, 790m b8 (1.626, 1.015, 0.765 without): totals and dt, B, C by
// the warp that carries 1.606, 0.931, 0.720; y by exchanges, the ring held up as before 1.603,
// 0.925, 0.717; not held up (another run: 1.613, 1.002, 0.764) 1.547, 0.901, 0.716.
//
// Where a layer of 2.8b's eight rows went before (cycles of one worker, two blocks, with stamps;
// 44,500): the input open 4,400 to 7,200, x's columns 6,700, the peer's sums 800, convolution
// 1,100, share of x_proj 1,500, z's columns 6,400 to 7,100, its sums, dt, B and C there 2,400 to
// 2,900, delta 1,600 to 1,900, states 400 to 2,400, y counted 800 to 1,500, y there and out_proj's
// columns 10,000 to 10,600, shares counted 900 to 2,000, there 1,300, the next input counted 1,900.
// In bytes of the ring, at 16.5 a cycle, it is 29,000.
//
// Tried on that and dropped:
// - The next input and its squares by exchanges 1.633, 0.940, 0.730 (b16 1.696, 0.942, 0.759;
//   without 1.676, 0.935, 0.746): their answers take 2,300 to 3,400 cycles beside a ring that
//   fills.
// - out_proj's shares by totals, taken by who has the residual: b8 1.588, 0.919, 0.721, but b16
//   1.766, 0.987, 0.799, which is twice the additions. With the input by exchanges 1.611, 0.928,
//   0.731; the ring not held up there either 1.649, 0.960, 0.760.
// - 30, 45, 60 KB of the ring under way at most and not 80, nothing held up: 1.4b b8 1.347, 0.944,
//   0.925 (0.952), 2.8b 1.673, 1.609, 1.632 (1.642).
// - 64 rows: x_proj's 786,000 additions take 16 cycles for a warp's 32, 3,000 a layer, more than
//   they save: 2.8b b64 2.41 to 2.44 and not 2.35, b32 2.02 and 2.01. y by exchanges, not held up,
//   without totals: b24 1.875 and 1.892, b64 2.313 and 2.260 (later 2.316 and 2.251).
// - out_proj's columns halved between a cluster's blocks, so that its sums need no exchange in
//   memory: 2.8b b8 1.431 to 1.463 and not 1.416 (large-steps.md).
#ifndef SSM_KERNELS_CUDA_RESIDENT_EXCHANGES_CUH
#define SSM_KERNELS_CUDA_RESIDENT_EXCHANGES_CUH

#include "resident_in.cuh"
#include "totals.cuh"

namespace ssm {

#if SSM_HOPPER

// [rank][tile of eight rows][2][lane] of a matrix instruction's sums of eight tokens.
template <class SHAPE>
__device__ __forceinline__ uint64_t *x_totals_of(const resident_args &a, int rank) {
    return (uint64_t *)(&scratch_of<SHAPE>(a) + 1) + rank * SHAPE::X_TOTALS;
}

// x_proj's sums in shared memory: rows of dt, then of B and C.
template <class SHAPE> __device__ __forceinline__ float *x_bc_at(char *dt) {
    return (float *)(dt + SHAPE::HALF_ROWS * SHAPE::DT_PITCH);
}

// They come from memory, by THREADS threads: on their way.
template <class SHAPE, int THREADS>
__device__ __forceinline__ void copy_x_sums(const resident_args &a, const resident_block<SHAPE> &b,
                                            int thread) {
    constexpr int PARTS = SHAPE::RANK / 8; // of 16 bytes, of a token's dt
    constexpr int BC_AT_ONCE = THREADS > 32 ? 4 : 2;
    char *dt = b.staged();
    float *bc = x_bc_at<SHAPE>(dt);
    const bf16 *from_dt = dt_of<SHAPE>(a, b.rank);
    const float *from_bc = bc_of<SHAPE>(a, b.rank);
#pragma unroll 4
    for (int i = thread; i < b.mine * PARTS; i += THREADS)
        copy_async(dt + i / PARTS * SHAPE::DT_PITCH + i % PARTS * 16, from_dt + i * 8, true);
#pragma unroll BC_AT_ONCE
    for (int i = thread; i < b.mine * 8; i += THREADS)
        copy_async(bc + i / 8 * SHAPE::BC_PITCH + i % 8 * 4, from_bc + i * 4, true);
    copies_commit();
}

// A worker's tiles, every eighth, of the rank's tokens, the first eight of which there may be.
template <class SHAPE, int A_WARP, int SIXTEENS>
__device__ __forceinline__ void add_x_shares(const resident_args &a, const resident_block<SHAPE> &b,
                                             const resident_worker<SHAPE> &w,
                                             const float (&c)[A_WARP][SIXTEENS][4]) {
    uint64_t *to = x_totals_of<SHAPE>(a, b.rank) + w.warp * 64 + w.lane;
#pragma unroll
    for (int k = 0; k < A_WARP; k++) {
        if (b.mine == 0 || w.warp + 8 * k >= SHAPE::N_X / 8)
            break;
#pragma unroll
        for (int j = 0; j < 2; j++)
            add_to_total<RESIDENT_CLUSTERS>(to + k * 8 * 64 + j * 32, c[k][0][j]);
    }
    __syncwarp();
    if (w.lane == 0)
        barrier_arrive(b.told);
}

// By the warp that carries sums, once the workers have read x's from the peer, in whose place these
// come.
template <class SHAPE>
__device__ __forceinline__ void ask_constants(const resident_args &a,
                                              const resident_block<SHAPE> &b, int layer) {
    const resident_layer &l = a.layers[layer];
    const uint32_t to = shared_address(b.peer_place());
    const int first = b.cluster * SHAPE::NW;
    barrier_expect(b.constants, SHAPE::CONSTANTS);
    copy_run(to, l.decay + first * 16, SHAPE::NW * 64, b.constants);
    copy_run(to + SHAPE::NW * 64, l.skip + first, SHAPE::NW * 4, b.constants);
    copy_run(to + SHAPE::NW * 68, l.dt_bias + first, SHAPE::NW * 4, b.constants);
}

// One warp asks for the constants of the states, takes a 64th of the rank's totals of x_proj, gives
// them to the other blocks, and fetches all of them once they are there, while workers go on with
// z.
template <class SHAPE>
__device__ __forceinline__ void carry_totals(const resident_args &a,
                                             const resident_block<SHAPE> &b) {
    typedef SHAPE shape;
    enum { TILES = shape::N_X / 8 };
    static_assert((int)TILES <= (int)RESIDENT_CLUSTERS, "one at most");
    resident_counter *sums = &scratch_of<SHAPE>(a).sums[b.rank];
    const int lane = threadIdx.x % 32, token = lane / 4;
    const int n = b.cluster * 8 + lane % 4 * 2; // the lane's rows of x_proj: this and the next one
    const bool taken = b.mine > 0 && b.cluster < TILES;
    uint64_t *totals = x_totals_of<SHAPE>(a, b.rank) + b.cluster * 64 + lane;
    bf16 *all_dt = dt_of<SHAPE>(a, b.rank);
    float *all_bc = bc_of<SHAPE>(a, b.rank);
#pragma unroll 1
    for (int i = 0; i < a.n_layers; i++) {
        barrier_wait(b.told, i & 1);
        if (one_lane())
            ask_constants(a, b, i);
        __syncwarp();
        float sum[2];
        take_totals<RESIDENT_CLUSTERS>(
            sum, [&](int k) { return totals + k * 32; }, [&](int) { return taken; });
        const uint32_t pair = pack_bf16(sum[0], sum[1]), next = __shfl_down_sync(~0u, pair, 1);
        uint64_t before = 0;
        if (taken && n >= shape::RANK)
            before = exchange(all_bc + token * 32 + n - shape::RANK, __float_as_uint(sum[0]),
                              __float_as_uint(sum[1]));
        else if (taken && lane % 2 == 0)
            before = exchange(all_dt + token * shape::RANK + n, pair, next);
        const bool back = exchanged(before);
        if (one_lane()) {
            count_exchanged(sums, back);
            count_wait(sums, RESIDENT_CLUSTERS * (i + 1));
        }
        __syncwarp();
        copy_x_sums<SHAPE, 32>(a, b, lane);
        copies_wait();
        __syncwarp();
        if (lane == 0)
            barrier_arrive(b.open);
    }
}

#endif

} // namespace ssm

#endif
