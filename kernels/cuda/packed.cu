// SPDX-License-Identifier: Apache-2.0
// Packs weights when a device is opened (packed.cuh): what their exponents are, whether they keep
// their values, and the copy itself, all on the device.
#include <stdlib.h>

#include "cuda.h"
#include "packed.cuh"

namespace ssm {

enum { PACKED_SHARE = 8 }; // of the memory that is free, at most one in so many bytes

// Of a matrix. The sums are of squares, in units of 4^(base - 133): of the last bit kept.
struct packed_facts {
    unsigned most;     // the largest exponent; 255: some are no numbers
    double all, wrong; // what its weights come to, what rounding changes
};

__global__ void exponents_kernel(const uint32_t *pairs, size_t n, packed_facts *facts) {
    unsigned most = 0;
    const size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        most = max(most, max(pairs[i] >> 7 & 255, pairs[i] >> 23 & 255));
    most = __reduce_max_sync(~0u, most);
    if (threadIdx.x % 32 == 0)
        atomicMax(&facts->most, most);
}

// Sign, four bits of exponent, seven of fraction of bits * 2^-base; subnormals rounded to even.
__device__ uint32_t packed_of(uint32_t bits, int base) {
    const int exponent = bits >> 7 & 255, at = max(exponent, 1) - base;
    const uint32_t sign = bits >> 15 << 11, fraction = bits & 127;
    if (at >= 1 && exponent > 0)
        return sign | (uint32_t)at << 7 | fraction;
    const uint32_t significand = exponent > 0 ? 128 | fraction : fraction;
    const int drop = max(1 - at, 0);
    if (drop > 9)
        return sign;
    const uint32_t half = drop ? 1u << (drop - 1) : 0, kept = significand >> drop;
    const uint32_t rest = significand & ((1u << drop) - 1);
    return sign | (kept + (rest > half || (rest == half && drop && kept % 2)));
}
// In units of the last bit.
__device__ double packed_value(uint32_t packed) {
    const int exponent = packed >> 7 & 15;
    const double v = exponent ? ldexp(128. + (packed & 127), exponent - 1) : packed & 127;
    return packed >> 11 ? -v : v;
}

// A unit a thread. IN: of in_proj, else of out_proj.
template <int NW, bool IN>
__global__ void pack_kernel(const bf16 *from, char *to, int base, packed_facts *facts) {
    typedef packed_shape<NW> shape;
    enum { ROW = IN ? shape::IN_UNITS : shape::OUT_UNITS, HALF_ROWS = shape::UNITS / ROW };
    const int columns = IN ? 32 * NW : 64 * NW, rows = IN ? 128 * NW : 32 * NW;
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int row = (int)(i / (columns / 8)), unit = (int)(i % (columns / 8));
    double all = 0, wrong = 0;
    if (row < rows) {
        // which slot, which half of it and which of its units
        const int slot = unit / ROW, in_slot = IN ? row % NW : row % (2 * NW);
        const int half = in_slot / HALF_ROWS, at = in_slot % HALF_ROWS * ROW + unit % ROW;
        char *p = to;
        if (IN) {
            const int z = row / (64 * NW), cluster = row % (64 * NW) / NW;
            p += shape::in_slot(z, slot % shape::IN_SLOTS, 2 * cluster + slot / shape::IN_SLOTS);
        } else {
            p += shape::out_slot(slot % shape::OUT_SLOTS,
                                 slot / shape::OUT_SLOTS * PACKED_TILES + row / (2 * NW));
        }
        const uint4 four = *(const uint4 *)(from + i * 8);
        const uint32_t words[4] = {four.x, four.y, four.z, four.w};
        uint32_t packed[3] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const uint32_t bits = words[k / 2] >> k % 2 * 16 & 0xffff;
            const uint32_t v = packed_of(bits, base);
#pragma unroll
            for (int at = 0; at < 3; at++)
                packed[at] |= packed_word(at, k, v);
            const int exponent = bits >> 7 & 255;
            const double was =
                ldexp((exponent ? 128. : 0.) + (bits & 127), max(exponent, 1) - base - 1);
            all += was * was;
            const double off = fabs(packed_value(v)) - was;
            wrong += off * off;
        }
        *(uint2 *)(p + (half ? shape::S_SECOND : shape::S_FIRST) + at * 8) =
            make_uint2(packed[0], packed[1]);
        *(uint32_t *)(p + (half ? shape::E_SECOND : shape::E_FIRST) + at * 4) = packed[2];
    }
    for (int o = 16; o; o /= 2)
        all += __shfl_xor_sync(~0u, all, o), wrong += __shfl_xor_sync(~0u, wrong, o);
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&facts->all, all);
        if (wrong > 0)
            atomicAdd(&facts->wrong, wrong);
    }
}

// ---- host side

template <class F> static bool with_shape(int d_model, F f) {
    switch (d_model) {
    case 32 * 24:
        return f(packed_shape<24>()), true;
    case 32 * 32:
        return f(packed_shape<32>()), true;
    case 32 * 48:
        return f(packed_shape<48>()), true;
    case 32 * 64:
        return f(packed_shape<64>()), true;
    case 32 * 80:
        return f(packed_shape<80>()), true;
    default:
        return false;
    }
}
template <int NW> static constexpr int width_of(packed_shape<NW>) {
    return NW;
}

static size_t layer_bytes(const device *d) {
    size_t bytes = 0;
    with_shape(d->g.d_model, [&](auto shape) { bytes = shape.IN_BYTES + shape.OUT_BYTES; });
    return bytes;
}

static int base_of(const packed_facts &f) {
    return f.most > 15 ? (int)f.most - 15 : 0;
}
// Two bf16 of 2^base; 0: there is none.
static uint32_t by_of(const packed_facts &f) {
    const uint32_t exponent = (uint32_t)base_of(f) + 127;
    return f.most < 255 && exponent < 255 ? exponent << 23 | exponent << 7 : 0;
}

// Exponents of both matrices of all layers, then the copy. facts: host and device, two a layer.
static int pack_all(device *d, packed_facts *facts, packed_facts *there, ssm_error *err) {
    const int n = d->g.n_layers, m = d->g.d_model, inner = d->g.d_inner;
    const size_t in = (size_t)d->n_in * m, out = (size_t)m * inner;
    SSM_CUDA(d, cudaMemsetAsync(there, 0, 2 * n * sizeof *there, d->stream), err);
    for (int i = 0; i < 2 * n; i++) {
        const layer_weights &w = d->layers[i / 2];
        SSM_CUDA(d,
                 launch(d, exponents_kernel, dim3(1024), 256, 0, false,
                        (const uint32_t *)(i % 2 ? w.out_proj : w.in_proj), (i % 2 ? out : in) / 2,
                        there + i),
                 err);
    }
    SSM_CUDA(d, cudaMemcpyAsync(facts, there, 2 * n * sizeof *there, cudaMemcpyDefault, d->stream),
             err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    for (int i = 0; i < 2 * n; i++) {
        if (!by_of(facts[i]))
            return 0;
    }
    for (int i = 0; i < n; i++) {
        layer_weights &w = d->layers[i];
        cudaError_t rc = cudaSuccess;
        with_shape(m, [&](auto shape) {
            constexpr int NW = width_of(decltype(shape)());
            char *to = (char *)d->packed + i * (shape.IN_BYTES + shape.OUT_BYTES);
            w.packed_in = to, w.packed_out = to + shape.IN_BYTES;
            rc = launch(d, pack_kernel<NW, true>, dim3((unsigned)(in / 8 / 256)), 256, 0, false,
                        (const bf16 *)w.in_proj, to, base_of(facts[2 * i]), there + 2 * i);
            if (rc == cudaSuccess)
                rc = launch(d, pack_kernel<NW, false>, dim3((unsigned)(out / 8 / 256)), 256, 0,
                            false, (const bf16 *)w.out_proj, to + shape.IN_BYTES,
                            base_of(facts[2 * i + 1]), there + 2 * i + 1);
        });
        SSM_CUDA(d, rc, err);
        w.packed_in_by = by_of(facts[2 * i]), w.packed_out_by = by_of(facts[2 * i + 1]);
    }
    SSM_CUDA(d, cudaMemcpyAsync(facts, there, 2 * n * sizeof *there, cudaMemcpyDefault, d->stream),
             err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    d->weights_packed = true;
    for (int i = 0; i < 2 * n; i++)
        d->weights_packed = d->weights_packed && facts[i].wrong <= facts[i].all * 0x1p-40;
    return 0;
}

int weights_pack(device *d, ssm_error *err) {
    const size_t bytes = layer_bytes(d) * d->g.n_layers, n = 2 * (size_t)d->g.n_layers;
    size_t free_bytes = 0, total = 0;
    SSM_CUDA(d, cudaMemGetInfo(&free_bytes, &total), err);
    if (!d->resident_room || d->options.unpacked || bytes > free_bytes / PACKED_SHARE)
        return 0;
    packed_facts *facts = (packed_facts *)calloc(n, sizeof *facts), *there = NULL;
    if (!facts)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the weights' exponents");
    int rc = device_check(d, cudaMalloc((void **)&there, n * sizeof *there), "cudaMalloc", err);
    if (rc == 0)
        rc = device_check(d, cudaMalloc(&d->packed, bytes), "cudaMalloc", err);
    if (rc == 0)
        rc = pack_all(d, facts, there, err);
    cudaFree(there);
    free(facts);
    if (d->weights_packed) {
        d->weight_bytes += bytes;
    } else {
        cudaFree(d->packed);
        d->packed = NULL;
    }
    return rc;
}

} // namespace ssm
