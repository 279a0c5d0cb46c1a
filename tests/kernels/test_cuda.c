// SPDX-License-Identifier: Apache-2.0
// The CUDA backend against the reference: models of both kinds and odd shapes in every number
// format, random plans that mix decode rows and prompts, states, forks, sampling. Properties that
// need no oracle are checked bit for bit: a row's independence of slot, place and neighbours, and
// the same answer twice. The tests are in cuda/, a file a subject; a word chooses a part of them.
#include <stdlib.h>
#include <string.h>

#include "cuda/tests.h"

START_TEST(too_many_sessions_say_how_many_would_fit) {
    small_model m;
    ssm_error err = {0};
    ssm_device *d = NULL;
    small_model_create(&m, &shapes[5], SSM_DTYPE_BF16, 1);
    const ssm_backend *b = ssm_backend_find("cuda");
    ssm_device_options o = {.n_slots = 100000000, .max_rows = 64, .max_tokens = 64};
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), SSM_ENOMEM);
    ck_assert_msg(strstr(err.message, " would") != NULL, "%s", err.message);
    o.n_slots = 0;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), 0);
    ssm_device_info info;
    b->info(d, &info);
    ck_assert_int_gt(info.n_slots, 64);
    ck_assert_int_eq(info.kept_rows, 0);
    b->close(d);
    o.kept_rows = -1;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), 0);
    b->info(d, &info);
    ck_assert_int_eq(info.kept_rows, info.n_slots / 4);
    b->close(d);
    o.index = 99;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), SSM_EINVAL);
    o.index = 0;
    o.state_dtype = SSM_DTYPE_BF16;
    ck_assert_int_eq(b->open(&m.weights, &o, &d, &err), SSM_EUNSUPPORTED);
    small_model_free(&m);
}
END_TEST

static cuda_part part_of(const char *word) {
    static const char *const words[] = {"all",  "quick", "race",  "few",  "medium", "xproj",
                                        "wide", "held",  "ahead", "head", "packed", "open"};
    for (int i = PART_ALL; word && i <= PART_OPEN; i++) {
        if (strcmp(word, words[i]) == 0)
            return (cuda_part)i;
    }
    return PART_ALL;
}

int main(int argc, char **argv) {
    small_model m;
    small_model_create(&m, &shapes[1], SSM_DTYPE_F32, 1);
    const int missing = device_missing(&m.weights);
    small_model_free(&m);
    if (missing)
        return missing;
    const cuda_part part = part_of(argc > 1 ? argv[1] : NULL);
    Suite *suite = suite_create("cuda");
    TCase *tc = suite_case(suite, "device"), *states = suite_case(suite, "states"),
          *prompts = suite_case(suite, "prompts"), *large = suite_case(suite, "large"),
          *wide_case = suite_case(suite, "wide"), *few = suite_case(suite, "few"),
          *medium = suite_case(suite, "medium"), *packed = suite_case(suite, "packed"),
          *largest = suite_case(suite, "largest");
    if (argc > 2) { // test_cuda few N: this width alone; race N: this form of a step
        if (part == PART_RACE)
            plans_tests(tc, part, atoi(argv[2]));
        few_tests(few, largest, states, part, atoi(argv[2]));
        medium_tests(medium, part, atoi(argv[2]));
        xproj_tests(large, part, atoi(argv[2]));
        wide_tests(wide_case, part, atoi(argv[2]));
        packed_tests(packed, part, atoi(argv[2]));
        return suite_run(suite);
    }
    plans_tests(tc, part, -1);
    rows_tests(tc, part);
    few_tests(few, largest, states, part, -1);
    medium_tests(medium, part, -1);
    sampling_tests(tc, part);
    if (part == PART_ALL)
        tcase_add_test(tc, too_many_sessions_say_how_many_would_fit);
    states_tests(states, part);
    replay_tests(states, part);
    held_tests(states, part);
    ahead_tests(tc, part);
    traffic_tests(states, part);
    prompts_tests(prompts, part);
    large_tests(large, part);
    head_tests(large, part);
    packed_tests(packed, part, -1);
    openings_tests(wide_case, part);
    xproj_tests(large, part, -1);
    wide_tests(wide_case, part, -1);
    return suite_run(suite);
}
