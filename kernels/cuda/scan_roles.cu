// SPDX-License-Identifier: Apache-2.0
// Mamba-1's scan in roles, in bf16 with 16 states: whole prompts of wide models, for which pieces
// (scan.cu) would cost every exponential twice, and many prompts.
//
// A block has an SM to itself and as many channels as make the blocks of a step one or two waves:
// 160 of 2.8b's 8 x 5,120, 96 of 130m's 8 x 1,536, 40 and 16 of single prompts' 5,120 and 1,536.
// Its scan warps do nothing but go through the tokens: read delta, delta x, B and C from shared
// memory, update 4 states of one to three groups of 8 channels, sum y over the four lanes of a
// channel by shuffles; or, where channels are few, one state of all groups each
// (scan_quarters.cuh). Makers, in teams that take turns by tiles of 16 tokens, keep all else out of
// the sequential path: inputs by cp.async, dt_proj's products and softplus before, D, the gate and
// the store after. A team owns a stage of shared memory; two barriers there say that its tile is
// full and that it is done. y takes the pairs' place.
//
// The sums are scan.cu's in the same order: the same bits, in any form, wherever a prompt is cut
// into steps while states are fp32. Quarters and scan.cu's pieces differ, by rounding; quarters'
// bits, too, are the same wherever a prompt is cut.
//
// What binds are issue slots, as measured by loops of 8 ex2 and n others (H200, 1 to 4 warps a
// scheduler): an ex2 keeps the special unit for 8 cycles, but other instructions from being issued
// for 3.7: 8 ex2 and 32 / 48 / 56 FFMA take 66 / 78 / 86 cycles. For 8 channels and a token a scan
// warp has 4 ex2 and 21 to 23 others, makers have 0.75 and 10: 48 of the 50 to 58 cycles that these
// take. Hence
// - softplus by one ex2 and a polynomial instead of ex2 and lg2: 695 to 683 us (2.8b, 8 prompts);
// - inputs by cp.async: registers do not limit makers, and the gate is a loop;
// - loops of 8 tokens, not a tile of 16, with so much code: straight code of two kinds of scan
//   warps and the makers came to 56 KB, for which the instruction cache is too small: 160 channels
//   a block took 1,330 us, 827 with the makers' part in loops, 750 with all of it;
// - y's and xdb's rows where neighbours' reads meet other banks: 750 to 661;
// - sums of a loop's round stored last, for a store holds up the loads behind it, and the next
//   round's first token read and its exponentials made before: a warp of three groups alone on a
//   scheduler takes 168, 151, 131 cycles a token (counted in the machine code, not run by itself).
//
// Ladder, us a layer, the kernel alone, H200 at 1.8 GHz, prompts of 2,048:
//                                                                  2.8b 1 / 8    130m 8
//   blocks of 64 and 32 channels, two and three an SM, 40 for one  116 / 703     212
//   + softplus                                                     112 / 690     212
//   160, 96 and 40, one an SM, as above but for the last of these  114 / 661     216
//   + that: 8 warps of 3 and 2 groups; 96 by 8 warps of 2 and 1    123 / 644     205
//   a tile of straight code where one group a warp is a prompt     117
//   96 by 12 warps of one group                                                  198
//   quarters: 40 channels (109 before on that card)                97
// The last two rungs by the kernel alone. In the model, ms a step, before / after in the same run,
// without these: 2.8b 8 x 2,048 171.2 / 168.9, 1 x 2,048 23.47 / 23.53; 130m 8 x 2,048 10.83
// / 10.57, 1 x 2,048 (pieces, with this softplus) 2.81 / 2.73.
//
// 130m's single prompt: pieces 66 us (28.8 and 35.9 the passes), quarters of 16 channels 44.0. In
// the model, ms a step, in turns: 130m 1 x 2,048 by pieces 2.66, by quarters 2.29, another
// card 2.29 and 2.40, with tiles in one block of code 2.22 and 2.24; 2.8b 23.49 and 23.17
// before, 23.04 and 23.11 by quarters, another card 22.22 and 22.21, with tiles in one block 22.35
// and 22.58.
//
// falcon-mamba-7b's single prompt (8,192 channels, a rank of 256; five makers, for want of room):
// in scan.cu's blocks of 64 channels 568 us a layer of 2,048 tokens, in quarters of 64 channels
// 228, in steps (CUPTI). ms a step before and after: 1 x 512 20.3 and 14.2, 1 x 2,048 73.5
// and 49.8, 4 x 2,048 (scan_wgmma.cu) 214 and 197.
//
// With scan warps alone 8 prompts take 430 us in straight code (64 channels a block), 475 in loops
// (160; before the last of these); with makers alone 346, where they were 454 us.
//
// Tried and dropped:
// - exchanges without a branch for warps that have diverged (BRA.DIV, gone once the compiler knows
//   that all lanes have one role): kept, but nothing was gained.
// - one prompt, fewer states a lane, so that 40 channels fall evenly on four schedulers (2 states,
//   three and two channels a lane): 129 us instead of 116; the fifth group's tiles by turns on four
//   warps, its states handed on: 119. 130m's single prompt on 96 SMs: 2 states a lane 76, 1 state
//   68, both with sums by shuffles; pieces by this kernel, 96 channels a block: 62 to 66.
// - y of many prompts by the matrix units as in scan_quarters.cuh: 8 x 2,048 of 2.8b 631 us instead
//   of 636, 130m 189 instead of 191: an m16n8k8 of tf32 keeps other instructions from being issued
//   for 6 to 9 cycles, so that it costs what shuffles do.
// - 160 channels by more scan warps of fewer groups: 10 of 2 701 instead of 661, 12 of 2 and 1 as
//   fast as 8; loops of 4 tokens 664 instead of 644; teams of one 758 instead of 661.
// - dt_proj by the warp groups' matrix instruction, for an m16n8k16 of bf16 keeps others from being
//   issued for 9 cycles (64 FFMA with 0, 2, 4 and 8 of them: 70, 94, 105, 144 cycles; an ex2, rcp
//   or tanh.approx for 3.4): by such counts 5.6 of the 57 cycles that 8 channels and a token take.
//   Without these products 8 x 2,048 of 2.8b take 534 us instead of 632, without D, gate and store
//   576, without x and z being fetched 622, with the gate by tanh.approx 618. Built: products of 64
//   tokens and 80 channels by four makers, each with its own tile in its registers, two lanes a
//   channel and no shuffles, inputs asked for two tiles earlier, scan.cu's bits: 700 us, 672 where
//   the first maker finishes its last tile before the product; in the model, ms a step, 173.7 and
//   173.3, before 172.0 and 172.2. Scan warps alone take 430, makers alone 410. By clocks read
//   within it a tile takes 4,620 cycles; a scan warp of three 8s waits for 160 to 430 of them and
//   gets too few turns, those of two wait for 970 to 1,440. Of the 18,500 of four tiles a maker
//   spends 1,800 to 8,300 until it has its products, waits 330 to 6,600 for the scan and finishes a
//   tile in 4,000 to 4,450. Not run: three scan warps a scheduler, of two, two and one.
// - sums of y by it, in tf32, states from registers: it keeps others from being issued for 8 cycles
//   (32 FFMA and 8 that make its operands: 41 cycles, with two of it 57): 870 us.
// - a tile's first token read in the tile before, where every sixteenth is read and its decays made
//   for nothing: 637 instead of 632; 130m 183 instead of 188 by the kernel alone, not run in a
//   step. Softplus of eight values side by side instead of two: 637, 130m 189.
//
// Tried later, 8 x 2,048 of 2.8b, today's 636 in the same runs:
// - delta by a kernel of its own, read like x and z: 532 and 86; 320 channels a block in one wave,
//   two lanes a channel of 8 states each and inputs by tensor map 516 and 86. Not kept: what steps
//   make of it and its errors are in tests/bench/results/large-steps.md.
// - dt_proj by four warps more, by the warp groups' matrix instruction, for 64 tokens ahead, delta
//   through shared memory in fp16: 670. Slots by count of instructions (an ex2 3.7, an m16n8k16
//   9) and cycles by time at 1.78 GHz, a token and scheduler: today 280 and 275; with delta given
//   227 and 231; so 254 and 291. Why the latter is more was not looked into.
// - one scan warp of five groups a scheduler 686. Without the read ahead at a tile's end, which is
//   for nothing, 631, where 626 with it (both with places of vectors from a table).
//
// On Hopper scan_wgmma.cu's forms take fewer cycles where blocks of 128 channels and more fill the
// card; which form it is, is decided here. What is said above of 8 x 2,048 was measured before
// them.
//
// In a step of 8 x 2,048 of 2.8b this kernel runs at 1.44 GHz (median of clocks read within it;
// alone 1.78), for one prompt at 1.55, which is what it takes longer there.
#include "scan_quarters.cuh"

namespace ssm {

// ---- host side

template <class B> static cudaError_t run(device *d, int layer, const batch &b) {
    typedef typename B::form form;
    return with_state_type(d->state_type, [&](auto s) {
        const mamba_args a = mamba_arguments(d, layer, 1);
        const auto kernel = scan_roles_kernel<decltype(s), B>;
        const cudaError_t rc = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)form::BYTES);
        const dim3 grid((unsigned)ceil_div(a.channels, form::CHANNELS), (unsigned)b.n_spans);
        return rc ? rc : launch(d, kernel, grid, form::THREADS, form::BYTES, true, a, b.spans);
    });
}

template <class B> static constexpr scan_form form_of(int most_rank, float cycles) {
    return {B::form::CHANNELS, most_rank, B::form::BYTES, cycles, run<B>};
}
static const scan_form forms[] = {
    form_of<scan_quarters<2, 1, 8, 2>>(64, 39), // G, PARTS, MAKERS, DT
    form_of<scan_quarters<5, 2, 8, 5>>(160, 85),      form_of<scan_quarters<8, 2, 5, 8>>(256, 170),
    form_of<scan_block<3, 4, 8, 4, 2, 5>>(160, 282), // C, FULL, WARPS, TEAMS, SIZE, DT
    form_of<scan_block<1, 12, 12, 6, 2, 2>>(64, 174),
};

static float cycles(const device *d, int32_t n_spans, const scan_form &f) {
    return (float)ceil_div(n_spans * ceil_div(d->g.d_inner, f.channels), d->n_sms) * f.cycles;
}

const scan_form *scan_better(const device *d, int32_t n_spans, const scan_form *a,
                             const scan_form *b) {
    const bool fits = d->g.dt_rank <= b->most_rank && b->shared + 1024 <= d->shared_sm;
    return fits && (!a || cycles(d, n_spans, *b) < cycles(d, n_spans, *a)) ? b : a;
}

static const scan_form *choose(const device *d, int32_t n_spans) {
    const scan_form *best = scan_wgmma_form(d, n_spans);
    for (const scan_form &f : forms)
        best = scan_better(d, n_spans, best, &f);
    return best;
}

bool scan_roles_win(const device *d, int32_t n_spans, float others) {
    const scan_form *f = choose(d, n_spans);
    return f && cycles(d, n_spans, *f) < others;
}

cudaError_t scan_roles(device *d, int layer, const batch &b) {
    return choose(d, b.n_spans)->run(d, layer, b);
}

} // namespace ssm
