// SPDX-License-Identifier: Apache-2.0
// Runs a kernel of Hopper on the host: all threads of all blocks as fibers of one thread, with the
// device code's own headers, in which emulate.py has replaced what is PTX.
//
// What it is for: CI has no GPU, and what goes wrong in such kernels is who waits for whom, which
// bytes a slot holds and which row a lane has, not arithmetic. So this has
// - warps: shuffles, votes, matrix instructions and ldmatrix wait for all 32 lanes, and a warp that
//   is at two of them is an error;
// - barriers in shared memory with their bytes, named barriers with their number of threads, a
//   cluster's; a barrier that is not there or has too many arrivals is an error;
// - the copy engine: a copy's target is NaN when it is asked for, and is filled some time later, in
//   any order; what it stores is read when it is waited for; wrong alignment or a place
//   outside of the block's memory is an error, and so is a block that ends before what comes to it;
// - blocks, warps and copies that go on at random, by a seed; nothing to come that anybody waits
//   for is an error;
// - the warp groups' matrix instruction: it reads, and writes its sums, when it is waited for.
// Whether all that has any order: races.h.
//
// A block's shared memory begins at a multiple of 256 KB below 4 GB, so that 32-bit addresses and
// the matrix units' 18 bits find it. x86-64, as its fibers change stacks.
#ifndef SSM_TESTS_EMULATOR_H
#define SSM_TESTS_EMULATOR_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "races.h"

enum { EMU_LANES = 32, EMU_NAMED = 16, EMU_SHARED = 256 << 10 }; // the last: of a block

typedef enum emu_collective {
    EMU_SYNC = 1,
    EMU_SHUFFLE,
    EMU_ALL,
    EMU_BALLOT,
    EMU_MMA,
    EMU_MMA_F16,
    EMU_MMA_TF32
} emu_collective;

struct emu_block;

struct emu_warp { // and what its lanes have brought to a collective, and take from it
    emu_block *block;
    struct emu_fiber *fibers[EMU_LANES];
    emu_collective at;
    int arrived;
    uint64_t generation;
    uint32_t in[EMU_LANES][6], out[EMU_LANES];
    float sums[EMU_LANES][4];
};

struct emu_product { // a matrix instruction that has not been waited for
    void (*make)(const emu_product &);
    void *sums;
    const uint32_t *registers; // the first operand's, if it does not lie at a
    uint64_t a, b;
    int group;
};

struct emu_store {             // that has not been waited for
    const struct emu_map *map; // of a box; NULL: a run
    void *to;
    int column, row;
    uint32_t from, bytes;
    int group;
};

struct emu_fiber {
    enum { READY, COLLECTIVE, BARRIER, NAMED, LATER, DONE } waits;
    void *stack;
    uint3 thread, block;
    emu_warp *warp;
    int lane, parity, named;
    uint32_t barrier;
    uint64_t generation, cluster_generation;
    uint64_t met[EMU_NAMED]; // named barriers: how many there had been when it last arrived, and 1
    std::vector<emu_product> products;
    int groups; // of them that are closed
    std::vector<emu_store> stores;
    int store_groups;
    bool by_async_proxy; // what it reads now
};

extern emu_fiber *emu_now;
#define threadIdx (emu_now->thread)
#define blockIdx  (emu_now->block)
extern dim3 blockDim, gridDim;

inline unsigned emu_block_number(void) { // of the grid
    return blockIdx.y * gridDim.x + blockIdx.x;
}

// Whoever calls these is a fiber.
[[noreturn]] void emu_fail(const char *what);
char *emu_shared(void);
// A launch whose kernel has variables in shared memory takes so many bytes more, for them.
enum { EMU_STATIC = 512 };
char *emu_static(void);
void emu_check(uint32_t at, int alignment); // of the block's shared memory
inline void *emu_memory(uint32_t at) {
    return (void *)(uintptr_t)at;
}
void emu_yield(void); // until the others have had a turn
void emu_event(void); // something that others may wait for: without any the launch is stuck
void emu_collect(emu_collective at);

void emu_barrier_init(uint32_t at, int arrivals);
void emu_barrier_arrive(uint32_t at, int arrivals = 1);
void emu_barrier_expect(uint32_t at, uint32_t bytes); // an arrival, too
bool emu_barrier_is(uint32_t at, int parity);         // past it
void emu_wait_barrier(uint32_t at, int parity);       // at least until it may be
void emu_named(int id, int threads);
void emu_named_arrive(int id, int threads); // without waiting

void emu_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier);
void emu_copy_async(void *to, const void *from, bool live, uint32_t bytes = 16);
void emu_set_word(uint32_t at, int v); // that others look at whenever they like
int emu_word(uint32_t at);

struct emu_map { // in a CUtensorMap's place
    const void *base;
    int columns, rows, box_columns, box_rows;
    int swizzle, number; // bytes: 128, 64 or 0; 2 or 4
};
void emu_copy_box(uint32_t to, const void *map, int column, int row, uint32_t barrier);
// To each block of the cluster whose bit is set.
void emu_copy_box_to(uint32_t blocks, uint32_t to, const void *map, int column, int row,
                     uint32_t barrier);
// Shared memory is read when these are waited for.
void emu_store_run(void *to, uint32_t from, uint32_t bytes);
void emu_store_box(const void *map, int column, int row, uint32_t from);
void emu_stores_commit(void);
void emu_stores_read(int left); // all groups but the last
extern long emu_l2_asks;        // runs and boxes that L2 was asked for, of all launches

void emu_cluster_arrive(void);
void emu_cluster_wait(void);
uint32_t emu_peer(uint32_t address, int rank);
void emu_arrive_at_peer(uint32_t barrier);
void emu_copy_to_peer(uint32_t to, uint32_t from, uint32_t bytes, uint32_t barrier);
void emu_store_to_peer(uint32_t to, const void *v, uint32_t bytes, uint32_t barrier);

// The launch: blocks, rows of them, in clusters of so many. Ends the program where something is
// wrong.
void emu_launch(dim3 blocks, int threads, uint32_t shared, void (*kernel)(const void *),
                const void *arguments, unsigned seed, int cluster = 2);

// ---- a warp's

inline void __syncwarp(void) {
    emu_collect(EMU_SYNC);
}
inline uint32_t emu_shuffle(uint32_t v, int from) {
    emu_now->warp->in[emu_now->lane][0] = v, emu_now->warp->in[emu_now->lane][1] = (uint32_t)from;
    emu_collect(EMU_SHUFFLE);
    return emu_now->warp->out[emu_now->lane];
}
template <class T> T emu_shuffled(T v, int from) {
    static_assert(sizeof v == 4, "words");
    uint32_t bits;
    memcpy(&bits, &v, 4);
    bits = emu_shuffle(bits, from);
    memcpy(&v, &bits, 4);
    return v;
}
template <class T> T __shfl_sync(unsigned, T v, int from) {
    return emu_shuffled(v, from & 31);
}
template <class T> T __shfl_xor_sync(unsigned, T v, int by) {
    return emu_shuffled(v, emu_now->lane ^ by);
}
template <class T> T __shfl_up_sync(unsigned, T v, int by) {
    return emu_shuffled(v, std::max(emu_now->lane - by, 0));
}
template <class T> T __shfl_down_sync(unsigned, T v, int by) {
    return emu_shuffled(v, std::min(emu_now->lane + by, EMU_LANES - 1));
}
inline uint32_t emu_vote(emu_collective which, bool v) {
    emu_now->warp->in[emu_now->lane][0] = v;
    emu_collect(which);
    return emu_now->warp->out[emu_now->lane];
}
inline int __all_sync(unsigned, int v) {
    return (int)emu_vote(EMU_ALL, v != 0);
}
inline int __any_sync(unsigned, int v) {
    return !emu_vote(EMU_ALL, v == 0);
}
inline unsigned __ballot_sync(unsigned, int v) {
    return emu_vote(EMU_BALLOT, v != 0);
}
void emu_mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
             uint32_t b1, emu_collective of = EMU_MMA); // m16n8k16: bf16, f16; m16n8k8: tf32
void emu_ldmatrix(uint32_t (&r)[4], const void *row);
void emu_ldmatrix_transposed(uint32_t (&r)[4], const void *row);
uint32_t emu_transpose(uint32_t v); // 8 x 8 of 16 bits, as movmatrix does

// ---- the warp groups' matrix instruction: each lane makes its own sums

inline float emu_bf16(uint16_t v) {
    const uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
// Two bf16 by a power of two.
inline uint32_t emu_bf16_pair(uint32_t two, float by) {
    uint32_t pair = 0;
    for (int half = 0; half < 32; half += 16) {
        const float v = emu_bf16((uint16_t)(two >> half)) * by;
        uint32_t bits;
        memcpy(&bits, &v, 4);
        pair |= bits >> 16 << half;
    }
    return pair;
}
inline uint32_t emu_halves(float low, float high) {
    const __half2 two = __floats2half2_rn(low, high);
    uint32_t pair;
    memcpy(&pair, &two, 4);
    return pair;
}
// 16 numbers of a tile's row: rows of 128 bytes, swizzled, or eight rows' 16 bytes behind each
// other.
inline void emu_operand(uint64_t tile, int row, float (&v)[16]) {
    const bool swizzled = tile >> 62;
    const uint32_t next_columns = (uint32_t)(tile >> 16 & 0x3fff) << 4,
                   next_rows = (uint32_t)(tile >> 32 & 0x3fff) << 4;
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t at = (uint32_t)(tile & 0x3fff) << 4;
        if (swizzled) {
            at += (uint32_t)row * 128 + half * 16;
            at ^= (at >> 7 & 7) << 4;
        } else {
            at += (uint32_t)row / 8 * next_rows + half * next_columns + (uint32_t)row % 8 * 16;
        }
        at += (uint32_t)(uintptr_t)emu_shared();
        emu_check(at, 16);
        uint16_t eight[8];
        memcpy(eight, emu_memory(at), sizeof eight);
        for (int k = 0; k < 8; k++)
            v[half * 8 + k] = emu_bf16(eight[k]);
    }
}
template <int N> void emu_make_product(float (&d)[N], uint64_t a, uint64_t b) {
    const int g = emu_now->lane / 4, q = emu_now->lane % 4;
    const int row = (int)(threadIdx.x / EMU_LANES) % 4 * 16 + g;
    float x[16], y[16], w[16];
    emu_operand(a, row, x), emu_operand(a, row + 8, y);
    bool any = false; // of zeros, as where there are no token rows, nothing comes
    for (int k = 0; k < 16; k++)
        any = any || x[k] != 0 || y[k] != 0;
    for (int i = 0; any && i < N; i += 4) {
        for (int c = 0; c < 2; c++) {
            emu_operand(b, i * 2 + 2 * q + c, w);
            for (int k = 0; k < 16; k++)
                d[i + c] += x[k] * w[k], d[i + 2 + c] += y[k] * w[k];
        }
    }
}
// A number of each of 16 rows of tiles, swizzled by 128 bytes, that have 64 columns each: operands
// with k down their rows.
inline void emu_operand_down(uint64_t tile, int column, float (&v)[16]) {
    const uint32_t next_tile = (uint32_t)(tile >> 16 & 0x3fff) << 4;
    for (uint32_t k = 0; k < 16; k++) {
        uint32_t at = ((uint32_t)(tile & 0x3fff) << 4) + k * 128 + (uint32_t)column % 64 * 2;
        at ^= (at >> 7 & 7) << 4;
        at += (uint32_t)column / 64 * next_tile + (uint32_t)(uintptr_t)emu_shared();
        emu_check(at, 2);
        uint16_t one;
        memcpy(&one, emu_memory(at), sizeof one);
        v[k] = emu_bf16(one);
    }
}
// The same with a from registers: four lanes have a row's. DOWN: b's k is down its rows.
template <bool DOWN, int N> void emu_make_product(float (&d)[N], const uint32_t *a, uint64_t b) {
    const int q = emu_now->lane % 4;
    float x[2][16], w[16];
    for (int j = 0; j < 16; j++) {
        const uint32_t pair = emu_shuffle(a[j / 4], emu_now->lane - q + j % 4);
        float *to = x[j / 4 % 2] + j / 8 * 8 + j % 4 * 2;
        to[0] = emu_bf16((uint16_t)pair), to[1] = emu_bf16((uint16_t)(pair >> 16));
    }
    for (int i = 0; i < N; i += 4) {
        for (int c = 0; c < 2; c++) {
            const int n = i * 2 + 2 * q + c;
            DOWN ? emu_operand_down(b, n, w) : emu_operand(b, n, w);
            for (int k = 0; k < 16; k++)
                d[i + c] += x[0][k] * w[k], d[i + 2 + c] += x[1][k] * w[k];
        }
    }
}

template <int N> void emu_wgmma(float (&d)[N], uint64_t a, uint64_t b) {
    emu_now->products.push_back(
        {[](const emu_product &p) { emu_make_product(*(float(*)[N])p.sums, p.a, p.b); }, d, NULL, a,
         b, emu_now->groups});
}
template <int N> void emu_wgmma_anew(float (&d)[N], uint64_t a, uint64_t b) { // d has nothing yet
    emu_now->products.push_back({[](const emu_product &p) {
                                     memset(p.sums, 0, sizeof(float[N]));
                                     emu_make_product(*(float(*)[N])p.sums, p.a, p.b);
                                 },
                                 d, NULL, a, b, emu_now->groups});
}
template <bool DOWN, int N>
void emu_wgmma_registers(float (&d)[N], const uint32_t (&a)[4], uint64_t b) {
    emu_now->products.push_back({[](const emu_product &p) {
                                     emu_make_product<DOWN>(*(float(*)[N])p.sums, p.registers, p.b);
                                 },
                                 d, a, 0, b, emu_now->groups});
}
inline void emu_wgmma_commit(void) {
    emu_now->groups++;
}
// Whether a warp's wait is one for all four warps', whose instruction it is: not promised by PTX,
// but what kernels rely on that give operands' places back by one of them (medium.cu; CUTLASS's
// do). It also orders all else of the four.
extern bool emu_waits_for_four;
enum { EMU_FOUR = 12 }; // the first four's named barrier, which no kernel has
// Until all groups but the last `left` are made, by all lanes of the warp.
inline void emu_wgmma_wait(int left) {
    auto &products = emu_now->products;
    size_t made = 0;
    emu_now->by_async_proxy = true;
    for (; made < products.size() && products[made].group < emu_now->groups - left; made++)
        products[made].make(products[made]);
    emu_now->by_async_proxy = false;
    products.erase(products.begin(), products.begin() + (long)made);
    __syncwarp();
    if (emu_waits_for_four)
        emu_named(EMU_FOUR + (int)threadIdx.x / 128, 128);
}

// ---- what nvcc has for every thread

inline int max(int a, int b) {
    return a > b ? a : b;
}
inline int min(int a, int b) {
    return a < b ? a : b;
}
inline int __popc(unsigned v) {
    return __builtin_popcount(v);
}
inline int __ffs(unsigned v) {
    return __builtin_ffs((int)v);
}
inline unsigned __fns(unsigned mask, unsigned base, int n) { // of CUDA's only what is used here
    if (base != 0 || n < 1)
        emu_fail("__fns of another kind");
    for (unsigned i = 0; i < 32; i++) {
        if (mask >> i & 1 && --n == 0)
            return i;
    }
    return ~0u;
}
inline float rsqrtf(float v) {
    return 1.f / sqrtf(v);
}
inline float __uint_as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
inline float __ll2float_rn(long long v) {
    return (float)v;
}
inline long long __float2ll_rn(float v) {
    return llrintf(v);
}
inline float __int_as_float(int bits) {
    return __uint_as_float((uint32_t)bits);
}
inline uint32_t __float_as_uint(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t by) {
    return by ? high << by | low >> (32 - by) : high;
}
inline void __syncthreads(void) {
    emu_named(0, -1);
}
inline void __trap(void) {
    emu_fail("trap");
}
extern long long emu_time;
inline long long emu_clock(void) { // goes on whenever somebody looks at it
    return emu_time += 50;
}
#define clock emu_clock
template <class T> T __ldcg(const T *p) {
    return *p;
}
template <class T> T __ldg(const T *p) {
    return *p;
}
template <class T> T emu_load(const void *p) { // a global load of all of a T's bytes at once
    if ((uintptr_t)p % sizeof(T))
        emu_fail("a load from what is not aligned");
    T v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline unsigned __reduce_add_sync(unsigned, unsigned v) {
    for (int by = 1; by < EMU_LANES; by *= 2)
        v += emu_shuffle(v, emu_now->lane ^ by);
    return v;
}
inline unsigned __reduce_or_sync(unsigned, unsigned v) {
    for (int by = 1; by < EMU_LANES; by *= 2)
        v |= emu_shuffle(v, emu_now->lane ^ by);
    return v;
}
template <class T> T atomicAdd(T *p, T v) {
    *p += v;
    return *p - v;
}
// Eight rows of 16 bytes each, whose addresses lane after lane has, of as many matrices as words.
template <int N> void emu_store_matrices(uint32_t at, const uint32_t (&v)[N]) {
    for (int m = 0; m < N; m++) {
        const uint32_t row = emu_shuffle(at, 8 * m + emu_now->lane / 4),
                       to = row + (uint32_t)(emu_now->lane % 4 * 4);
        emu_check(to, 4);
        *(uint32_t *)emu_memory(to) = v[m];
    }
}

#endif
