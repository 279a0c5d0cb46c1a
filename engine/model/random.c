// SPDX-License-Identifier: Apache-2.0
// Random models of published geometries, for benchmarks without downloads.
//
// Weights must be such that the model behaves like a trained one where speed and accuracy depend on
// it: states that remember for tens to thousands of tokens, activations of about 1, logits that are
// spread. So everything is initialised as the official code does before training (Mamba: A = 1..N,
// D = 1, dt_bias such that softplus gives 1e-3 to 1e-1; Mamba-2: A in 1..16), matrices with the
// standard deviation of torch's default, 1 / sqrt(3 inputs), those that add to the residual smaller
// by the root of the number of layers, embeddings with 0.02. Names, shapes and the order of tensors
// are those of a checkpoint; norms, A_log, D and dt_bias are fp32 as in files of mixed types, the
// rest has the asked type.
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fill.h"
#include "model.h"

typedef struct published {
    const char *name;
    const architecture *architecture;
    int32_t n_layers, d_model, d_state, vocab_size, n_groups;
    bool tied;
} published;

// All: expand 2, conv 4, dt_rank d_model / 16, head_dim 64. Vocabularies with their padding rows.
// state-spaces/mamba-*, state-spaces/mamba2-*, tiiuae/falcon-mamba-7b, Mamba-Codestral-7B-v0.1.
static const published geometries[] = {
    {"mamba-130m", &architecture_mamba, 24, 768, 16, 50280, 0, true},
    {"mamba-370m", &architecture_mamba, 48, 1024, 16, 50280, 0, true},
    {"mamba-790m", &architecture_mamba, 48, 1536, 16, 50280, 0, true},
    {"mamba-1.4b", &architecture_mamba, 48, 2048, 16, 50280, 0, true},
    {"mamba-2.8b", &architecture_mamba, 64, 2560, 16, 50280, 0, true},
    {"mamba2-130m", &architecture_mamba2, 24, 768, 128, 50288, 1, true},
    {"mamba2-370m", &architecture_mamba2, 48, 1024, 128, 50288, 1, true},
    {"mamba2-780m", &architecture_mamba2, 48, 1536, 128, 50288, 1, true},
    {"mamba2-1.3b", &architecture_mamba2, 48, 2048, 128, 50288, 1, true},
    {"mamba2-2.7b", &architecture_mamba2, 64, 2560, 128, 50288, 1, true},
    {"falcon-mamba-7b", &architecture_falcon_mamba, 64, 4096, 16, 65024, 0, false},
    {"mamba-codestral-7b", &architecture_mamba2, 64, 4096, 128, 32768, 8, false},
};
enum { N_GEOMETRIES = sizeof geometries / sizeof geometries[0] };

enum {
    ALIGN = 64, // bytes, of each tensor
    NAME_BYTES = 64,
};

const char *ssm_model_geometry(int i) {
    return i >= 0 && i < N_GEOMETRIES ? geometries[i].name : NULL;
}

// ---- layout

typedef struct builder {
    ssm_model *model;
    fill_target *targets; // [n_tensors]
    ssm_dtype dtype;
    uint64_t seed;
} builder;

static bool is_small(tensor_fill fill) {
    return fill == FILL_ONE || fill == FILL_DT_BIAS || fill == FILL_A_ORDINAL ||
           fill == FILL_A_UNIFORM;
}

// Appends a tensor. Its data is the offset in memory until place() makes it a pointer.
static const fill_target *add(builder *b, const char *name, const int64_t *dims, tensor_fill fill) {
    ssm_model *model = b->model;
    const int32_t i = model->n_tensors++;
    ssm_tensor_info *info = &model->tensors[i];
    char *copy = model->names + (size_t)i * NAME_BYTES;
    assert(strlen(name) < NAME_BYTES);
    *info = (ssm_tensor_info){.name = strcpy(copy, name)};
    info->dtype = is_small(fill) ? SSM_DTYPE_F32 : b->dtype;
    uint64_t n = 1;
    while (info->n_dims < TENSOR_MAX_DIMS && dims[info->n_dims] > 0) {
        n *= (uint64_t)dims[info->n_dims];
        info->dims[info->n_dims] = dims[info->n_dims];
        info->n_dims++;
    }
    info->bytes = ssm_dtype_bytes(info->dtype, n);
    fill_target *t = &b->targets[i];
    *t = (fill_target){.fill = fill, .key = fill_key(b->seed, (uint64_t)i)};
    t->tensor.dtype = info->dtype;
    t->tensor.rows = dims[0];
    t->tensor.cols = (int64_t)n / dims[0];
    t->tensor.data = (const void *)(uintptr_t)model->memory_bytes;
    model->memory_bytes += (info->bytes + ALIGN - 1) / ALIGN * ALIGN;
    return t;
}

static int place(ssm_model *model, fill_target *targets, ssm_error *err) {
    const uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    void *memory = MAP_FAILED;
    if (model->memory_bytes < machine)
        memory = mmap(NULL, model->memory_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for %zu MB of random weights",
                             model->memory_bytes >> 20);
    madvise(memory, model->memory_bytes, MADV_HUGEPAGE); // 5 GB fault in 512 times fewer steps
    model->memory = memory;
    for (int32_t i = 0; i < model->n_tensors; i++) {
        ssm_tensor *t = &targets[i].tensor;
        t->data = (const char *)memory + (uintptr_t)t->data;
    }
    return 0;
}

static int reserve(builder *to, const blueprint *b, ssm_error *err) {
    ssm_model *model = to->model;
    const size_t n = (size_t)b->geometry.n_layers * LAYER_MAX_TENSORS + 3;
    model->layers = calloc((size_t)b->geometry.n_layers, sizeof *model->layers);
    model->tensors = calloc(n, sizeof *model->tensors);
    model->names = calloc(n, NAME_BYTES);
    to->targets = calloc(n, sizeof *to->targets);
    if (!model->layers || !model->tensors || !model->names || !to->targets)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model");
    return 0;
}

static int build(builder *b, const blueprint *bp, ssm_error *err) {
    const ssm_geometry *g = &bp->geometry;
    ssm_model *model = b->model;
    const int64_t table[TENSOR_MAX_DIMS] = {g->vocab_size, g->d_model};
    const int64_t vector[TENSOR_MAX_DIMS] = {g->d_model};
    layer_tensor list[LAYER_MAX_TENSORS];
    const int n = bp->architecture->layer(bp, list);
    const fill_target *embedding = add(b, "backbone.embeddings.weight", table, FILL_EMBEDDING);
    const fill_target *layers = embedding + 1;
    for (int32_t i = 0; i < g->n_layers; i++) {
        for (int k = 0; k < n; k++) {
            char name[NAME_BYTES];
            snprintf(name, sizeof name, "backbone.layers.%d.%s", i, list[k].name);
            add(b, name, list[k].dims, list[k].fill);
        }
    }
    const fill_target *norm_f = add(b, "backbone.norm_f.weight", vector, FILL_ONE);
    const fill_target *head = embedding;
    if (!bp->tied)
        head = add(b, "lm_head.weight", table, FILL_EMBEDDING);
    const int rc = place(model, b->targets, err);
    if (rc)
        return rc;
    for (int32_t i = 0; i < g->n_layers; i++) {
        for (int k = 0; k < n; k++)
            *(ssm_tensor *)((char *)&model->layers[i] + list[k].field) = layers++->tensor;
    }
    model->weights =
        (ssm_weights){*g, embedding->tensor, norm_f->tensor, head->tensor, model->layers};
    return 0;
}

static blueprint blueprint_of(const published *p) {
    const bool mamba2 = p->architecture == &architecture_mamba2;
    ssm_geometry g = {
        .kind = mamba2 ? SSM_BLOCK_MAMBA2 : SSM_BLOCK_MAMBA,
        .n_layers = p->n_layers,
        .d_model = p->d_model,
        .d_inner = 2 * p->d_model,
        .d_state = p->d_state,
        .d_conv = 4,
        .vocab_size = p->vocab_size,
        .norm_eps = 1e-5f,
        .gate_eps = 1e-5f,
        .bc_dt_norm = p->architecture == &architecture_falcon_mamba,
        .bc_dt_eps = 1e-6f,
        .dt_max = INFINITY,
    };
    g.conv_dim = g.d_inner;
    if (mamba2) {
        g.head_dim = 64;
        g.n_heads = g.d_inner / g.head_dim;
        g.n_groups = p->n_groups;
        g.conv_dim += 2 * g.n_groups * g.d_state;
    } else {
        g.dt_rank = p->d_model / 16;
    }
    return (blueprint){p->architecture, g, .tied = p->tied, .conv_bias = true};
}

static const published *find(const char *name) {
    for (int i = 0; i < N_GEOMETRIES; i++) {
        if (strcmp(geometries[i].name, name) == 0)
            return &geometries[i];
    }
    return NULL;
}

int ssm_model_random(const char *geometry, ssm_dtype dtype, uint64_t seed, ssm_model **out,
                     ssm_error *err) {
    const published *known = find(geometry);
    if (!known)
        return ssm_error_set(err, SSM_EINVAL, "geometry", "no published geometry is called %.64s",
                             geometry);
    if (dtype != SSM_DTYPE_F32 && dtype != SSM_DTYPE_F16 && dtype != SSM_DTYPE_BF16)
        return ssm_error_set(err, SSM_EINVAL, "dtype",
                             "random weights are f32, f16 or bf16, not %s", ssm_dtype_name(dtype));
    const blueprint b = blueprint_of(known);
    builder to = {calloc(1, sizeof *to.model), .dtype = dtype, .seed = seed};
    ssm_model *model = to.model;
    int rc = model ? reserve(&to, &b, err)
                   : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model");
    if (rc == 0)
        rc = build(&to, &b, err);
    if (rc == 0)
        rc = fill_tensors(to.targets, model->n_tensors, b.geometry.n_layers, err);
    free(to.targets);
    if (rc) {
        ssm_model_free(model);
        return rc;
    }
    model->info.bos_id = model->info.pad_id = -1;
    model->info.n_eos = 1; // id 0, as in the GPT-NeoX vocabulary
    model_describe(model, &b);
    *out = model;
    return 0;
}
