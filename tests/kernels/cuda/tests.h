// SPDX-License-Identifier: Apache-2.0
// Inside of test_cuda: models and formats that its files share, a model on a CUDA device beside the
// reference, and each file's tests.
#ifndef SSM_TESTS_CUDA_TESTS_H
#define SSM_TESTS_CUDA_TESTS_H

#include "../small_model.h"
#include "device.h"

enum { N_SHAPES = 9, N_WIDE = 3, N_FORMATS = 5, SLOTS = 40, ROWS = 168, TOKENS = 700 };
extern const small_shape shapes[N_SHAPES]; // both kinds, odd sizes
extern const small_shape wide[N_WIDE];     // sizes that fill a card
extern const small_shape broad;            // so many channels that one prompt does

typedef struct number_format {
    ssm_dtype weight, state;
    double tolerance;
} number_format;
extern const number_format formats[N_FORMATS];

double random_number(void); // in [0, 1), the same ones in every run
int32_t below(int32_t n);   // a random one in [0, n)

void rig_open_for(rig *r, const char *backend, const ssm_weights *w, ssm_dtype weight,
                  ssm_dtype state, int32_t slots, int32_t rows, int32_t tokens);
void rig_open(rig *r, const char *backend, const ssm_weights *w, ssm_dtype weight, ssm_dtype state);

typedef struct pair {
    small_model model;
    rig cuda, reference;
    double tolerance, worst;
    char what[96];
} pair;

void pair_open(pair *p, int shape, int format);
void pair_close(pair *p);
void compare(pair *p, float *a, float *b, size_t n, const char *of); // frees a and b

// ---- tests by file. Some are for a part of the suite alone: test_cuda PART.

typedef enum cuda_part {
    PART_ALL,
    PART_QUICK,  // under a sanitizer: bf16, both kinds
    PART_RACE,   // under racecheck, which makes kernels hundreds of times slower
    PART_FEW,    // what few.cu can break, no more
    PART_MEDIUM, // steps of 9 to 64 rows, no more
    PART_XPROJ,  // what xproj.cu can break, no more
    PART_WIDE,   // the same of wide.cuh
    PART_HELD,   // Mamba-1's states that are not written every token, no more
    PART_AHEAD,  // steps and draws asked for ahead of the device, no more
    PART_HEAD,   // what head.cu can break, no more
    PART_PACKED, // weights in 12 bits, no more
    PART_OPEN,   // several openings of one model, no more
} cuda_part;

void plans_tests(TCase *tc, cuda_part part, int one); // of the race part's four; -1: all
void prompts_tests(TCase *tc, cuda_part part);
void large_tests(TCase *tc, cuda_part part);
void rows_tests(TCase *tc, cuda_part part);
void few_tests(TCase *tc, TCase *largest, TCase *states, cuda_part part,
               int one);                               // of the widths; -1: all
void medium_tests(TCase *tc, cuda_part part, int one); // the same
void xproj_tests(TCase *tc, cuda_part part, int one);  // the same
void wide_tests(TCase *tc, cuda_part part, int one);   // the same
void head_tests(TCase *tc, cuda_part part);
void packed_tests(TCase *tc, cuda_part part, int one); // of the widths; behind them: odd models
void states_tests(TCase *tc, cuda_part part);
void replay_tests(TCase *tc, cuda_part part);
void held_tests(TCase *tc, cuda_part part);
void ahead_tests(TCase *tc, cuda_part part);
void traffic_tests(TCase *tc, cuda_part part);
void sampling_tests(TCase *tc, cuda_part part);
void openings_tests(TCase *tc, cuda_part part);

#endif
