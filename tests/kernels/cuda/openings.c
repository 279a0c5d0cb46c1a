// SPDX-License-Identifier: Apache-2.0
// One model opened several times gives the same bits: cuBLASLt's algorithms are timed in the first
// opening alone (product.cu), with the file of choices and without. The file's own rules, and who
// wins of several processes, are test_algorithms.c's, which needs no device.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests.h"

// Wide, so that algorithms may split their sums, with heads that head.cu does not take. A shape a
// test: what this process has chosen once stays so.
static const small_shape without_file = {
    "mamba 2560", SSM_BLOCK_MAMBA, 2, 2560, 5120, 16, 4, 160, 0, 0, 515, false, false, true};
static const small_shape with_file = {
    "mamba 1536", SSM_BLOCK_MAMBA, 2, 1536, 3072, 16, 4, 96, 0, 0, 1001, false, false, true};
enum { OPENINGS = 4 };
static const int32_t counts[] = {1, 3, 9, 16, 33, 40, 65, 127, 129, 192, 250, 385, 600};
enum { N_COUNTS = sizeof counts / sizeof counts[0] };

static char *cache;

static void set_cache(const char *folder) {
    const char *now = getenv("XDG_CACHE_HOME");
    cache = now ? strdup(now) : NULL;
    setenv("XDG_CACHE_HOME", folder, 1);
}

static void restore_cache(void) {
    if (cache)
        setenv("XDG_CACHE_HOME", cache, 1);
    else
        unsetenv("XDG_CACHE_HOME");
    free(cache);
}

// Some rows' logits of a step of each size, by a device of its own.
static float *open_and_step(const small_model *m, size_t *n) {
    rig r;
    rig_open_for(&r, "cuda", &m->weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, MANY, MANY, MANY);
    const size_t v = (size_t)r.vocab;
    float *out = malloc((size_t)N_COUNTS * MANY * v * sizeof *out);
    *n = 0;
    for (int32_t c = 0; c < N_COUNTS; c++) {
        rig_step_rows(&r, counts[c], 1, 0);
        for (int32_t i = 0; i < counts[c]; i += EACH, *n += v) {
            float *row = rig_logits(&r, i);
            memcpy(out + *n, row, v * sizeof *row);
            free(row);
        }
    }
    rig_close(&r);
    return out;
}

START_TEST(openings_without_a_file_give_the_same_bits) {
    small_model m;
    size_t n, again;
    small_model_create(&m, &without_file, SSM_DTYPE_BF16, 51);
    set_cache("/dev/null"); // no folder can be made in it
    float *first = open_and_step(&m, &n);
    for (int i = 1; i < OPENINGS; i++) {
        float *next = open_and_step(&m, &again);
        ck_assert_uint_eq(n, again);
        ck_assert_msg(memcmp(first, next, n * sizeof *first) == 0, "opening %d: other bits", i);
        free(next);
    }
    free(first);
    restore_cache();
    small_model_free(&m);
}
END_TEST

START_TEST(the_first_opening_alone_writes_choices) {
    small_model m;
    struct stat first, second;
    size_t n, again;
    char folder[] = "/tmp/ssm-openings-XXXXXX", path[64];
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/ssmd/cuda-algorithms", folder);
    small_model_create(&m, &with_file, SSM_DTYPE_BF16, 52);
    set_cache(folder);
    float *a = open_and_step(&m, &n);
    ck_assert_int_eq(stat(path, &first), 0);
    ck_assert_int_gt(first.st_size, 10 * 128); // lines with that many digits
    float *b = open_and_step(&m, &again);
    ck_assert_int_eq(stat(path, &second), 0);
    ck_assert_int_eq(second.st_size, first.st_size);
    ck_assert_uint_eq(n, again);
    ck_assert_int_eq(memcmp(a, b, n * sizeof *a), 0);
    free(a);
    free(b);
    restore_cache();
    small_model_free(&m);
    ck_assert_int_eq(unlink(path), 0);
    snprintf(path, sizeof path, "%s/ssmd", folder);
    ck_assert(rmdir(path) == 0 && rmdir(folder) == 0);
}
END_TEST

void openings_tests(TCase *tc, cuda_part part) {
    if (part != PART_ALL && part != PART_OPEN)
        return;
    tcase_add_test(tc, openings_without_a_file_give_the_same_bits);
    tcase_add_test(tc, the_first_opening_alone_writes_choices);
}
