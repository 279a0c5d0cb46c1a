// SPDX-License-Identifier: Apache-2.0
// Products of large steps on Hopper with the norm between them (wide.cuh).
#ifndef SSM_KERNELS_CUDA_WIDE_H
#define SSM_KERNELS_CUDA_WIDE_H

#include "cuda.h"

namespace ssm {

bool wide_kind_fits(const device *d);
bool wide_fits(const device *d, const batch &b);           // both
size_t wide_most_squares(const device *d, int32_t tokens); // floats of d->row_norms; 0: never used

// wide_in.cu: in_proj of d->u. Layers but the first: as wide_out() left it, not normed.
cudaError_t wide_in(device *d, int layer, int32_t n);

// wide_rows.cu: in_proj with the convolution, of some steps of decode rows.
bool wide_rows_fits(const device *d, const batch &b);
cudaError_t wide_rows(device *d, int layer, const batch &b);

// wide_out.cu: out_proj of y. With next_norm it leaves the input of what follows, residual times
// that norm's weight, in d->u, and its tokens' sums of squares in d->row_norms, wide_out_squares()
// a token. rows: behind wide_rows().
cudaError_t wide_out(device *d, int layer, const void *y, int32_t n, const float *next_norm,
                     bool rows);
int32_t wide_out_squares(const device *d, int32_t n);

// wide_places.cu: blocks of one GPC make neighbouring tiles.
struct wide_places;
struct place_set { // a launch's tickets
    int layer;
    bool out;
};
size_t wide_places_bytes(const device *d);         // of d->tickets; 0: never used
cudaError_t wide_places_find(device *d);           // once, at opening
bool wide_placed(const device *d, int32_t n_rows); // whether steps of so many rows do so
// False: places by block number.
bool wide_places_for(const device *d, int tiles, int cluster, bool split, const place_set *set,
                     wide_places *out);

// A way to cut a product into tiles, and what it costs: cycles, of the matrix units until the last
// tile is done; 0: it does not fit.
struct wide_way {
    int tokens, cols, share, splits; // of a tile, of its cluster
    int end, last;                   // cycles after each tile, and after the last
};
int64_t wide_cycles(const device *d, const wide_way &way, int32_t n, int cols, int k);

} // namespace ssm

#endif
