// SPDX-License-Identifier: Apache-2.0
// The warps of advance_replay.cu that make delta, as advance_ring_delta.cuh's do. They also bring B
// of the tokens that are held, and keep this token's.
#ifndef SSM_KERNELS_CUDA_ADVANCE_REPLAY_DELTA_CUH
#define SSM_KERNELS_CUDA_ADVANCE_REPLAY_DELTA_CUH

#include "advance_replay.cuh"
#include "advance_ring_delta.cuh"

namespace ssm {

#if SSM_HOPPER

__device__ __forceinline__ void make_replay_deltas(const mamba_args &a,
                                                   const advance_replay_entries &e,
                                                   const advance_replay_layout &l, char *memory,
                                                   const row *rows, advance_replay_part part) {
    constexpr int CHANNELS = replay_ring::CHANNELS, OF_ROW = DELTA_THREADS / TILE;
    const int thread = threadIdx.x - ROW_WARPS * 32, lane = thread & 31, warp = thread >> 5;
    struct {
        int token, slot, held; // token -1: no row
    } of, none = {-1, 0, 256};
    auto describe = [&] { // the row whose sums this thread brings
        const int i = part.at + thread / OF_ROW;
        of = none;
        if (i >= part.end)
            return;
        const row r = rows[i];
        if (r.slot >= 0)
            of = {r.at, r.slot, e.held[i]};
    };
    const int first = part.column * CHANNELS;
    stage_dt_proj(a, memory + l.dt_proj, first, CHANNELS, thread, DELTA_THREADS);
    if (thread < CHANNELS / 4)
        copy_async(memory + l.bias + thread * 16, a.dt_bias + first + thread * 4, true);
    copies_commit();
    describe();
    copies_wait();
    dependency_wait();
    bool begun = false;
    for (int buffer = 0; part.at < part.end; buffer ^= 1) {
        named_sync(DT_IS_THERE, DELTA_THREADS); // of the tile before: nobody reads it any more
        float *b = e.b + (size_t)of.slot * 16;
        const int v = thread % OF_ROW;
        if (v < 4 && (of.held & 255) > 0)
            ((float4 *)(memory + l.held_b))[(buffer * TILE + thread / OF_ROW) * 4 + v] =
                ((const float4 *)b)[v];
        const bool keep = part.column == 0 && (of.held & 256) == 0;
        stage_sums(a, thread, of.token, memory + l.dt,
                   (float *)(memory + l.bc) + buffer * TILE * 32, [&](int n, const float(&f)[4]) {
                       if (keep && n < 16)
                           store<4>(b + n, f);
                   });
        named_sync(DT_IS_THERE, DELTA_THREADS);
        tile_delta<float> delta;
        delta.make(a, l, memory, warp, lane);
        delta.put(l, memory, warp, lane, begun);
        begun = true;
        part.at += TILE;
        describe();
    }
}

#endif

} // namespace ssm

#endif
