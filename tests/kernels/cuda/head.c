// SPDX-License-Identifier: Apache-2.0
// Logits of vocabularies of any size (head.cu, head_packed.cu): every column of some rows against
// the reference, in steps of any number of rows; and nothing is written behind a step's rows.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// Narrow models, for the reference's sake. Two layers' widths are no multiple of a piece of 64
// columns, vocabularies none of a tile; the last two are not head.cu's. Those of multiples of 64
// are head_packed.cu's for up to 64 rows, unless there are no packed weights.
static const small_shape heads[] = {
    {"50,280 of 136", SSM_BLOCK_MAMBA, 1, 136, 272, 16, 4, 9, 0, 0, 50280, false, false, true},
    {"50,288 of 64", SSM_BLOCK_MAMBA2, 1, 64, 128, 64, 4, 0, 2, 1, 50288, false, false, false},
    {"1,004 of 768", SSM_BLOCK_MAMBA, 1, 768, 1536, 16, 4, 48, 0, 0, 1004, false, false, false},
    {"964 of 264", SSM_BLOCK_MAMBA, 1, 264, 528, 16, 4, 17, 0, 0, 964, false, true, false},
    {"192 of 200", SSM_BLOCK_MAMBA, 1, 200, 400, 16, 4, 13, 0, 0, 192, false, false, true},
    {"188 of 128", SSM_BLOCK_MAMBA, 1, 128, 256, 16, 4, 8, 0, 0, 188, false, false, true},
    {"1,001 of 128", SSM_BLOCK_MAMBA, 1, 128, 256, 16, 4, 8, 0, 0, 1001, false, false, true},
};
enum { N_HEADS = sizeof heads / sizeof heads[0] };

START_TEST(logits_of_any_vocabulary_agree) {
    static const int32_t counts[] = {1, 3, 9, 16, 33, 64, 65, 127, 129, 192, 250, 385, 600};
    pair p = {.tolerance = 2.5e-2}; // formats[] of bf16
    const small_shape *shape = &heads[_i % N_HEADS];
    const bool unpacked = _i >= N_HEADS;
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, (uint64_t)_i + 31);
    snprintf(p.what, sizeof p.what, "head, %s%s", shape->name, unpacked ? ", unpacked" : "");
    p.cuda = rig_open_with("cuda", &p.model.weights,
                           (ssm_device_options){.n_slots = MANY,
                                                .max_rows = MANY,
                                                .max_tokens = MANY,
                                                .weight_dtype = SSM_DTYPE_BF16,
                                                .state_dtype = SSM_DTYPE_F32,
                                                .unpacked = unpacked});
    rig_open_for(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, MANY,
                 MANY, MANY);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        rig_step_rows(&p.cuda, counts[c], 1, 0);
        rig_step_rows(&p.reference, counts[c], EACH, 0);
        for (int32_t i = 0; i < counts[c]; i += EACH)
            compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, i / EACH),
                    (size_t)p.cuda.vocab, "logits");
    }
    printf("%-44s worst %.1e\n", p.what, p.worst);
    pair_close(&p);
}
END_TEST

// Kept rows begin where a step's end, inside the last tile.
START_TEST(kept_logits_stay_as_they_are) {
    enum { KEPT = 64, STEP = 180, ROOM = 192 };
    small_model m;
    ssm_error err = {0};
    small_model_create(&m, &heads[2], SSM_DTYPE_BF16, 41);
    rig r = rig_open_with("cuda", &m.weights,
                          (ssm_device_options){.n_slots = MANY,
                                               .max_rows = STEP,
                                               .max_tokens = MANY,
                                               .kept_rows = KEPT,
                                               .weight_dtype = SSM_DTYPE_BF16,
                                               .state_dtype = SSM_DTYPE_F32});
    ssm_device_info info;
    r.b->info(r.d, &info);
    ck_assert_int_eq(info.max_rows, ROOM);
    float *kept[KEPT];
    int32_t from[KEPT], to[KEPT];
    for (int32_t k = 0; k < KEPT; k++)
        from[k] = k, to[k] = ROOM + k;
    rig_step_rows(&r, STEP, 1, 0);
    must(r.b->logits_copy(r.d, from, to, KEPT, &err), &err);
    for (int32_t k = 0; k < KEPT; k++)
        kept[k] = rig_logits(&r, k);
    rig_step_rows(&r, STEP, 1, 1);
    for (int32_t k = 0; k < KEPT; k++) {
        float *now = rig_logits(&r, ROOM + k);
        ck_assert_msg(memcmp(now, kept[k], (size_t)r.vocab * sizeof *now) == 0,
                      "a step changed kept row %d", k);
        free(now);
        free(kept[k]);
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void head_tests(TCase *tc, cuda_part part) {
    if (part != PART_ALL && part != PART_HEAD)
        return;
    tcase_add_loop_test(tc, logits_of_any_vocabulary_agree, 0, 2 * N_HEADS);
    tcase_add_test(tc, kept_logits_stay_as_they_are);
}
