// SPDX-License-Identifier: Apache-2.0
// All layers of a decode step of a few to 64 rows of Mamba-2's published models on Hopper in one
// launch (resident_heads_fewest, resident_heads_most): resident.cu's frame, whose essay has the
// clusters, the ring, the warps' roles and the counters, with Mamba-2's layer.
//
// - A cluster has 1/64 of the channels, whatever heads these are of, as resident.cu's: their rows
//   of x and z, convolution, states, y. B, C and dt are 280 to 336 rows of in_proj more. 35 to 42
//   of the clusters have eight of these each, behind their rows of x in the same slots of the ring,
//   multiplied by the group of warps that has fewer rows otherwise.
// - They depend on the layer's input alone, so they go to memory with x, convolved, and are there
//   before z is multiplied. There is no sum over clusters, as Mamba-1's x_proj is.
// - B, C and dt of a rank's tokens lie where token rows of products are else: in the middle of a
//   layer nothing is multiplied.
// - Ranks have half of the tokens each, the first or the second (resident.cu: every other eight),
//   for states are most of what a step of 16 rows and more moves.
// - The gated norm is out_proj's: y leaves times the norm's weight, with its clusters' sums of
//   squares, and a token's sums are scaled where shares are added up. By then all its y are there.
//     in_proj   rows of x, B, C, dt; these to memory
//               rows of z; beside it a warp waits for
//     sums      35 to 42 blocks: B, C, dt
//               states, y
//     y         16 blocks   shares 8 blocks   input all      as resident.cu
//
// Steps of up to eight rows write states as they come (replay.cu, When): here, all warps at one
// token's rows after the other. More rows: resident_heads_replay.cu. Packed weights:
// resident_heads_packed.cu.
//
// Bytes: the weights once; states once, or twice. Through L2 a layer of 2.7b: u and u again, y (to
// 52 MB at 64 rows), out_proj's shares (5 MB), B, C and dt to all (3 MB).
//
// Ladder, ms a step, H200, fp16 states (2026-11-29): by few.cu, few_packed.cu, medium.cu and
// replay.cu, and by this, other cards (medium.cu at other sizes: the same on both):
//                          b4            b8            b16           b32           b64
//   2.7b               2.02  1.85    2.29  1.96    2.54  2.23    3.01  2.75    4.15  3.70
//   1.3b               1.22  1.05    1.35  1.09    1.50  1.32    1.79  1.61    2.47  2.16
//   780m               0.95  0.80    1.09  0.84    1.20  0.98    1.41  1.27    1.95  1.72
//   370m              (0.57) 0.64    0.76  0.66    0.92  0.78    1.08  0.98   (1.35) 1.41
//   130m              (0.32) 0.33    0.39  0.33    0.41  0.37   (0.446) 0.468 (0.59) 0.63
//   2.7b, fp32 states                2.55  2.30   (2.91) 3.00   (3.78) 4.18   (5.63) 6.68
// In brackets what is left to the others. With weights in 12 bits up to 16 rows of all but 130m
// take 1 to 12% less: resident_heads_packed.cu. Predicted for 2.7b 1.85 to 1.9 (b8), 2.9 to 3.1
// (b64).
//
// On the way (2.7b, fp16): states written in each step for more rows, too: b16 2.30, b24 2.67, b32
// 3.03, b64 4.61.
//
// Open: 2.7b's two rows, which few_packed.cu has (1.66; three here, packed: 1.61); fp32 states of
// more rows, of which the ring holds three tokens' (2.7b); mamba-codestral-7b (4,096 channels:
// slots of 32 KB and more).
#include "resident_heads_at_once.cuh"
#include "resident_heads_kernel.cuh"

namespace ssm {

static bool heads_model_fits(const device *d) {
    const ssm_geometry &g = d->g;
    return d->arch == 90 && d->weight_type == SSM_DTYPE_BF16 && g.kind == SSM_BLOCK_MAMBA2 &&
           d->n_sms >= RESIDENT_BLOCKS && (size_t)RESIDENT_SHARED + 1024 <= d->shared_sm &&
           g.d_inner == 2 * g.d_model && g.head_dim == HEAD && g.d_state == HEAD_STATES &&
           g.n_groups == 1 && g.d_conv >= 2 && g.d_conv <= 4 && g.n_layers <= RESIDENT_LAYERS;
}

bool resident_heads_room(const device *d) {
    if (!heads_model_fits(d))
        return false;
    if (!resident_heads_packed_room(d)) // weights may be packed or not
        return false;
    if (d->state_type == SSM_DTYPE_F32)
        return heads_room<false, heads_at_once, float>(d);
    return heads_room<false, heads_at_once, f16>(d) && resident_heads_replay_room(d);
}

size_t resident_heads_bytes(const device *d) {
    size_t bytes = 0;
    with_heads<false, heads_at_once, float>(d->g.d_model, [&](auto, auto shape) {
        bytes = resident_shape_bytes<decltype(shape)>();
        return true;
    });
    return bytes;
}

// By width, from which and up to which rows this is faster than few.cu, few_packed.cu and
// medium.cu.
int32_t resident_heads_fewest(const device *d) {
    // By few.cu and few_packed.cu two rows of 780m take 0.800 ms, of 1.3b 0.991, of 2.7b 1.658; so
    // 0.762, and of three rows 0.893 and 1.614.
    if (d->g.d_model >= 1536 && d->weights_packed)
        return 2;
    // 130m's three rows 0.312 ms and so 0.307, four 0.317 and 0.305, but with fp32 states 0.339 and
    // 0.353, 0.338 and 0.356; 370m's four 0.574 and 0.603.
    if (d->g.d_model == 768)
        return d->state_type == SSM_DTYPE_F16 ? 3 : 5;
    return d->g.d_model == 1024 ? 5 : 3;
}
int32_t resident_heads_most(const device *d) {
    if (!d->replays || d->state_type != SSM_DTYPE_F16)
        return FEW_ROWS;
    return d->g.d_model == 768 ? 24 : d->g.d_model == 1024 ? 40 : (int32_t)RESIDENT_ROWS;
}

cudaError_t resident_heads_layers(device *d, const batch &b, row_squares *left) {
    if (d->weights_packed && b.n <= RESIDENT_PACKED_ROWS && resident_heads_packs(d))
        return resident_heads_packed_layers(d, b, left);
    if (d->state_type == SSM_DTYPE_F32)
        return heads_run<false, heads_at_once, float>(d, b, left);
    return d->replays && !b.at_once ? resident_heads_replay_layers(d, b, left)
                                    : heads_run<false, heads_at_once, f16>(d, b, left);
}

} // namespace ssm
