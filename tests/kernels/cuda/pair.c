// SPDX-License-Identifier: Apache-2.0
#include <stdio.h>
#include <stdlib.h>

#include "tests.h"

const small_shape shapes[N_SHAPES] = {
    {"mamba", SSM_BLOCK_MAMBA, 3, 256, 512, 16, 4, 16, 0, 0, 1000, false, false, true},
    {"mamba odd", SSM_BLOCK_MAMBA, 2, 36, 60, 5, 3, 3, 0, 0, 77, false, true, false},
    {"mamba rank 24, state 8", SSM_BLOCK_MAMBA, 2, 96, 200, 8, 2, 24, 0, 0, 333, false, false,
     true},
    {"mamba rank 40", SSM_BLOCK_MAMBA, 2, 192, 384, 16, 4, 40, 0, 0, 515, false, true, true},
    {"falcon", SSM_BLOCK_MAMBA, 2, 128, 256, 16, 4, 8, 0, 0, 600, true, false, false},
    {"mamba2", SSM_BLOCK_MAMBA2, 3, 256, 512, 128, 4, 0, 8, 1, 1000, false, false, true},
    {"mamba2 groups", SSM_BLOCK_MAMBA2, 2, 128, 512, 128, 4, 0, 8, 4, 500, false, true, false},
    {"mamba2 64", SSM_BLOCK_MAMBA2, 2, 128, 256, 64, 4, 0, 4, 2, 300, false, false, true},
    {"mamba2 odd", SSM_BLOCK_MAMBA2, 2, 40, 66, 12, 3, 0, 6, 2, 99, false, true, false},
};

const small_shape wide[N_WIDE] = {
    {"mamba wide", SSM_BLOCK_MAMBA, 2, 512, 1024, 16, 4, 32, 0, 0, 500, false, false, true},
    {"mamba2 wide", SSM_BLOCK_MAMBA2, 2, 512, 1024, 128, 4, 0, 16, 1, 500, false, true, true},
    {"mamba large", SSM_BLOCK_MAMBA, 1, 1536, 3072, 16, 4, 96, 0, 0, 300, false, true, true},
};

// fp32: products and scans of a few hundred terms in another order. 16-bit weights are the
// reference's own; activations are rounded to 8 (bf16) or 11 bits before each of three products a
// layer, of two or three layers; an fp16 state is rounded once a token.
const number_format formats[N_FORMATS] = {
    {SSM_DTYPE_F32, SSM_DTYPE_F32, 2e-5}, {SSM_DTYPE_BF16, SSM_DTYPE_F32, 2.5e-2},
    {SSM_DTYPE_F16, SSM_DTYPE_F32, 3e-3}, {SSM_DTYPE_BF16, SSM_DTYPE_F16, 2.5e-2},
    {SSM_DTYPE_F32, SSM_DTYPE_F16, 2e-3},
};

double random_number(void) {
    static uint64_t state = 1;
    return small_uniform(&state);
}

int32_t below(int32_t n) {
    return (int32_t)(random_number() * n);
}

void rig_open_for(rig *r, const char *backend, const ssm_weights *w, ssm_dtype weight,
                  ssm_dtype state, int32_t slots, int32_t rows, int32_t tokens) {
    *r = rig_open_with(backend, w,
                       (ssm_device_options){.n_slots = slots,
                                            .max_rows = rows,
                                            .max_tokens = tokens,
                                            .weight_dtype = weight,
                                            .state_dtype = state});
}

void rig_open(rig *r, const char *backend, const ssm_weights *w, ssm_dtype weight,
              ssm_dtype state) {
    rig_open_for(r, backend, w, weight, state, SLOTS, ROWS, TOKENS);
}

void pair_open(pair *p, int shape, int format) {
    const ssm_dtype type = formats[format].weight;
    small_model_create(&p->model, &shapes[shape], type, (uint64_t)shape + 1);
    p->tolerance = formats[format].tolerance;
    p->worst = 0;
    snprintf(p->what, sizeof p->what, "%s, %s weights, %s state", shapes[shape].name,
             ssm_dtype_name(type), ssm_dtype_name(formats[format].state));
    rig_open(&p->cuda, "cuda", &p->model.weights, type, formats[format].state);
    rig_open(&p->reference, "reference", &p->model.weights, type, SSM_DTYPE_F32);
}

void pair_close(pair *p) {
    rig_close(&p->cuda);
    rig_close(&p->reference);
    small_model_free(&p->model);
}

void compare(pair *p, float *a, float *b, size_t n, const char *of) {
    const double off = distance(a, b, n);
    ck_assert_msg(off <= p->tolerance, "%s: %s off by %g (%g allowed)", p->what, of, off,
                  p->tolerance);
    p->worst = off > p->worst ? off : p->worst;
    free(a);
    free(b);
}
