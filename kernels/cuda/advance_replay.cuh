// SPDX-License-Identifier: Apache-2.0
// Pieces of advance_replay.cu: what a slot keeps beside its base, how a block's shared memory is
// laid out, and what a lane makes of a row.
#ifndef SSM_KERNELS_CUDA_ADVANCE_REPLAY_CUH
#define SSM_KERNELS_CUDA_ADVANCE_REPLAY_CUH

#include "advance_ring.cuh"

namespace ssm {

typedef advance_ring_shape<float> replay_ring; // a lane owns a channel's 16 states

enum {
    HELD_DELTA = replay_ring::OF_WARP * 2, // where delta begins in an entry
    HELD_ENTRY =
        HELD_DELTA + replay_ring::OF_WARP * 4 // bytes: x (bf16) of a warp's channels, delta
};

// What a layer's slots hold beside their bases: a token, or none.
struct advance_replay_entries {
    const int32_t *held; // [row] how many, | 256 where this step writes the base
    char *x;             // [slot][channels / OF_WARP][HELD_ENTRY]
    float *b;            // [slot][16]
};

advance_replay_entries advance_replay_entries_of(const device *d, int layer); // held: none

struct advance_replay_layout : advance_ring_layout {
    int held_b; // [2][TILE][16] B of the tokens that rows' bases are without
};

static advance_replay_layout advance_replay_layout_of(int rank) {
    advance_replay_layout l;
    (advance_ring_layout &)l = advance_ring_layout_of<float>(rank);
    l.held_b = l.delta + TILE * replay_ring::DELTA_PITCH * 4;
    put_ring<float>(&l, l.held_b + 2 * TILE * 16 * 4);
    return l;
}

// A block's rows: all in one column, from `at` to `end`.
struct advance_replay_part {
    int column, at, end;

    __device__ __forceinline__ advance_replay_part(int columns, int n_rows) {
        const int parts = gridDim.x / columns, part = blockIdx.x % parts;
        column = blockIdx.x / parts;
        at = n_rows * part / parts, end = n_rows * (part + 1) / parts;
    }
};

// A state one token on. In these steps' order everywhere: a token that is held and replayed later
// leaves the bits that it would have left at once.
__device__ __forceinline__ float state_on(float h, float delta, float decay, float dx, float b) {
    return __fmaf_rn(exp2_fast(delta * decay), h, __fmul_rn(dx, b));
}

#if SSM_HOPPER

// A token of a lane's channel.
struct replay_input {
    uint16_t x;
    float delta;
};

struct replay_channel : own_channels<float> {
    using own_channels<float>::own_channels;

    // The row's base takes the token that is held, if HELD, and this one. states: this lane's 64
    // bytes, put back where `write`; bc: this token's B and C; held_b: the other's B. ahead():
    // called once the tokens' registers are free. Returns y.
    template <bool HELD, class F>
    __device__ __forceinline__ float go_on(char *states, const float *bc, const float *held_b,
                                           const replay_input &held, const replay_input &now,
                                           uint32_t z, bool write, F ahead) const {
        const float held_delta = held.delta, held_dx = held_delta * low_half(held.x);
        const float delta = now.delta, x = low_half(now.x), dx = delta * x;
        float y = skip[0] * x;
        ahead();
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            const int at = (p ^ (turn & (PARTS - 1))) * V;
            float *of = (float *)(states + (p ^ turn) * 16);
            float h[V], bc4[V];
            load<V>(of, h);
            if (HELD) {
                load<V>(held_b + at, bc4);
#pragma unroll
                for (int v = 0; v < V; v++)
                    h[v] = state_on(h[v], held_delta, decay[0][p * V + v], held_dx, bc4[v]);
            }
            load<V>(bc + at, bc4);
#pragma unroll
            for (int v = 0; v < V; v++)
                h[v] = state_on(h[v], delta, decay[0][p * V + v], dx, bc4[v]);
            load<V>(bc + 16 + at, bc4);
#pragma unroll
            for (int v = 0; v < V; v++)
                y = __fmaf_rn(h[v], bc4[v], y);
            if (write)
                store<V>(of, h);
        }
        return y * silu(low_half(z));
    }
};

#endif

} // namespace ssm

#endif
