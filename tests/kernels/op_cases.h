// SPDX-License-Identifier: Apache-2.0
// One case of one kernel: its inputs, what must come out, and the call to time. The tests assert
// over odd shapes of these, bench_ops checks and times the published ones.
//
// Products and conversions are judged in two steps, so that a wrong sum is not hidden behind the
// error of a weight type: what was packed or converted is read back by the layouts that kernels.h
// states and compared with what went in; the product is compared with a sum in double over what was
// read back. Outputs are filled with NaN before a run: what a kernel leaves out is NaN in the
// error.
#ifndef SSM_TESTS_KERNELS_OP_CASES_H
#define SSM_TESTS_KERNELS_OP_CASES_H

#include <stdbool.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/pack.h"
#include "random_model.h"

// ---- matrices

typedef struct op_matrix {
    random_model data;
    ssm_tensor weight, bias;
    int32_t rows, cols;
    cpu_slice *copies; // [n_copies] of the same packed matrix
    int32_t n_copies;
    char *memory;
    size_t copy_bytes, memory_bytes;
} op_matrix;

// Packs random weights of a stored type. As many copies as fill `cold_bytes` take turns in runs, so
// that a product reads them from memory as a step does; 0: one copy. NULL: no memory.
op_matrix *op_matrix_create(ssm_dtype stored, int32_t rows, int32_t cols, cpu_format format,
                            size_t cold_bytes);
void op_matrix_free(op_matrix *matrix);

// Of what was packed against what was stored; the sums of INT8 rows count too.
double op_matrix_error(const op_matrix *matrix);

// ---- cases

typedef enum op_kind { OP_PRODUCT, OP_CONVERT, OP_CONV, OP_SCAN, OP_NORM, OP_SOFTPLUS } op_kind;

typedef struct op_shape {
    op_kind kind;
    int32_t tokens;
    int32_t n;      // features; CONV and SCAN: channels, a multiple of 16
    int32_t k;      // CONV: width; SCAN: states; NORM: groups
    int32_t groups; // SCAN without per_state: of B and C, a divisor of 16; more than 1: n is 16
    cpu_form form;  // CONVERT
    bool per_state; // SCAN
    bool fresh;     // CONV, SCAN: what lies in the slot must not matter
    float lo, hi;   // SOFTPLUS
} op_shape;

typedef struct op_case op_case;
struct op_case {
    double (*error)(op_case *, const cpu_kernels *); // prepares, runs, compares; NaN is failure
    void (*run)(op_case *, const cpu_kernels *);     // once more, for the clock
    double flops, bytes;                             // of a run: arithmetic, least memory moved
    op_shape shape;
    const op_matrix *matrix; // PRODUCT, borrowed
    cpu_format format;       // PRODUCT
    int32_t turn;            // of the matrix's copies
    void *arrays[16];        // owned, by each kind's own names
};

op_case *op_case_create(const op_shape *shape);

// CPU_W_BF16_DOT stands for bf16 weights by bf16 activations on any instruction set.
// CPU_W_WORD only where op_has_format.
op_case *op_case_create_product(const op_matrix *matrix, cpu_format format, int32_t tokens);
void op_case_free(op_case *c);

// Whether a table has products of a format.
bool op_has_format(const cpu_kernels *kernels, cpu_format format);

// ---- what the files of this folder share

float *op_alloc(size_t floats); // 64-byte aligned, NaN
float *op_random(random_model *r, size_t n, double mean, double spread);
// [tokens][n] to [ceil(n / 16)][tokens][16]; what lies past n is zero.
float *op_blocked(const float *x, int32_t n, int32_t tokens);
double op_distance(const float *got, const float *want, size_t n); // |got - want| / |want|
double op_worse(double a, double b); // the larger, NaN if either is NaN

op_case *op_case_new(const op_shape *shape);
void op_case_init_convert(op_case *c);
void op_case_init_conv(op_case *c);
void op_case_init_scan(op_case *c);

#endif
