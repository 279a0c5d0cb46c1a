// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include <ssm/dtype.h>
#include <ssm/error.h>

#include "tests/suite.h"

START_TEST(every_code_has_a_row) {
    ck_assert_str_eq(ssm_error_name(SSM_EBUSY), "SSM_EBUSY");
    ck_assert_int_eq(ssm_error_status(SSM_EBUSY), 429);
    ck_assert_str_eq(ssm_error_type(SSM_EINVAL), "invalid_request_error");
    ck_assert_str_eq(ssm_error_name(-9999), "SSM_EINTERNAL");
    ck_assert_int_eq(ssm_error_status(0), 200);
}
END_TEST

START_TEST(messages_are_printable_and_cut) {
    ssm_error err;
    char big[2000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    ck_assert_int_eq(ssm_error_set(&err, SSM_EINVAL, big, "%s", big), SSM_EINVAL);
    ck_assert_uint_eq(strlen(err.message), sizeof err.message - 1);
    ssm_error_set(&err, SSM_EFORMAT, "a\nb", "tab\t, broken \xff\xc3, fine \xc3\xa9");
    ck_assert_str_eq(err.param, "a?b");
    ck_assert_str_eq(err.message, "tab?, broken ??, fine \xc3\xa9");
    ck_assert_int_eq(ssm_error_set(NULL, SSM_EIO, NULL, "no one listens"), SSM_EIO);
    memset(big, 'x', sizeof big - 1);
    memcpy(big + sizeof err.message - 2, "\xc3\xa9", 2); // cut in mid-character
    ssm_error_set(&err, SSM_EIO, NULL, "%s", big);
    ck_assert_int_eq(err.message[sizeof err.message - 2], '?');
}
END_TEST

START_TEST(dtypes_by_name) {
    ck_assert_int_eq(ssm_dtype_parse("bfloat16"), SSM_DTYPE_BF16);
    ck_assert_int_eq(ssm_dtype_parse("bf17"), -1);
    ck_assert_str_eq(ssm_dtype_name(SSM_DTYPE_F16), "f16");
    ck_assert_uint_eq(ssm_dtype_bytes(SSM_DTYPE_INT4, 3), 2);
    ck_assert_uint_eq(ssm_dtype_bytes(SSM_DTYPE_INT5, 32), 20);
    ck_assert_uint_eq(ssm_dtype_bytes(SSM_DTYPE_INT6, 5), 4);
    ck_assert_int_eq(ssm_dtype_parse("int6"), SSM_DTYPE_INT6);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("error");
    TCase *tc = tcase_create("all");
    tcase_add_test(tc, every_code_has_a_row);
    tcase_add_test(tc, messages_are_printable_and_cut);
    tcase_add_test(tc, dtypes_by_name);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
