// SPDX-License-Identifier: Apache-2.0
// Mamba-1, one token of many sequences, on Hopper: the states go through shared memory, so that how
// many bytes are under way does not depend on what warps wait for, nor on registers.
//
// Bytes a row and layer: the state twice (327,680 in fp16 at 5,120 channels), x, z and y (in x's
// place: mamba_y() in advance.cu).
//
// - A column of 128 channels (64 in fp32) is walked row by row, in tiles of 16, by as many blocks
//   as fit: 384 threads, half an SM. Blocks of neighbouring columns are at the same rows at the
//   same time.
// - Eight warps own 64 channels (32) of every fourth row each, and a ring of 3 to 5 rows' 2 KB.
//   Lane 0 asks for a row as soon as another's place is free: no barrier, and the ring is full
//   before the wait for the kernel before (states were written a step ago).
// - A lane owns whole channels, 64 bytes: no sums between lanes, decay in registers, B and C read
//   once for two channels. It takes its four 16-byte parts in the order part ^ (lane / 2 % 4), or
//   eight lanes would meet in two banks. The row goes back by the copy engine.
// - Four more warps make delta (dt_proj dt on the matrix units, softplus) and bring B and C. They
//   are a tile ahead, with the result in registers, and put it where the last one was as soon as
//   its first or last eight rows are done: warps may be half a tile apart.
//
// dt_proj of falcon-mamba-7b's rank and 128 channels leaves no room for rings: there a column has
// 64 channels in fp16, too, a warp every eighth row: steps of 128, 256, 512 rows 6.84, 9.81, 17.53
// ms, 7.58, 11.03, 19.38 by advance.cu (and with its norms not launched beside x_proj; H200).
//
// What an H200 gives states of 512 rows in a layer of 2.8b (168 or 336 MB both ways), 64 layers' in
// turn, TB/s. Steady: eight layers a launch; a launch a layer costs 4 to 5 us more.
//                                                                  fp16    fp32
//   read only, 32 KB at a time by the copy engine                  4.31    4.44
//   write only                                                     4.20    4.26
//   in place, 4 KB a row, column after column, by registers        3.65    3.76
//   in place, 32 KB at a time, by the copy engine                  3.83    3.85
//   the same, slots in order                                       3.86    3.88
//   one array to another, 4 KB, slots in order, by registers       3.72    3.89
//   cudaMemcpy, a launch for all                                   4.22
//   in place, a launch a layer: plain loop                         3.56    3.68
// No form of ours came near cudaMemcpy's. In place or not is the same; so are (a launch a layer)
// evict-first, last and unchanged by registers, ld.cs, no_allocate and st.wt, slots padded by 256
// bytes to 4 KB, 64 to 192 KB under way an SM. Whole-card phases of reads and writes with a barrier
// between: 2.0 to 2.8. A row of 2 KB a warp, copied back unchanged: 3.42 a launch a layer; 3.07
// with arithmetic (fp16), 3.34 with a row of 1 KB in launches of eight layers.
//
// Ladder, us a layer at b512 of 2.8b, launches that overlap, nothing between them; runs differ by
// 3%.                                                              fp16    fp32
//   advance.cu                                                     56      104
//   1 KB rows in fp16, all warps make delta, two barriers a tile   55.7    100.3
//   64 bytes a lane: 406 instructions for 64 channels, not 542     56      100
//     without delta's product (wrong)                              51.8     98.8
//     without fence.proxy.async (wrong)                            56      100
//     back by 16-byte stores                                       57.3    100.5
//   two warps make delta                                           54.6     99.6
//   + evict-first both ways                                        52.9     98.5
//   four warps, 88 and 64 registers, half tiles, columns in step   52.5     95.5
//     columns not in step                                          52.0     97.7
// With 96 and 48 registers, and six words spilled by the warps that make delta, an earlier rung
// took 101.3 us in fp32 where 88 and 64 took 97.9.
//
// Steps, ms:                        2.8b b512 fp16, fp32   b128 fp16   130m fp16 b1024, b256
//   advance.cu (two runs before)    9.14 to 9.30   12.56   4.36        1.75         0.82
//   this                            8.73           11.32               1.68         0.79
//
// fp32 states of steps that are larger still: advance_replay.cu, which also says what holding
// tokens back would be for fp16.
//
// Tried and dropped: asking L2 for three more rows a warp before the wait (130m b1024 1.775 ms,
// 1.73 without; 2.8b the same).
// Dropped as well: states written as others are, not first to leave L2: steps 1.4% longer.
//
// Tried for fp16: warps that own their rows, make delta for eight of them at a time and meet
// nowhere, eight a block of 64 channels, y by the matrix units (370 instructions a row, 60 for its
// delta), same bits of states; every token written, or every second (as advance_replay.cu, rounded
// in between). us a layer, launches that overlap, rows alternating:
//                                             130m b1024   2.8b b512
//   this                                      29.4         53.3
//   such warps, every token                   30.9         54.8
//     back by 8-byte stores                   30.4         54.2
//     without delta (wrong)                   28.4         48.7
//     without row work (wrong)                29.6         50.1
//     without both: copies                    27.6         46.6
//     without states                          18.4         34.1
//   every second                              29.1         51.4
//     without delta and row work              23.7         40.3
//     without states                          22.4         40.7
// Of a row's 3,670 cycles (130m, every second) 780 were delta, 1,130 waits for states, 1,350 work.
// Steps, ms, with z two rows ahead, a row's place asked for in the middle of the next, first tiles
// of two lengths: 130m b512 0.989 (this 0.983), b1024 1.510 (1.550), 2.8b b512 8.88 (8.67); every
// token 1.001, 1.579, 8.87. Products leave the clock of a step lower than a bench's, and bytes that
// are saved bring 2.8b nothing.
//
// Of a row's 398 instructions in fp16 (a warp, 64 channels) 208 are the states (32 each: delta
// decay, exponential, unpacking, dx B, state, y; 16 pack), 26 delta, x, D and z, 18 go to shared
// memory, 6 are the fence, 42 one lane's copies; the rest are addresses and who the row is. Of a
// tile about 850 a warp make delta, 106 a row. Fewer: rows' addresses written to shared memory a
// tile ahead, the lane's offsets kept, one lane by elect.sync (345; fp32 190 of 260), dt as the
// matrix unit's operands lie, zeros behind the last column (about 75 for delta), tiles without
// divisions. The same bits. us a layer, H200, 1.98 GHz; steps, ms, in turns:
//                         without states   2.8b b512      130m b1024
//   this                  36.2             52.6 to 53.0   29.2
//   fewer                 32.8             52.7 to 54.1   29.6
//   + claimed (below)                      53.0           31.2
//   steps: this                            8.78, 8.93     1.546   (130m b512 0.985, fp32 1.173)
//          fewer                           8.74, 8.89     1.554   (0.981, 1.171)
//          + all 264 blocks                8.73
//          + claimed                       8.97           1.619
// So not kept: 0.5% for 2.8b is 0.5% against 130m. bias by plain loads before the wait made every
// launch 1.1 us longer. Claimed: two tiles a block, then units of 16, 8 and 4 rows for who comes
// first, since blocks' ends lie 16 us apart (median 6 before the last); delta of small units costs
// more. Unpacking and y by the matrix units (290 instructions, states' bits the same): 54.3
// us, 35.1 without states; those instructions cost more energy than they replace and lower the
// clock.
//
// What the time is: rings that only copy, as here, 43.0 us at 2.8b b512, at 3 to 6 rows of 2 or 4
// KB a warp, 4 to 16 KB in a row, one or two stores not yet read; 44.1 with 1,000 idle cycles a row
// and 3 rows, 43.3 with 6. This kernel without row work and delta 48.2: 3.3 are x, z and y, 0.6 the
// sums of x_proj, 0.6 the start's dt_proj, 0.1 the barriers. Energy: large-steps.md.
#include <type_traits>

#include "advance_ring_kernel.cuh"

namespace ssm {

// A tile for each of two blocks an SM at least: with less, a block's start is most of its time.
template <class S, int COLS> static bool fits(const device *d, const batch &b, int32_t n_splits) {
    const ssm_geometry &g = d->g;
    const int channels = advance_ring_shape<S, COLS>::CHANNELS;
    return n_splits == 1 && d->weight_type == SSM_DTYPE_BF16 && d->arch == 90 && g.d_state == 16 &&
           g.dt_rank % 8 == 0 && g.dt_rank <= 256 && g.d_inner % channels == 0 &&
           (int64_t)g.d_inner / channels * b.n_rows >= 2 * TILE * d->n_sms &&
           advance_ring_layout_of<S, COLS>(g.dt_rank).stages >= 3;
}

// f(S, warps along the channels): two, but where dt_proj of so many leaves no room for rings.
template <class F> static auto with_columns(const device *d, F f) {
    return with_state_type(d->state_type, [&](auto s) {
        if constexpr (sizeof s == 2) {
            if (advance_ring_layout_of<decltype(s)>(d->g.dt_rank).stages < 3)
                return f(s, std::integral_constant<int, 1>());
        }
        return f(s, std::integral_constant<int, 2>());
    });
}

bool advance_ring_fits(const device *d, const batch &b, int32_t n_splits) {
    return with_columns(d, [&](auto s, auto columns) {
        return fits<decltype(s), decltype(columns)::value>(d, b, n_splits);
    });
}

template <class S, int COLS> static cudaError_t run(device *d, int layer, const batch &b) {
    const mamba_args a = row_arguments(d, layer, b, 1);
    const advance_ring_layout l = advance_ring_layout_of<S, COLS>(a.rank);
    // As many blocks a column as fit: neighbouring columns are at the same rows at the same time.
    const int columns = a.channels / advance_ring_shape<S, COLS>::CHANNELS, room = 2 * d->n_sms;
    const int blocks = columns <= room ? room / columns * columns : room;
    auto kernel = advance_ring_kernel<S, COLS>;
    const cudaError_t rc =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.end);
    return rc ? rc
              : launch(d, kernel, dim3((unsigned)blocks), ADVANCE_RING_THREADS, (size_t)l.end,
                       b.decode, a, l, b.rows, b.n_rows);
}

cudaError_t mamba_advance_ring(device *d, int layer, const batch &b) {
    return with_columns(d, [&](auto s, auto columns) {
        return run<decltype(s), decltype(columns)::value>(d, layer, b);
    });
}

} // namespace ssm
