// SPDX-License-Identifier: Apache-2.0
// A session's file: what is written is read back bit for bit, and what is not exactly that is
// refused with a reason - every flipped byte, every length, another model's, and files that were
// changed with the checksum made to fit.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model.h"
#include "engine/state/snapshot_file.h"
#include "tests/suite.h"

static ssm_model *model;
static snapshot_image image;
static uint8_t *bytes;
static size_t size;

static size_t state_floats(void) {
    const ssm_geometry *g = &ssm_model_weights(model)->geometry;
    return ssm_state_conv_floats(g) + ssm_state_ssm_floats(g);
}

static void open_model(const char *name, ssm_model **out) {
    char path[512];
    snprintf(path, sizeof path, "%s/models/%s", SSM_TEST_DATA, name);
    ck_assert_int_eq(ssm_model_open(path, out, NULL), 0);
}

static void begin(size_t n_pending, const snapshot_label *label) {
    static const int32_t tokens[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8};
    open_model("copying-mamba", &model);
    const size_t n = state_floats();
    image = (snapshot_image){.state = malloc((n + 16) * sizeof(float))};
    image.text.chain = chain_begin();
    session_text_add(&image.text, tokens, 19);
    image.text.n_pending = n_pending;
    image.text.n_memo = n_pending == 0 ? SSM_SESSION_MEMO : n_pending - 1; // full, none, one
    for (size_t i = 0; i < image.text.n_memo; i++)
        image.text.memo[i] = (uint8_t)(i * 7 + 0xab);
    image.text.pending = malloc(64);
    memcpy(image.text.pending, tokens + 19 - n_pending, n_pending * sizeof *tokens);
    for (size_t i = 0; i < n; i++)
        image.state[i] = (float)i * 0.25f - 7;
    if (n_pending == 0) {
        image.logits = image.state + n;
        for (int i = 0; i < 16; i++)
            image.logits[i] = (float)-i;
    }
    ck_assert_int_eq(snapshot_file_encode(model, &image, label, &bytes, &size, NULL), 0);
}

static void end(void) {
    free(bytes);
    snapshot_image_dispose(&image);
    ssm_model_free(model);
}

static int decode(const ssm_model *m, const uint8_t *data, size_t n) {
    snapshot_image out = {0};
    ssm_error err;
    const int rc = snapshot_file_decode(m, data, n, &out, NULL, NULL, &err);
    if (rc != 0)
        ck_assert(rc == SSM_EINVAL && err.code == SSM_EINVAL && err.message[0] && !out.state);
    snapshot_image_dispose(&out);
    return rc;
}

START_TEST(what_goes_in_comes_out) {
    const snapshot_label label = {.name = "a.b-c_9",
                                  .owner = {1, 1ull << 63},
                                  .created = 1700000000,
                                  .last_used = 1800000000};
    begin((size_t)_i, _i == 2 ? &label : NULL);
    snapshot_image out = {0};
    snapshot_label read = {.name = ""};
    bool has_label;
    ck_assert_int_eq(snapshot_file_decode(model, bytes, size, &out, &read, &has_label, NULL), 0);
    ck_assert_int_eq(memcmp(out.state, image.state, state_floats() * sizeof(float)), 0);
    ck_assert_uint_eq(out.text.n_tokens, 19);
    ck_assert(chain_is(out.text.chain, image.text.chain));
    ck_assert_uint_eq(out.text.n_pending, (size_t)_i);
    ck_assert_int_eq(memcmp(out.text.pending, image.text.pending, (size_t)_i * 4), 0);
    ck_assert_uint_eq(out.text.n_memo, image.text.n_memo);
    ck_assert_int_eq(memcmp(out.text.memo, image.text.memo, image.text.n_memo), 0);
    ck_assert_uint_eq(out.text.n_last, SESSION_LAST);
    ck_assert_int_eq(memcmp(out.text.last, image.text.last, sizeof out.text.last), 0);
    ck_assert_int_eq(out.logits != NULL, _i == 0);
    if (_i == 0)
        ck_assert_int_eq(memcmp(out.logits, image.logits, 16 * sizeof(float)), 0);
    ck_assert_int_eq(has_label, _i == 2);
    if (_i == 2) {
        ck_assert_str_eq(read.name, label.name);
        ck_assert_int_eq(memcmp(read.owner, label.owner, sizeof read.owner), 0);
        ck_assert_int_eq(read.created, label.created);
        ck_assert_int_eq(read.last_used, label.last_used);
    }
    ck_assert_uint_le(size, snapshot_file_max(model));
    snapshot_image_dispose(&out);
    end();
}
END_TEST

START_TEST(any_change_is_noticed) {
    begin(1, NULL);
    uint8_t *copy = malloc(size);
    for (size_t i = 0; i < size; i += i < 4200 ? 1 : 97) { // the header whole, the data in samples
        memcpy(copy, bytes, size);
        copy[i] ^= (uint8_t)(1 + i % 255);
        ck_assert_int_eq(decode(model, copy, size), SSM_EINVAL);
    }
    for (size_t n = 0; n < size; n += n < 4200 ? 1 : 97)
        ck_assert_int_eq(decode(model, bytes, n), SSM_EINVAL);
    free(copy);
    end();
}
END_TEST

START_TEST(other_models_are_refused) {
    static const char *const others[] = {"induction-heads", "selective-copying",
                                         "shakespeare-mamba2"}; // two of the same geometry
    begin(1, NULL);
    ck_assert_int_eq(decode(model, bytes, size), 0);
    for (int i = 0; i < 3; i++) {
        ssm_model *other;
        open_model(others[i], &other);
        ck_assert_int_eq(decode(other, bytes, size), SSM_EINVAL);
        ssm_model_free(other);
    }
    end();
}
END_TEST

// Replaces text of the header by text of the same length and seals the file again.
static int forge(const char *from, const char *to) {
    uint8_t *copy = malloc(size);
    memcpy(copy, bytes, size);
    char header[4097];
    memcpy(header, copy + 8, 4096);
    header[4096] = '\0';
    char *at = strstr(header, from);
    ck_assert_msg(at != NULL, "%s", from);
    ck_assert_uint_eq(strlen(from), strlen(to));
    memcpy(copy + 8 + (at - header), to, strlen(to));
    ck_assert(snapshot_file_seal(copy, size));
    const int rc = decode(model, copy, size);
    free(copy);
    return rc;
}

START_TEST(forgeries_are_refused) {
    begin(2, NULL);
    ck_assert_int_eq(forge("\"conv\"", "\"conv\""), 0); // the forger's hand is steady
    static const char *const pairs[][2] = {
        {"ssmd-session-1", "ssmd-session-2"},
        {"\"architecture\":\"mamba\"", "\"architecture\":\"mambo\""},
        {"\"dtype\":\"F32\",\"tokens\"", "\"dtype\":\"F16\",\"tokens\""},
        {"\"tokens\":\"19\"", "\"tokens\":\"18\""},
        {"\"tokens\":\"19\"", "\"tokens\":\"-9\""},
        {"\"tokens\":\"19\"", "\"tokens\":\"99\""},
        {"\"position\":\"17\"", "\"position\":\"19\""},
        {"\"position\":\"17\"", "\"position\":\"00\""},
        {"\"last_tokens\":\"1 ", "\"last_tokens\":\"x "},
        {"\"last_tokens\":\"1 5", "\"last_tokens\":\"999"},
        {"\"chain\":\"", "\"chaim\":\""},
        {"\"memo\":\"ab\"", "\"memo\":\"aB\""},
        {"\"memo\":\"ab\"", "\"memo\":\"a\" "},
        {"\"pending\":{", "\"bending\":{"},
        {"\"pending\":{\"dtype\":\"I32\"", "\"pending\":{\"dtype\":\"F32\""},
        {"\"shape\":[2,128,3]", "\"shape\":[2,3,128]"},
        {"\"shape\":[2,128,16]", "\"shape\":[2,16,128]"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        ck_assert_msg(forge(pairs[i][0], pairs[i][1]) == SSM_EINVAL, "%s", pairs[i][1]);
    end();
}
END_TEST

START_TEST(strange_numbers_are_refused) {
    static const float strange[] = {NAN, INFINITY, -INFINITY};
    begin(0, NULL);
    const size_t data = 8 + 4096, n = (size - data) / sizeof(float);
    for (size_t i = 0; i < n; i += 61) { // state and logits
        uint8_t *copy = malloc(size);
        memcpy(copy, bytes, size);
        memcpy(copy + data + i * sizeof(float), &strange[i % 3], sizeof(float));
        ck_assert(snapshot_file_seal(copy, size));
        ck_assert_int_eq(decode(model, copy, size), SSM_EINVAL);
        free(copy);
    }
    end();
    begin(2, NULL);
    for (int32_t id = -1; id <= 16; id += 17) {
        memcpy(bytes + size - 4, &id, sizeof id);
        ck_assert(snapshot_file_seal(bytes, size));
        ck_assert_int_eq(decode(model, bytes, size), SSM_EINVAL);
    }
    end();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("snapshot_file");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, what_goes_in_comes_out, 0, 3);
    tcase_add_test(tc, any_change_is_noticed);
    tcase_add_test(tc, other_models_are_refused);
    tcase_add_test(tc, forgeries_are_refused);
    tcase_add_test(tc, strange_numbers_are_refused);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
