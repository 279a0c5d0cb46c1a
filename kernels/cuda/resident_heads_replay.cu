// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's steps of 9 to 64 rows: fp16 states that are not written every token
// (replay.cu).
//
// - A slot of the ring has a token's base and, behind it, its entries of x (2.7b: 20 and up to 4
//   KB). Entries are asked for by another warp (heads_source::copy_entries).
// - A warp takes every eighth token by itself, as replay.cu's warps take items, on the matrix units
//   by tiles of 16 rows (replay_item.cuh): nobody waits for anybody between B, C and dt and the
//   last token's y. What entries weigh it works out first, from B of the entries, which it asked
//   for a token ahead.
// - So a warp waits for its own slots alone, and for that they were asked for (wait_asked): without
//   that a slot two passes behind looks like one that is there.
// - Bases are written behind y's count, a warp a tile or two, read once more: while a slot waits
// for
//   its fold the ring does not go on. They stay in L2 until then: of these tokens nothing is asked
//   for as first to leave. New entries are written there, too: nothing in the step waits for them.
//
// Bytes a layer of 2.7b at 64 rows: 80 MB of weights, 84 of bases, 5 of x, 1/16 of the bases
// written.
//
// Ladder, ms a step, fp16 states, H200 (2026-11-29; where a line names no other it is one run):
//                                                         2.7b b16   b64   130m b16   b64
//   all warps at one token's rows by FMA, entries of x
//     from L2 by 2-byte loads a row                           3.23  6.54       0.54  1.28
//   entries through the ring                                  2.63  4.88       0.48  1.07
//   a warp a token                                            2.85  5.34       0.48  0.98
//   + base and entries on the matrix units                    2.25  3.90       0.42  0.87
//   + folds behind y's count, entries asked for by another
//     warp (another run with this code 2.28, 3.71; as it was
//     written down 2.35, 3.97, why is not known)              2.23  3.75       0.36  0.63
//   + their bases kept in L2: before 2.35, 3.97               2.29  3.82
//   + two tiles a warp, their loads at once: before 2.36,
//     3.83 (of up to three tiles it loses: 130m b16 0.41)     2.23  3.67
//   + z's slots not held up for B, C and dt: before 2.24,
//     3.68                                                    2.22  3.66
// Left out one by one from the fourth line (b64; 130m): folds 3.51 (0.86), base and entries 3.54
// (0.83), entries' copies 3.82 (0.66), what entries weigh 3.66 (0.85), new entries 3.87 (0.87), L2
// asked ahead 3.87 (0.88). Without folds the last line would be some 3.5. By bytes a layer takes 37
// us, of 57; resident.cu's loses 10 to 12, too.
//
// fp32 states, 2.7b: bases of two slots a token, a slot a warp, sums over a row's states by FMA
// and shuffles: b16 3.00, b32 4.18, b64 6.68 where medium.cu and replay.cu take 2.91, 3.78 and 5.63
// (all warps at a token's rows 3.39, 7.96 at b16, b64). Not kept. Most likely the ring: it has
// three tokens' bases then, and a slot is held for as long as one warp takes for it.
#include "resident_heads_kernel.cuh"
#include "resident_heads_replay.cuh"

namespace ssm {

bool resident_heads_replay_room(const device *d) {
    return heads_room<false, heads_replay, f16>(d);
}

cudaError_t resident_heads_replay_layers(device *d, const batch &b, row_squares *left) {
    return heads_run<false, heads_replay, f16>(d, b, left);
}

} // namespace ssm
