// SPDX-License-Identifier: Apache-2.0
// The kernel of advance_ring.cu, which has the design.
#ifndef SSM_KERNELS_CUDA_ADVANCE_RING_KERNEL_CUH
#define SSM_KERNELS_CUDA_ADVANCE_RING_KERNEL_CUH

#include "advance_ring_delta.cuh"

namespace ssm {

template <class S, int COLS>
__global__ void __launch_bounds__(ADVANCE_RING_THREADS, 2)
    advance_ring_kernel(mamba_args a, advance_ring_layout l, const row *rows, int n_rows) {
#if SSM_HOPPER
    typedef advance_ring_shape<S, COLS> shape;
    constexpr int OWN = shape::OWN, CHANNELS = shape::CHANNELS, ROWS = shape::ROWS,
                  STAGE = shape::STAGE;
    extern __shared__ __align__(128) char memory[];
    dependents_start();
    const int lane = threadIdx.x & 31, warp = __shfl_sync(~0u, threadIdx.x >> 5, 0);
    advance_ring_tiles now(a.channels / CHANNELS, n_rows);
    if (warp >= ROW_WARPS) {
        fewer_registers<DELTA_REGISTERS>();
        make_deltas<S, COLS>(a, l, memory, rows, now);
        return;
    }
    more_registers<ROW_REGISTERS>();
    const int own = warp % shape::COLUMNS * shape::OF_WARP, group = warp / shape::COLUMNS;
    const uint32_t full = shared_address(memory) + warp * MOST_ROW_STAGES * 8;
    char *ring = memory + l.ring + warp * l.stages * STAGE;

    // Lane i: row i % 16 of this tile or, from 16 on, of the next. -1: no row, else 2 slot + fresh.
    auto describe = [&](const advance_ring_tiles &t, int &what, int &token) {
        what = token = -1;
        if ((lane & 15) < t.count) {
            const row r = rows[t.row + (lane & 15)];
            if (r.slot >= 0)
                what = r.slot * 2 + (r.fresh != 0), token = r.at;
        }
    };
    auto lane_of = [&](int i) { // of this warp's row i, which may be the next tile's
        return i < ROWS ? group + shape::GROUPS * i : 16 + group + shape::GROUPS * (i - ROWS);
    };
    const uint32_t slot_bytes = (uint32_t)a.channels * shape::CHANNEL;
    auto states_of = [&](int column, int what) {
        return (char *)a.state + (uint32_t)((column * CHANNELS + own) * shape::CHANNEL) +
               (size_t)(uint32_t)(what >> 1) * slot_bytes;
    };
    auto fetch = [&](int stage, int column, int what) { // one lane
        const bool wanted = what >= 0 && (what & 1) == 0;
        barrier_expect(full + stage * 8, wanted ? STAGE : 0);
        if (wanted)
            copy_run(shared_address(ring + stage * STAGE), states_of(column, what), STAGE,
                     full + stage * 8, policy_once());
    };
    advance_ring_tiles next = now;
    next.next();
    int what, token, next_what, next_token;
    describe(now, what, token);
    describe(next, next_what, next_token);
    if (lane >= 16)
        what = next_what, token = next_token;
    if (lane == 0) {
        for (int i = 0; i < l.stages; i++)
            barrier_init(full + i * 8, 1);
        barriers_ready();
    }
    __syncwarp();
    for (int i = 0; i < l.stages; i++) {
        const int w = __shfl_sync(~0u, what, lane_of(i));
        if (lane == 0)
            fetch(i, i < ROWS ? now.column : next.column, w);
    }
    own_channels<S> channels(lane);
    channels.load_constants(a, now.column * CHANNELS + own + lane * OWN);
    dependency_wait();

    uint32_t x[2], z[2];                          // this row's and the next one's
    auto inputs = [&](int u, int column, int i) { // of this warp's row i
        const int t = __shfl_sync(~0u, token, lane_of(i));
        const uint32_t at = (uint32_t)max(t, 0) * (uint32_t)a.channels,
                       channel = (uint32_t)(column * CHANNELS + own + lane * OWN);
        x[u] = load_inputs<OWN>((const bf16 *)a.x + (at + channel));
        z[u] = load_inputs<OWN>((const bf16 *)a.xz + a.channels + (2 * at + channel));
    };
    inputs(0, now.column, 0), inputs(1, now.column, 1);
    int stage = 0, before = l.stages - 1, phase = 0;
    bool begun = false;
    for (int buffer = 0; now.count > 0; buffer ^= 1) {
        advance_ring_tiles coming = next;
        coming.next();
        int coming_what, coming_token;
        describe(coming, coming_what, coming_token);
        static_assert(ROWS % 2 == 0, "rows in each half of a tile");
#pragma unroll(ROWS == 2 ? 2 : 1)
        for (int half = 0; half < 2; half++) {
            named_sync(DELTA_IS_THERE + half, ADVANCE_RING_THREADS);
#pragma unroll
            for (int of_half = 0; of_half < ROWS / 2; of_half++) {
                const int i = half * (ROWS / 2) + of_half, u = ROWS == 2 ? half : of_half;
                const int r = lane_of(i), refill = i - 1 + l.stages;
                const int w = __shfl_sync(~0u, what, r),
                          coming_in = __shfl_sync(~0u, what, lane_of(refill));
                barrier_wait(full + stage * 8, phase);
                char *of_row = ring + stage * STAGE;
                uint32_t y = 0;
                if (w >= 0) {
                    if (w & 1) {
#pragma unroll
                        for (int p = 0; p < 4; p++)
                            ((uint4 *)of_row)[lane * 4 + (p ^ channels.turn)] =
                                make_uint4(0, 0, 0, 0);
                    }
                    y = channels.advance(of_row + lane * 64,
                                         (const float *)(memory + l.bc) + (buffer * TILE + r) * 32,
                                         (const float *)(memory + l.delta) +
                                             r * shape::DELTA_PITCH + own + lane * OWN,
                                         x[u], z[u]);
                    fence_async();
                }
                __syncwarp();
                if (lane == 0) {
                    if (w >= 0)
                        store_states(states_of(now.column, w), shared_address(of_row), STAGE);
                    stores_commit();
                    stores_read<1>();
                    if (begun)
                        fetch(before, refill < ROWS ? now.column : next.column, coming_in);
                }
                begun = true;
                const int t = __shfl_sync(~0u, token, r);
                if (w >= 0) {
                    bf16 *to = (bf16 *)a.y + ((uint32_t)t * (uint32_t)a.channels +
                                              now.column * CHANNELS + own + lane * OWN);
                    if (OWN == 2)
                        *(uint32_t *)to = y;
                    else
                        *(uint16_t *)to = (uint16_t)y;
                }
                inputs(u, i + 2 < ROWS ? now.column : next.column, i + 2);
                before = stage;
                if (++stage == l.stages)
                    stage = 0, phase ^= 1;
            }
            if (next.count > 0)
                named_arrive(DELTA_IS_READ + half, ADVANCE_RING_THREADS);
        }
        if (next.column != now.column)
            channels.load_constants(a, next.column * CHANNELS + own + lane * OWN);
        now = next, next = coming;
        const int down_what = __shfl_down_sync(~0u, what, 16),
                  down_token = __shfl_down_sync(~0u, token, 16);
        what = lane < 16 ? down_what : coming_what;
        token = lane < 16 ? down_token : coming_token;
    }
    if (lane == 0)
        stores_read<0>();
#endif
}

} // namespace ssm

#endif
