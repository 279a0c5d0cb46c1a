// SPDX-License-Identifier: Apache-2.0
// A decode step of one row of Mamba-2's published models from 370m to 2.7b (heads of 64, 128
// states, one group) and of mamba-codestral-7b (eight groups) on Hopper: solo_large.cu, whose essay
// has the launch, the ring, the products and the packets, with Mamba-2's layer.
//
// - A block has its channels' rows of x and of z (2.7b: 40 each), whatever heads these are of, with
//   their convolution and states (10 KB in fp16, in registers a layer ahead), and one row each of
//   B, C and dt: 128 blocks, 128 states, at most 80 heads. These are read in bf16, as they are
//   stored, by three warps of their own, a layer ahead (2% of a layer's weights).
// - So B, C and dt are there before anything else: they depend on the layer's input alone, go to
//   all blocks by a packet each, and wait for x there. Mamba-1's x_proj waits for all of x.
// - y goes times the gated norm's weight, with the squares of what is normed beside it, and
//   out_proj's sums are scaled: nobody norms. The copy in 12 bits has x's rows before z's.
//
// mamba-codestral-7b (solo_large_groups.cuh): a block's 64 channels are one head, so it needs B and
// C of one of eight groups, and its head's dt.
// - The sixteen blocks of a group have eight rows each of its B and of its C, and their own row of
//   dt: 17 rows, too many for registers (139 KB a layer), so they come through the ring in front of
//   x's, in bf16. Packed, such a slot has all of them by 512 columns, two times 256 of one group of
//   warps; in bf16, rows are slots as others are, and dt's one row is a slot of its parts.
// - One warp adds up what the products' warps have of them, and B and C go to the group's blocks,
//   two numbers a packet. It has the residual, too.
// - The gated norm has eight groups as well, whose y are a slot's or two: the products' warps add
//   up the squares beside y, tell each other (a barrier of theirs, behind the first slot's products
//   in the packed form), and multiply each slot's sums of out_proj by its group's factor. y itself
//   is rounded once.
// - 18 warps have 96 registers a thread. Bytes a layer: 168 MB packed, 219 in bf16.
//
// No packet's place is needed twice: B, C and dt of layer l + 1 follow the input, that all rows of
// out_proj, those all y, and a block's y its having read B, C and its heads' dt of layer l.
//
// States are written in each such step (replay.cu, When).
//
// ms a step, H200, fp16 states, in turns with few.cu in one run:
//                                    2.7b    1.3b    780m    370m (another run)
//   few.cu: three launches a layer   1.84    1.02    0.71    0.47
//   this, weights in bf16            1.64    0.86    0.63    0.42
//   this, in 12 bits                 1.27    0.64    0.50    0.38
// 2.7b with fp32 states 1.31. The bytes' time, packed, at 4.6 TB/s: 0.93. Predicted 1.25 (2.7b).
// mamba-codestral-7b: by medium.cu 4.41, in bf16 4.10, in 12 bits 3.10, with fp32 states 3.18 (the
// bytes' time 2.5; predicted 3.1).
// A lane's columns of B's, C's and dt's rows lie a constant apart (dealt_column): with fours of
// columns dealt out one by one, 40 offsets were kept in registers and 390 bytes spilled.
#include "solo_large_kernel.cuh"

namespace ssm {

bool solo_large_mamba2_room(const device *d) {
    return large_room<true>(d);
}

int solo_large_mamba2_packets(const device *d) {
    return large_packets<true>(d);
}

cudaError_t solo_large_mamba2_layers(const device *d, const solo_args &a) {
    return large_layers<true>(d, a);
}

} // namespace ssm
