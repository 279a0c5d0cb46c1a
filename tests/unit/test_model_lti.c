// SPDX-License-Identifier: Apache-2.0
// Folders of linear time-invariant models that lie: good ones with a key, a shape or a number
// changed, each refused by the name of what is wrong.
#define _GNU_SOURCE // memmem
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "fixtures/model.h"

#define MODELS SSM_TEST_DATA "/models/"

// What is changed. In config and header, `from` (once there) becomes `to`; or number `index` of a
// tensor becomes `value`.
typedef struct lie {
    const char *model;
    const char *config_from, *config_to;
    const char *header_from, *header_to; // of the same length
    const char *tensor;
    size_t index;
    float value;
    int code;
    const char *param, *message;
} lie;

#define LAYER     "backbone.layers.1.mixer."
#define nan_value ((float)NAN)
#define infinite  ((float)INFINITY)

static const lie lies[] = {
    // keys
    {"copying-s4d", "\"zoh\"", "\"euler\"", .code = SSM_EUNSUPPORTED, .param = "discretization",
     .message = "euler"},
    {"copying-s4d", "\"zoh\"", "7", .code = SSM_EFORMAT, .param = "discretization",
     .message = "string"},
    {"copying-s4d", "discretization", "discretisation", .code = SSM_EFORMAT,
     .param = "discretization", .message = "missing"},
    {"copying-s4d", "\"gelu\"", "\"relu\"", .code = SSM_EUNSUPPORTED, .param = "activation",
     .message = "relu"},
    {"copying-s4d", "\"state_size\": 128", "\"state_size\": 127", .code = SSM_EFORMAT,
     .param = "state_size", .message = "127 is odd"},
    {"copying-s4d", "\"state_size\": 128", "\"state_size\": 126", .code = SSM_EFORMAT,
     .param = "backbone.layers.0.mixer.kernel.log_A_real", .message = "[64, 63]"},
    {"copying-s4d", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false",
     .code = SSM_EFORMAT, .param = "lm_head.weight", .message = "missing"},
    {"copying-s4d", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1",
     .code = SSM_EUNSUPPORTED, .message = "belongs to no part"},
    {"copying-lssl", "\"state_size\": 64", "\"state_size\": 4096", .code = SSM_EUNSUPPORTED,
     .param = "state_size", .message = "1 GiB"},
    {"copying-lssl", "\"state_size\": 64", "\"state_size\": 65", .code = SSM_EFORMAT,
     .param = "backbone.layers.0.mixer.A", .message = "[65, 65]"},
    {"induction-h3", "\"head_dim\": 8", "\"head_dim\": 7", .code = SSM_EFORMAT, .param = "head_dim",
     .message = "7 must divide hidden_size 64"},
    {"induction-h3", "\"head_dim\": 8", "\"head_dim\": 128", .code = SSM_EFORMAT,
     .param = "head_dim", .message = "must divide"},
    {"induction-h3", "\"head_dim\": 8,", "", .code = SSM_EFORMAT, .param = "head_dim",
     .message = "missing"},
    {"induction-h3", "\"state_size\": 16", "\"state_size\": 15", .code = SSM_EFORMAT,
     .param = "state_size", .message = "15 is odd"},
    {"induction-h3", "\"model_type\": \"h3\"", "\"model_type\": \"s4d\"", .code = SSM_EFORMAT,
     .message = "missing"},
    // shapes
    {"copying-s4d", .header_from = "[64,64,2]", .header_to = "[64,2,64]", .code = SSM_EFORMAT,
     .message = "has shape [64, 2, 64], the config needs [64, 64, 2]"},
    {"copying-s4d", .header_from = "[128,64,1]", .header_to = "[1,64,128]", .code = SSM_EFORMAT,
     .message = "[1, 64, 128]"},
    {"induction-h3", .header_from = "[1,8,8,2]", .header_to = "[8,8,1,2]", .code = SSM_EFORMAT,
     .message = "[8, 8, 1, 2]"},
    // numbers
    {"copying-s4d", .tensor = LAYER "kernel.log_dt", .index = 3, .value = 100, .code = SSM_EFORMAT,
     .param = LAYER "kernel.log_dt", .message = "holds 100"},
    {"copying-s4d", .tensor = LAYER "kernel.log_dt", .value = -100, .code = SSM_EFORMAT,
     .param = LAYER "kernel.log_dt", .message = "holds -100"},
    {"copying-s4d", .tensor = LAYER "kernel.log_dt", .index = 63, .value = nan_value,
     .code = SSM_EFORMAT, .param = LAYER "kernel.log_dt", .message = "nan"},
    {"copying-s4d", .tensor = LAYER "kernel.log_A_real", .index = 4095, .value = 90,
     .code = SSM_EFORMAT, .param = LAYER "kernel.log_A_real", .message = "holds 90"},
    {"copying-s4d", .tensor = LAYER "kernel.A_imag", .value = infinite, .code = SSM_EFORMAT,
     .param = LAYER "kernel.A_imag", .message = "inf"},
    {"copying-s4d", .tensor = LAYER "kernel.A_imag", .value = 1e30f, .code = SSM_EFORMAT,
     .param = LAYER "kernel.A_imag", .message = "outside"},
    {"copying-s4d", .tensor = LAYER "kernel.C", .index = 8191, .value = nan_value,
     .code = SSM_EFORMAT, .param = LAYER "kernel.C", .message = "nan"},
    {"copying-s4d", .tensor = LAYER "D", .value = nan_value, .code = SSM_EFORMAT,
     .param = LAYER "D", .message = "nan"},
    {"copying-s4d", .tensor = LAYER "output_linear.0.weight", .index = 8191, .value = nan_value,
     .code = SSM_EFORMAT, .param = LAYER "output_linear.0.weight", .message = "nan"},
    {"copying-s4d", .tensor = "backbone.embeddings.weight", .index = 700, .value = nan_value,
     .code = SSM_EFORMAT, .param = "embeddings.weight", .message = "nan"},
    {"copying-s4d", .tensor = "backbone.norm_f.weight", .value = infinite, .code = SSM_EFORMAT,
     .param = "norm_f.weight", .message = "inf"},
    {"copying-lssl", .tensor = LAYER "log_dt", .value = 100, .code = SSM_EFORMAT,
     .param = LAYER "log_dt", .message = "holds 100"},
    {"copying-lssl", .tensor = LAYER "B", .index = 63, .value = nan_value, .code = SSM_EFORMAT,
     .param = LAYER "B", .message = "nan"},
    {"induction-h3", .tensor = LAYER "kernel.kernel.log_dt", .index = 7, .value = 100,
     .code = SSM_EFORMAT, .param = LAYER "kernel.kernel.log_dt", .message = "holds 100"},
    {"induction-h3", .tensor = LAYER "ssm_k_kernel.kernel.C", .index = 1023, .value = nan_value,
     .code = SSM_EFORMAT, .param = LAYER "ssm_k_kernel.kernel.C", .message = "nan"},
    // a positive number on the diagonal of a triangle; one far above it, which the eigenvalues feel
    {"copying-lssl", .tensor = LAYER "A", .value = 5, .code = SSM_EUNSUPPORTED,
     .param = "discretization",
     .message = "layers.1.mixer: bilinear leaves the unit disc: the "
                "spectral radius is 5.148665"},
    {"copying-lssl", .tensor = LAYER "A", .index = 1, .value = -1e4f, .code = SSM_EUNSUPPORTED,
     .param = "discretization", .message = "the spectral radius is"},
};
enum { N_LIES = sizeof lies / sizeof lies[0] };

// ---- folders

static char *read_all(const char *model, const char *name, size_t *n) {
    char path[4096];
    snprintf(path, sizeof path, MODELS "%s/%s", model, name);
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s", path);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *data = calloc(*n + 1, 1);
    ck_assert_uint_eq(fread(data, 1, *n, f), *n);
    fclose(f);
    return data;
}

static void write_config(const lie *l) {
    size_t n;
    char *text = read_all(l->model, "config.json", &n);
    if (!l->config_from) {
        write_file("config.json", text, n);
    } else {
        const char *found = strstr(text, l->config_from);
        ck_assert_msg(found != NULL, "%s is not in the config", l->config_from);
        char out[4096];
        const int len = snprintf(out, sizeof out, "%.*s%s%s", (int)(found - text), text,
                                 l->config_to, found + strlen(l->config_from));
        write_file("config.json", out, (size_t)len);
    }
    free(text);
}

static void change_number(const lie *l, char *data, uint64_t header) {
    json_t *root = json_loadb(data + 8, header, 0, NULL);
    const json_t *offsets = json_object_get(json_object_get(root, l->tensor), "data_offsets");
    ck_assert_msg(offsets != NULL, "%s", l->tensor);
    const size_t first = (size_t)json_integer_value(json_array_get(offsets, 0));
    const size_t past = (size_t)json_integer_value(json_array_get(offsets, 1));
    ck_assert_uint_le(first + (l->index + 1) * sizeof(float), past);
    memcpy(data + 8 + header + first + l->index * sizeof(float), &l->value, sizeof(float));
    json_decref(root);
}

static void write_lie(const lie *l) {
    size_t n;
    uint64_t header;
    char *data = read_all(l->model, "model.safetensors", &n);
    memcpy(&header, data, sizeof header);
    if (l->tensor)
        change_number(l, data, header);
    if (l->header_from) {
        char *found = memmem(data + 8, (size_t)header, l->header_from, strlen(l->header_from));
        ck_assert_msg(found != NULL, "%s is not in the header", l->header_from);
        ck_assert_uint_eq(strlen(l->header_from), strlen(l->header_to));
        memcpy(found, l->header_to, strlen(l->header_to));
    }
    write_file("model.safetensors", data, n);
    free(data);
}

static void write_folder(const lie *l) {
    write_config(l);
    write_lie(l);
}

// ---- tests

START_TEST(refused_by_name) {
    const lie *l = &lies[_i];
    ssm_error err = {0};
    ssm_model *model = NULL;
    write_folder(l);
    const int rc = ssm_model_open(folder, &model, &err);
    ck_assert_msg(rc == l->code, "lie %d: %d, not %d: %s", _i, rc, l->code, err.message);
    ck_assert_msg(!l->param || strcmp(err.param, l->param) == 0, "lie %d is called %s, not %s: %s",
                  _i, err.param, l->param, err.message);
    ck_assert_msg(strstr(err.message, l->message) != NULL, "lie %d: \"%s\" does not say \"%s\"", _i,
                  err.message, l->message);
}
END_TEST

// The same folder without a lie opens, and has the sizes that its shape says.
START_TEST(opened) {
    static const struct {
        const char *model;
        uint64_t parameters, state_bytes;
    } truths[] = {{"shakespeare-s4d", 3161472, 786432}, {"copying-s4d", 50880, 65536},
                  {"copying-lssl", 68160, 65536},       {"selective-s4d", 50880, 65536},
                  {"induction-h3", 39520, 73728},       {"selective-h3", 39520, 73728}};
    for (size_t i = 0; i < sizeof truths / sizeof truths[0]; i++) {
        const lie none = {.model = truths[i].model};
        ssm_error err = {0};
        ssm_model *model = NULL;
        write_folder(&none);
        const int rc = ssm_model_open(folder, &model, &err);
        ck_assert_msg(rc == 0, "%s: %s", truths[i].model, err.message);
        const ssm_model_info *info = ssm_model_get_info(model);
        ck_assert_uint_eq(info->parameters, truths[i].parameters);
        ck_assert_uint_eq(info->state_bytes, truths[i].state_bytes);
        ck_assert(info->tied);
        ssm_model_free(model);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("model lti");
    TCase *tc = tcase_create("folders");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, refused_by_name, 0, N_LIES);
    tcase_add_test(tc, opened);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
