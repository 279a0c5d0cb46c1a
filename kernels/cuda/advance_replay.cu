// SPDX-License-Identifier: Apache-2.0
// Mamba-1's fp32 states in large decode steps, written every second token: replay.cu's way, which
// is Mamba-2's, through advance_ring.cu's ring.
//
// A slot keeps, beside a base state, the token that the base is still without, if any: x (bf16)
// and delta of every channel, and B. A step's row takes the base into registers, replays the token
// that is held in the order and with the operations that would have been that step's own, so with
// the same bits, goes one token on, and either writes the base or keeps this token. Whether it
// writes is the sequence's own history alone (lists.cu, take_entry): rows of a step are at both
// phases. Fresh rows write at once.
//
// Bytes a channel and token, read and written: 64 + 64 / 2 + 3 + 3 = 102, where advance_ring.cu has
// 128. Exponentials: 1.5 a state. Memory a slot: 9.4% of its states.
//
// All other kernels take and leave whole states. What a slot holds is folded in front of them
// (advance_replay_fold.cu): before prompts, and before steps of so few rows that they do not fill
// two tiles a block here, where bytes are not what binds.
//
// Work as advance_ring.cu has it, but a block stays in one column; lane i of a warp knows of the
// warp's i-th row from this tile on; x, z and the held token of a row are asked for one row ahead,
// as soon as the row before has its own in use, and the held token by the ring for L2 when it asks
// for the base.
//
// Ladder, us a layer, fp32, rows at all phases, launches that overlap; H200. All by one form of
// this kernel with more tokens held.           2.8b b512  b256  b128  130m b1024  b512  b256
//   written every token                        98.6       49.2  25.1  56.2        28.6  14.9
//   every second                               83.8       42.5  22.1  49.0        25.1  14.8
//   every third                                84.9       44.2  22.9  50.3        25.9  15.9
// Steps, ms, in turns:
//   advance_ring.cu                            11.32             4.42  2.222       1.285 0.870
//   this                                       10.56             4.23  2.035       1.209 (0.870)
//
// An earlier form (lane i: row i of this tile or the next), b512, rows at all phases / all in one:
//                                  every token   2nd           3rd           4th
//   fp32                           98.2          88.5 / 85.3   84.3 / 82.6   95.5 / 85.2
//     replays skipped (wrong)      98.4          80.9 / 78.9   80.0 / 78.1   77.1 / 76.7
//   fp16, delta kept in fp16       52.4          54.4 / 54.6   76.0 / 60.2   112.7 / 75.1
//     replays skipped (wrong)      52.5          54.7 / 54.6   52.2 / 52.0   50.4 / 50.8
// So fp16 states stay with advance_ring.cu: bytes are not what holds them. Without reading and
// writing states at all a layer takes 35.3 us there, without exponentials either 32.7, without
// writing alone 36.3. Of a warp's cycles (with stamps, 58.9 us) 9% wait for states, 22% for delta,
// 43% work, 11% send a row back and ask for another.
//
// Tried and dropped, b512: rows dealt to a column's blocks in turn: 87.2 instead of 83.8 us, and
// 87.3 instead of 85.3 where all rows of one phase lie together; inputs two rows ahead (every third
// token): 87.9 instead of 84.9, but a step of 10.71 ms instead of 10.77. Not run: delta's inputs a
// tile ahead in registers (102 bytes spilled), delta made again from dt instead of kept (fewer
// bytes, more tiles of products).
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

// Two tiles at least for each of two blocks an SM. Smaller steps: 2.8b's 64 rows have kernels of
// their own (forward.cu).
bool advance_replay_fits(const device *d, int32_t n_rows) {
    const ssm_geometry &g = d->g;
    const int columns = g.d_inner / replay_ring::CHANNELS, room = 2 * d->n_sms;
    return g.kind == SSM_BLOCK_MAMBA && d->state_type == SSM_DTYPE_F32 &&
           d->weight_type == SSM_DTYPE_BF16 && d->arch == 90 && g.d_state == 16 &&
           g.dt_rank % 8 == 0 && g.dt_rank <= 256 && g.d_inner % replay_ring::CHANNELS == 0 &&
           columns <= room && n_rows > SPLIT_ROWS && (int64_t)columns * n_rows >= 2 * TILE * room &&
           advance_replay_layout_of(g.dt_rank).stages >= 3;
}

cudaError_t advance_replay(device *d, int layer, const batch &b) {
    const mamba_args a = row_arguments(d, layer, b, 1);
    const advance_replay_layout l = advance_replay_layout_of(a.rank);
    advance_replay_entries e = advance_replay_entries_of(d, layer);
    e.held = b.held;
    // As many blocks a column as fit: neighbouring columns are at the same rows at the same time.
    const int columns = a.channels / replay_ring::CHANNELS;
    const int blocks = 2 * d->n_sms / columns * columns;
    const cudaError_t rc = cudaFuncSetAttribute(advance_replay_kernel,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize, l.end);
    return rc ? rc
              : launch(d, advance_replay_kernel, dim3((unsigned)blocks), ADVANCE_RING_THREADS,
                       (size_t)l.end, b.decode, a, e, l, b.rows, b.n_rows);
}

} // namespace ssm
