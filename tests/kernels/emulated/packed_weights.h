// SPDX-License-Identifier: Apache-2.0
// Weights in 12 bits for tests of emulated kernels, as packed.cu's kernel leaves them.
#ifndef SSM_TESTS_PACKED_WEIGHTS_H
#define SSM_TESTS_PACKED_WEIGHTS_H

#include "emulated_test.h"
#include "kernels/cuda/packed_format.h"

// A unit, whose k-th weight is at(k) behind `from`, and becomes what the copy says.
template <class AT>
HOST static void pack_unit(std::vector<uint32_t> *words, const packed_place &place, uint16_t *from,
                           int base, const AT &at) {
    uint32_t *const to[] = {&(*words)[place.s / 4], &(*words)[place.s / 4 + 1],
                            &(*words)[place.e / 4]};
    for (int k = 0; k < PACKED_UNIT; k++) {
        uint16_t *one = from + at(k);
        const uint32_t packed = packed_of(*one, base);
        for (int word = 0; word < 3; word++)
            *to[word] |= packed_word(word, k, packed);
        *one = (uint16_t)packed_bf16(packed, base);
    }
}

struct packed_weights {
    std::vector<uint32_t> words;
    uint32_t most = 0; // largest magnitude

    // The first rows of w, all of which become what the copy says. z_first: in_proj's, rows of z
    // before those of x.
    HOST void pack(weights *w, bool in_proj, bool z_first, int nw) {
        const int inner = 64 * nw, units = (in_proj ? 32 : 64) * nw / PACKED_UNIT;
        const int rows = in_proj ? 2 * inner : 32 * nw;
        words.assign((size_t)rows * (size_t)units * 3, 0);
        for (size_t i = 0; i < (size_t)rows * (size_t)units * PACKED_UNIT; i++)
            most = std::max(most, (*w)[i] & 0x7fffu);
        for (int r = 0; r < rows; r++) {
            const int at = !z_first ? r : r < inner ? r + inner : r - inner;
            for (int i = 0; i < units; i++)
                pack_unit(&words, packed_place_of(in_proj, nw, at, i),
                          &(*w)[((size_t)r * (size_t)units + (size_t)i) * PACKED_UNIT],
                          packed_base(most), [](int k) { return k; });
        }
    }
    const char *data() const {
        return (const char *)words.data();
    }
};

#endif
