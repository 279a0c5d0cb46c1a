// SPDX-License-Identifier: Apache-2.0
// head_packed.cu's kernels on the host (emulator.h): logits of random weights in 12 bits, of few
// and of many tokens, by blocks that have tiles for one pass and for more, against the same in
// double.
#include "emulated_test.h"
#include "kernels/cuda/head_packed.cuh"
#include "packed_weights.h"

using namespace ssm;

enum { SUMS = 5, PITCH = 7, BEHIND = 3 };

// A vocabulary's weights, rows of very different size, and their copy.
struct head_weights {
    int rows, columns, tiles;
    weights w;
    std::vector<uint32_t> words;
    numbers by;

    head_weights(int n, int k)
        : rows(n), columns(k), tiles((n + PACKED_HEAD_ROWS - 1) / PACKED_HEAD_ROWS),
          w(random_matrix((size_t)n, (size_t)k)),
          words((size_t)(tiles * (k / PACKED_HEAD_COLUMNS)) * PACKED_HEAD_TILE / 4) {
        for (int row = 0; row < rows; row++)
            pack(row);
    }
    void pack(int row) {
        uint16_t *of = &w[(size_t)row * (size_t)columns];
        uint32_t most = 0;
        for (int i = 0; i < columns; i++) {
            of[i] = row % 5 == 4 ? 0 : to_bf16(ldexpf(emu_bf16(of[i]), row % 60 - 30));
            most = std::max(most, of[i] & 0x7fffu);
        }
        by.push_back(__uint_as_float(packed_head_by(most)));
        for (int unit = 0; unit < columns / PACKED_UNIT; unit++)
            pack_unit(&words, packed_head_place(columns / PACKED_HEAD_COLUMNS, row, unit), of,
                      packed_base(most), [=](int k) { return packed_head_column(unit, k); });
    }
};

template <class SHAPE> static void kernel(const void *arguments) {
    packed_head_kernel<SHAPE>(*(const packed_head_args *)arguments);
}

template <int TOKENS>
static bool agrees(const head_weights &head, int tokens, bool scaled, int blocks, unsigned seed) {
    typedef packed_head_shape<TOKENS> shape;
    const int pieces = head.columns / PACKED_HEAD_COLUMNS;
    weights u((size_t)(tokens * head.columns));
    for (uint16_t &one : u)
        one = to_bf16(normal());
    const numbers squares = random_numbers((size_t)(tokens * PITCH), .2f, 40);
    const float behind = -77;
    numbers y((size_t)((tokens + BEHIND) * head.rows), behind);
    packed_head_args a = {};
    set_map(&a.x, u, head.columns, tokens, PACKED_HEAD_COLUMNS, TOKENS, true);
    a.u = (const bf16 *)u.data(), a.weights = (const char *)head.words.data();
    a.by = head.by.data(), a.y = y.data();
    a.squares = scaled ? squares.data() : NULL, a.n_squares = scaled ? SUMS : 0;
    a.squares_pitch = PITCH, a.per_width = 1.f / (float)head.columns, a.eps = 1e-5f;
    a.tokens = tokens, a.rows = head.rows, a.pieces = pieces, a.tiles = head.tiles;
    a.stages = shape::stages(pieces);
    emu_launch(blocks, shape::THREADS, (uint32_t)shape::bytes(pieces), kernel<shape>, &a, seed);

    bool right = true;
    printf("%d rows of %d, %d of %d tokens, %d blocks, %d stages\n", head.rows, head.columns,
           tokens, TOKENS, blocks, a.stages);
    difference off;
    for (int token = 0; token < tokens; token++) {
        doubles x((size_t)head.columns);
        for (int i = 0; i < head.columns; i++)
            x[(size_t)i] = emu_bf16(u[(size_t)(token * head.columns + i)]);
        double square = 0;
        for (int i = 0; i < SUMS; i++)
            square += squares[(size_t)(token * PITCH + i)];
        const double by = scaled ? 1 / sqrt(square * a.per_width + a.eps) : 1;
        for (int row = 0; row < head.rows; row++) { // beside the size of the row
            const float size = head.by[(size_t)row];
            off.add(dot(&head.w[(size_t)row * (size_t)head.columns], x) * by / size,
                    y[(size_t)(token * head.rows + row)] / size);
        }
    }
    right &= off.is_small("logits", 1e-5);
    for (size_t i = (size_t)(tokens * head.rows); i < y.size(); i++)
        right &= y[i] == behind;
    return right;
}

static const head_weights narrow(200, 192), wide(949, 384);
static const emulated_case cases[] = {
    CASE(true, agrees<8>(narrow, 1, true, 2, 1)),   CASE(true, agrees<8>(wide, 5, false, 2, 2)),
    CASE(true, agrees<16>(wide, 13, true, 2, 3)),   CASE(true, agrees<32>(wide, 27, false, 2, 4)),
    CASE(true, agrees<64>(wide, 50, true, 2, 5)),   CASE(true, agrees<64>(narrow, 64, false, 4, 6)),
    CASE(true, agrees<16>(narrow, 9, false, 4, 7)),
};

int main(int argc, char **argv) {
    return run_cases(cases, argc, argv);
}
