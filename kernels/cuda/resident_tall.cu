// SPDX-License-Identifier: Apache-2.0
// All layers of a decode step of 65 to 128 rows of Mamba-1 on Hopper in one launch: resident.cu
// with two sets of 64 token rows, whose essay has the design. What differs is how shared memory is
// dealt and what a group of warps has (resident_shape::TALL).
//
// - A group of warps has a set, and all of the block's weight rows: token rows are read from shared
//   memory by one group, weights by both. A warp advances up to eight tokens.
// - Weights are read once. Token rows, 16 KB a piece, come through L2 twice as often, which takes
//   an SM as long as memory takes for the weights and 128 rows' states.
// - Twice as many token rows leave half of the ring's room: slots of 10 KB (2.8b), five of them,
//   one piece of in_proj's columns each; out_proj is dealt out by 32 row tiles and 4 parts of the
//   columns. No form of packed weights.
//
// ms a step, fp16 states, one H200: by product.cu and what is beside it, by this with both groups
// multiplying half of the weight rows with both sets, and as it is:
//
//              72 rows                96                     128
//   130m       0.603  0.502  0.516    0.611  0.510  0.524    0.603  0.551  0.590
//   370m       1.27   1.13   1.13                            1.40   1.28   1.28
//   790m       1.65   1.49   1.44     1.68   1.52   1.48     1.75   1.67   1.62
//   1.4b       2.17   1.85   1.82                            2.33   2.14   2.06
//   2.8b       3.48   3.55   3.44     3.70   3.67   3.56     4.08   4.07   3.91
//
// Logits and states of both kinds: test_cuda wide, on the host tests/kernels/emulated.
//
// Predicted for 2.8b: 2.8 (72 rows) to 3.35, from 35 us a layer at 64 rows and 20 for the second
// set's bytes; but a layer of 72 rows takes 53. Not looked into: the convolution's taps, 100
// registers at 2.8b of which some spill, and what a piece in a slot of its own costs.
#include "resident_kernel.cuh"

namespace ssm {

template <class S, class F> static bool with_width(int d_model, F f) {
    return with_channels(d_model, [&](auto channels) {
        typedef resident_shape<decltype(channels)::value, RESIDENT_TALL_ROWS> shape;
        return f(resident_kernel<shape, S, false>, shape());
    });
}

bool resident_tall_room(const device *d) {
    if (d->g.kind != SSM_BLOCK_MAMBA)
        return false;
    return with_state_type(d->state_type, [&](auto s) {
        return with_width<decltype(s)>(d->g.d_model, [&](auto kernel, auto shape) {
            return resident_launch(d, decltype(shape)::BYTES).most(kernel) >= RESIDENT_CLUSTERS;
        });
    });
}

size_t resident_tall_bytes(const device *d) {
    size_t bytes = 0;
    with_width<float>(d->g.d_model, [&](auto, auto shape) {
        bytes = resident_shape_bytes<decltype(shape)>();
        return true;
    });
    return bytes;
}

cudaError_t resident_tall_layers(device *d, const batch &b, row_squares *left) {
    return with_state_type(d->state_type, [&](auto s) {
        return resident_run(d, b, d->resident_tall, left,
                            [&](auto f) { return with_width<decltype(s)>(d->g.d_model, f); });
    });
}

} // namespace ssm
