// SPDX-License-Identifier: Apache-2.0
// Folders that are good, in every spelling, and shards.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixtures/model.h"

// ---- good folders

START_TEST(a_mamba) {
    write_model(mamba_config, NULL, mamba_tensors, NULL);
    ssm_model *model = open_good();
    const ssm_model_info *info = ssm_model_get_info(model);
    ck_assert_str_eq(info->architecture, "mamba");
    ck_assert_int_eq(info->d_inner, 8);
    ck_assert_int_eq(info->dt_rank, 1);
    ck_assert(info->tied);
    ck_assert_uint_eq(info->parameters, 24 + 4 + 4 + 64 + 24 + 8 + 40 + 8 + 8 + 16 + 8 + 32);
    ck_assert_uint_eq(info->weight_bytes, 4 * info->parameters);
    ck_assert_uint_eq(info->state_bytes, 4 * (8 * 2 + 8 * 2));
    ck_assert_int_eq(info->bos_id, 1);
    ck_assert_int_eq(info->pad_id, -1);
    ck_assert_int_eq(info->n_eos, 1);
    ck_assert_int_eq(info->eos_ids[0], 5);
    const ssm_weights *w = ssm_model_weights(model);
    ck_assert_int_eq(w->layers[0].conv_weight.cols, 3);
    ck_assert_ptr_null(w->layers[0].in_bias.data);
    ck_assert_ptr_eq(w->lm_head.data, w->embedding.data);
    ck_assert(w->geometry.norm_eps == 1e-5f);
    ssm_tensor_info t;
    ck_assert_int_eq(ssm_model_get_tensor(model, 11, &t), 0);
    ck_assert_int_eq(ssm_model_get_tensor(model, 12, &t), SSM_ENOTFOUND);
    ck_assert_int_eq(ssm_model_get_tensor(model, -1, &t), SSM_ENOTFOUND);
    ssm_model_free(model);
}
END_TEST

START_TEST(a_mamba2) {
    write_model(mamba2_config, NULL, mamba2_tensors, NULL);
    ssm_model *model = open_good();
    const ssm_geometry *g = &ssm_model_weights(model)->geometry;
    ck_assert_int_eq(g->d_inner, 12);
    ck_assert_int_eq(g->conv_dim, 20);
    ck_assert(g->dt_min == 0 && g->dt_max == INFINITY);
    ck_assert_int_eq(ssm_model_get_info(model)->n_heads, 6);
    ck_assert_int_eq(ssm_model_get_info(model)->dt_rank, 0);
    ssm_model_free(model);
}
END_TEST

// What differs from the good mamba, and is as good.
static const struct {
    const char *config, *tensors;
} variants[] = {
    {"{'time_step_rank':'auto'}", NULL},
    {"{'time_step_rank':null,'conv_kernel':3}", NULL},
    {"{'expand':1.5,'intermediate_size':8}", NULL},
    {"{'pad_token_id':-1,'eos_token_id':null}", NULL},
    {"{'quantization_config':null,'sliding_window':null,'norm_before_gate':false}", NULL},
    {"{'hidden_act':'swish','rms_norm':true,'residual_in_fp32':false,'whatever':[1,2]}", NULL},
    {NULL, "{'lm_head.weight':['F32',[6,4]]}"}, // the same zeros as the embedding
    {"{'tie_word_embeddings':false}", "{'lm_head.weight':['BF16',[6,4]]}"},
    {"{'use_conv_bias':false}", "{'backbone.layers.0.mixer.conv1d.bias':null}"},
    {"{'use_bias':true}", "{'backbone.layers.0.mixer.in_proj.bias':['F16',[16]],"
                          "'backbone.layers.0.mixer.out_proj.bias':['F32',[4]]}"},
    {NULL, "{'backbone.layers.0.mixer.A_log':['F16',[8,2]]}"},
    {NULL, "{'backbone.embeddings.weight':null,'backbone.embedding.weight':['BF16',[6,4]]}"},
    {"{'model_type':'falcon_mamba'}", NULL},
};

START_TEST(good_variants) {
    write_model(mamba_config, variants[_i].config, mamba_tensors, variants[_i].tensors);
    ssm_model_free(open_good());
}
END_TEST

START_TEST(other_prefixes) {
    static const char *const prefixes[] = {"model.backbone.", ""};
    json_t *base = json_of(mamba_tensors), *renamed = json_object(), *v;
    const char *key;
    json_object_foreach(base, key, v) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefixes[_i], key + strlen("backbone."));
        json_object_set(renamed, name, v);
    }
    json_decref(base);
    write_json("config.json", json_of(mamba_config));
    write_tensors("model.safetensors", renamed, 0);
    ssm_model_free(open_good());
}
END_TEST

// Headers of any length: tensors at any alignment reach the kernels aligned.
START_TEST(unaligned_data) {
    write_json("config.json", json_of(mamba_config));
    write_tensors("model.safetensors",
                  patched(mamba_tensors, "{'backbone.layers.0.mixer.D':['BF16',[8]]}"), _i);
    ssm_model *model = open_good();
    const ssm_weights *w = ssm_model_weights(model);
    const ssm_tensor *tensors[] = {&w->embedding, &w->norm_f, &w->layers[0].in_proj,
                                   &w->layers[0].A_log, &w->layers[0].D};
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        ck_assert_uint_eq((uintptr_t)tensors[i]->data % ssm_dtype_bytes(tensors[i]->dtype, 1), 0);
    ck_assert_int_eq(model->n_copies > 0, _i % 4 != 0);
    ck_assert(ssm_tensor_get(&w->layers[0].D, 7) == 0);
    ssm_model_free(model);
}
END_TEST

START_TEST(end_ids_of_both_files) {
    write_model(mamba_config, NULL, mamba_tensors, NULL);
    write_json("generation_config.json", json_of("{'eos_token_id':[2,5,3]}"));
    ssm_model *model = open_good();
    const ssm_model_info *info = ssm_model_get_info(model);
    ck_assert_int_eq(info->n_eos, 3);
    ck_assert_int_eq(info->eos_ids[0], 5);
    ck_assert_int_eq(info->eos_ids[1], 2);
    ck_assert_int_eq(info->eos_ids[2], 3);
    ssm_model_free(model);
    write_json("generation_config.json", json_of("{'eos_token_id':[2,6]}"));
    expect(SSM_EFORMAT, "eos_token_id", "generation_config.json");
}
END_TEST

// ---- shards

#define INDEX "model.safetensors.index.json"

static void write_shards(void) {
    static const char first[] = "{'backbone.embeddings.weight':['F32',[6,4]]}";
    write_json("config.json", json_of(mamba_config));
    write_tensors("a.safetensors", json_of(first), 0);
    write_tensors("b.safetensors", patched(mamba_tensors, "{'backbone.embeddings.weight':null}"),
                  0);
}

// The index of the two shards, patched.
static void write_index(const char *patch) {
    json_t *map = patched(mamba_tensors, NULL), *v;
    const char *key;
    json_object_foreach(map, key, v) {
        const bool first = strcmp(key, "backbone.embeddings.weight") == 0;
        json_object_set_new(map, key, json_string(first ? "a.safetensors" : "b.safetensors"));
    }
    char *text = json_dumps(map, 0);
    json_decref(map);
    write_json(INDEX, json_pack("{s:o}", "weight_map", without_nulls(patched(text, patch))));
    free(text);
}

START_TEST(shards) {
    write_shards();
    write_index(NULL);
    ssm_model *model = open_good();
    ssm_tensor_info t;
    ck_assert_int_eq(ssm_model_get_tensor(model, 11, &t), 0);
    ssm_model_free(model);
}
END_TEST

static const struct {
    const char *patch;
    int code;
    const char *param, *message;
} bad_index[] = {
    {"{'backbone.norm_f.weight':'a.safetensors'}", SSM_EFORMAT, "backbone.norm_f.weight",
     "not there"},
    {"{'backbone.norm_f.weight':null}", SSM_EFORMAT, "backbone.norm_f.weight", "is not in"},
    {"{'more':'a.safetensors'}", SSM_EFORMAT, "more", "not there"},
    {"{'backbone.norm_f.weight':'c.safetensors'}", SSM_EIO, "c.safetensors", "cannot open"},
    {"{'backbone.norm_f.weight':'../b.safetensors'}", SSM_EFORMAT, "backbone.norm_f.weight",
     "same folder"},
    {"{'backbone.norm_f.weight':'/etc/passwd'}", SSM_EFORMAT, "backbone.norm_f.weight",
     "same folder"},
    {"{'backbone.norm_f.weight':'..'}", SSM_EFORMAT, "backbone.norm_f.weight", "same folder"},
    {"{'backbone.norm_f.weight':''}", SSM_EFORMAT, "backbone.norm_f.weight", "same folder"},
    {"{'backbone.norm_f.weight':'.safetensors'}", SSM_EFORMAT, "backbone.norm_f.weight",
     "same folder"},
    {"{'backbone.norm_f.weight':'b.bin'}", SSM_EFORMAT, "backbone.norm_f.weight", "same folder"},
    {"{'backbone.norm_f.weight':3}", SSM_EFORMAT, "backbone.norm_f.weight", "no string"},
};

START_TEST(a_bad_index) {
    write_shards();
    write_index(bad_index[_i].patch);
    expect(bad_index[_i].code, bad_index[_i].param, bad_index[_i].message);
}
END_TEST

START_TEST(bad_shards) {
    write_shards();
    write_json(INDEX, json_of("{'weight_map':[]}"));
    expect(SSM_EFORMAT, "weight_map", "not an object");
    write_json(INDEX, json_of("{}"));
    expect(SSM_EFORMAT, "weight_map", "not an object");
    write_tensors("a.safetensors",
                  json_of("{'backbone.embeddings.weight':['F32',[6,4]],"
                          "'backbone.norm_f.weight':['F32',[4]]}"),
                  0);
    write_index(NULL);
    expect(SSM_EFORMAT, "backbone.norm_f.weight", "both");
    write_file("a.safetensors", "xxxxxxxxxxxxxxx", 15);
    expect(SSM_EFORMAT, "", "a.safetensors");
}
END_TEST

int main(void) {
    Suite *suite = suite_create("model");
    TCase *tc = tcase_create("folders");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, a_mamba);
    tcase_add_test(tc, a_mamba2);
    tcase_add_loop_test(tc, good_variants, 0, sizeof variants / sizeof variants[0]);
    tcase_add_loop_test(tc, other_prefixes, 0, 2);
    tcase_add_loop_test(tc, unaligned_data, 0, 8);
    tcase_add_test(tc, end_ids_of_both_files);
    tcase_add_test(tc, shards);
    tcase_add_loop_test(tc, a_bad_index, 0, sizeof bad_index / sizeof bad_index[0]);
    tcase_add_test(tc, bad_shards);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
