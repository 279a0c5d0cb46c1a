// SPDX-License-Identifier: Apache-2.0
// Mapping a checkpoint's tensors to the internal form.
//
// Names differ by who wrote the file: transformers puts everything below "backbone.", Mistral's
// Codestral below "model.backbone.", a bare model without a head has no prefix; the official code
// says "embedding" where transformers says "embeddings". The prefix is the first of the table under
// which there is a final norm.
//
// Every tensor must belong to a part of the model: one that nobody asked for (a bias that the
// config denies, a layer too many, an adapter) would be ignored silently, and is refused instead.
// The one exception: a head in the file of a model whose config ties it, which many files have;
// tied means that the embedding is used, as transformers does.
//
// Data is used where it lies. Only tensors that are not aligned to their element (a header of odd
// length; the format asks writers, not readers, to avoid it) are copied.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lti.h"
#include "model.h"

static const char *const prefixes[] = {"backbone.", "model.backbone.", ""};

enum { MAX_NAME = 128 }; // of a tensor that the table can ask for

typedef struct binder {
    ssm_model *model;
    const char *prefix;
    ssm_error *err;
} binder;

// ---- one tensor

// A copy of an unaligned tensor that lives as long as the model.
static const void *align(ssm_model *model, const safetensor *t) {
    void **copies = realloc(model->copies, ((size_t)model->n_copies + 1) * sizeof *copies);
    if (!copies)
        return NULL;
    model->copies = copies;
    void *copy = malloc(t->bytes);
    if (!copy)
        return NULL;
    memcpy(copy, t->data, t->bytes);
    model->copies[model->n_copies++] = copy;
    return copy;
}

static int format_dims(const int64_t *dims, int32_t n, char *out, size_t cap) {
    int len = snprintf(out, cap, "[");
    for (int32_t i = 0; i < n && len < (int)cap; i++)
        len += snprintf(out + len, cap - (size_t)len, "%s%" PRId64, i ? ", " : "", dims[i]);
    if (len < (int)cap)
        len += snprintf(out + len, cap - (size_t)len, "]");
    return len;
}

static int32_t count_dims(const int64_t dims[TENSOR_MAX_DIMS]) {
    int32_t n = 0;
    while (n < TENSOR_MAX_DIMS && dims[n] > 0)
        n++;
    return n;
}

static int check_shape(const safetensor *t, const int64_t *dims, ssm_error *err) {
    const int32_t n = count_dims(dims);
    if (t->n_dims == n && memcmp(t->dims, dims, (size_t)n * sizeof *dims) == 0)
        return 0;
    char has[128], needs[128];
    format_dims(t->dims, t->n_dims, has, sizeof has);
    format_dims(dims, n, needs, sizeof needs);
    return ssm_error_set(err, SSM_EFORMAT, t->name, "tensor %s has shape %s, the config needs %s",
                         t->name, has, needs);
}

static int bind_entry(binder *b, checkpoint_entry *e, const int64_t *dims, ssm_tensor *out) {
    const safetensor *t = e->tensor;
    int rc = check_shape(t, dims, b->err);
    if (rc)
        return rc;
    if (t->dtype == SSM_DTYPE_AUTO)
        return ssm_error_set(b->err, SSM_EUNSUPPORTED, t->name,
                             "tensor %s is %s: only F32, F16 and BF16 weights are supported",
                             t->name, t->type);
    e->used = true;
    const void *data = t->data;
    if ((uintptr_t)data % ssm_dtype_bytes(t->dtype, 1) != 0)
        data = align(b->model, t);
    if (!data)
        return ssm_error_set(b->err, SSM_ENOMEM, t->name, "no memory for a copy of %s", t->name);
    int64_t cols = 1;
    for (int32_t i = 1; i < count_dims(dims); i++)
        cols *= dims[i];
    *out = (ssm_tensor){.data = data, .dtype = t->dtype, .rows = dims[0], .cols = cols};
    return 0;
}

static int bind_tensor(binder *b, const char *name, const int64_t *dims, ssm_tensor *out) {
    checkpoint_entry *e = checkpoint_find(&b->model->checkpoint, name);
    if (!e)
        return ssm_error_set(b->err, SSM_EFORMAT, name, "tensor %s is missing", name);
    return bind_entry(b, e, dims, out);
}

// ---- parts of the model

static int bind_layer(binder *b, const blueprint *bp, int32_t layer) {
    layer_tensor list[LAYER_MAX_TENSORS];
    const int n = bp->architecture->layer(bp, list);
    for (int i = 0; i < n; i++) {
        char name[MAX_NAME];
        snprintf(name, sizeof name, "%slayers.%d.%s", b->prefix, layer, list[i].name);
        ssm_tensor *out = (ssm_tensor *)((char *)&b->model->layers[layer] + list[i].field);
        const int rc = bind_tensor(b, name, list[i].dims, out);
        if (rc)
            return rc;
    }
    if (!bp->architecture->check)
        return 0;
    char prefix[MAX_NAME];
    snprintf(prefix, sizeof prefix, "%slayers.%d.", b->prefix, layer);
    return bp->architecture->check(bp, &b->model->layers[layer], prefix, b->err);
}

static checkpoint_entry *find_embedding(const binder *b, char name[MAX_NAME]) {
    snprintf(name, MAX_NAME, "%sembedding.weight", b->prefix);
    checkpoint_entry *e = checkpoint_find(&b->model->checkpoint, name);
    if (e)
        return e;
    snprintf(name, MAX_NAME, "%sembeddings.weight", b->prefix);
    return checkpoint_find(&b->model->checkpoint, name);
}

// A stored head of a tied model: read and compared, the one time that data is touched.
static int check_tied_head(const binder *b, checkpoint_entry *head, const safetensor *embedding) {
    const safetensor *t = head->tensor;
    head->used = true;
    if (t->dtype == embedding->dtype && t->bytes == embedding->bytes &&
        memcmp(t->data, embedding->data, t->bytes) == 0)
        return 0;
    return ssm_error_set(b->err, SSM_EFORMAT, t->name,
                         "tensor %s is not the embedding although tie_word_embeddings is true",
                         t->name);
}

static int bind_head(binder *b, const blueprint *bp, const safetensor *embedding,
                     const int64_t *dims) {
    ssm_weights *w = &b->model->weights;
    checkpoint_entry *e = checkpoint_find(&b->model->checkpoint, "lm_head.weight");
    if (!e)
        e = checkpoint_find(&b->model->checkpoint, "model.lm_head.weight");
    if (bp->tied) {
        w->lm_head = w->embedding;
        return e ? check_tied_head(b, e, embedding) : 0;
    }
    if (!e)
        return ssm_error_set(b->err, SSM_EFORMAT, "lm_head.weight",
                             "tensor lm_head.weight is missing and tie_word_embeddings is false");
    return bind_entry(b, e, dims, &w->lm_head);
}

static int bind_ends(binder *b, const blueprint *bp) {
    const ssm_geometry *g = &bp->geometry;
    const int64_t table[TENSOR_MAX_DIMS] = {g->vocab_size, g->d_model};
    const int64_t vector[TENSOR_MAX_DIMS] = {g->d_model};
    char name[MAX_NAME];
    checkpoint_entry *e = find_embedding(b, name);
    if (!e)
        return ssm_error_set(b->err, SSM_EFORMAT, name, "tensor %s is missing", name);
    int rc = bind_entry(b, e, table, &b->model->weights.embedding);
    if (rc == 0)
        rc = bind_head(b, bp, e->tensor, table);
    snprintf(name, sizeof name, "%snorm_f.weight", b->prefix);
    if (rc == 0)
        rc = bind_tensor(b, name, vector, &b->model->weights.norm_f);
    return rc;
}

// Of an architecture that looks at values: those that belong to no layer.
static int check_ends(const ssm_model *model, ssm_error *err) {
    const ssm_weights *w = &model->weights;
    int rc = lti_check_finite(&w->embedding, "embeddings.weight", err);
    if (rc == 0)
        rc = lti_check_finite(&w->norm_f, "norm_f.weight", err);
    if (rc == 0)
        rc = lti_check_finite(&w->lm_head, "lm_head.weight", err);
    return rc;
}

static const char *find_prefix(const checkpoint *ck) {
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        char name[MAX_NAME];
        snprintf(name, sizeof name, "%snorm_f.weight", prefixes[i]);
        if (checkpoint_find(ck, name))
            return prefixes[i];
    }
    return prefixes[0];
}

static int check_all_used(const checkpoint *ck, ssm_error *err) {
    for (int32_t i = 0; i < ck->n_entries; i++) {
        const char *name = ck->entries[i].tensor->name;
        if (!ck->entries[i].used)
            return ssm_error_set(err, SSM_EUNSUPPORTED, name,
                                 "tensor %s belongs to no part of the model that config.json "
                                 "describes",
                                 name);
    }
    return 0;
}

int model_bind(ssm_model *model, const blueprint *bp, ssm_error *err) {
    binder b = {model, find_prefix(&model->checkpoint), err};
    int rc = bind_ends(&b, bp);
    if (rc)
        return rc;
    model->layers = calloc((size_t)bp->geometry.n_layers, sizeof *model->layers);
    if (!model->layers)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the layers");
    for (int32_t i = 0; rc == 0 && i < bp->geometry.n_layers; i++)
        rc = bind_layer(&b, bp, i);
    model->weights.geometry = bp->geometry;
    model->weights.layers = model->layers;
    if (rc == 0)
        rc = check_all_used(&model->checkpoint, err);
    if (rc == 0 && bp->architecture->check)
        rc = check_ends(model, err);
    return rc;
}
