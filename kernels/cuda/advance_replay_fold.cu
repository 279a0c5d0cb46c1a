// SPDX-License-Identifier: Apache-2.0
// Mamba-1's held tokens outside of advance_replay.cu: what a slot keeps of them, and states made
// whole for kernels that know nothing of them (in place), or to be read (in canonical form; the
// slot stays as it is, so that being looked at changes no answer).
//
// A thread a state. It runs where a sequence goes from large steps to a prompt or to small steps,
// not in every one.
#include "advance_replay.cuh"

namespace ssm {

enum { FOLD_THREADS = 256 };

// State i of the slot (16 a channel), with the token in it that is held.
__device__ __forceinline__ float folded(const mamba_args &a, const advance_replay_entries &e,
                                        int slot, int i) {
    constexpr int OF_WARP = replay_ring::OF_WARP;
    const int channel = i / 16, lane = channel % OF_WARP;
    const char *entry =
        e.x + ((size_t)slot * (a.channels / OF_WARP) + channel / OF_WARP) * HELD_ENTRY;
    const float delta = ((const float *)(entry + HELD_DELTA))[lane];
    return state_on(((const float *)a.state)[(size_t)slot * a.channels * 16 + i], delta, a.decay[i],
                    delta * to_float(((const bf16 *)entry)[lane]), e.b[(size_t)slot * 16 + i % 16]);
}

__global__ void __launch_bounds__(FOLD_THREADS)
    fold_spans_kernel(mamba_args a, advance_replay_entries e, const span *spans) {
    const int slot = spans[blockIdx.y].slot, i = blockIdx.x * FOLD_THREADS + threadIdx.x;
    if (i < a.channels * 16)
        ((float *)a.state)[(size_t)slot * a.channels * 16 + i] = folded(a, e, slot, i);
}

__global__ void __launch_bounds__(FOLD_THREADS)
    fold_read_kernel(mamba_args a, advance_replay_entries e, int slot, float *out) {
    const int i = blockIdx.x * FOLD_THREADS + threadIdx.x;
    if (i < a.channels * 16)
        out[i] = folded(a, e, slot, i);
}

// ---- host

replay_sizes advance_replay_bytes(const device *d) { // of one slot in one layer
    return {(size_t)d->g.d_inner / replay_ring::OF_WARP * HELD_ENTRY, 16 * sizeof(float), 0};
}

advance_replay_entries advance_replay_entries_of(const device *d, int layer) {
    const replay_sizes each = advance_replay_bytes(d);
    const size_t slots = (size_t)layer * d->n_slots;
    return {NULL, (char *)d->replay_x + slots * each.x,
            (float *)((char *)d->replay_b + slots * each.b)};
}

static dim3 grid(const device *d, int32_t slots) {
    return dim3((unsigned)ceil_div(d->g.d_inner * 16, FOLD_THREADS), (unsigned)slots);
}

cudaError_t advance_replay_fold(device *d, int layer, const batch &b) {
    return launch(d, fold_spans_kernel, grid(d, b.n_spans), FOLD_THREADS, 0, false,
                  mamba_arguments(d, layer, 1), advance_replay_entries_of(d, layer), b.spans);
}

cudaError_t advance_replay_read(device *d, int layer, int32_t slot, float *out) {
    return launch(d, fold_read_kernel, grid(d, 1), FOLD_THREADS, 0, false,
                  mamba_arguments(d, layer, 1), advance_replay_entries_of(d, layer), slot, out);
}

} // namespace ssm
