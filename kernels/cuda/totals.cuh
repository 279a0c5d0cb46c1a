// SPDX-License-Identifier: Apache-2.0
// Sums that blocks add to where they lie, in memory, and that say how many have: no place for each
// block's share, no counter beside them and no release in front of that; the same bits in any
// order.
//
// A total is fixed point, its lowest eight bits how many of its ADDERS have added. A share that is
// no number, or too large, is TOTAL_BROKEN, which neither other shares nor more of its kind bring
// back to where sums are: 1 to 128 times 2^56 / 129 is, in 56 bits, at least that away from zero.
#ifndef SSM_KERNELS_CUDA_TOTALS_CUH
#define SSM_KERNELS_CUDA_TOTALS_CUH

#include "poll.cuh"

namespace ssm {

#if SSM_HOPPER

enum : int { TOTAL_BITS = 23, TOTAL_WHOLE = 24 }; // of a sum: behind the point, in front of it
constexpr float TOTAL_ONE = 1 << TOTAL_BITS;
constexpr int64_t TOTAL_MOST = 1ll << (TOTAL_BITS + TOTAL_WHOLE), TOTAL_BROKEN = (1ll << 56) / 129;
static_assert(TOTAL_BROKEN - TOTAL_MOST > TOTAL_MOST, "sums, and what is beyond them");

__device__ __forceinline__ void add_word(uint64_t *to, uint64_t v) {
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
}
__device__ __forceinline__ uint64_t load_total(const uint64_t *total) {
    uint64_t v;
    asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(v) : "l"(total) : "memory");
    return v;
}
template <int ADDERS> __device__ __forceinline__ void add_to_total(uint64_t *total, float v) {
    static_assert(ADDERS <= 128 && (1 << TOTAL_WHOLE) % ADDERS == 0, "an even part of sums");
    const bool number = fabsf(v) < (1 << TOTAL_WHOLE) / ADDERS;
    const int64_t share = number ? __float2ll_rn(v * TOTAL_ONE) : TOTAL_BROKEN;
    add_word(total, ((uint64_t)share << 8) + 1);
}
// A lane's N totals, at(i), each of which it has or not, wanted(i): what has been added since
// before(i), once all of the warp's have all shares. Some seconds on the launch ends with an error.
template <int ADDERS, int N, class AT, class WANTED, class BEFORE>
__device__ __forceinline__ void totals_wait(uint64_t (&since)[N], const AT &at,
                                            const WANTED &wanted, const BEFORE &before) {
    poll(
        since, [&](int i, uint64_t &v) { v = wanted(i) ? load_total(at(i)) - before(i) : ADDERS; },
        [&](int, uint64_t v) { return (v & 255) == ADDERS; });
}
__device__ __forceinline__ float total_of(uint64_t since) {
    const int64_t sum = (int64_t)since >> 8;
    const bool number = sum >= -TOTAL_MOST && sum <= TOTAL_MOST;
    return number ? __ll2float_rn(sum) * (1 / TOTAL_ONE) : NAN;
}
// The same of totals that nobody else reads, which leaves nothing of them. The next shares may come
// before that.
template <int ADDERS, int N, class AT, class WANTED>
__device__ __forceinline__ void take_totals(float (&sums)[N], const AT &at, const WANTED &wanted) {
    uint64_t is[N];
    totals_wait<ADDERS>(is, at, wanted, [](int) { return 0; });
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (wanted(i))
            add_word(at(i), 0 - is[i]);
        sums[i] = total_of(is[i]);
    }
}

#endif

} // namespace ssm

#endif
