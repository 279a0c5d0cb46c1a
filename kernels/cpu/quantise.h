// SPDX-License-Identifier: Apache-2.0
// Rounding of weights to integers (kernels.h has what becomes of them).
#ifndef SSM_KERNELS_CPU_QUANTISE_H
#define SSM_KERNELS_CPU_QUANTISE_H

#include "kernels.h"

// A group of INT4 to INT6: weight i is (codes[i] - half of the range) * scale * unit.
typedef struct cpu_group {
    int8_t scale;
    uint8_t codes[CPU_GROUP];
} cpu_group;

// The row's unit of scales: its largest group can just have 127 of them.
float cpu_group_unit(const float *row, int64_t cols, cpu_format format);
void cpu_quantise_group(const float x[CPU_GROUP], float unit, cpu_format format, cpu_group *out);

#endif
