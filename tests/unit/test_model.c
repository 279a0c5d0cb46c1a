// SPDX-License-Identifier: Apache-2.0
// Folders: good ones in every spelling, and broken ones, each refused by the name of what is wrong.
//
// A folder is described by JSON: a config, and tensors as {"name": ["F32", [dims...]]}, whose data
// is zeros. A case is a patch of the good description: keys replaced, tensors removed by null.
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/model/model.h"
#include "tests/suite.h"

static const char mamba_config[] =
    "{'model_type':'mamba','hidden_size':4,'num_hidden_layers':1,'vocab_size':6,'state_size':2,"
    "'conv_kernel':3,'expand':2,'time_step_rank':1,'eos_token_id':5,'bos_token_id':1}";
static const char mamba_tensors[] =
    "{'backbone.embeddings.weight':['F32',[6,4]],'backbone.norm_f.weight':['F32',[4]],"
    "'backbone.layers.0.norm.weight':['F32',[4]],"
    "'backbone.layers.0.mixer.in_proj.weight':['F32',[16,4]],"
    "'backbone.layers.0.mixer.conv1d.weight':['F32',[8,1,3]],"
    "'backbone.layers.0.mixer.conv1d.bias':['F32',[8]],"
    "'backbone.layers.0.mixer.x_proj.weight':['F32',[5,8]],"
    "'backbone.layers.0.mixer.dt_proj.weight':['F32',[8,1]],"
    "'backbone.layers.0.mixer.dt_proj.bias':['F32',[8]],"
    "'backbone.layers.0.mixer.A_log':['F32',[8,2]],'backbone.layers.0.mixer.D':['F32',[8]],"
    "'backbone.layers.0.mixer.out_proj.weight':['F32',[4,8]]}";
static const char mamba2_config[] =
    "{'model_type':'mamba2','hidden_size':4,'num_hidden_layers':1,'vocab_size':6,'state_size':2,"
    "'conv_kernel':3,'expand':3,'num_heads':6,'head_dim':2,'n_groups':2,"
    "'tie_word_embeddings':true,'time_step_limit':[0.0,Infinity]}";
static const char mamba2_tensors[] =
    "{'backbone.embeddings.weight':['F32',[6,4]],'backbone.norm_f.weight':['F32',[4]],"
    "'backbone.layers.0.norm.weight':['F32',[4]],"
    "'backbone.layers.0.mixer.in_proj.weight':['F32',[38,4]],"
    "'backbone.layers.0.mixer.conv1d.weight':['F32',[20,1,3]],"
    "'backbone.layers.0.mixer.conv1d.bias':['F32',[20]],"
    "'backbone.layers.0.mixer.dt_bias':['F32',[6]],'backbone.layers.0.mixer.A_log':['F32',[6]],"
    "'backbone.layers.0.mixer.D':['F32',[6]],'backbone.layers.0.mixer.norm.weight':['F32',[12]],"
    "'backbone.layers.0.mixer.out_proj.weight':['F32',[4,12]]}";

// ---- writing folders

static char folder[64];

static void make_folder(void) {
    strcpy(folder, "/tmp/ssm-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void) {
    DIR *dir = opendir(folder);
    struct dirent *e;
    while ((e = readdir(dir))) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        unlink(path);
    }
    closedir(dir);
    rmdir(folder);
}

static void write_file(const char *name, const void *data, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    fclose(f);
}

// JSON with ' for ", as a string to be freed: infinities may stay bare.
static char *requote(const char *text) {
    char *out = strdup(text);
    for (char *p = out; *p; p++)
        *p = *p == '\'' ? '"' : *p;
    return out;
}

static json_t *json_of(const char *text) {
    char *quoted = requote(text);
    config c;
    ssm_error err;
    ck_assert_msg(config_parse(&c, quoted, strlen(quoted), "test", &err) == 0, "%s", err.message);
    free(quoted);
    return c.root;
}

static json_t *patched(const char *base, const char *patch) {
    json_t *out = json_of(base), *changes = json_of(patch ? patch : "{}");
    json_object_update(out, changes);
    json_decref(changes);
    return out;
}

static json_t *without_nulls(json_t *object) {
    const char *key;
    json_t *v;
    void *next;
    json_object_foreach_safe(object, next, key, v) {
        if (json_is_null(v))
            json_object_del(object, key);
    }
    return object;
}

static void write_json(const char *name, json_t *value) {
    char *text = json_dumps(value, 0);
    write_file(name, text, strlen(text));
    free(text);
    json_decref(value);
}

static size_t count_bytes(const char *type, const json_t *shape) {
    size_t n = type[0] == 'B' || type[1] == '1' ? 2 : 4; // BF16, F16, else 4
    for (size_t i = 0; i < json_array_size(shape); i++)
        n *= (size_t)json_integer_value(json_array_get(shape, i));
    return n;
}

static void write_tensors(const char *name, json_t *tensors, int pad) {
    json_t *header = json_object(), *v;
    const char *key;
    size_t at = 0;
    json_object_foreach(without_nulls(tensors), key, v) {
        const char *type = json_string_value(json_array_get(v, 0));
        json_t *shape = json_array_get(v, 1);
        const size_t n = count_bytes(type, shape);
        json_object_set_new(header, key,
                            json_pack("{s:s,s:O,s:[I,I]}", "dtype", type, "shape", shape,
                                      "data_offsets", (json_int_t)at, (json_int_t)(at + n)));
        at += n;
    }
    char *text = json_dumps(header, JSON_COMPACT);
    uint64_t length = strlen(text);
    while (length % 8 != (uint64_t)pad)
        length++;
    char *file = calloc(1, 8 + length + at);
    memcpy(file, &length, 8);
    memset(file + 8, ' ', length);
    memcpy(file + 8, text, strlen(text));
    write_file(name, file, 8 + length + at);
    free(file);
    free(text);
    json_decref(header);
    json_decref(tensors);
}

static void write_model(const char *config_base, const char *config_patch, const char *tensors,
                        const char *tensors_patch) {
    write_json("config.json", patched(config_base, config_patch));
    write_tensors("model.safetensors", patched(tensors, tensors_patch), 0);
}

static ssm_model *open_good(void) {
    ssm_error err = {0};
    ssm_model *model = NULL;
    const int rc = ssm_model_open(folder, &model, &err);
    ck_assert_msg(rc == 0, "%s: %s", err.param, err.message);
    return model;
}

static void expect(int code, const char *param, const char *message) {
    ssm_error err = {0};
    ssm_model *model = NULL;
    const int rc = ssm_model_open(folder, &model, &err);
    ck_assert_msg(rc == code, "%d, %s: %s", rc, err.param, err.message);
    ck_assert_int_eq(err.code, code);
    ck_assert_ptr_null(model);
    ck_assert_msg(strcmp(err.param, param) == 0, "'%s' is not '%s': %s", err.param, param,
                  err.message);
    ck_assert_msg(strstr(err.message, message) != NULL, "%s", err.message);
}

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

// ---- refused

static const struct refused {
    const char *config, *tensors;
    int code;
    const char *param, *message;
} refused[] = {
    // what is not supported
    {"{'model_type':'llama'}", NULL, SSM_EUNSUPPORTED, "model_type", "llama"},
    {"{'model_type':null}", NULL, SSM_EFORMAT, "model_type", "missing"},
    {"{'model_type':7}", NULL, SSM_EFORMAT, "model_type", "string"},
    {"{'hidden_act':'gelu'}", NULL, SSM_EUNSUPPORTED, "hidden_act", "gelu"},
    {"{'rms_norm':false}", NULL, SSM_EUNSUPPORTED, "rms_norm", "LayerNorm"},
    {"{'quantization_config':{'bits':4}}", NULL, SSM_EUNSUPPORTED, "quantization_config", ""},
    {"{'norm_before_gate':true}", NULL, SSM_EUNSUPPORTED, "norm_before_gate", ""},
    {"{'attn_layer_idx':[3]}", NULL, SSM_EUNSUPPORTED, "attn_layer_idx", ""},
    {"{'sliding_window':4096}", NULL, SSM_EUNSUPPORTED, "sliding_window", ""},
    {"{'eos_token_id':[0,1,2,3,4,5,0,9]}", NULL, SSM_EFORMAT, "eos_token_id", "[0, 6)"},
    // sizes
    {"{'hidden_size':null}", NULL, SSM_EFORMAT, "hidden_size", "missing"},
    {"{'hidden_size':0}", NULL, SSM_EFORMAT, "hidden_size", "[1, "},
    {"{'hidden_size':2147483648}", NULL, SSM_EFORMAT, "hidden_size", "[1, "},
    {"{'hidden_size':-4}", NULL, SSM_EFORMAT, "hidden_size", "-4"},
    {"{'hidden_size':131072}", NULL, SSM_EFORMAT, "backbone.embeddings.weight", "[6, 131072]"},
    {"{'num_hidden_layers':2}", NULL, SSM_EFORMAT, "backbone.layers.1.norm.weight", "missing"},
    {"{'num_hidden_layers':4096}", NULL, SSM_EFORMAT, "backbone.layers.1.norm.weight", "missing"},
    {"{'num_hidden_layers':1e9}", NULL, SSM_EFORMAT, "num_hidden_layers", "integer"},
    {"{'vocab_size':7}", NULL, SSM_EFORMAT, "backbone.embeddings.weight",
     "has shape [6, 4], the config needs [7, 4]"},
    {"{'state_size':3}", NULL, SSM_EFORMAT, "backbone.layers.0.mixer.x_proj.weight", "[7, 8]"},
    {"{'conv_kernel':4}", NULL, SSM_EFORMAT, "backbone.layers.0.mixer.conv1d.weight", "[8, 1, 4]"},
    {"{'conv_kernel':0}", NULL, SSM_EFORMAT, "conv_kernel", ""},
    {"{'expand':Infinity}", NULL, SSM_EFORMAT, "expand", ""},
    {"{'expand':0}", NULL, SSM_EFORMAT, "intermediate_size", ""},
    {"{'time_step_rank':'auti'}", NULL, SSM_EFORMAT, "time_step_rank", "integer"},
    {"{'layer_norm_epsilon':NaN}", NULL, SSM_EFORMAT, "layer_norm_epsilon", ""},
    {"{'use_bias':1}", NULL, SSM_EFORMAT, "use_bias", "true or false"},
    {"{'bos_token_id':6}", NULL, SSM_EFORMAT, "bos_token_id", ""},
    // tensors
    {"{'use_bias':true}", NULL, SSM_EFORMAT, "backbone.layers.0.mixer.in_proj.bias", "missing"},
    {"{'use_conv_bias':false}", NULL, SSM_EUNSUPPORTED, "backbone.layers.0.mixer.conv1d.bias",
     "no part"},
    {"{'tie_word_embeddings':false}", NULL, SSM_EFORMAT, "lm_head.weight", "missing"},
    {NULL, "{'backbone.layers.0.mixer.D':null}", SSM_EFORMAT, "backbone.layers.0.mixer.D",
     "missing"},
    {NULL, "{'backbone.norm_f.weight':null}", SSM_EFORMAT, "backbone.norm_f.weight", "missing"},
    {NULL, "{'backbone.embeddings.weight':null}", SSM_EFORMAT, "backbone.embeddings.weight",
     "missing"},
    {NULL, "{'backbone.layers.0.mixer.A_log':['F32',[2,8]]}", SSM_EFORMAT,
     "backbone.layers.0.mixer.A_log", "[2, 8]"},
    {NULL, "{'backbone.layers.0.mixer.D':['F32',[8,1]]}", SSM_EFORMAT, "backbone.layers.0.mixer.D",
     "[8, 1]"},
    {NULL, "{'backbone.layers.0.mixer.D':['F32',[]]}", SSM_EFORMAT, "backbone.layers.0.mixer.D",
     "shape []"},
    {NULL, "{'backbone.layers.0.mixer.D':['I32',[8]]}", SSM_EUNSUPPORTED,
     "backbone.layers.0.mixer.D", "I32"},
    {NULL, "{'backbone.layers.0.mixer.dt_proj.weight.lora_A':['F32',[8]]}", SSM_EUNSUPPORTED,
     "backbone.layers.0.mixer.dt_proj.weight.lora_A", "no part"},
    {NULL, "{'backbone.layers.1.norm.weight':['F32',[4]]}", SSM_EUNSUPPORTED,
     "backbone.layers.1.norm.weight", "no part"},
    {NULL, "{'lm_head.weight':['F32',[7,4]]}", SSM_EFORMAT, "lm_head.weight", "tie_word"},
    {NULL, "{'lm_head.weight':['F16',[6,4]]}", SSM_EFORMAT, "lm_head.weight", "tie_word"},
};

START_TEST(refused_by_name) {
    const struct refused *r = &refused[_i];
    write_model(mamba_config, r->config, mamba_tensors, r->tensors);
    expect(r->code, r->param, r->message);
}
END_TEST

static const struct refused refused2[] = {
    {"{'num_heads':5}", NULL, SSM_EFORMAT, "num_heads", "5 x 2 must equal"},
    {"{'n_groups':4}", NULL, SSM_EFORMAT, "n_groups", "must divide"},
    {"{'n_groups':1}", NULL, SSM_EFORMAT, "backbone.layers.0.mixer.in_proj.weight", "[34, 4]"},
    {"{'n_groups':null}", NULL, SSM_EFORMAT, "n_groups", "8 must divide"},
    {"{'head_dim':262144,'num_heads':262144}", NULL, SSM_EFORMAT, "num_heads", "must equal"},
    {"{'time_step_limit':[0.1]}", NULL, SSM_EFORMAT, "time_step_limit", "two numbers"},
    {"{'time_step_limit':[0.1,0.01]}", NULL, SSM_EFORMAT, "time_step_limit", "ascending"},
    {"{'time_step_limit':[0.0,'Infinity']}", NULL, SSM_EFORMAT, "time_step_limit", "two numbers"},
    {NULL, "{'backbone.layers.0.mixer.norm.weight':null}", SSM_EFORMAT,
     "backbone.layers.0.mixer.norm.weight", "missing"},
    {"{'tie_word_embeddings':null}", NULL, SSM_EFORMAT, "lm_head.weight", "missing"},
};

START_TEST(refused_mamba2) {
    const struct refused *r = &refused2[_i];
    write_model(mamba2_config, r->config, mamba2_tensors, r->tensors);
    expect(r->code, r->param, r->message);
}
END_TEST

START_TEST(a_head_that_differs) {
    write_model(mamba_config, NULL, mamba_tensors, "{'lm_head.weight':['F32',[6,4]]}");
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    FILE *f = fopen(path, "r+");
    fseek(f, -1, SEEK_END); // of the head, the last tensor
    fputc(1, f);
    fclose(f);
    expect(SSM_EFORMAT, "lm_head.weight", "not the embedding");
}
END_TEST

START_TEST(what_is_no_folder) {
    expect(SSM_EIO, "config.json", "holds no config.json");
    write_json("config.json", json_of(mamba_config));
    expect(SSM_EIO, "model.safetensors", "neither");
    write_file("config.json", "{", 1);
    expect(SSM_EFORMAT, "config.json", "not valid JSON");
    write_json("config.json", json_of(mamba_config));
    write_file("model.safetensors", "", 0);
    expect(SSM_EFORMAT, "model.safetensors", "empty");
    ssm_model *model;
    ck_assert_int_eq(ssm_model_open("/nonexistent/model", &model, NULL), SSM_EIO);
    ck_assert_int_eq(ssm_model_open(SSM_DEMO_MODEL "/config.json", &model, NULL), SSM_EIO);
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

// ---- random models

START_TEST(random_models_repeat) {
    ssm_model *a, *b;
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_BF16, 7, &a, NULL), 0);
    ck_assert_uint_eq(ssm_model_get_info(a)->parameters, 129135360); // as published
    ck_assert_int_eq(ssm_model_get_info(a)->weight_dtype, SSM_DTYPE_BF16);
    const ssm_layer *l = &ssm_model_weights(a)->layers[23];
    // From the definition, not from this implementation's output: A = 1..16, D = 1.
    ck_assert(fabsf(ssm_tensor_get(&l->A_log, 16 * 1535 + 15) - logf(16)) < 1e-6f);
    ck_assert(ssm_tensor_get(&l->D, 1535) == 1);
    for (size_t i = 0; i < 1536; i++) {
        const float dt = log1pf(expf(ssm_tensor_get(&l->dt_bias, i)));
        ck_assert(dt > 0.999e-3f && dt < 1.001e-1f);
    }
    double sum = 0, squares = 0;
    const size_t n = (size_t)l->in_proj.rows * (size_t)l->in_proj.cols;
    for (size_t i = 0; i < n; i++) {
        const double x = ssm_tensor_get(&l->in_proj, i);
        sum += x;
        squares += x * x;
    }
    ck_assert(fabs(sum / (double)n) < 1e-4);
    ck_assert(fabs(sqrt(squares / (double)n) - 1 / sqrt(3 * 768.0)) < 1e-4);
    const ssm_tensor first = ssm_model_weights(a)->layers[5].x_proj;
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_BF16, 7, &b, NULL), 0);
    const size_t bytes = ssm_dtype_bytes(first.dtype, (size_t)first.rows * (size_t)first.cols);
    ck_assert(memcmp(first.data, ssm_model_weights(b)->layers[5].x_proj.data, bytes) == 0);
    ssm_model_free(b);
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_BF16, 8, &b, NULL), 0);
    ck_assert(memcmp(first.data, ssm_model_weights(b)->layers[5].x_proj.data, bytes) != 0);
    ssm_model_free(b);
    ssm_model_free(a);
}
END_TEST

// Rounding to 16 bits of the same numbers, against the exact values.
START_TEST(random_types_agree) {
    ssm_model *models[3];
    const ssm_dtype types[3] = {SSM_DTYPE_F32, SSM_DTYPE_F16, SSM_DTYPE_BF16};
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(ssm_model_random("mamba2-130m", types[i], 1, &models[i], NULL), 0);
    const ssm_tensor *t[3];
    for (int i = 0; i < 3; i++)
        t[i] = &ssm_model_weights(models[i])->layers[3].out_proj;
    for (size_t i = 0; i < 100000; i++) {
        const float exact = ssm_tensor_get(t[0], i);
        const float half = fmaxf(fabsf(exact) * 0x1p-11f, 0x1p-25f); // half a step of f16
        ck_assert(fabsf(ssm_tensor_get(t[1], i) - exact) <= half);
        ck_assert(fabsf(ssm_tensor_get(t[2], i) - exact) <= fabsf(exact) * 0x1p-8f);
    }
    ck_assert_uint_eq(ssm_model_get_info(models[0])->state_bytes,
                      4u * 24 * ((1536 + 256) * 3 + 1536 * 128));
    for (int i = 0; i < 3; i++)
        ssm_model_free(models[i]);
}
END_TEST

START_TEST(geometries_are_listed) {
    ssm_error err;
    ssm_model *model;
    ck_assert_str_eq(ssm_model_geometry(0), "mamba-130m");
    int n = 0;
    while (ssm_model_geometry(n))
        n++;
    ck_assert_int_ge(n, 10);
    ck_assert_ptr_null(ssm_model_geometry(-1));
    ck_assert_int_eq(ssm_model_random("gpt-2", SSM_DTYPE_F32, 0, &model, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "geometry");
    ck_assert_int_eq(ssm_model_random("mamba-130m", SSM_DTYPE_INT8, 0, &model, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "dtype");
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
    tcase_add_loop_test(tc, refused_by_name, 0, sizeof refused / sizeof refused[0]);
    tcase_add_loop_test(tc, refused_mamba2, 0, sizeof refused2 / sizeof refused2[0]);
    tcase_add_test(tc, a_head_that_differs);
    tcase_add_test(tc, what_is_no_folder);
    tcase_add_test(tc, shards);
    tcase_add_loop_test(tc, a_bad_index, 0, sizeof bad_index / sizeof bad_index[0]);
    tcase_add_test(tc, bad_shards);
    suite_add_tcase(suite, tc);
    TCase *random = tcase_create("random"); // by threads: all that TSan is given
    tcase_set_timeout(random, 120);
    tcase_add_test(random, random_models_repeat);
    suite_add_tcase(suite, random);
    TCase *types = tcase_create("types");
    tcase_set_timeout(types, 120);
    tcase_add_test(types, random_types_agree);
    tcase_add_test(types, geometries_are_listed);
    suite_add_tcase(suite, types);
    return suite_run(suite);
}
