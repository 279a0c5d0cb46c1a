// SPDX-License-Identifier: Apache-2.0
// What tests of emulated kernels (emulator.h) share: random weights, the numbers that a kernel
// rounds to, tensor maps, and comparisons with a reference in double.
#ifndef SSM_TESTS_EMULATED_TEST_H
#define SSM_TESTS_EMULATED_TEST_H

#include "emulator.h"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>

#include <random>
#include <vector>

// Of what works on much and is not looked at for races.
#define HOST __attribute__((no_sanitize_thread))

typedef std::vector<uint16_t> weights; // bf16
typedef std::vector<float> numbers;
typedef std::vector<double> doubles;

// ---- random numbers, the same in each run

static std::mt19937 generator(7);
HOST static inline float normal(void) {
    static std::normal_distribution<float> of;
    return of(generator);
}
static inline float between(float low, float high) {
    return low + (high - low) * (float)(generator() >> 8) / 16777216.f;
}
HOST static inline uint16_t to_bf16(double v) {
    const uint32_t bits = __float_as_uint((float)v);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline double rounded(double v) {
    return emu_bf16(to_bf16(v));
}
HOST static inline weights random_matrix(size_t rows, size_t columns) {
    weights w(rows * columns);
    for (uint16_t &one : w)
        one = to_bf16(normal() / sqrtf((float)columns));
    return w;
}
static inline numbers random_numbers(size_t n, float low, float high) {
    numbers v(n);
    for (float &one : v)
        one = between(low, high);
    return v;
}

// ---- the reference's

static inline double silu_of(double v) {
    return v / (1 + exp(-v));
}
HOST static inline double dot(const uint16_t *w, const doubles &x) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); i++)
        sum += emu_bf16(w[i]) * x[i];
    return sum;
}

// ---- the kernel's

enum { SPOILT = 0x7fc1 }; // in bf16 what is not to be read: a NaN

// number, swizzle: in bytes.
static inline void set_map_of(CUtensorMap *map, const void *base, int number, int columns, int rows,
                              int box_columns, int box_rows, int swizzle) {
    const emu_map is = {base, columns, rows, box_columns, box_rows, swizzle, number};
    static_assert(sizeof is <= sizeof *map, "in its place");
    memcpy(map, &is, sizeof is);
}
static inline void set_map(CUtensorMap *map, const weights &w, int columns, int rows,
                           int box_columns, int box_rows, bool swizzled) {
    set_map_of(map, w.data(), 2, columns, rows, box_columns, box_rows, swizzled ? 128 : 0);
}

// ---- cases: all, those that are looked through for races (races.h), or one by its number

struct emulated_case {
    bool (*is_right)(void);
    bool races;
};
template <int N>
static inline int run_cases(const emulated_case (&cases)[N], int argc, char **argv) {
    bool right = true;
    for (int i = 0; i < N; i++) {
        if (argc > 1 ? i == atoi(argv[1]) : !EMU_FINDS_RACES || cases[i].races)
            right &= cases[i].is_right();
    }
    if (!right)
        printf("WRONG\n");
    return right ? 0 : 1;
}
// By all cases together, for of one launch chance decides: whether L2 was asked for what follows.
static inline int looked_ahead(int argc) {
    if (argc > 1 || emu_l2_asks > 0)
        return 0;
    printf("L2 was never asked for what follows: WRONG\n");
    return 1;
}
// Looked through for races one step, once, is enough.
static inline int steps_of(int steps) {
    return EMU_FINDS_RACES ? 1 : steps;
}
#define CASE(races, ...)                                                                           \
    {                                                                                              \
        [] { return __VA_ARGS__; }, races                                                          \
    }

template <class V> static inline void watch(const char *name, const V &v) {
    emu_watch(name, v.data(), v.size() * sizeof v[0]);
}

// ---- comparisons

// Most of bf16 activations: of the root mean square, and of the largest number.
static const double MOST_OFF = 5e-3, MOST_OFF_ONE = 1e-2;

struct difference {
    double squares = 0, all = 0, largest = 0, most = 0;
    bool finite = true;

    void add(double want, double got) {
        const double off = fabs(want - got);
        finite = finite && off < 1e30; // nor a NaN
        squares += off * off, all += want * want;
        most = off > most ? off : most, largest = fmax(largest, fabs(want));
    }
    bool is_small(const char *what, double most_off = MOST_OFF) const {
        const bool is =
            finite && squares <= most_off * most_off * all && most <= MOST_OFF_ONE * largest;
        printf("  %-8s off by %.1e (rms), %.1e of %.1e%s\n", what, sqrt(squares / all), most,
               largest, is ? "" : ": WRONG");
        return is;
    }
};
static inline bool near(const char *what, const doubles &want, const doubles &got,
                        double most_off = MOST_OFF) {
    difference d;
    for (size_t i = 0; i < want.size(); i++)
        d.add(want[i], got[i]);
    return d.is_small(what, most_off);
}
template <class V> static inline bool same_bits(const V &v, const V &w) {
    return v.size() == w.size() && memcmp(v.data(), w.data(), v.size() * sizeof v[0]) == 0;
}
// Rows of `width` numbers, and what they were with all of them in each other's places.
static inline bool same_rows(const numbers &rows, const numbers &turned, size_t width) {
    const size_t n = rows.size() / width;
    bool same = true;
    for (size_t k = 0; k < n; k++) {
        if (memcmp(&rows[k * width], &turned[(n - 1 - k) * width], width * sizeof rows[0]) != 0) {
            printf("  row %zu has other bits in the place of row %zu: WRONG\n", k, n - 1 - k);
            same = false;
        }
    }
    return same;
}
template <class V> static inline doubles in_double(const V &v) {
    doubles d(v.size());
    for (size_t i = 0; i < v.size(); i++)
        d[i] = (float)v[i];
    return d;
}
static inline doubles bf16_in_double(const weights &v) {
    doubles d(v.size());
    for (size_t i = 0; i < v.size(); i++)
        d[i] = emu_bf16(v[i]);
    return d;
}

#endif
