// SPDX-License-Identifier: Apache-2.0
// Published geometries with random weights.
#include <math.h>
#include <string.h>

#include "engine/model/model.h"
#include "tests/suite.h"

START_TEST(random_models_repeat) {
    ssm_model *a, *b;
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_BF16, 7, &a, NULL), 0);
    ck_assert_uint_eq(ssm_model_get_info(a)->parameters, 129135360); // as published
    ck_assert_int_eq(ssm_model_get_info(a)->weight_dtype, SSM_DTYPE_BF16);
    const ssm_layer *l = &ssm_model_weights(a)->layers[23];
    // From the definition, not from this implementation's output: A = 1..16, D = 1.
    ck_assert(fabsf(ssm_tensor_get(&l->A_log, 16 * 1535 + 15) - logf(16)) < 1e-6f);
    ck_assert(ssm_tensor_get(&l->D, 1535) == 1);
    for (size_t i = 0; i < 1536; i++) {
        const float dt = log1pf(expf(ssm_tensor_get(&l->dt_bias, i)));
        ck_assert(dt > 0.999e-3f && dt < 1.001e-1f);
    }
    double sum = 0, squares = 0;
    const size_t n = (size_t)l->in_proj.rows * (size_t)l->in_proj.cols;
    for (size_t i = 0; i < n; i++) {
        const double x = ssm_tensor_get(&l->in_proj, i);
        sum += x;
        squares += x * x;
    }
    ck_assert(fabs(sum / (double)n) < 1e-4);
    ck_assert(fabs(sqrt(squares / (double)n) - 1 / sqrt(3 * 768.0)) < 1e-4);
    const ssm_tensor first = ssm_model_weights(a)->layers[5].x_proj;
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_BF16, 7, &b, NULL), 0);
    const size_t bytes = ssm_dtype_bytes(first.dtype, (size_t)first.rows * (size_t)first.cols);
    ck_assert(memcmp(first.data, ssm_model_weights(b)->layers[5].x_proj.data, bytes) == 0);
    ssm_model_free(b);
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_BF16, 8, &b, NULL), 0);
    ck_assert(memcmp(first.data, ssm_model_weights(b)->layers[5].x_proj.data, bytes) != 0);
    ssm_model_free(b);
    ssm_model_free(a);
}
END_TEST

// Rounding to 16 bits of the same numbers, against the exact values.
START_TEST(random_types_agree) {
    ssm_model *models[3];
    const ssm_dtype types[3] = {SSM_DTYPE_F32, SSM_DTYPE_F16, SSM_DTYPE_BF16};
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(ssm_model_random("mamba2-130m", types[i], 1, &models[i], NULL), 0);
    const ssm_tensor *t[3];
    for (int i = 0; i < 3; i++)
        t[i] = &ssm_model_weights(models[i])->layers[3].out_proj;
    size_t at = 0; // in one assertion: Check writes a record of each
    for (bool agree = true; agree && at < 100000; at += agree) {
        const float exact = ssm_tensor_get(t[0], at);
        const float half = fmaxf(fabsf(exact) * 0x1p-11f, 0x1p-25f); // half a step of f16
        agree = fabsf(ssm_tensor_get(t[1], at) - exact) <= half &&
                fabsf(ssm_tensor_get(t[2], at) - exact) <= fabsf(exact) * 0x1p-8f;
    }
    ck_assert_msg(at == 100000, "number %zu", at);
    ck_assert_uint_eq(ssm_model_get_info(models[0])->state_bytes,
                      4u * 24 * ((1536 + 256) * 3 + 1536 * 128));
    for (int i = 0; i < 3; i++)
        ssm_model_free(models[i]);
}
END_TEST

START_TEST(geometries_are_listed) {
    ssm_error err;
    ssm_model *model;
    ck_assert_str_eq(ssm_model_geometry(0), "mamba-130m");
    int n = 0;
    while (ssm_model_geometry(n))
        n++;
    ck_assert_int_ge(n, 10);
    ck_assert_ptr_null(ssm_model_geometry(-1));
    ck_assert_int_eq(ssm_model_random("gpt-2", SSM_DTYPE_F32, 0, &model, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "geometry");
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_INT8, 0, &model, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "dtype");
}
END_TEST

int main(void) {
    Suite *suite = suite_create("model random");
    TCase *random = tcase_create("random"); // by threads: all that TSan is given
    tcase_set_timeout(random, 120);
    tcase_add_test(random, random_models_repeat);
    suite_add_tcase(suite, random);
    TCase *types = tcase_create("types");
    tcase_set_timeout(types, 120);
    tcase_add_test(types, random_types_agree);
    tcase_add_test(types, geometries_are_listed);
    suite_add_tcase(suite, types);
    return suite_run(suite);
}
