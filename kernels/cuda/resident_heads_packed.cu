// SPDX-License-Identifier: Apache-2.0
// resident_heads.cu's and resident_heads_replay.cu's steps of up to 16 rows with in_proj and
// out_proj in 12 bits a weight (packed.cuh): resident_packed.cuh's products in their place. All
// that is Mamba-2's own is as it is there.
//
// - Rows of B, C and dt are not in the copy. A cluster that has eight of them finds them in bf16,
//   four boxes of 64 columns, behind what its second group of warps gets of x's rows: a box a warp,
//   which multiplies it with the token rows that it has in registers just then. So they need no
//   slot of the ring and no turn of their own.
// - Sums of a group's four warps are added up as x's. What stays here of the extra rows' lies where
//   z comes later on: there is no room left behind u's stages.
// - u stays in shared memory from x to z, in all stages. B, C and dt of the rank's tokens, eight at
//   most, go to the first of them once z is multiplied, closer together than elsewhere
//   (heads_shape::BC_STAGE): else they would lie over sums that z still needs.
//
// Bytes: of 2.7b 4.1 GB of weights a step, not 5.4.
//
// ms a step, H200 (2026-11-29), fp16 states if nothing is said: bf16 weights and this, in turns:
//             b3            b4            b5            b8            b12           b16
//   2.7b      1.808 1.669   1.829 1.671   1.849 1.700   1.962 1.769   2.130 2.099   2.216 2.160
//   1.3b      0.998 0.946                               1.097 0.986                 1.317 1.267
//   780m      0.784 0.769                               0.837 0.786                 0.979 0.959
//   370m                                  0.641 0.624   0.654 0.633                 0.772 0.761
//   2.7b, fp32 states       2.022 1.825                 2.292 2.090
// With more slots, for there is room for 16 token rows and not for 64, and slots no larger than
// their use asks for (heads_shape::FEW, from 780m on; another card, where 2.7b took 1.69, 1.77 and
// 2.17 at b3, b8 and b16 before):
//   2.7b      1.61          1.62          1.64          1.74          2.08          2.13
//   1.3b      0.946                                     0.973                       1.195
//   780m      0.773                                     0.791                       0.963
//   2.7b, fp32 states       1.79                        2.06
// B, C, dt and y without releases (resident_exchanges.cuh; one more card, in turns, before and with
// it):
//             b3            b8            b16
//   2.7b      1.614 1.614   1.735 1.738   2.142 2.127
//   1.3b      0.943 0.893   0.974 0.950   1.194 1.179
//   780m      0.770 0.771   0.793 0.808   0.962 0.863
//   370m, b5  0.626 0.623   0.642 0.632   0.765 0.697
//   2.7b, fp32 states, b4 1.796 1.778, b8 2.057 2.073
// Predicted: 5 to 7%, as resident_packed.cuh's. With resident_heads_replay.cu's states, from nine
// rows on, 2.7b gains less than up to eight; why was not looked into.
#include "resident_heads_at_once.cuh"
#include "resident_heads_kernel.cuh"
#include "resident_heads_replay.cuh"

namespace ssm {

bool resident_heads_packs(const device *d) {
    return d->g.d_model / 32 % 16 == 0;
}

bool resident_heads_packed_room(const device *d) {
    if (!resident_heads_packs(d))
        return true;
    if (d->state_type == SSM_DTYPE_F32)
        return heads_room<true, heads_at_once, float>(d);
    return heads_room<true, heads_at_once, f16>(d) && heads_room<true, heads_replay, f16>(d);
}

cudaError_t resident_heads_packed_layers(device *d, const batch &b, row_squares *left) {
    if (d->state_type == SSM_DTYPE_F32)
        return heads_run<true, heads_at_once, float>(d, b, left);
    return d->replays && !b.at_once ? heads_run<true, heads_replay, f16>(d, b, left)
                                    : heads_run<true, heads_at_once, f16>(d, b, left);
}

} // namespace ssm
