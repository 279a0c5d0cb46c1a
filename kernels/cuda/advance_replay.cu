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
#include "advance_replay_kernel.cuh"

namespace ssm {

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
