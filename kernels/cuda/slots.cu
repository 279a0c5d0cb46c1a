// SPDX-License-Identifier: Apache-2.0
// Sessions' states as rows of two arrays: copies between slots, and a slot in canonical form, which
// transfer.cu takes to the host and back. Rows of logits are copied as slots of one layer.
//
// Layout [layer][slot][...]: a layer's step reads neighbours. All copies of a call are one launch
// over (bytes, layer, pair); sources and destinations are disjoint, so their order is free. The
// convolution's ring goes with its write position, which the host keeps.
#include <string.h>

#include "cuda.h"
#include "types.cuh"
#include "util.cuh"

namespace ssm {

enum { COPY_PAIRS = 256 }; // pairs a launch: they travel as a kernel argument

struct slot_pairs {
    int32_t src[COPY_PAIRS], dst[COPY_PAIRS];
};

// bytes: of one slot in one layer; U: the widest type that divides it
template <class U>
__global__ void copy_kernel(U *array, slot_pairs pairs, size_t units, size_t layer_units) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= units)
        return;
    U *layer = array + blockIdx.y * layer_units;
    layer[pairs.dst[blockIdx.z] * units + i] = layer[pairs.src[blockIdx.z] * units + i];
}

__global__ void copy_drawn_kernel(int32_t *drawn, slot_pairs pairs, int n) {
    if ((int)threadIdx.x < n)
        drawn[pairs.dst[threadIdx.x]] = drawn[pairs.src[threadIdx.x]];
}

static cudaError_t copy_array(device *d, void *array, size_t bytes, unsigned layers,
                              const slot_pairs &p, int n) {
    if (bytes == 0)
        return cudaSuccess;
    const unsigned pairs = (unsigned)n;
    if (bytes % 16 == 0) {
        const size_t units = bytes / 16;
        return launch(d, copy_kernel<uint4>, dim3((unsigned)ceil_div(units, 256), layers, pairs),
                      256, 0, false, (uint4 *)array, p, units, units * d->n_slots);
    }
    const size_t units = bytes / 2;
    return launch(d, copy_kernel<uint16_t>, dim3((unsigned)ceil_div(units, 256), layers, pairs),
                  256, 0, false, (uint16_t *)array, p, units, units * d->n_slots);
}

static size_t ring_bytes(const device *d) {
    return (size_t)d->g.conv_dim * (d->g.d_conv - 1) * type_bytes(d->ring_type);
}

static size_t state_bytes(const device *d) {
    return (size_t)d->g.d_inner * d->g.d_state * type_bytes(d->state_type);
}

int slots_copy(ssm_device *dev, const int32_t *src, const int32_t *dst, int32_t n, ssm_error *err) {
    device *d = (device *)dev;
    SSM_TRY(device_refuse(d, err));
    const unsigned layers = (unsigned)d->g.n_layers;
    for (int32_t i = 0; i < n; i += COPY_PAIRS) {
        slot_pairs p = {};
        const int count = n - i < COPY_PAIRS ? n - i : COPY_PAIRS;
        for (int k = 0; k < count; k++) {
            p.src[k] = src[i + k], p.dst[k] = dst[i + k];
            d->ring_at[dst[i + k]] = d->ring_at[src[i + k]];
            d->held[dst[i + k]] = d->held[src[i + k]];
        }
        SSM_CUDA(d, copy_array(d, d->ring, ring_bytes(d), layers, p, count), err);
        SSM_CUDA(d, copy_array(d, d->state, state_bytes(d), layers, p, count), err);
        if (d->replays) {
            const replay_sizes each = replay_bytes(d);
            SSM_CUDA(d, copy_array(d, d->replay_x, each.x, layers, p, count), err);
            SSM_CUDA(d, copy_array(d, d->replay_b, each.b, layers, p, count), err);
            SSM_CUDA(d, copy_array(d, d->replay_dt, each.dt, layers, p, count), err);
        }
        SSM_CUDA(d, launch(d, copy_drawn_kernel, dim3(1), COPY_PAIRS, 0, false, d->drawn, p, count),
                 err);
    }
    return 0;
}

int logits_copy(ssm_device *dev, const int32_t *src, const int32_t *dst, int32_t n,
                ssm_error *err) {
    device *d = (device *)dev;
    SSM_TRY(device_refuse(d, err));
    for (int32_t i = 0; i < n; i += COPY_PAIRS) {
        slot_pairs p = {};
        const int count = n - i < COPY_PAIRS ? n - i : COPY_PAIRS;
        for (int k = 0; k < count; k++)
            p.src[k] = src[i + k], p.dst[k] = dst[i + k];
        SSM_CUDA(d, copy_array(d, d->logits, (size_t)d->g.vocab_size * sizeof(float), 1, p, count),
                 err);
    }
    return 0;
}

// ---- canonical form: fp32, conv [layer][channel][d_conv - 1] oldest first, then ssm

// oldest: the ring's entry that the next token overwrites
template <class T, bool WRITE>
__global__ void ring_kernel(T *ring, float *canonical, int channels, int kept, int oldest,
                            size_t layer_pitch) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= channels * kept)
        return;
    const int c = i / kept, j = i - c * kept;
    T *at = ring + blockIdx.y * layer_pitch + (size_t)((oldest + j) % kept) * channels + c;
    float *out = canonical + (size_t)blockIdx.y * channels * kept + i;
    if (WRITE)
        *at = from_float<T>(*out);
    else
        *out = to_float(*at);
}

template <class S, bool WRITE>
__global__ void state_kernel(S *state, float *canonical, size_t n, size_t layer_pitch) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    S *at = state + blockIdx.y * layer_pitch + i;
    float *out = canonical + blockIdx.y * n + i;
    if (WRITE)
        *at = from_float<S>(*out);
    else
        *out = to_float(*at);
}

static cudaError_t read_replayed(device *d, int32_t slot) {
    const size_t each = (size_t)d->g.d_inner * d->g.d_state;
    float *out = d->canonical + ssm_state_conv_floats(&d->g);
    cudaError_t rc = cudaSuccess;
    for (int i = 0; i < d->g.n_layers && rc == cudaSuccess; i++)
        rc = replay_read(d, i, slot, out + i * each);
    return rc;
}

template <bool WRITE> static cudaError_t convert_slot(device *d, int32_t slot) {
    const ssm_geometry &g = d->g;
    const int kept = g.d_conv - 1;
    const unsigned layers = (unsigned)g.n_layers;
    cudaError_t rc = with_type(d->ring_type, [&](auto t) {
        typedef decltype(t) T;
        const size_t each = (size_t)g.conv_dim * kept;
        return launch(d, ring_kernel<T, WRITE>, dim3((unsigned)ceil_div(each, 256), layers), 256, 0,
                      false, (T *)d->ring + each * slot, d->canonical, g.conv_dim, kept,
                      d->ring_at[slot], each * d->n_slots);
    });
    if (rc != cudaSuccess)
        return rc;
    if (!WRITE && d->held[slot].held > 0)
        return read_replayed(d, slot);
    return with_state_type(d->state_type, [&](auto s) {
        typedef decltype(s) S;
        const size_t each = (size_t)g.d_inner * g.d_state;
        return launch(d, state_kernel<S, WRITE>, dim3((unsigned)ceil_div(each, 256), layers), 256,
                      0, false, (S *)d->state + each * slot,
                      d->canonical + ssm_state_conv_floats(&g), each, each * d->n_slots);
    });
}

cudaError_t slots_convert(device *d, int32_t slot, bool write) {
    if (!write)
        return convert_slot<false>(d, slot);
    d->ring_at[slot] = 0;
    d->held[slot] = {};
    return convert_slot<true>(d, slot);
}

int slots_alloc(device *d, ssm_error *err) {
    const size_t all = (size_t)d->g.n_layers * d->n_slots;
    const size_t rings = all * ring_bytes(d), states = all * state_bytes(d);
    SSM_TRY(device_alloc(d, &d->ring, rings ? rings : 16, err));
    SSM_TRY(device_alloc(d, &d->state, states, err));
    if (d->replays) { // unread until written
        const replay_sizes each = replay_bytes(d);
        SSM_TRY(device_alloc(d, &d->replay_x, all * each.x, err));
        SSM_TRY(device_alloc(d, &d->replay_b, all * each.b, err));
        if (each.dt > 0)
            SSM_TRY(device_alloc(d, &d->replay_dt, all * each.dt, err));
    }
    SSM_TRY(device_alloc(d, (void **)&d->drawn, (size_t)d->n_slots * sizeof(int32_t), err));
    SSM_CUDA(d, cudaMemsetAsync(d->ring, 0, rings ? rings : 16, d->stream), err);
    SSM_CUDA(d, cudaMemsetAsync(d->state, 0, states, d->stream), err);
    SSM_CUDA(d, cudaMemsetAsync(d->drawn, 0, (size_t)d->n_slots * sizeof(int32_t), d->stream), err);
    return 0;
}

} // namespace ssm
