// SPDX-License-Identifier: Apache-2.0
// A decode step of one row of Mamba-2's published models from 370m to 2.7b (heads of 64, 128
// states, one group) on Hopper: solo_large.cu, whose essay has the launch, the ring, the products
// and the packets, with Mamba-2's layer.
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
