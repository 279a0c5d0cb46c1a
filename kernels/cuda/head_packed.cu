// SPDX-License-Identifier: Apache-2.0
// The logits of up to 64 tokens on Hopper with the head's weights in 12 bits (packed.cuh), in place
// of few.cu's, skinny.cu's and head.cu's, which read a third more: y [token][vocab] = u
// [token][d_model] W^T, bf16 in, fp32 out. What is left of W's bytes is the time: 58 MB of 130m,
// 193 of 2.8b.
//
// Rows have powers of two of their own (packed_format.h), for a tied embedding has rows of very
// different size. A head is packed if every column has somewhere at least 2^-10 of its row's
// largest weight, or nothing, and in each row at most one weight in 32 changes. Our trained models:
// one in 20,000, one of 256 in a row, and each column has what is its row's largest.
//
// A block has an even share of the vocabulary's tiles of 64 rows (of 50,280: five or six), all of
// which go through a ring of three to eight stages together, 64 columns of each at a time: a copy
// of 6 KB a tile. A warp has sixteen rows of a tile; they lie in its lanes' order, 16 bytes thrice,
// and 13 instructions make eight of them a matrix instruction's first operand, in registers:
// nothing is written to shared memory. Tokens are the second:
//   up to 16 tokens    all of their rows in shared memory, brought there by those that multiply
//                      (mma.sync): by the copy engine they would queue behind the weights that it
//                      has been asked for
//   up to 64           a box of 64 columns with each stage (wgmma). 33 and more: three tiles at a
//                      time, for want of registers; one piece is waited for before the next one
//
// A stage is given back once the products of what was read from it are there, as in few.cu.
//
// A token's sums depend on no other one. They are scaled by its norm where the last layer leaves
// squares, as all kernels of whole steps do: then there is no norm_f kernel.
//
// H200, fp16 states, ms a step, in turns in one run (2026-11-30), before and with it:
//            b1             b4           b8           b16          b32          b64
//   130m     0.1082 0.1003  0.262 0.256  0.298 0.286  0.298 0.290  0.349 0.340  0.395 0.389
//   370m     0.307  0.299                0.619 0.596
//   790m     0.491  0.472                0.719 0.686
//   1.4b     0.644  0.631                0.888 0.851
//   2.8b     1.164  1.147   1.526 1.486  1.546 1.497  1.604 1.586  1.98 1.95    2.257 2.249 *
//   2.7b                                 1.723 1.711
// * means of nine; each is 2.22 to 2.29 (large-steps.md, "Two modes"). Of 130m b64 0.002, of b8
// 0.001 are the missing norm_f. Predicted by bytes: 130m b1 4 us less, 2.8b 14. More where
// skinny.cu's made them, to eight rows of resident.cu. 130m b1 on seven machines: 0.0995
// to 0.1022.
//
// Where its time goes, 130m b1, us by %globaltimer: solo.cu leaves 36 SMs, whose blocks have full
// rings for 80 us. The others begin as SMs become free, 0.3 later the last layer is done, 1.0
// to 2.3 later the token's row and the first stage are there, 10 to 12 later all ends: 50 MB at 4.5
// TB/s. 2.8b b1: 43 behind the last layer, 4.5 TB/s. 2.8b b64: 52, of which tokens' boxes and
// waiting for each piece are some 7.
//
// Forms before it, 130m b1: three tiles at a time, tokens by boxes as with 64: 0.1003, too, but its
// stages took 0.39 us one after the other whatever memory gave; the first came after 4 to 6 us,
// behind eleven stages of weights. Two pieces under way, the next one's weights unpacked meanwhile:
// ptxas serializes wgmma there.
//
// Tried and dropped, 130m b1: the 36 blocks that wait read 7 to 42 MB of the others' weights, so
// that L2 has them, at once, marked to stay, or some 10, 25 us before the end: 0.1000 to 0.1005
// (0.0995 to 0.1003).
#include "clusters.cuh"
#include "head_packed.cuh"
#include "medium.cuh"

namespace ssm {

enum { MOST_PACKED_TOKENS = 64 };

template <int TOKENS> static bool has_room(const device *d) {
    return packed_head_shape<TOKENS>::stages(d->g.d_model / PACKED_HEAD_COLUMNS) >= 3;
}

template <int TOKENS> static cudaError_t run(const device *d, packed_head_args a) {
    typedef packed_head_shape<TOKENS> shape;
    a.stages = shape::stages(a.pieces);
    if (!shape::FEW &&
        !tensor_map(&a.x, d->u, d->g.d_model, a.tokens, PACKED_HEAD_COLUMNS, TOKENS, true))
        return cudaErrorNotSupported;
    const int blocks = a.tiles < d->n_sms ? a.tiles : d->n_sms;
    cluster_launch launch(d, dim3((unsigned)blocks), shape::THREADS, shape::bytes(a.pieces), 1,
                          BESIDE_PREDECESSOR);
    return launch.run(packed_head_kernel<shape>, a);
}

bool head_packed_fits(const device *d, int32_t n) {
    return d->packed_head && n <= MOST_PACKED_TOKENS;
}

cudaError_t head_packed(device *d, int32_t n, const row_squares &squares) {
    packed_head_args a = {};
    a.u = (const bf16 *)d->u, a.weights = (const char *)d->packed_head;
    a.by = d->packed_head_by, a.y = d->logits;
    a.squares = squares.sums, a.n_squares = squares.n, a.squares_pitch = squares.pitch;
    a.per_width = 1.f / d->g.d_model, a.eps = d->g.norm_eps;
    a.tokens = n, a.rows = d->g.vocab_size, a.pieces = d->g.d_model / PACKED_HEAD_COLUMNS;
    a.tiles = ceil_div(a.rows, PACKED_HEAD_ROWS);
    return n <= 8 && has_room<8>(d)     ? run<8>(d, a)
           : n <= 16 && has_room<16>(d) ? run<16>(d, a)
           : n <= 32                    ? run<32>(d, a)
                                        : run<64>(d, a);
}

} // namespace ssm
