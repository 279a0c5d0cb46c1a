// SPDX-License-Identifier: Apache-2.0
// Packing of weights into the streams that products read (kernels.h has the layouts).
#ifndef SSM_KERNELS_CPU_PACK_H
#define SSM_KERNELS_CPU_PACK_H

#include "kernels.h"
#include "kernels/weights.h"

// Memory that a thread fills: first a walk with base NULL counts bytes, then the same walk takes
// them.
typedef struct cpu_arena {
    char *base;
    size_t used, size;
} cpu_arena;

// 64-byte aligned; NULL while counting.
void *cpu_arena_take(cpu_arena *arena, size_t bytes);

// Zeroed anonymous memory in huge pages where there are any; NULL. Pages belong to who writes
// first.
void *cpu_map(size_t bytes);
void cpu_unmap(void *memory, size_t bytes);

// Rows [row, row + rows) of a tensor that begin at a whole block.
typedef struct cpu_region {
    int32_t row, rows;
} cpu_region;

enum { CPU_MAX_REGIONS = 3 };

// A matrix to pack: its blocks are those of its regions in turn.
typedef struct cpu_matrix {
    const ssm_tensor *weight;
    const ssm_tensor *bias;  // may be NULL or absent
    const ssm_tensor *bias2; // added to the bias of the last region (Mamba-2's dt_bias), or NULL
    cpu_region regions[CPU_MAX_REGIONS];
    int n_regions;
    cpu_format format;
} cpu_matrix;

int32_t cpu_blocks(int64_t n); // of 16, the last one filled up
int32_t cpu_matrix_blocks(const cpu_matrix *matrix);

// Packs blocks [first, end). Values that do not change (a type as stored) are copied as they are.
void cpu_pack(cpu_arena *arena, const cpu_matrix *matrix, int32_t first, int32_t end,
              cpu_slice *out);

// n numbers of a vector from i on, the rest of their whole blocks zero; absent: zeros.
float *cpu_pack_vector(cpu_arena *arena, const ssm_tensor *tensor, int64_t i, int64_t n);

#endif
