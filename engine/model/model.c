// SPDX-License-Identifier: Apache-2.0
// Opening a folder, and what is known of a model afterwards.
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

// ---- special ids

static int32_t read_id(config *c, const char *key, int32_t vocab) {
    int32_t id = -1, n = 0;
    const json_t *v = config_get(c, key);
    if (json_is_integer(v) && json_integer_value(v) == -1)
        return -1; // as some configs write "none"
    config_ids(c, key, vocab, &id, &n, 1);
    return id;
}

// End-of-text ids are those of config.json and generation_config.json together: instruction-tuned
// models often list the end of a turn in the latter only.
static int read_generation_eos(ssm_model_info *info, const char *folder, ssm_error *err) {
    config c;
    int rc = config_open(&c, folder, "generation_config.json", err);
    if (rc == SSM_ENOTFOUND)
        return 0;
    if (rc)
        return rc;
    config_ids(&c, "eos_token_id", info->vocab_size, info->eos_ids, &info->n_eos, SSM_MAX_EOS);
    rc = c.rc;
    config_dispose(&c);
    return rc;
}

static int read_config(ssm_model_info *info, blueprint *b, const char *folder, ssm_error *err) {
    config c;
    int rc = config_open(&c, folder, "config.json", err);
    if (rc)
        return rc == SSM_ENOTFOUND
                   ? ssm_error_set(err, SSM_EIO, "config.json", "%s holds no config.json", folder)
                   : rc;
    rc = blueprint_read(b, &c);
    if (rc == 0) {
        info->vocab_size = b->geometry.vocab_size;
        info->bos_id = read_id(&c, "bos_token_id", info->vocab_size);
        info->pad_id = read_id(&c, "pad_token_id", info->vocab_size);
        config_ids(&c, "eos_token_id", info->vocab_size, info->eos_ids, &info->n_eos, SSM_MAX_EOS);
        rc = c.rc;
    }
    config_dispose(&c);
    return rc;
}

// ---- what it is

static void count_tensor(ssm_model_info *info, const ssm_tensor *t, bool projection,
                         uint64_t by_dtype[SSM_DTYPE_INT6 + 1]) {
    const uint64_t n = (uint64_t)t->rows * (uint64_t)t->cols;
    if (!t->data)
        return;
    info->parameters += n;
    info->weight_bytes += ssm_dtype_bytes(t->dtype, n);
    if (projection)
        by_dtype[t->dtype] += n;
}

static void count_weights(const ssm_model *model, ssm_model_info *info) {
    const ssm_weights *w = &model->weights;
    uint64_t by_dtype[SSM_DTYPE_INT6 + 1] = {0};
    count_tensor(info, &w->embedding, false, by_dtype);
    count_tensor(info, &w->norm_f, false, by_dtype);
    if (!info->tied)
        count_tensor(info, &w->lm_head, false, by_dtype);
    for (int32_t i = 0; i < w->geometry.n_layers; i++) {
        const ssm_layer *l = &w->layers[i];
        const ssm_tensor *projections[] = {&l->in_proj, &l->out_proj, &l->lti.q_proj,
                                           &l->lti.k_proj, &l->lti.v_proj};
        const ssm_tensor *rest[] = {
            &l->norm,        &l->in_bias,     &l->conv_weight, &l->conv_bias,  &l->x_proj,
            &l->dt_proj,     &l->dt_bias,     &l->A_log,       &l->D,          &l->gate_norm,
            &l->out_bias,    &l->lti.log_dt,  &l->lti.A_imag,  &l->lti.A,      &l->lti.B,
            &l->lti.C,       &l->lti.q_bias,  &l->lti.k_bias,  &l->lti.v_bias, &l->lti.shift_B,
            &l->lti.shift_C, &l->lti.shift_D,
        };
        for (size_t k = 0; k < sizeof projections / sizeof projections[0]; k++)
            count_tensor(info, projections[k], true, by_dtype);
        for (size_t k = 0; k < sizeof rest / sizeof rest[0]; k++)
            count_tensor(info, rest[k], false, by_dtype);
    }
    info->weight_dtype = SSM_DTYPE_F32;
    for (ssm_dtype d = SSM_DTYPE_F32; d <= SSM_DTYPE_INT6; d++) {
        if (by_dtype[d] > by_dtype[info->weight_dtype])
            info->weight_dtype = d; // of mixed ones, what most are
    }
}

void model_describe(ssm_model *model, const blueprint *b) {
    const ssm_geometry *g = &b->geometry;
    ssm_model_info *info = &model->info;
    snprintf(info->architecture, sizeof info->architecture, "%s", b->architecture->name);
    info->n_layers = g->n_layers;
    info->d_model = g->d_model;
    info->d_inner = g->d_inner;
    info->d_state = g->d_state;
    info->d_conv = g->d_conv;
    info->dt_rank = g->dt_rank;
    info->n_heads = g->n_heads;
    info->head_dim = g->head_dim;
    info->n_groups = g->n_groups;
    info->vocab_size = g->vocab_size;
    info->tied = b->tied;
    info->state_bytes = sizeof(float) * (ssm_state_conv_floats(g) + ssm_state_ssm_floats(g));
    info->saved_bytes = info->state_bytes + (uint64_t)g->vocab_size * sizeof(float);
    count_weights(model, info);
}

static int list_tensors(ssm_model *model, ssm_error *err) {
    const checkpoint *ck = &model->checkpoint;
    model->tensors = calloc((size_t)ck->n_entries + 1, sizeof *model->tensors);
    if (!model->tensors)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the list of tensors");
    for (int32_t s = 0; s < ck->n_shards; s++) {
        for (int32_t i = 0; i < ck->shards[s].n_tensors; i++) {
            const safetensor *t = &ck->shards[s].tensors[i];
            ssm_tensor_info *out = &model->tensors[model->n_tensors++];
            *out = (ssm_tensor_info){.name = t->name, .dtype = t->dtype, .bytes = t->bytes};
            out->n_dims = t->n_dims;
            memcpy(out->dims, t->dims, sizeof out->dims);
        }
    }
    return 0;
}

// ---- life

int ssm_model_open(const char *path, ssm_model **out, ssm_error *err) {
    struct stat st;
    if (stat(path, &st) != 0)
        return ssm_error_set(err, SSM_EIO, NULL, "cannot open the model %s: %m", path);
    if (!S_ISDIR(st.st_mode))
        return ssm_error_set(err, SSM_EIO, NULL, "the model %s is not a folder", path);
    ssm_model *model = calloc(1, sizeof *model);
    if (!model)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model");
    blueprint b;
    int rc = read_config(&model->info, &b, path, err);
    if (rc == 0)
        rc = read_generation_eos(&model->info, path, err);
    if (rc == 0)
        rc = checkpoint_open(&model->checkpoint, path, err);
    if (rc == 0)
        rc = model_bind(model, &b, err);
    if (rc == 0)
        rc = list_tensors(model, err);
    if (rc) {
        ssm_model_free(model);
        return rc;
    }
    model_describe(model, &b);
    *out = model;
    return 0;
}

void ssm_model_free(ssm_model *model) {
    if (!model)
        return;
    checkpoint_dispose(&model->checkpoint);
    for (int32_t i = 0; i < model->n_copies; i++)
        free(model->copies[i]);
    free(model->copies);
    if (model->memory)
        munmap(model->memory, model->memory_bytes);
    free(model->names);
    free(model->tensors);
    free(model->layers);
    free(model);
}

const ssm_model_info *ssm_model_get_info(const ssm_model *model) {
    return &model->info;
}

const ssm_weights *ssm_model_weights(const ssm_model *model) {
    return &model->weights;
}

int ssm_model_get_tensor(const ssm_model *model, int i, ssm_tensor_info *out) {
    if (i < 0 || i >= model->n_tensors)
        return SSM_ENOTFOUND;
    *out = model->tensors[i];
    return 0;
}
