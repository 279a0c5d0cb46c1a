// SPDX-License-Identifier: Apache-2.0
// The kernel of advance_replay.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_ADVANCE_REPLAY_KERNEL_CUH
#define SSM_KERNELS_CUDA_ADVANCE_REPLAY_KERNEL_CUH

#include "advance_replay_delta.cuh"

namespace ssm {

__global__ void __launch_bounds__(ADVANCE_RING_THREADS, 2)
    advance_replay_kernel(mamba_args a, advance_replay_entries e, advance_replay_layout l,
                          const row *rows, int n_rows) {
#if SSM_HOPPER
    typedef replay_ring shape;
    constexpr int STAGE = shape::STAGE;
    extern __shared__ __align__(128) char memory[];
    dependents_start();
    const int lane = threadIdx.x & 31, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0);
    advance_replay_part part(a.channels / shape::CHANNELS, n_rows);
    if (warp >= ROW_WARPS) {
        fewer_registers<DELTA_REGISTERS>();
        make_replay_deltas(a, e, l, memory, rows, part);
        return;
    }
    more_registers<ROW_REGISTERS>();
    const int group = warp / shape::COLUMNS, own = warp % shape::COLUMNS * shape::OF_WARP;
    const int first = part.column * shape::CHANNELS + own; // of the warp's channels
    const uint32_t full = shared_address(memory) + warp * MOST_ROW_STAGES * 8;
    char *ring = memory + l.ring + warp * l.stages * STAGE;

    // Lane i: this warp's row i from tile `at` on. -1: no row, else slot << 3 and the flags.
    enum { FRESH = 1, WRITES = 2, HOLDS = 4 };
    auto describe = [&](int at, int &what, int &token) {
        const int i = at + group + shape::GROUPS * lane;
        what = token = -1;
        if (i >= part.end)
            return;
        const row r = rows[i];
        const int held = e.held[i];
        if (r.slot >= 0)
            what = r.slot << 3 | (r.fresh ? FRESH : 0) | (held & 256 ? WRITES : 0) |
                   (held & 255 ? HOLDS : 0),
            token = r.at;
    };
    char *const states = (char *)a.state + (uint32_t)(first * shape::CHANNEL);
    auto states_of = [&](int what) {
        return states + (size_t)(uint32_t)(what >> 3) * (uint32_t)(a.channels * shape::CHANNEL);
    };
    auto entry_of = [&](int what) {
        const uint32_t columns = (uint32_t)a.channels / shape::OF_WARP;
        return e.x +
               ((size_t)(uint32_t)(what >> 3) * columns + first / shape::OF_WARP) * HELD_ENTRY;
    };
    auto fetch = [&](int stage, int what) { // one lane
        const bool wanted = what >= 0 && (what & FRESH) == 0;
        barrier_expect(full + stage * 8, wanted ? STAGE : 0);
        if (!wanted)
            return;
        copy_run(shared_address(ring + stage * STAGE), states_of(what), STAGE, full + stage * 8,
                 policy_once());
        if (what & HOLDS)
            prefetch_run(entry_of(what), HELD_ENTRY);
    };
    int what, token;
    describe(part.at, what, token);
    if (lane == 0) {
        for (int i = 0; i < l.stages; i++)
            barrier_init(full + i * 8, 1);
        barriers_ready();
    }
    __syncwarp();
    for (int i = 0; i < l.stages; i++) {
        const int w = __shfl_sync(~0u, what, i);
        if (lane == 0)
            fetch(i, w);
    }
    replay_channel channel(lane);
    channel.load_constants(a, first + lane);
    dependency_wait();

    uint16_t x, z; // of the row to come
    replay_input held = {};
    auto inputs = [&](int i) { // of this warp's row i
        const int t = __shfl_sync(~0u, token, i), w = __shfl_sync(~0u, what, i);
        const uint32_t at = (uint32_t)max(t, 0) * (uint32_t)a.channels, c = first + lane;
        x = ((const uint16_t *)a.x)[at + c];
        z = ((const uint16_t *)a.xz)[a.channels + 2 * at + c];
        const char *entry = entry_of(w);
        if (w >= 0 && (w & HOLDS))
            held = {((const uint16_t *)entry)[lane], ((const float *)(entry + HELD_DELTA))[lane]};
    };
    inputs(0);
    int stage = 0, before = l.stages - 1, phase = 0;
    bool begun = false;
    for (int buffer = 0; part.at < part.end; buffer ^= 1) {
        int coming_what, coming_token;
        describe(part.at + TILE, coming_what, coming_token);
#pragma unroll 1
        for (int half = 0; half < 2; half++) {
            named_sync(DELTA_IS_THERE + half, ADVANCE_RING_THREADS);
            static_assert(shape::ROWS == 4, "two rows in each half of a tile");
#pragma unroll
            for (int u = 0; u < 2; u++) {
                const int i = half * 2 + u, r = group + shape::GROUPS * i,
                          refill = i - 1 + l.stages;
                const int w = __shfl_sync(~0u, what, i), coming_in = __shfl_sync(~0u, what, refill);
                const bool write = w >= 0 && (w & WRITES);
                barrier_wait(full + stage * 8, phase);
                char *of_row = ring + stage * STAGE;
                float y = 0;
                if (w >= 0) {
                    if (w & FRESH) {
#pragma unroll
                        for (int p = 0; p < 4; p++)
                            ((uint4 *)of_row)[lane * 4 + (p ^ channel.turn)] =
                                make_uint4(0, 0, 0, 0);
                    }
                    const float *bc = (const float *)(memory + l.bc) + (buffer * TILE + r) * 32,
                                *held_b =
                                    (const float *)(memory + l.held_b) + (buffer * TILE + r) * 16;
                    const replay_input now = {
                        x,
                        ((const float *)(memory + l.delta))[r * shape::DELTA_PITCH + own + lane]};
                    auto next = [&] { inputs(i + 1); };
                    const uint32_t z_now = z;
                    if (w & HOLDS)
                        y = channel.go_on<true>(of_row + lane * 64, bc, held_b, held, now, z_now,
                                                write, next);
                    else
                        y = channel.go_on<false>(of_row + lane * 64, bc, held_b, held, now, z_now,
                                                 write, next);
                    if (write) {
                        fence_async();
                    } else {
                        char *entry = entry_of(w);
                        ((uint16_t *)entry)[lane] = now.x;
                        ((float *)(entry + HELD_DELTA))[lane] = now.delta;
                    }
                } else {
                    inputs(i + 1);
                }
                __syncwarp();
                if (lane == 0) {
                    if (write)
                        store_states(states_of(w), shared_address(of_row), STAGE);
                    stores_commit();
                    stores_read<1>();
                    if (begun)
                        fetch(before, coming_in);
                }
                begun = true;
                const int t = __shfl_sync(~0u, token, i);
                if (w >= 0)
                    ((bf16 *)a.y)[(uint32_t)t * (uint32_t)a.channels + (uint32_t)(first + lane)] =
                        from_float<bf16>(y);
                before = stage;
                if (++stage == l.stages)
                    stage = 0, phase ^= 1;
            }
            if (part.at + TILE < part.end)
                named_arrive(DELTA_IS_READ + half, ADVANCE_RING_THREADS);
        }
        part.at += TILE;
        what = coming_what, token = coming_token;
    }
    if (lane == 0)
        stores_read<0>();
#endif
}

} // namespace ssm

#endif
