// SPDX-License-Identifier: Apache-2.0
// few.cu's kernel on the host (emulator.h), which few rows of models go through that resident*.cu
// and solo*.cu do not take: in_proj with the convolution and its blocks' shares of x_proj, out_proj
// with token rows in shared memory and streamed, the head, against the same in double.
#include "kernels/cuda/few_kernel.cuh"
#include "product_reference.h"

using namespace ssm;

template <int NB, few_kind KIND, int STREAM> static void kernel(const void *arguments) {
    few_kernel<NB, KIND, STREAM>(*(const few_args *)arguments);
}

// As few.cu's host side. unit: rows that stay together; second: a second run's offset.
static few_args arguments(const multiplied &of, int rows, int unit, int second, int blocks) {
    few_args a = {};
    a.weight = (const bf16 *)of.w.data(), a.n_rows = rows, a.n_cols = of.columns, a.unit = unit;
    a.second = second, a.batch = of.tokens, a.width_out = of.rows, a.buffers = 2;
    a.most_rows = ceil_div(ceil_div(rows, unit), blocks) * unit;
    a.x = (const bf16 *)of.x.data(), a.bias = of.bias.empty() ? NULL : of.bias.data();
    if (!of.squares.empty())
        a.squares = of.squares.data(), a.n_squares = a.squares_pitch = SQUARES, a.eps = of.eps;
    return a;
}
template <int NB, few_kind KIND, int STREAM>
static void launch(few_args a, int slots, int blocks, unsigned seed) {
    const int bytes = slot_shape<NB>::BYTES, rows = RING_WARPS * a.batch * (NB | 1) * 64;
    a.n_slots = slots, a.flight = 2;
    emu_launch(blocks, RING_THREADS,
               (uint32_t)(slots * bytes + (STREAM ? 0 : rows) + (int)few_beside_ring(a) + 127) /
                       128 * 128 +
                   EMU_STATIC,
               kernel<NB, KIND, STREAM>, &a, seed, 1);
}
static void say(const char *what, const multiplied &of, int blocks) {
    printf("%s: %d rows of %d, %d tokens, %d blocks\n", what, of.rows, of.columns, of.tokens,
           blocks);
}

// Mamba-1: x's rows, which are convolved and go on to x_proj, and as many of z.
template <int NB>
static bool in_x_agrees(int channels, int n_x, int tokens, int width, bool biased, int slots,
                        int blocks, unsigned seed) {
    const multiplied of(2 * channels, NB * 32 * RING_WARPS, tokens, true, biased);
    convolution c(of, 0, channels, width);
    const weights x_proj = random_matrix((size_t)n_x, (size_t)channels);
    std::vector<unsigned long long> sums((size_t)(X_COPIES * FEW_ROWS * n_x));
    unsigned broken[FEW_ROWS] = {};
    few_args a = arguments(of, channels, 4, channels, blocks);
    c.give(&a);
    a.width = width, a.x_proj = (const bf16 *)x_proj.data(), a.n_x = a.n_x_fetched = n_x;
    a.x_pitch = ceil_div(a.most_rows, 16) * 32 + 16;
    a.w_pitch = (ceil_div(a.most_rows, 8) | 1) * 16;
    a.x_sums = sums.data(), a.x_broken = broken;
    launch<NB, FEW_IN_X, 0>(a, slots, blocks, seed);
    say("in_proj and x_proj", of, blocks);
    doubles want, got;
    bool right = c.agrees();
    for (int t = 0; t < tokens; t++) {
        doubles x((size_t)channels); // of a row without a slot: none
        for (int i = 0; i < channels && c.rows[(size_t)t].slot >= 0; i++)
            x[(size_t)i] = emu_bf16(c.xc[(size_t)(t * channels + i)]);
        for (int r = 0; r < n_x; r++) {
            long long sum = 0;
            for (int copy = 0; copy < X_COPIES; copy++)
                sum += (long long)sums[(size_t)((copy * FEW_ROWS + t) * n_x + r)];
            want.push_back(dot(&x_proj[(size_t)(r * channels)], x));
            got.push_back((double)sum / X_ONE);
        }
        right &= broken[t] == 0;
    }
    return right & near("x_proj", want, got, 1e-5);
}

// Mamba-2: z, what is convolved, dt.
template <int NB>
static bool in_agrees(int rows, int conv_first, int channels, int tokens, int slots, int blocks,
                      unsigned seed) {
    const multiplied of(rows, NB * 32 * RING_WARPS, tokens, true);
    convolution c(of, conv_first, channels, 4);
    few_args a = arguments(of, rows, 1, 0, blocks);
    c.give(&a);
    a.conv_first = conv_first, a.width = 4;
    launch<NB, FEW_IN, 0>(a, slots, blocks, seed);
    say("in_proj", of, blocks);
    return c.agrees();
}

// Its blocks have equal shares of the rows: a sum of squares each.
template <int NB, int STREAM>
static bool out_agrees(int a_block, int tokens, bool scaled, int slots, int blocks, unsigned seed) {
    const multiplied of(a_block * blocks, NB * 32 * RING_WARPS, tokens, scaled, scaled);
    onto_residual r(of, a_block, false);
    std::vector<unsigned long long> sums((size_t)(X_COPIES * FEW_ROWS * 24), 5);
    unsigned broken[FEW_ROWS] = {1, 1, 1, 1, 1, 1, 1, 1};
    few_args a = arguments(of, of.rows, 1, 0, blocks);
    a.residual = r.residual.data(), a.u = (bf16 *)r.u.data(), a.next_norm = r.norm.data();
    a.squares_out = r.squares.data(), a.squares_pitch_out = r.parts;
    a.x_sums = sums.data(), a.x_broken = broken, a.n_x = 24;
    a.buffers = STREAM ? 1 : 2;
    launch<NB, FEW_OUT, STREAM>(a, slots, blocks, seed);
    say(STREAM ? "out_proj, token rows streamed" : "out_proj", of, blocks);
    bool right = r.agrees();
    for (unsigned long long sum : sums)
        right &= sum == 0;
    for (unsigned one : broken)
        right &= one == 0;
    return right;
}

template <int NB>
static bool head_agrees(int rows, int tokens, int slots, int blocks, unsigned seed) {
    const multiplied of(rows, NB * 32 * RING_WARPS, tokens, true);
    numbers logits((size_t)(tokens * rows), -77);
    few_args a = arguments(of, rows, 1, 0, blocks);
    a.most_rows = 0, a.residual = logits.data();
    watch("logits", logits);
    launch<NB, FEW_HEAD, 0>(a, slots, blocks, seed);
    say("the head", of, blocks);
    return near("logits", of.sums(), in_double(logits));
}

// Not looked through for races: blocks of an odd number of rows, whose last bf16 shares the four
// bytes that are looked at with another block's first.
static const emulated_case cases[] = {
    CASE(true, (in_x_agrees<1>(216, 40, 3, 4, false, 4, 5, 1))),
    CASE(true, (in_x_agrees<3>(400, 80, 8, 3, true, 3, 4, 2))),
    CASE(true, (in_x_agrees<10>(96, 24, 1, 4, false, 3, 2, 3))),
    CASE(false, (in_agrees<2>(300, 128, 160, 5, 5, 4, 4))),
    CASE(true, (in_agrees<2>(304, 128, 160, 4, 3, 4, 10))),
    CASE(true, (out_agrees<2, 0>(50, 4, true, 3, 3, 5))),
    CASE(false, (out_agrees<12, 0>(9, 2, false, 2, 4, 6))),
    CASE(true, (out_agrees<2, STREAM_GROUPS>(20, 8, true, 4, 3, 7))),
    CASE(true, (out_agrees<20, STREAM_GROUPS>(18, 5, false, 3, 2, 8))),
    CASE(true, (head_agrees<3>(333, 7, 6, 4, 9))),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
