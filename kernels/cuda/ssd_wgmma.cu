// SPDX-License-Identifier: Apache-2.0
// Mamba-2's prompt on Hopper: ssd.cu's sums (see there for the formulas) by wgmma, which reads its
// operands from shared memory once for four warps where mma.sync reads them once a warp.
//
// A block of four warps owns one head of one piece of a prompt and walks it in chunks of 64 tokens,
// the state (64 x 128 fp32) in its accumulators all the way. A chunk:
//
//     G = C B^T, Y = C S^T            from shared memory, under way together
//     S = decay S + (weight x)^T B    x transposed and weighted into registers; the wait for G
//     hides M = G exp2(c_i - c_j) delta_j   in registers: accumulators are the next product's
//     operand Y = exp2(c_i) Y + M X           then D, the gate, and S to shared memory in bf16 for
//     the next
//
// The next chunk's x, B and C and this one's z are fetched meanwhile. Two blocks an SM, 108 KB
// each.
//
// Too few heads to fill the card: prompts are cut into pieces (pieces.cu). The first launch walks
// each prompt's first piece whole and of the others only S, from zero; the second chains those ends
// and walks the others. Pieces are whole chunks: a cut changes only the order of fp32 sums of S.
//
// Bytes a token and head: x, z and y, 384; B and C come from L2, 512 a token and head, which is
// what bounds it (143 MB a layer of 2.7b for 2,048 tokens). Products: 3.7 MFLOP a chunk.
//
// Ladder, us a layer on an H200, 2.7b 1 / 8 prompts of 2,048, 130m 1 / 8:
//   ssd.cu (mma.sync, 256 threads)                      267 / 861     211 / 329
//   wgmma                                               138 / 450     120 / 161
//   + pieces                                             88 / 450      40 / 161
//   + shared memory read as such, dt as loaded (H100)    81 / 428      41 / 149
// Read by ncu before the last: generic loads, since the compiler had lost that the tiles are in
// shared memory, and a wait for dt's load at its conversion, 15% of all samples.
#include "ssd_wgmma_kernel.cuh"
#include "types.cuh"

namespace ssm {

bool ssd_wgmma_fits(const device *d) {
    return ssd_fits(d) && d->arch == 90 && d->n_in % 8 == 0 && d->g.d_inner % 8 == 0;
}

cudaError_t ssd_wgmma_scan(device *d, int layer, const batch &b) {
    const ssm_geometry &g = d->g;
    const layer_weights &w = d->layers[layer];
    walk_args a = {};
    a.decay = w.decay, a.skip = w.skip, a.dt_bias = w.dt_bias;
    a.xc = (const bf16 *)d->xc, a.in = (const bf16 *)d->xz, a.y = (bf16 *)d->y, a.carry = d->carry;
    const size_t slots = (size_t)d->n_slots * g.d_inner * g.d_state;
    a.state = (char *)d->state + (size_t)layer * slots * type_bytes(d->state_type);
    a.heads = g.n_heads, a.groups = g.n_groups, a.d_inner = g.d_inner;
    a.conv_dim = g.conv_dim, a.n_in = d->n_in, a.dt_min = g.dt_min, a.dt_max = g.dt_max;
    return with_state_type(d->state_type, [&](auto t) {
        typedef decltype(t) S;
        auto pass = [&](void (*kernel)(walk_args, const span *, const piece *)) {
#if SSM_HOPPER
            const int shared = (int)sizeof(walk_shared) + 1024;
#else
            const int shared = 0;
#endif
            const cudaError_t rc =
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
            return rc ? rc
                      : launch(d, kernel, dim3((unsigned)g.n_heads, (unsigned)b.n_pieces), THREADS,
                               (size_t)shared, true, a, b.spans, b.pieces);
        };
        if (!b.split)
            return pass(walk_kernel<S, SCAN_WHOLE>);
        const cudaError_t rc = pass(walk_kernel<S, SCAN_FIRST>);
        return rc ? rc : pass(walk_kernel<S, SCAN_FINAL>);
    });
}

} // namespace ssm
