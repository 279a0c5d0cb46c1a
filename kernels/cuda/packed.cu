// SPDX-License-Identifier: Apache-2.0
// Packs weights when a device is opened (packed.cuh), on the device: the largest weight of each row
// and column, which say whether the numbers will do, then the copy itself, which counts what
// changed. A model whose weights do not fit into the format or the memory is one without a copy.
// H200: 12 ms for 2.8b, 1.6 for 130m.
#include <stdlib.h>

#include "cuda.h"
#include "packed.cuh"

namespace ssm {

enum { PACKED_SHARE = 8 }; // of the memory that is free, at most one in so many bytes

// Largest magnitudes of [n rows][columns], by row and by column. A warp has 8 rows of 256 columns.
__global__ void largest_kernel(const bf16 *weights, int columns, unsigned *of_rows,
                               unsigned *of_columns) {
    enum { WARPS = 8, ROWS = 8, COLUMNS = 32 * PACKED_UNIT };
    __shared__ unsigned most[COLUMNS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    most[threadIdx.x] = 0;
    __syncthreads();
    const int column = blockIdx.x * COLUMNS + lane * PACKED_UNIT;
    const int first = (blockIdx.y * WARPS + warp) * ROWS;
    uint32_t pairs[4] = {};
#pragma unroll
    for (int k = 0; k < ROWS; k++) {
        const uint4 four = *(const uint4 *)(weights + (size_t)(first + k) * columns + column);
        const uint32_t words[4] = {four.x & 0x7fff7fff, four.y & 0x7fff7fff, four.z & 0x7fff7fff,
                                   four.w & 0x7fff7fff};
        uint32_t all = 0;
        for (int i = 0; i < 4; i++)
            pairs[i] = __vmaxu2(pairs[i], words[i]), all = __vmaxu2(all, words[i]);
        const unsigned row = __reduce_max_sync(~0u, max(all & 0xffff, all >> 16));
        if (lane == 0)
            atomicMax(of_rows + first + k, row);
    }
    for (int i = 0; i < PACKED_UNIT; i++)
        atomicMax(most + lane * PACKED_UNIT + i, pairs[i / 2] >> i % 2 * 16 & 0xffff);
    __syncthreads();
    atomicMax(of_columns + blockIdx.x * COLUMNS + threadIdx.x, most[threadIdx.x]);
}

// A unit a thread. z_first: in_proj's rows of z stand before those of x. changed: weights that are
// not what they were.
__global__ void pack_kernel(const bf16 *from, char *to, bool in_proj, bool z_first, int nw,
                            int base, unsigned *changed) {
    const unsigned units = (unsigned)((in_proj ? 32 : 64) * nw / PACKED_UNIT); // of a row
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const int inner = 64 * nw, row = (int)(i / units);
    const int at = !z_first ? row : row < inner ? row + inner : row - inner;
    const packed_place place = packed_place_of(in_proj, nw, at, (int)(i % units));
    const uint4 four = *(const uint4 *)(from + (size_t)i * PACKED_UNIT);
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    uint32_t packed[3] = {};
    unsigned others = 0;
#pragma unroll
    for (int k = 0; k < PACKED_UNIT; k++) {
        const uint32_t bits = words[k / 2] >> k % 2 * 16 & 0xffff, v = packed_of(bits, base);
#pragma unroll
        for (int at = 0; at < 3; at++)
            packed[at] |= packed_word(at, k, v);
        others += packed_bf16(v, base) != bits;
    }
    *(uint2 *)(to + place.s) = make_uint2(packed[0], packed[1]);
    *(uint32_t *)(to + place.e) = packed[2];
    others = __reduce_add_sync(~0u, others);
    if (threadIdx.x % 32 == 0 && others > 0)
        atomicAdd(changed, others);
}

// ---- host side

// Two matrices a layer: in_proj, out_proj.
struct packed_matrix {
    const bf16 *weights;
    int rows, columns;
    size_t at; // in the copy
    uint32_t most;
};

static int in_rows(const device *d) { // of x and z: Mamba-2's others stay as they are
    return 2 * d->g.d_inner;
}

static size_t in_bytes(const device *d) {
    return (size_t)in_rows(d) * d->g.d_model / 2 * 3;
}

static size_t layer_bytes(const device *d) {
    return in_bytes(d) + (size_t)d->g.d_model * d->g.d_inner / 2 * 3;
}

static packed_matrix matrix(const device *d, int i) {
    const layer_weights &w = d->layers[i / 2];
    const int m = d->g.d_model, inner = d->g.d_inner;
    const size_t layer = i / 2 * layer_bytes(d);
    return i % 2 ? packed_matrix{(const bf16 *)w.out_proj, m, inner, layer + in_bytes(d), 0}
                 : packed_matrix{(const bf16 *)w.in_proj, in_rows(d), m, layer, 0};
}

// What is found out about weights: on the host, and on the device meanwhile.
struct packed_facts {
    size_t n, sums;        // matrices; rows and columns of two
    unsigned *host, *card; // [n / 2][sums] largest magnitudes, then [n] how many weights changed
    uint32_t *most;        // host [n]
};

static size_t facts_words(const packed_facts &f) {
    return f.n / 2 * f.sums + f.n;
}

static int facts_read(device *d, packed_facts *f, ssm_error *err) {
    SSM_CUDA(d,
             cudaMemcpyAsync(f->host, f->card, facts_words(*f) * sizeof *f->host, cudaMemcpyDefault,
                             d->stream),
             err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    return 0;
}

static unsigned *largest_of(unsigned *words, const packed_facts &f, const packed_matrix &m,
                            size_t i) {
    return words + i / 2 * f.sums + (i % 2 ? f.sums - (size_t)(m.rows + m.columns) : 0);
}

// Whether all matrices can be packed; f->most is set.
static int find_most(device *d, packed_facts *f, bool *fit, ssm_error *err) {
    SSM_CUDA(d, cudaMemsetAsync(f->card, 0, facts_words(*f) * sizeof *f->card, d->stream), err);
    for (size_t i = 0; i < f->n; i++) {
        const packed_matrix m = matrix(d, (int)i);
        unsigned *rows = largest_of(f->card, *f, m, i);
        SSM_CUDA(d,
                 launch(d, largest_kernel, dim3((unsigned)m.columns / 256, (unsigned)m.rows / 64),
                        256, 0, false, m.weights, m.columns, rows, rows + m.rows),
                 err);
    }
    SSM_TRY(facts_read(d, f, err));
    *fit = true;
    for (size_t i = 0; i < f->n; i++) {
        const packed_matrix m = matrix(d, (int)i);
        const unsigned *largest = largest_of(f->host, *f, m, i);
        for (int k = 0; k < m.rows; k++)
            f->most[i] = largest[k] > f->most[i] ? largest[k] : f->most[i];
        *fit = *fit && packed_by(f->most[i]) != 0;
        for (int k = 0; k < m.rows + m.columns; k++)
            *fit = *fit && packed_reaches(largest[k], f->most[i]);
    }
    return 0;
}

static int pack_all(device *d, packed_facts *f, ssm_error *err) {
    unsigned *changed = f->card + f->n / 2 * f->sums;
    for (size_t i = 0; i < f->n; i++) {
        const packed_matrix m = matrix(d, (int)i);
        const dim3 grid((unsigned)((size_t)m.rows * m.columns / PACKED_UNIT / 256));
        SSM_CUDA(d,
                 launch(d, pack_kernel, grid, 256, 0, false, m.weights, (char *)d->packed + m.at,
                        i % 2 == 0, i % 2 == 0 && d->g.kind == SSM_BLOCK_MAMBA2, d->g.d_model / 32,
                        packed_base(f->most[i]), changed + i),
                 err);
    }
    SSM_TRY(facts_read(d, f, err));
    d->weights_packed = true;
    for (size_t i = 0; i < f->n; i++) {
        const packed_matrix m = matrix(d, (int)i);
        d->weights_packed = d->weights_packed && f->host[f->n / 2 * f->sums + i] <=
                                                     (size_t)m.rows * m.columns / PACKED_CHANGES;
    }
    return 0;
}

// Memory for a copy is not worth a failure.
int packed_alloc(device *d, void **out, size_t bytes, ssm_error *err) {
    size_t free_bytes = 0, total = 0;
    SSM_CUDA(d, cudaMemGetInfo(&free_bytes, &total), err);
    *out = NULL;
    if (bytes > free_bytes / PACKED_SHARE)
        return 0;
    const cudaError_t rc = cudaMalloc(out, bytes);
    if (rc != cudaErrorMemoryAllocation)
        return device_check(d, rc, "cudaMalloc", err);
    cudaGetLastError();
    *out = NULL;
    return 0;
}

static int pack(device *d, packed_facts *f, size_t bytes, ssm_error *err) {
    bool fit = false;
    void *card = NULL;
    SSM_TRY(packed_alloc(d, &card, facts_words(*f) * sizeof *f->card, err));
    f->card = (unsigned *)card;
    if (f->card)
        SSM_TRY(packed_alloc(d, &d->packed, bytes, err));
    if (d->packed)
        SSM_TRY(find_most(d, f, &fit, err));
    return fit ? pack_all(d, f, err) : 0;
}

static void point_at(device *d, const uint32_t *most) {
    for (int i = 0; i < d->g.n_layers; i++) {
        layer_weights &w = d->layers[i];
        w.packed_in = (const char *)d->packed + matrix(d, 2 * i).at;
        w.packed_out = (const char *)d->packed + matrix(d, 2 * i + 1).at;
        w.packed_in_by = packed_by(most[2 * i]), w.packed_out_by = packed_by(most[2 * i + 1]);
    }
}

void weights_unpack(device *d) {
    head_unpack(d);
    d->weight_bytes -= d->packed_bytes;
    d->weights_packed = false;
    d->packed_bytes = 0;
    cudaFree(d->packed);
    d->packed = NULL;
}

static int pack_layers(device *d, ssm_error *err) {
    const size_t bytes = layer_bytes(d) * d->g.n_layers;
    packed_facts f = {(size_t)d->g.n_layers * 2, 0, NULL, NULL, NULL};
    f.sums = (size_t)in_rows(d) + 2 * d->g.d_model + d->g.d_inner;
    f.host = (unsigned *)calloc(facts_words(f), sizeof *f.host);
    f.most = (uint32_t *)calloc(f.n, sizeof *f.most);
    const int rc = f.host && f.most
                       ? pack(d, &f, bytes, err)
                       : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory to pack weights");
    if (rc == 0 && d->weights_packed) {
        point_at(d, f.most);
        d->weight_bytes += bytes, d->packed_bytes += bytes;
    } else {
        d->weights_packed = false;
        cudaFree(d->packed);
        d->packed = NULL;
    }
    cudaFree(f.card);
    free(f.host);
    free(f.most);
    return rc;
}

int weights_pack(device *d, ssm_error *err) {
    if (d->options.unpacked)
        return 0;
    if (solo_reads_packed(d))
        SSM_TRY(pack_layers(d, err));
    return head_pack(d, err);
}

} // namespace ssm
