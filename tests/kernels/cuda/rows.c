// SPDX-License-Identifier: Apache-2.0
// What needs no oracle: a prompt in any pieces, and a row's independence of slot, place and
// neighbours, bit for bit.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// Feeds a prompt to a slot in pieces; returns its last logits.
START_TEST(whole_chunked_and_token_by_token_agree) {
    small_model m;
    rig r;
    int32_t ids[600];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_F32, 9);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_F32, SSM_DTYPE_F32);
    for (int i = 0; i < 600; i++)
        ids[i] = below(r.vocab);
    float *whole = rig_feed(&r, 0, ids, 600, 600, true), *state = rig_state(&r, 0);
    const int32_t pieces[] = {1, 2, 3, 7, 64, 129, 599};
    for (int i = 0; i < 7; i++) {
        float *other = rig_feed(&r, 1 + i, ids, 600, pieces[i], true),
              *moved = rig_state(&r, 1 + i);
        const double off = distance(other, whole, (size_t)r.vocab);
        ck_assert_msg(off <= 2e-5, "%s in pieces of %d: logits off by %g", shapes[_i].name,
                      pieces[i], off);
        const double far = distance(moved, state, r.state_floats);
        ck_assert_msg(far <= 2e-5, "%s in pieces of %d: state off by %g", shapes[_i].name,
                      pieces[i], far);
        free(other);
        free(moved);
    }
    free(whole);
    free(state);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

START_TEST(a_row_does_not_see_its_neighbours) {
    small_model m;
    rig r;
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 3);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    rig_check_neighbours(&r, shapes[_i].name, 18, below);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void rows_tests(TCase *tc, cuda_part part) {
    if (part == PART_ALL)
        tcase_add_loop_test(tc, whole_chunked_and_token_by_token_agree, 0, N_SHAPES);
    if (part == PART_ALL || part == PART_FEW)
        tcase_add_loop_test(tc, a_row_does_not_see_its_neighbours, 0, N_SHAPES);
}
