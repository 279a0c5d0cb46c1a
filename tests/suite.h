// SPDX-License-Identifier: Apache-2.0
// How a Check binary ends: `return suite_run(suite);`.
#ifndef SSM_TESTS_SUITE_H
#define SSM_TESTS_SUITE_H

#include <stdlib.h>

#include <check.h>

static inline int suite_run(Suite *suite) {
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
