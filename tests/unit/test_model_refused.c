// SPDX-License-Identifier: Apache-2.0
// Broken folders, each refused by the name of what is wrong.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fixtures/model.h"

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

int main(void) {
    Suite *suite = suite_create("model refused");
    TCase *tc = tcase_create("folders");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, refused_by_name, 0, sizeof refused / sizeof refused[0]);
    tcase_add_loop_test(tc, refused_mamba2, 0, sizeof refused2 / sizeof refused2[0]);
    tcase_add_test(tc, a_head_that_differs);
    tcase_add_test(tc, what_is_no_folder);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
