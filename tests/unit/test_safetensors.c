// SPDX-License-Identifier: Apache-2.0
// Broken safetensors: each is refused with a message that names the tensor at fault.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/safetensors.h"
#include "tests/suite.h"

// The file: length, header, `data` bytes. *out is to be freed.
static size_t make_file(const char *header, size_t data, uint8_t **out) {
    const uint64_t length = strlen(header);
    const size_t size = 8 + length + data;
    *out = calloc(1, size);
    memcpy(*out, &length, 8);
    memcpy(*out + 8, header, length);
    return size;
}

#define F32_2X3 "{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"
#define BF16_4  "{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}"
#define HUGE    "9223372036854775807"

START_TEST(a_good_file) {
    static const char *const header =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":" BF16_4 ",\"a\":" F32_2X3
        ",\"empty\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[24,24]}"
        ",\"one\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[32,40]}}  ";
    uint8_t *file;
    safetensors st;
    const size_t size = make_file(header, 40, &file);
    ck_assert_int_eq(safetensors_parse(&st, file, size, "good", NULL), 0);
    ck_assert_int_eq(st.n_tensors, 4);
    ck_assert_str_eq(st.tensors[0].name, "a");
    ck_assert_int_eq(st.tensors[0].dtype, SSM_DTYPE_F32);
    ck_assert_int_eq(st.tensors[0].dims[1], 3);
    ck_assert_str_eq(st.tensors[1].name, "empty");
    ck_assert_str_eq(st.tensors[2].name, "b");
    ck_assert_int_eq(st.tensors[2].dtype, SSM_DTYPE_BF16);
    ck_assert_ptr_eq(st.tensors[2].data, file + 8 + strlen(header) + 24);
    ck_assert_str_eq(st.tensors[3].type, "F64");
    ck_assert_int_eq(st.tensors[3].dtype, SSM_DTYPE_AUTO);
    ck_assert_int_eq(st.tensors[3].n_dims, 0);
    ck_assert_uint_eq(st.tensors[3].bytes, 8);
    safetensors_dispose(&st);
    free(file);
}
END_TEST

START_TEST(no_tensors_at_all) {
    uint8_t *file;
    safetensors st;
    const size_t size = make_file("{}", 0, &file);
    ck_assert_int_eq(safetensors_parse(&st, file, size, "empty", NULL), 0);
    ck_assert_int_eq(st.n_tensors, 0);
    safetensors_dispose(&st);
    free(file);
}
END_TEST

// ---- broken headers

static const struct broken {
    const char *header;
    size_t data;
    int code;
    const char *param, *message; // a part of it
} broken[] = {
    {"{\"a\":" F32_2X3 "}", 20, SSM_EFORMAT, "a", "cut short"},
    {"{\"a\":" F32_2X3 "}", 0, SSM_EFORMAT, "a", "cut short"},
    {"{\"a\":" F32_2X3 "}", 25, SSM_EFORMAT, "", "1 bytes at the end"},
    {"{\"a\":" F32_2X3 ",\"a\":" F32_2X3 "}", 24, SSM_EFORMAT, "", "duplicate"},
    {"{\"a\":" F32_2X3 ",\"b\":" F32_2X3 "}", 24, SSM_EFORMAT, NULL, "overlaps"},
    {"{\"a\":" F32_2X3 ",\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[20,28]}}", 28,
     SSM_EFORMAT, "b", "b overlaps a"},
    {"{\"a\":" F32_2X3 ",\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[25,33]}}", 33,
     SSM_EFORMAT, "b", "1 bytes before b"},
    {"{\"b\":" BF16_4 "}", 32, SSM_EFORMAT, "b", "24 bytes before b"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT, "a",
     "24 bytes where its shape and type need 16"},
    {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT, "a",
     "need 12"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,0]}}", 24, SSM_EFORMAT, "a",
     "data_offsets of a are [24, 0]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[-24,0]}}", 24, SSM_EFORMAT, "a",
     "data_offsets of a are [-24, 0]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0," HUGE "]}}", 24, SSM_EFORMAT,
     "a", "cut short"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,99999999999999999999]}}", 24,
     SSM_EFORMAT, "", "not valid JSON"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24.0]}}", 24, SSM_EFORMAT, "a",
     "not two integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24,24]}}", 24, SSM_EFORMAT, "a",
     "not two integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3]}}", 24, SSM_EFORMAT, "a", "not two integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[" HUGE ",3],\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT,
     "a", "not one of a tensor"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     SSM_EFORMAT, "a", "not one of a tensor"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2,-3],\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT, "a",
     "not one of a tensor"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"2\",3],\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT,
     "a", "not one of a tensor"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,6],\"data_offsets\":[0,24]}}", 24,
     SSM_EFORMAT, "a", "up to 8"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":6,\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT, "a",
     "not a list"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, SSM_EFORMAT, "a",
     "within a byte"},
    {"{\"a\":{\"dtype\":\"F33\",\"shape\":[6],\"data_offsets\":[0,24]}}", 24, SSM_EUNSUPPORTED, "a",
     "F33"},
    {"{\"a\":{\"dtype\":32,\"shape\":[6],\"data_offsets\":[0,24]}}", 24, SSM_EFORMAT, "a",
     "no dtype"},
    {"{\"a\":[]}", 0, SSM_EFORMAT, "a", "not an object"},
    {"{\"__metadata__\":[]}", 0, SSM_EFORMAT, "__metadata__", "not an object of strings"},
    {"{\"__metadata__\":{\"x\":1}}", 0, SSM_EFORMAT, "__metadata__", "not an object of strings"},
    {"{\"a\\u0000b\":" F32_2X3 "}", 24, SSM_EFORMAT, "", "not valid JSON"},
    {"{\"a\":" F32_2X3 "} x", 24, SSM_EFORMAT, "", "not valid JSON"},
    {"{\"a\":" F32_2X3, 24, SSM_EFORMAT, "", "not valid JSON"},
    {"[]", 0, SSM_EFORMAT, "", "not a safetensors file"},
    {" {}", 0, SSM_EFORMAT, "", "not a safetensors file"},
    {"", 100, SSM_EFORMAT, "", "not a safetensors file"},
};

START_TEST(broken_headers_are_named) {
    const struct broken *b = &broken[_i];
    uint8_t *file;
    safetensors st;
    ssm_error err = {0};
    const size_t size = make_file(b->header, b->data, &file);
    const int rc = safetensors_parse(&st, file, size, "broken", &err);
    ck_assert_msg(rc == b->code, "%s: %d, %s", b->header, rc, err.message);
    if (b->param)
        ck_assert_str_eq(err.param, b->param);
    ck_assert_msg(strstr(err.message, b->message) != NULL, "%s", err.message);
    ck_assert(strstr(err.message, "broken") != NULL); // the file's name
    free(file);
}
END_TEST

// ---- lengths

static int parse_with_length(uint64_t length, size_t size, ssm_error *err) {
    uint8_t *file;
    safetensors st;
    make_file("{}", 64, &file);
    memcpy(file, &length, 8);
    const int rc = safetensors_parse(&st, file, size, "f", err);
    if (rc == 0)
        safetensors_dispose(&st);
    free(file);
    return rc;
}

START_TEST(lying_lengths) {
    ssm_error err;
    ck_assert_int_eq(parse_with_length(2, 10, &err), 0);
    for (size_t size = 0; size < 10; size++)
        ck_assert_int_eq(parse_with_length(2, size, &err), SSM_EFORMAT);
    ck_assert_int_eq(parse_with_length(3, 10, &err), SSM_EFORMAT);
    ck_assert(strstr(err.message, "cut short") != NULL);
    ck_assert_int_eq(parse_with_length(0, 74, &err), SSM_EFORMAT);
    ck_assert_int_eq(parse_with_length(17 << 20, 74, &err), SSM_EFORMAT);
    ck_assert(strstr(err.message, "claims") != NULL);
    ck_assert_int_eq(parse_with_length(UINT64_MAX, 74, &err), SSM_EFORMAT);
    ck_assert_int_eq(parse_with_length(UINT64_MAX - 7, 74, &err), SSM_EFORMAT); // + 8 is 0
    ck_assert_int_eq(parse_with_length(INT64_MAX, 74, &err), SSM_EFORMAT);
}
END_TEST

// Every prefix of a good file is an error, never a crash (the sanitizers watch).
START_TEST(every_prefix_is_refused) {
    uint8_t *file;
    const size_t size = make_file("{\"b\":" BF16_4 ",\"a\":" F32_2X3 "}", 32, &file);
    for (size_t n = 0; n < size; n++) {
        uint8_t *cut = malloc(n + 1);
        safetensors st;
        memcpy(cut, file, n);
        ck_assert_int_eq(safetensors_parse(&st, cut, n, "cut", NULL), SSM_EFORMAT);
        free(cut);
    }
    free(file);
}
END_TEST

START_TEST(deep_json_is_refused) {
    enum { DEPTH = 100000 };
    char *header = malloc(2 * DEPTH + 16);
    char *end = header + sprintf(header, "{\"a\":");
    memset(end, '[', DEPTH);
    memset(end + DEPTH, ']', DEPTH);
    strcpy(end + 2 * DEPTH, "}");
    uint8_t *file;
    safetensors st;
    ssm_error err;
    const size_t size = make_file(header, 0, &file);
    ck_assert_int_eq(safetensors_parse(&st, file, size, "deep", &err), SSM_EFORMAT);
    ck_assert(strstr(err.message, "not valid JSON") != NULL);
    free(file);
    free(header);
}
END_TEST

// ---- files

START_TEST(what_is_no_file) {
    safetensors st;
    ssm_error err;
    char empty[] = "/tmp/ssm-test-XXXXXX";
    close(mkstemp(empty));
    ck_assert_int_eq(safetensors_open(&st, empty, "x.safetensors", &err), SSM_EFORMAT);
    ck_assert_str_eq(err.param, "x.safetensors");
    unlink(empty);
    ck_assert_int_eq(safetensors_open(&st, empty, "x.safetensors", &err), SSM_EIO);
    ck_assert_int_eq(safetensors_open(&st, "/tmp", "x.safetensors", &err), SSM_EIO);
    ck_assert(strstr(err.message, "regular") != NULL);
}
END_TEST

START_TEST(a_mapped_file) {
    safetensors st;
    ck_assert_int_eq(
        safetensors_open(&st, SSM_DEMO_MODEL "/model.safetensors", "model.safetensors", NULL), 0);
    ck_assert_int_gt(st.n_tensors, 50);
    safetensors_dispose(&st);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("safetensors");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_good_file);
    tcase_add_test(tc, no_tensors_at_all);
    tcase_add_loop_test(tc, broken_headers_are_named, 0, sizeof broken / sizeof broken[0]);
    tcase_add_test(tc, lying_lengths);
    tcase_add_test(tc, every_prefix_is_refused);
    tcase_add_test(tc, deep_json_is_refused);
    tcase_add_test(tc, what_is_no_file);
    tcase_add_test(tc, a_mapped_file);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
