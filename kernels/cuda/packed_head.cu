// SPDX-License-Identifier: Apache-2.0
// Packs the head when a device is opened (packed.cuh, head_packed.cu), on the device: each row's
// largest weight, whose power of two is the row's own, and how many of its weights would change,
// then the copy, which finds out how much each column has beside its rows' largest. A head that
// does not fit into the format or the memory is one without a copy.
#include <stdlib.h>

#include "cuda.h"
#include "packed.cuh"

namespace ssm {

// What is found out, on the device: rows that do not fit; what columns were told [d_model].
enum { HEAD_BROKEN, HEAD_COLUMNS };

// How many of eight weights are not what they are when packed.
__device__ __forceinline__ unsigned changed(const uint4 &eight, int base) {
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
    unsigned n = 0;
#pragma unroll
    for (int k = 0; k < PACKED_UNIT; k++) {
        const uint32_t bits = words[k / 2] >> k % 2 * 16 & 0xffff;
        n += packed_bf16(packed_of(bits, base), base) != bits;
    }
    return n;
}

// A warp a row, `most` [row] of the tiles' rows: those that the head does not have are zero.
__global__ void __launch_bounds__(256)
    head_most_kernel(const bf16 *head, int rows, int columns, uint32_t *most, float *by,
                     unsigned *facts) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    const bf16 *from = head + (size_t)row * columns;
    const int n = row < rows ? columns : 0;
    uint32_t all = 0;
    for (int i = lane * PACKED_UNIT; i < n; i += 32 * PACKED_UNIT) {
        const uint4 four = *(const uint4 *)(from + i);
        all = __vmaxu2(all, __vmaxu2(__vmaxu2(four.x & 0x7fff7fff, four.y & 0x7fff7fff),
                                     __vmaxu2(four.z & 0x7fff7fff, four.w & 0x7fff7fff)));
    }
    const uint32_t largest = __reduce_max_sync(~0u, max(all & 0xffff, all >> 16));
    unsigned others = 0;
    for (int i = lane * PACKED_UNIT; i < n; i += 32 * PACKED_UNIT)
        others += changed(*(const uint4 *)(from + i), packed_base(largest));
    others = __reduce_add_sync(~0u, others);
    if (lane > 0)
        return;
    most[row] = largest, by[row] = __uint_as_float(packed_head_by(largest));
    if (packed_head_by(largest) == 0 || others > (unsigned)n / PACKED_CHANGES)
        atomicAdd(facts + HEAD_BROKEN, 1);
}

// A unit a thread.
__global__ void __launch_bounds__(256)
    head_pack_kernel(const bf16 *head, int rows, int columns, const uint32_t *most, char *to,
                     unsigned *facts) {
    const unsigned units = (unsigned)(columns / PACKED_UNIT); // of a row
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = (int)(i / units), unit = (int)(i % units);
    const packed_place place = packed_head_place(columns / PACKED_HEAD_COLUMNS, row, unit);
    const int base = packed_base(most[row]);
    uint32_t packed[3] = {};
    for (int k = 0; k < PACKED_UNIT && row < rows; k++) {
        const int column = packed_head_column(unit, k);
        const uint32_t bits = __bfloat16_as_ushort(head[(size_t)row * columns + column]);
        const uint32_t v = packed_of(bits, base), told = packed_head_told(bits, most[row]);
#pragma unroll
        for (int at = 0; at < 3; at++)
            packed[at] |= packed_word(at, k, v);
        if (told > __ldcg(facts + HEAD_COLUMNS + column)) // few are, once some have been here
            atomicMax(facts + HEAD_COLUMNS + column, told);
    }
    *(uint2 *)(to + place.s) = make_uint2(packed[0], packed[1]);
    *(uint32_t *)(to + place.e) = packed[2];
}

// ---- host side

// Memory while it is found out, and the copy.
struct head_packing {
    size_t rows, words, bytes; // of the tiles; of facts; of the copy, which ends with rows' factors
    uint32_t *most;            // device [rows]
    unsigned *card, *host;     // facts
};

static int pack_into(device *d, head_packing *p, ssm_error *err) {
    const int columns = d->g.d_model, rows = d->g.vocab_size;
    const bf16 *head = (const bf16 *)d->lm_head;
    SSM_CUDA(d, cudaMemsetAsync(p->card, 0, p->words * sizeof *p->card, d->stream), err);
    SSM_CUDA(d,
             launch(d, head_most_kernel, dim3((unsigned)p->rows / 8), 256, 0, false, head, rows,
                    columns, p->most, d->packed_head_by, p->card),
             err);
    SSM_CUDA(d,
             launch(d, head_pack_kernel,
                    dim3((unsigned)(p->rows * (size_t)columns / PACKED_UNIT / 256)), 256, 0, false,
                    head, rows, columns, (const uint32_t *)p->most, (char *)d->packed_head,
                    p->card),
             err);
    SSM_CUDA(
        d,
        cudaMemcpyAsync(p->host, p->card, p->words * sizeof *p->host, cudaMemcpyDefault, d->stream),
        err);
    SSM_CUDA(d, cudaStreamSynchronize(d->stream), err);
    bool fit = p->host[HEAD_BROKEN] == 0;
    for (int i = 0; i < columns; i++)
        fit = fit && packed_head_reaches(p->host[HEAD_COLUMNS + i]);
    if (!fit)
        head_unpack(d);
    return 0;
}

static int pack(device *d, head_packing *p, ssm_error *err) {
    void *all = NULL;
    int rc = packed_alloc(d, &d->packed_head, p->bytes, err);
    if (rc == 0 && d->packed_head)
        rc = packed_alloc(d, &all, p->rows * sizeof *p->most + p->words * sizeof *p->card, err);
    if (rc == 0 && all) {
        d->packed_head_by = (float *)((char *)d->packed_head + p->bytes) - p->rows;
        p->most = (uint32_t *)all, p->card = (unsigned *)(p->most + p->rows);
        rc = pack_into(d, p, err);
    } else {
        head_unpack(d);
    }
    cudaFree(all);
    return rc;
}

void head_unpack(device *d) {
    cudaFree(d->packed_head);
    d->packed_head = NULL, d->packed_head_by = NULL;
}

int head_pack(device *d, ssm_error *err) {
    if (is_lti(d) || d->weight_type != SSM_DTYPE_BF16 || d->arch != 90 ||
        d->g.d_model % PACKED_HEAD_COLUMNS != 0)
        return 0;
    const size_t columns = (size_t)d->g.d_model;
    head_packing p = {};
    p.rows = (size_t)ceil_div(d->g.vocab_size, PACKED_HEAD_ROWS) * PACKED_HEAD_ROWS;
    p.words = HEAD_COLUMNS + columns;
    p.bytes = p.rows * columns / 2 * 3 + p.rows * sizeof(float);
    p.host = (unsigned *)calloc(p.words, sizeof *p.host);
    if (!p.host)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory to pack the head");
    const int rc = pack(d, &p, err);
    free(p.host);
    if (rc == 0 && d->packed_head)
        d->weight_bytes += p.bytes, d->packed_bytes += p.bytes;
    return rc;
}

} // namespace ssm
