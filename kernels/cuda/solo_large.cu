// SPDX-License-Identifier: Apache-2.0
// A decode step of one row of Mamba-1's larger published models (790m, 1.4b, 2.8b,
// falcon-mamba-7b, whose dt, B and C are normed where they are used) on Hopper: all
// layers in one cooperative launch of 128 blocks, an SM each. The step is the time to read the
// weights once, so memory must not idle while blocks tell each other things, and in_proj and
// out_proj are read in 12 bits a weight where they are there (packed.cuh), else in bf16.
//
// - A block has an even share of the channels (2.8b: 40): their rows of in_proj (x and z), columns
//   of x_proj, convolution, dt_proj, states; and of out_proj's rows, with the residual's.
// - One warp asks for all layers' weights, through a ring; eight warps multiply, each its columns
//   of every row. x comes before z: x_proj's sums go around and states are advanced while z's rows
//   come. Packed (solo_large_packed.cuh): slots of 9 to 15 KB, all of the block's rows by 256
//   columns of in_proj, 512 of out_proj; in bf16 (solo_large_products.cuh): ten to thirteen slots
//   of eight rows by a part of their columns (2.8b: 21 KB).
// - The input, y and the next input go by packets in memory that tell themselves whether they are
//   there (solo_exchange.cuh), the input with the squares that its scale is made of. x_proj's sums
//   are totals in memory that all blocks add to, in fixed point, and that say how many have.
// - At most two slots are under way (packed: 28 KB): an SM's loads of packets queue behind the rows
//   it has asked for, a full ring's 200 KB for 6 us.
// - All is added up in one order, or in integers: the same bits every time.
//
// No packet's place is needed twice: whoever writes it again has what depends on everybody's having
// read it (the totals of layer l + 1 follow the input, that all rows of out_proj, those all of y,
// those the totals of layer l; in the same way round for the others).
//
// Ladder, one H200, 2.8b, f32 state, ms for 64 layers alone (their bytes at the read ceiling: 1.2):
//   1.683  slots asked for as they are freed; one multiplied after the other
//   1.638  two slots at a time; convolution and residual by warps that have other parts, too
//   1.602, 1.545, 1.516  at most a slot in 700, 900, 1,000 cycles
//   1.497  a block's shares of eight rows in one sector; the input read by four lanes of a warp
//          (1.520, 1.484 with 8% shorter and longer pauses)
//   1.575, 1.520, 1.473  at most four, three, two slots under way in place of pauses
// Another, f16 state (packed, the bytes' time is 0.93):
//   1.465  the same, in turns with
//   1.220  packed weights, three slots under way, x_proj's shares by packets to 24 blocks that add
//          up eight rows each and give the sums to all (in bf16 that took 10 us of a layer)
//   1.187  x_proj by totals (1.266 with totals side by side, not 256 bytes apart)
//   1.213, 1.188, 1.139  four, three, two slots under way
// One more, in turns with the last (1.147) and bf16 (1.487):
//   1.195  loads of weights that do not meet in shared memory's banks; the first operand's
//          registers as they lie there, not put together for each instruction (36 bytes spilled)
//   1.122  weights not multiplied by 2^base: 160 instructions a slot and warp, not 240
//   1.115  totals 512 bytes apart
//
// In steps, f16 states, bf16 and packed, in one run: 2.8b 1.534 and 1.172 ms, 1.4b 0.762 and 0.656,
// 790m 0.552 and 0.489 (2.8b by few.cu, in another: 1.679). Then in_proj's slots were four runs of
// memory, out_proj's sixteen; in the copy's own order, as it is now, and in turns with the program
// that had no copy (another card): 2.8b 1.526 and 1.157, 1.4b 0.749 and 0.640.
//
// falcon-mamba-7b: 80 registers a thread are left, so x_proj's 288 rows are three half rows a lane,
// and a slot's weights are unpacked in two halves. f16 states, H200 (2026-11-29): by skinny.cu 5.47
// ms, in bf16 4.04, packed 2.89 (the bytes' time: 2.4).
//
// Where a layer of 17.5 us goes (2.8b, packed, %globaltimer, medians over blocks): x's sums 2.8,
// x to x_proj 4.6, its totals 6.6 (of the first rows), y given 11.3, there 13.8, out_proj's sums
// 16.4, next input 17.5. Memory gives 3.6 TB/s while it is asked, from 3.8 us before the input is
// there to y's being given, and then has nothing to do until y is there: the ring is full. Open:
// what y waits for between 7 and 11 us, when in most blocks the first warp's sums of z and these
// totals are there (the other warps have no stamps; the compiler moves reads of the clock over
// barriers unless they depend on a value).
#include "solo_large_kernel.cuh"

namespace ssm {

bool solo_large_room(const device *d) {
    return large_room<false>(d);
}

int solo_large_packets(const device *d) {
    return large_packets<false>(d);
}

cudaError_t solo_large_layers(const device *d, const solo_args &a) {
    return large_layers<false>(d, a);
}

} // namespace ssm
