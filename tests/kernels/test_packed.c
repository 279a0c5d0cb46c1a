// SPDX-License-Identifier: Apache-2.0
// Packed weights without a device: every bf16 to 12 bits and back beside arithmetic in double, a
// unit through what the kernels' unpack() does, and each unit's place beside packed.cuh's words.
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/packed_format.h"

static const int bases[] = {0, 1, 2, 9, 64, 97, 105, 112, 118, 126, 127};
enum { N_BASES = sizeof bases / sizeof bases[0] };

static double value(uint32_t bits) { // of a bf16
    const int exponent = bits >> 7 & 255, fraction = bits & 127;
    const double v = exponent ? ldexp(128 + fraction, exponent - 134) : ldexp(fraction, -133);
    return bits >> 15 ? -v : v;
}

static uint32_t largest(int base) { // magnitude in a matrix of this base
    return ((uint32_t)base + 15) << 7 | 127;
}

// The nearest multiple of the last bit of subnormals, ties to even.
static double rounded(uint32_t bits, int base) {
    return ldexp(rint(ldexp(value(bits), 133 - base)), base - 133);
}

START_TEST(every_number_is_rounded_to_even_below_and_exact_above) {
    const int base = bases[_i];
    const uint32_t most = largest(base);
    ck_assert_int_eq(packed_base(most), base);
    for (uint32_t bits = 0; bits < 65536; bits++) {
        if ((bits & 0x7fff) > most)
            continue;
        const uint32_t packed = packed_of(bits, base), back = packed_bf16(packed, base);
        // a bf16 of four bits of exponent, times 2^base
        const uint32_t small = packed >> 11 << 15 | (packed & 0x7ff);
        const double want = rounded(bits, base);
        const bool near = fabs(want - value(bits)) <= ldexp(1, (int)(most >> 7) - 127 - 22);
        const bool exact = (bits >> 7 & 255) + 14 < most >> 7 || back == bits;
        if (packed >= 1 << 12 || ldexp(value(small), base) != want || value(back) != want ||
            back >> 15 != bits >> 15 || !near || !exact)
            ck_abort_msg("%x, base %d: %x, %x", bits, base, packed, back);
    }
}
END_TEST

START_TEST(matrices_without_a_factor_are_told) {
    for (uint32_t most = 0; most < 0x8000; most++) {
        const int base = packed_base(most);
        const uint32_t by = packed_by(most);
        const bool none = most >= 0x7f80 || base > 127;
        if (none != (by == 0))
            ck_abort_msg("%x: base %d, %x", most, base, by);
        if (none)
            continue;
        if (by >> 16 != (by & 0xffff) || value(by >> 16) != ldexp(1, base) ||
            (int)(most >> 7) - base > 15)
            ck_abort_msg("%x: base %d, %x", most, base, by);
    }
}
END_TEST

START_TEST(rows_far_below_the_largest_weight_are_told) {
    const uint32_t one = 127 << 7; // 1
    ck_assert(packed_reaches(0, one));
    ck_assert(packed_reaches(one, one));
    ck_assert(packed_reaches(one - (PACKED_REACH << 7), one));
    ck_assert(!packed_reaches(one - (PACKED_REACH << 7) - 1, one));
    ck_assert(!packed_reaches(one, one + (40 << 7)));
    ck_assert(!packed_reaches(1, one));
    ck_assert(packed_reaches(1, 15 << 7 | 127)); // base 0: all are exact
    ck_assert(!packed_reaches(1, 16 << 7));
}
END_TEST

// ---- unpack() of packed.cuh

static uint32_t times(uint32_t a, uint32_t b) { // mul.rn.bf16x2 of exact products
    uint32_t out = 0;
    for (int i = 0; i < 2; i++) {
        const float v = (float)(value(a >> i * 16 & 0xffff) * value(b >> i * 16 & 0xffff));
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        if (bits & 0xffff)
            ck_abort_msg("%x times %x is no bf16", a, b);
        out |= bits >> 16 << i * 16;
    }
    return out;
}

START_TEST(units_unpack_to_their_weights) {
    const int base = bases[_i];
    const uint32_t most = largest(base), by = packed_by(most);
    for (uint32_t first = 0; first < 65536; first += 5) { // neighbours of other signs and sizes
        uint32_t bits[PACKED_UNIT], s[3] = {0};
        for (uint32_t k = 0; k < PACKED_UNIT; k++) {
            bits[k] = (first + k) * 40503 % 65536; // odd: all of them come
            bits[k] = (bits[k] & 0x7fff) > most ? bits[k] % most : bits[k];
            for (int at = 0; at < 3; at++)
                s[at] |= packed_word(at, (int)k, packed_of(bits[k], base));
        }
        uint32_t last = s[0] >> 8 & 0x00780078;
        last |= s[2] >> 4 & 0x07800780;
        last |= (s[1] << 4 | s[1] >> 28) & 0x80078007;
        const uint32_t pairs[4] = {times(s[0] & 0x87ff87ff, by), times(s[1] & 0x87ff87ff, by),
                                   times(s[2] & 0x87ff87ff, by), times(last, by)};
        for (int k = 0; k < PACKED_UNIT; k++) {
            if ((pairs[k / 2] >> k % 2 * 16 & 0xffff) !=
                packed_bf16(packed_of(bits[k], base), base))
                ck_abort_msg("%x, base %d, weight %d: %x", bits[k], base, k, pairs[k / 2]);
        }
    }
}
END_TEST

// ---- places

static const int widths[] = {48, 64, 80, 128};
enum { N_WIDTHS = sizeof widths / sizeof widths[0] };

static void check_place(bool in_proj, int nw, int row, int unit, size_t slot, size_t at) {
    const size_t units = 16 * (size_t)nw, first = slot * 12 * units;
    const packed_place place = packed_place_of(in_proj, nw, row, unit);
    if (place.s != first + at * 8 || place.e != first + 8 * units + at * 4)
        ck_abort_msg("%s, d_model %d, row %d, unit %d", in_proj ? "in_proj" : "out_proj", 32 * nw,
                     row, unit);
}

// Slots in the order in which they are read, and what a lane has of them: two units after another.
START_TEST(units_lie_where_lanes_take_them) {
    const int nw = widths[_i], slots = nw / 8, tiles = nw / 16;
    for (int slot = 0; slot < 3 * slots; slot++) {
        const bool in_proj = slot < 2 * slots;
        const int rows = in_proj ? nw / 2 : nw / 4, full = rows / 8;
        for (int at = 0; at < 128 * 4 * tiles * 64; at++) {
            const int lane = at / 2 % 32, tile = at / 64 % tiles, warp = at / 64 / tiles % 4;
            const int block = at / 64 / tiles / 4, g = lane / 4;
            int row = tile * 8 + g, run = 0;
            if (!in_proj && tile < 2 * full)
                row = tile % full * 8 + g, run = tile / full;
            else if (!in_proj)
                row = full * 8 + g % 4, run = g / 4;
            row += block * rows + (in_proj ? slot / slots * 64 * nw : 0);
            const int share = in_proj ? 8 : 16;
            const int unit = (slot % slots * 4 + warp) * share + run * 8 + lane % 4 * 2 + at % 2;
            check_place(in_proj, nw, row, unit,
                        (size_t)(in_proj ? slot : slot % slots) * 128 + (size_t)block,
                        (size_t)(at % (4 * tiles * 64)));
        }
    }
}
END_TEST

START_TEST(no_byte_belongs_to_two_units) {
    const int nw = widths[_i];
    for (int in_proj = 0; in_proj < 2; in_proj++) {
        const int rows = in_proj ? 128 * nw : 32 * nw, units = in_proj ? 4 * nw : 8 * nw;
        const size_t words = (size_t)rows * (size_t)units * 3; // of four bytes
        unsigned char *taken = calloc(words, 1);
        ck_assert_ptr_nonnull(taken);
        for (int row = 0; row < rows; row++) {
            for (int unit = 0; unit < units; unit++) {
                const packed_place p = packed_place_of(in_proj, nw, row, unit);
                if (p.s % 8 || p.e % 4 || p.s / 4 + 2 > words || p.e / 4 >= words ||
                    taken[p.s / 4]++ || taken[p.s / 4 + 1]++ || taken[p.e / 4]++)
                    ck_abort_msg("d_model %d, row %d, unit %d", 32 * nw, row, unit);
            }
        }
        free(taken);
    }
}
END_TEST

// ---- the head

START_TEST(words_have_factors_of_their_own) {
    const uint32_t one = 127 << 7;
    for (uint32_t most = 0; most < 255 << 7; most += 77) {
        const uint32_t by = packed_head_by(most);
        float factor;
        memcpy(&factor, &by, sizeof factor);
        // a weight times 2^-base, as unpack() leaves it, times 2^112
        const double lifted = ldexp(ldexp(value(most), -packed_base(most)), PACKED_HEAD_LIFT);
        if (lifted * (double)factor != value(most))
            ck_abort_msg("%x: %g times %g", most, lifted, (double)factor);
    }
    ck_assert_uint_eq(packed_head_by(255 << 7), 0);
    ck_assert_uint_eq(packed_head_by(0x7fff), 0);
    ck_assert_uint_eq(packed_head_told(0, one), 0);
    ck_assert_uint_eq(packed_head_told(0x8000, one), 0);
    ck_assert(packed_head_reaches(0));
    ck_assert(packed_head_reaches(packed_head_told(one, one)));
    ck_assert(packed_head_reaches(packed_head_told(0x8000 | (one - (PACKED_REACH << 7)), one)));
    ck_assert(!packed_head_reaches(packed_head_told(one - (PACKED_REACH << 7) - 1, one)));
    ck_assert(!packed_head_reaches(packed_head_told(1, one)));
    ck_assert(packed_head_reaches(packed_head_told(1, 15 << 7))); // base 0: all are exact
}
END_TEST

// Lane l of warp w has rows 16 w + l / 4 and 8 more, of 16 columns 2 q, 2 q + 1, 2 q + 8, 2 q + 9
// (q: l % 4), as the matrix instruction takes them; of 32 columns a unit a row.
START_TEST(words_lie_where_lanes_take_them) {
    enum { PIECES = 5, ROWS = 150, UNITS = 8 * PIECES, TILES = 3 };
    const size_t words = (size_t)TILES * PIECES * PACKED_HEAD_TILE / 4;
    unsigned char *taken = calloc(words, 1), columns[PACKED_HEAD_COLUMNS * PIECES];
    ck_assert_ptr_nonnull(taken);
    for (int row = 0; row < ROWS; row++) {
        memset(columns, 0, sizeof columns);
        for (int unit = 0; unit < UNITS; unit++) {
            const packed_place p = packed_head_place(PIECES, row, unit);
            const size_t tile = (size_t)(row / 64 * PIECES + unit / 8) * PACKED_HEAD_TILE;
            const int lane = row % 8 * 4 + unit % 4, half = unit % 8 / 4, second = row / 8 % 2;
            const size_t of_lane = tile + (size_t)(row % 64 / 16 * 512 + lane * 16);
            if (p.s != of_lane + (size_t)(half * 2048 + second * 8) ||
                p.e != of_lane + (size_t)(4096 + half * 8 + second * 4) || taken[p.s / 4]++ ||
                taken[p.s / 4 + 1]++ || taken[p.e / 4]++)
                ck_abort_msg("row %d, unit %d", row, unit);
            for (int k = 0; k < PACKED_UNIT; k++) {
                const int at = packed_head_column(unit, k), in = at % 16;
                ck_assert_int_eq(at / 32, unit / 4);
                ck_assert_int_eq(at / 16 % 2, k / 4);
                ck_assert_int_eq(in, unit % 4 * 2 + k % 2 + k / 2 % 2 * 8);
                columns[at]++;
            }
        }
        for (size_t i = 0; i < sizeof columns; i++)
            ck_assert_int_eq(columns[i], 1);
    }
    free(taken);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("packed");
    TCase *tc = tcase_create("packed");
    tcase_set_timeout(tc, 0);
    tcase_add_loop_test(tc, every_number_is_rounded_to_even_below_and_exact_above, 0, N_BASES);
    tcase_add_test(tc, matrices_without_a_factor_are_told);
    tcase_add_test(tc, rows_far_below_the_largest_weight_are_told);
    tcase_add_loop_test(tc, units_unpack_to_their_weights, 0, N_BASES);
    tcase_add_loop_test(tc, units_lie_where_lanes_take_them, 0, N_WIDTHS);
    tcase_add_loop_test(tc, no_byte_belongs_to_two_units, 0, N_WIDTHS);
    tcase_add_test(tc, words_have_factors_of_their_own);
    tcase_add_test(tc, words_lie_where_lanes_take_them);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
