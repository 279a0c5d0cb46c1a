// SPDX-License-Identifier: Apache-2.0
// What the kernels that move Mamba-1's states of many rows share (advance*.cu).
#ifndef SSM_KERNELS_CUDA_ADVANCE_CUH
#define SSM_KERNELS_CUDA_ADVANCE_CUH

#include "mamba.cuh"

namespace ssm {

// Lanes a channel, channels a block and a warp, for 16 states in S.
template <class S, int THREADS> struct stream_shape {
    enum { V = 16 / sizeof(S), LANES = 16 / V, CHANNELS = THREADS / LANES, OF_WARP = 32 / LANES };
};

// Where a tile's rows lie: offsets of their slots' states in units of 16 bytes.
struct row_tile {
    enum { NONE = 0xffffffffu };
    uint32_t from[TILE]; // NONE: zeros (a fresh sequence, or no row)
    uint32_t to[TILE];   // NONE: no row
    int32_t at[TILE];    // token rows; -1: no row
};

__device__ const uint4 no_state = {};

// 16 bytes of state, read and written once a step. A load always happens, a store where `on` is
// set: a branch a row costs a third of the loop, and a predicated load waits for its own result.
__device__ __forceinline__ uint4 load_state(const void *p) {
    uint4 v;
    asm volatile("ld.global.cs.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ void store_state(char *p, const uint4 &v, bool on) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %5, 0;\n"
                 "@p st.global.cs.v4.u32 [%4], {%0,%1,%2,%3};\n}" ::"r"(v.x),
                 "r"(v.y), "r"(v.z), "r"(v.w), "l"(p), "r"((int)on));
}

// A row of a channel: this lane's states in `raw` go one token on. pair: delta, delta x; bc: B of
// these states, C 16 further on. Returns their part of y.
template <class S>
__device__ __forceinline__ float advance_row(uint4 &raw, float2 pair, const float *bc,
                                             const float (&decay)[16 / sizeof(S)]) {
    constexpr int V = 16 / sizeof(S);
    float h[V], b[V], y = 0;
    load<V>((const S *)&raw, h);
    load<V>(bc, b);
#pragma unroll
    for (int v = 0; v < V; v++)
        h[v] = exp2_fast(pair.x * decay[v]) * h[v] + pair.y * b[v];
    load<V>(bc + 16, b);
#pragma unroll
    for (int v = 0; v < V; v++)
        y += h[v] * b[v];
    store<V>((S *)&raw, h);
    return y;
}

// LANES rows' partial sums to one row's sum a lane, in part[0]: halve and exchange.
template <int LANES> __device__ __forceinline__ void spread_sums(float (&part)[LANES], int q) {
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) {
#pragma unroll
        for (int i = 0; i < o; i++) {
            const bool upper = (q & o) != 0;
            const float keep = upper ? part[i + o] : part[i];
            const float give = upper ? part[i] : part[i + o];
            part[i] = keep + __shfl_xor_sync(~0u, give, o);
        }
    }
}

// advance_short.cu: a tile a block, for up to 128 rows
bool short_fits(const device *d, const batch &b, int32_t n_splits);
cudaError_t mamba_advance_short(device *d, int layer, const batch &b);

// advance_ring.cu: states through shared memory, on Hopper
bool advance_ring_fits(const device *d, const batch &b, int32_t n_splits);
cudaError_t mamba_advance_ring(device *d, int layer, const batch &b);

} // namespace ssm

#endif
