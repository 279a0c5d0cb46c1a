// SPDX-License-Identifier: Apache-2.0
// Which cluster of blocks makes which tiles of a large product (wide_places.cu), and how it hears.
#ifndef SSM_KERNELS_CUDA_WIDE_PLACES_CUH
#define SSM_KERNELS_CUDA_WIDE_PLACES_CUH

#include "hopper.cuh"

namespace ssm {

enum { PLACES_SMS = 160, PLACES_GPCS = 16 };

// A launch's tickets, zero before it.
struct place_tickets {
    unsigned in[PLACES_GPCS], out[PLACES_GPCS];
};

struct wide_places {
    unsigned *tickets; // [PLACES_GPCS] of this launch; NULL: places by block number
    uint4 *wiped;      // what this launch leaves zero for another, or NULL
    int n_gpcs;
    uint8_t gpc_of[PLACES_SMS];     // by %smid
    uint8_t first[PLACES_GPCS + 1]; // each GPC's first place
};

#if SSM_HOPPER

// Asked for by one thread, and a while later what came of it: a place of this SM's GPC, or where
// those are taken, of the next that has one. There are as many places as clusters: each gets one.
struct place_ticket {
    int gpc, number;

    __device__ __forceinline__ void take(const wide_places &p) {
        uint32_t sm;
        asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
        gpc = p.gpc_of[sm];
        number = atomicAdd(p.tickets + gpc, 1u);
    }
    __device__ __forceinline__ int place(const wide_places &p) {
        while (number >= p.first[gpc + 1] - p.first[gpc]) {
            gpc = gpc + 1 == p.n_gpcs ? 0 : gpc + 1;
            number = atomicAdd(p.tickets + gpc, 1u);
        }
        return p.first[gpc] + number;
    }
};

// To all blocks of the cluster, whose barriers are there; `at`: 8 bytes and their barrier.
template <int CLUSTER> __device__ __forceinline__ void tell_place(uint32_t at, int place) {
#pragma unroll
    for (int i = 0; i < CLUSTER; i++)
        store_to_peer(peer_address(at, i), make_float2(__int_as_float(place), 0),
                      peer_address(at + 8, i));
}
__device__ __forceinline__ void place_begin(uint32_t at) { // one thread, once
    barrier_init(at + 8, 1);
    barriers_ready();
    barrier_expect(at + 8, 8);
}
template <int CLUSTER>
__device__ __forceinline__ int hear_place(const wide_places &p, uint32_t at) {
    if (!p.tickets)
        return blockIdx.x / CLUSTER;
    barrier_wait(at + 8, 0);
    int place;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(place) : "r"(at) : "memory");
    return place;
}

#endif

} // namespace ssm

#endif
