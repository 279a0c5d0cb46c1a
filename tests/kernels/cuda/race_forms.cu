// SPDX-License-Identifier: Apache-2.0
// What compute-sanitizer's racecheck makes of the ways in which our kernels hand shared memory
// over. One warp writes a stage of four, the other reads it and gives it back, by barriers of
// bulk.cuh:
//
//   race_forms right    in forms that racecheck follows: it has nothing to say
//   race_forms wrong    every eighth stage is read without a wait: each kernel must be reported
//   race_forms beyond   right as well, and reported: what it says of such kernels tells nothing
//
// So a report of a kernel of ours is worth something only where the kernel keeps to the first.
// Reported is, whatever the other side waits by, a warp whose lanes all write or read, meet
// (__syncwarp()) and leave the arrival to one lane: it knows no order between theirs and that.
// Named barriers at which one side only arrives (bar.arrive) are reported by version 2025.3.1 and
// not by 2026.4, copies that are given back by every lane the other way round (one H200).
//
// Sums of what was read are checked: ends with 1 if they are wrong, with 77 on a device that is no
// Hopper, without one with 77, or 1 where SSM_EXPECT_CUDA is set.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/bulk.cuh"

using namespace ssm;

enum { STAGES = 4, TURNS = 16, LANES = 32 };

__device__ __forceinline__ uint32_t value_at(int turn, int lane) {
    return turn * 977 + lane;
}

struct handover {
    uint32_t full, empty; // barriers of the first stage, the others' behind it
    int lane;
    bool every; // lane arrives

    __device__ __forceinline__ handover(uint64_t *bars, bool every_lane, int fills) {
        full = shared_address(bars), empty = full + STAGES * 8;
        lane = threadIdx.x % LANES, every = every_lane;
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; i++) {
                barrier_init(full + i * 8, fills);
                barrier_init(empty + i * 8, every ? LANES : 1);
            }
            barriers_ready();
        }
        __syncthreads();
    }
    __device__ __forceinline__ void arrive(uint32_t at) const {
        if (!every)
            __syncwarp();
        if (every || lane == 0)
            barrier_arrive(at);
    }
};

// MISSES: the wait for every eighth stage.
template <bool EVERY, bool MISSES> __device__ __forceinline__ void by_stores(uint32_t *out) {
    __shared__ uint32_t data[STAGES][LANES];
    __shared__ uint64_t bars[2 * STAGES];
    const handover h(bars, EVERY, EVERY ? LANES : 1);
    uint32_t sum = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        const int s = turn % STAGES, parity = turn / STAGES & 1;
        if (threadIdx.x < LANES) {
            if (turn >= STAGES)
                barrier_wait(h.empty + s * 8, parity ^ 1);
            data[s][h.lane] = value_at(turn, h.lane);
            h.arrive(h.full + s * 8);
            continue;
        }
        if (!MISSES || turn % 8 != 7)
            barrier_wait(h.full + s * 8, parity);
        sum += data[s][h.lane ^ 1];
        h.arrive(h.empty + s * 8);
    }
    if (threadIdx.x >= LANES)
        out[h.lane] = sum;
}

template <bool EVERY, bool MISSES>
__device__ __forceinline__ void by_copies(uint32_t *out, const uint32_t *in) {
    __shared__ __align__(128) uint32_t data[STAGES][LANES];
    __shared__ uint64_t bars[2 * STAGES];
    const handover h(bars, EVERY, 1);
    uint32_t sum = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        const int s = turn % STAGES, parity = turn / STAGES & 1;
        if (threadIdx.x < LANES) {
            if (turn >= STAGES)
                barrier_wait(h.empty + s * 8, parity ^ 1);
            if (h.lane == 0) {
                barrier_expect(h.full + s * 8, sizeof data[s]);
                copy_run(shared_address(data[s]), in + turn * LANES, sizeof data[s],
                         h.full + s * 8);
            }
            __syncwarp();
            continue;
        }
        if (!MISSES || turn % 8 != 7)
            barrier_wait(h.full + s * 8, parity);
        sum += data[s][h.lane ^ 1];
        h.arrive(h.empty + s * 8);
    }
    if (threadIdx.x >= LANES)
        out[h.lane] = sum;
}

// Named barriers: both warps wait at each, or one of them only arrives.
template <bool BOTH> __device__ __forceinline__ void by_name(uint32_t *out) {
    __shared__ uint32_t data[LANES];
    const int lane = threadIdx.x % LANES;
    uint32_t sum = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        if (threadIdx.x < LANES) {
            data[lane] = value_at(turn, lane);
            if (BOTH)
                asm volatile("bar.sync 1, 64;" ::: "memory");
            else
                asm volatile("bar.arrive 1, 64;" ::: "memory");
            asm volatile("bar.sync 2, 64;" ::: "memory");
            continue;
        }
        asm volatile("bar.sync 1, 64;" ::: "memory");
        sum += data[lane ^ 1];
        if (BOTH)
            asm volatile("bar.sync 2, 64;" ::: "memory");
        else
            asm volatile("bar.arrive 2, 64;" ::: "memory");
    }
    if (threadIdx.x >= LANES)
        out[lane] = sum;
}

#define KERNEL(NAME, ...)                                                                          \
    static __global__ void NAME(uint32_t *out, const uint32_t *in) {                               \
        __VA_ARGS__;                                                                               \
    }
KERNEL(every_lane_arrives, (by_stores<true, false>(out)))
KERNEL(both_wait_by_name, by_name<true>(out))
KERNEL(a_wait_is_missing, (by_stores<true, true>(out)))
KERNEL(a_copy_is_not_waited_for, (by_copies<true, true>(out, in)))
KERNEL(one_lane_arrives, (by_stores<false, false>(out)))
KERNEL(copies_and_one_lane, (by_copies<false, false>(out, in)))
KERNEL(copies_and_every_lane, (by_copies<true, false>(out, in)))
KERNEL(one_side_arrives_by_name, by_name<false>(out))

typedef void (*kernel)(uint32_t *, const uint32_t *);
static const struct {
    const char *word, *name;
    kernel run;
} forms[] = {
    {"right", "every_lane_arrives", every_lane_arrives},
    {"right", "both_wait_by_name", both_wait_by_name},
    {"wrong", "a_wait_is_missing", a_wait_is_missing},
    {"wrong", "a_copy_is_not_waited_for", a_copy_is_not_waited_for},
    {"beyond", "one_lane_arrives", one_lane_arrives},
    {"beyond", "copies_and_one_lane", copies_and_one_lane},
    {"beyond", "copies_and_every_lane", copies_and_every_lane},
    {"beyond", "one_side_arrives_by_name", one_side_arrives_by_name},
};

static uint32_t host_value(int turn, int lane) {
    return (uint32_t)(turn * 977 + lane);
}

static bool sums_are_right(const uint32_t *sums) {
    for (int lane = 0; lane < LANES; lane++) {
        uint32_t sum = 0;
        for (int turn = 0; turn < TURNS; turn++)
            sum += host_value(turn, lane ^ 1);
        if (sums[lane] != sum)
            return false;
    }
    return true;
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "right";
    uint32_t *out, *in, sums[LANES], values[TURNS * LANES];
    cudaError_t rc = cudaMalloc(&out, sizeof sums);
    rc = rc ? rc : cudaMalloc(&in, sizeof values);
    if (rc) {
        printf("race_forms: %s\n", cudaGetErrorString(rc));
        return getenv("SSM_EXPECT_CUDA") ? 1 : 77;
    }
    for (int i = 0; i < TURNS * LANES; i++)
        values[i] = host_value(i / LANES, i % LANES);
    int failed = 0, ran = 0;
    for (const auto &k : forms) {
        if (strcmp(k.word, word) != 0)
            continue;
        ran++;
        rc = cudaMemcpy(in, values, sizeof values, cudaMemcpyHostToDevice);
        rc = rc ? rc : cudaMemset(out, 0xff, sizeof sums);
        if (rc == cudaSuccess) {
            k.run<<<1, 2 * LANES>>>(out, in);
            rc = cudaGetLastError();
        }
        rc = rc ? rc : cudaMemcpy(sums, out, sizeof sums, cudaMemcpyDeviceToHost);
        if (rc == cudaErrorNoKernelImageForDevice) {
            printf("race_forms: %s\n", cudaGetErrorString(rc));
            return 77;
        }
        const bool right = rc == cudaSuccess && sums_are_right(sums);
        const bool may_be_wrong = rc == cudaSuccess && strcmp(word, "wrong") == 0;
        printf("%s: %s\n", k.name, rc ? cudaGetErrorString(rc) : right ? "right" : "wrong sums");
        failed |= !right && !may_be_wrong;
    }
    return failed || ran == 0;
}
