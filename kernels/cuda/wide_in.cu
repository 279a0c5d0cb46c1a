// SPDX-License-Identifier: Apache-2.0
// in_proj of large steps on Hopper (wide.cuh) behind wide_out.cu, which leaves the layer's input
// without its norm: sums are scaled by their token's (wide_in.cuh).
//
// us on one H200, chains with a plain end, cold weights:
//                                     2.8b 2,048 tokens   130m 1,024   2,048
//   cuBLASLt                          134.5               8.7          15.9
//   groups together (wide_kernel)     136.6               9.3          16.1
//   in turns (wide_turns.cuh)         137.3               8.9          14.5
// In a step cuBLASLt's begin 2 to 3 us after the kernel before, these at once. Together are best
// where a block has one tile, in turns where it has more.
#include "wide_in.cuh"

namespace ssm {

template <class SHAPE> constexpr auto kernel_of() {
    if constexpr (SHAPE::WARPS == WIDE_WARPS)
        return wide_kernel<SHAPE, wide_in_end<SHAPE>>;
    else
        return wide_turns_kernel<SHAPE, wide_in_end<SHAPE>>;
}

template <class SHAPE>
static cudaError_t run(const device *d, const void *w, int32_t n, wide_in_args e) {
    if (!tensor_map_of(&e.y, d->xz, false, d->n_in, n, wide_in_end<SHAPE>::CHUNK, 16, 64))
        return cudaErrorNotSupported;
    return wide_launch<SHAPE>(d, kernel_of<SHAPE>(), w, d->u, n, d->n_in, d->g.d_model, e);
}

struct in_way {
    wide_way way;
    cudaError_t (*run)(const device *, const void *, int32_t, wide_in_args);
};
template <class SHAPE> constexpr in_way way_of(int end, int last) {
    return {{SHAPE::TOKENS, SHAPE::COLS, SHAPE::SHARE, SHAPE::SPLITS, end, last}, run<SHAPE>};
}
static const in_way ways[] = {
    way_of<wide_in_turns<192, 1>>(0, 3000),    way_of<wide_in_turns<160, 2>>(0, 5400),
    way_of<wide_in_turns<128, 2>>(0, 5500),    way_of<wide_shape<1, 192, 1, 1>>(1800, 0),
    way_of<wide_shape<1, 128, 2, 1>>(2800, 0), way_of<wide_shape<1, 96, 2, 1>>(2300, 0),
    way_of<wide_shape<2, 160, 2, 1>>(5000, 0),
};

static const in_way *way_for(const device *d, int32_t n) {
    const in_way *best = NULL;
    int64_t least = 0;
    for (const in_way &w : ways) {
        const int64_t cycles = wide_cycles(d, w.way, n, d->n_in, d->g.d_model);
        if (!best || cycles < least)
            best = &w, least = cycles;
    }
    return best;
}

cudaError_t wide_in(device *d, int layer, int32_t n) {
    wide_in_args e = {};
    e.tokens = n, e.per_width = 1.f / d->g.d_model, e.eps = d->g.norm_eps;
    if (layer > 0)
        e.squares = d->row_norms, e.n_squares = wide_out_squares(d, n);
    return way_for(d, n)->run(d, d->layers[layer].in_proj, n, e);
}

} // namespace ssm
