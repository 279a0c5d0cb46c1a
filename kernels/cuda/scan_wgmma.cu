// SPDX-License-Identifier: Apache-2.0
// Mamba-1's scan on Hopper for prompts that fill a card with blocks of 128 to 320 channels: of
// scan_roles.cu's kind (scan warps go through the tokens, makers prepare tiles of 16 of them), with
// dt_proj by wgmma and fewer instructions a token. scan_roles.cu decides which form is taken.
//
// - A scan warp's lane has eight states of two channels (or of one, and two tokens at a time), so
//   that the two lanes of a channel exchange one sum for each that they finish. They apply D and
//   the gate to it, too, and y takes z's place: nobody else handles it. Sets of 16 channels fall
//   evenly on the four schedulers: 20 as two warps of two sets and one of one on each.
// - States are kept with the next token's decays in them: h = v exp2(next delta A), v = h + delta x
//   B, y += C v. So the exponentials of a token have what follows them in the same body of code
//   and are put beside the sums; the compiler had them wait for one another where they were made
//   in the body before, or where four tokens' bodies had delta in registers at once. delta and x
//   are read two bodies ahead, B and C one. At the end delta is 0 and the decays are 1.
// - Four bodies are straight code (8 KB a kind of warp), in loops of 4 or 2 rounds a tile.
// - Two teams of four makers take tiles in turns: dt to bf16 in shared memory, m64n16k16 with
//   dt_proj as first operand, which stays in shared memory for good (102 KB; rows of 16 bytes in
//   groups of 8, without swizzle, so that any rank fits), softplus in the accumulators, delta in
//   fp32 to shared memory. A team's first warp copies: x, z, B and C by tensor map, y back.
// - A span's last tile may have fewer tokens: boxes bring rows of others, which are cleared, and
//   y goes back by row.
//
// Sums' order differs from scan_roles.cu's, so its bits do; they are the same wherever a prompt is
// cut into steps while states are fp32. Against it, 8 x 2,048 of 2.8b: y 1.7e-5, states 1.4e-8.
//
// What binds are issue slots, as there: of 343 instructions a token and scheduler (320 channels)
// 47.5 are special functions, of which each keeps others from being issued for 3.7, in all 471 of
// 512 cycles (ncu); scan_roles.cu's 160 channels take 386 and 515 of 568 for twice as many.
//
// Ladder, us a layer, 2.8b, 8 x 2,048, the kernel alone, H200 at 1.8 GHz (scan_roles.cu 639); 8 +
// 4 warps are two sets each of eight and one of four, 20 one each:
//                                                                          8 + 4 / 20 warps
//   four tokens of straight code, x, z and y by rows, one team             700
//   a body, with decays in the states                                      715
//   x, z and y by tensor map, two teams                                    726   620
//   two bodies of straight code                                            629   600
//   four                                                                   584   598
//   eight                                                                  598   624
// Not kept: makers' products and softplus in a loop over 64 channels, 10 KB of code less: 576, but
// 256 channels a block take 9% more.
//
// Tried and dropped, where this takes 568 to 583: warps of two sets with 120 registers instead of
// 96 (setmaxnreg) 612; decays made one body earlier 630; the gate before the sums 576 to 585, a sum
// in two chains 584 to 588, the two channels' updates interleaved 587 to 597, x and delta asked for
// before the sums 575 to 592: the order that the compiler makes of it is what counts.
//
// Without exponentials, gate, products and softplus the second line takes 590 us, and 442 where x
// and z are not copied either: 48 copies by row a tile held up the one team. The third takes 450
// so: not bandwidth (B and C cost 2.1 cycles of the SM a 16-byte read, measured) but how early a
// body's instructions find what they wait for. 50 wgmma a tile take 3 uniform instructions each.
//
// falcon-mamba-7b's rank of 256 leaves room for 192 channels at most: prompts of 2,048, by CUPTI in
// steps, us a layer: two (128 channels) 424, three (192) 551, four (128, two waves) 802. 256
// channels, a wave for four prompts, need 9 KB more than there are.
//
// Steps, ms, before and after in turns on one card: tests/bench/results/large-steps.md.
#include "medium.cuh"
#include "scan_wgmma.cuh"

namespace ssm {

template <class S> static cudaError_t run(device *d, int layer, const batch &b) {
    const mamba_args a = mamba_arguments(d, layer, 1);
    scan_maps maps;
    if (!tensor_map(&maps.x, a.x, a.channels, b.n, S::HALF, TILE, false) ||
        !tensor_map(&maps.z, a.xz, 2 * a.channels, b.n, S::HALF, TILE, false) ||
        !tensor_map(&maps.y, a.y, a.channels, b.n, S::HALF, TILE, false) ||
        !tensor_map_of(&maps.bc, a.xdb, true, a.n_x, b.n, 2 * SCAN_STATES, TILE, 0))
        return cudaErrorNotSupported;
    return with_state_type(d->state_type, [&](auto s) {
        const auto kernel = scan_wgmma_kernel<decltype(s), S>;
        const cudaError_t rc =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::BYTES);
        const dim3 grid((unsigned)ceil_div(a.channels, S::CHANNELS), (unsigned)b.n_spans);
        return rc ? rc : launch(d, kernel, grid, S::THREADS, S::BYTES, true, maps, a, b.spans);
    });
}

template <class S> static constexpr scan_form form_of(float cycles) {
    return {S::CHANNELS, S::K16 * 16, S::BYTES, cycles, run<S>};
}
static const scan_form forms[] = {
    form_of<scan_wgmma_shape<8, 12, 2, 10>>(515), // FULL, WARPS, TEAMS, K16: 320 channels
    form_of<scan_wgmma_shape<0, 16, 2, 10>>(416), // 256
    form_of<scan_wgmma_shape<0, 12, 2, 10>>(322), // 192
    form_of<scan_wgmma_shape<0, 8, 2, 10>>(247),  // 128
    form_of<scan_wgmma_shape<0, 8, 2, 4>>(215),
    form_of<scan_wgmma_shape<0, 12, 2, 16>>(400), // falcon's rank
    form_of<scan_wgmma_shape<0, 8, 2, 16>>(300),
};

const scan_form *scan_wgmma_form(const device *d, int32_t n_spans) {
    const scan_form *best = NULL;
    if (d->arch != 90 || d->g.d_inner % 8 != 0 || d->n_x % 4 != 0)
        return NULL;
    for (const scan_form &f : forms)
        best = scan_better(d, n_spans, best, &f);
    return best;
}

} // namespace ssm
