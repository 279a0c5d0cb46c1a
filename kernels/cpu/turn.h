// SPDX-License-Identifier: Apache-2.0
// Transposes in cache, 4 x 4 numbers at a time in registers.
#ifndef SSM_KERNELS_CPU_TURN_H
#define SSM_KERNELS_CPU_TURN_H

#include <stddef.h>
#include <string.h>

typedef float v4 __attribute__((vector_size(16)));

static inline v4 v4_load(const float *p) {
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void v4_store(float *p, v4 v) {
    memcpy(p, &v, sizeof v);
}

#define TURN_MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)

// `from_row` and `to_row`: from one row to the next.
static inline void turn_4x4(const float *from, size_t from_row, float *to, size_t to_row) {
    const v4 a = v4_load(from), b = v4_load(from + from_row), c = v4_load(from + 2 * from_row),
             d = v4_load(from + 3 * from_row);
    const v4 ab_low = TURN_MIX(a, b, 0, 4, 1, 5), ab_high = TURN_MIX(a, b, 2, 6, 3, 7);
    const v4 cd_low = TURN_MIX(c, d, 0, 4, 1, 5), cd_high = TURN_MIX(c, d, 2, 6, 3, 7);
    v4_store(to, TURN_MIX(ab_low, cd_low, 0, 1, 4, 5));
    v4_store(to + to_row, TURN_MIX(ab_low, cd_low, 2, 3, 6, 7));
    v4_store(to + 2 * to_row, TURN_MIX(ab_high, cd_high, 0, 1, 4, 5));
    v4_store(to + 3 * to_row, TURN_MIX(ab_high, cd_high, 2, 3, 6, 7));
}

// Any rows and columns of `from`: what is left over goes one by one.
static inline void turn(const float *from, size_t from_row, size_t rows, size_t columns, float *to,
                        size_t to_row) {
    const size_t whole_rows = rows / 4 * 4, whole = columns / 4 * 4;
    for (size_t r = 0; r < whole_rows; r += 4) {
        for (size_t c = 0; c < whole; c += 4)
            turn_4x4(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = r < whole_rows ? whole : 0; c < columns; c++)
            to[c * to_row + r] = from[r * from_row + c];
    }
}

#endif
