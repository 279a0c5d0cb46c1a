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
//
// Each number is a function of the seed, its tensor's place and its index, by a counter-based hash:
// threads take pieces in any order and the result is the same. Normal deviates are sums of four
// bytes: integer arithmetic until one multiplication, no libm in the way of "the same on any
// machine" (logs and exponentials are taken in double and rounded to float, for a few thousand
// values). Distributed closely enough to normal; its 1,021 levels are finer than bf16.
#define _GNU_SOURCE // sched_getaffinity
#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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
    ALIGN = 64,      // bytes, of each tensor
    PIECE = 1 << 20, // numbers that a thread takes at a time
    BLOCK = 1024,    // numbers made in fp32 before they are rounded
    NAME_BYTES = 64,
    MAX_THREADS = 256,
};

const char *ssm_model_geometry(int i) {
    return i >= 0 && i < N_GEOMETRIES ? geometries[i].name : NULL;
}

// ---- numbers

static uint64_t mix(uint64_t x) { // the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash(uint64_t key, uint64_t i) {
    return mix(key + i * 0x9e3779b97f4a7c15u);
}

static double uniform(uint64_t key, uint64_t i) { // [0, 1)
    return (double)(hash(key, i) >> 11) * 0x1p-53;
}

// Four bytes at once: mean 510, variance 4 (256^2 - 1) / 12 = 147.8^2.
static float bell(uint32_t x) {
    const uint32_t pairs = (x & 0x00ff00ff) + (x >> 8 & 0x00ff00ff);
    return (float)((int32_t)((pairs & 0xffff) + (pairs >> 16)) - 510);
}
static const double bell_deviation = 147.80166891254204;

static void fill_normal(uint64_t key, double deviation, uint64_t first, size_t n, float *out) {
    const float scale = (float)(deviation / bell_deviation);
    assert(first % 2 == 0);
    for (size_t k = 0; k < n; k += 2) {
        const uint64_t h = hash(key, (first + k) / 2);
        out[k] = scale * bell((uint32_t)h);
        if (k + 1 < n)
            out[k + 1] = scale * bell((uint32_t)(h >> 32));
    }
}

static float dt_bias(double u) {
    const double dt = exp(log(1e-3) + u * (log(1e-1) - log(1e-3)));
    return (float)(dt + log(-expm1(-dt))); // softplus of it is dt
}

static uint16_t to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // to nearest even; never NaN here
}

static uint16_t to_f16(float f) { // to nearest even; magnitudes below 65504
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude < 0x38800000) { // subnormal: as a multiple of 2^-24, rounded by the addition
        const float shifted = fabsf(f) + 0.5f;
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    const uint32_t rounded = (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13;
    return (uint16_t)(sign | (rounded - (112 << 10))); // exponents are biased by 15, not 127
}

static void store(const float *in, size_t n, ssm_dtype dtype, void *out) {
    if (dtype == SSM_DTYPE_F32) {
        memcpy(out, in, n * sizeof *in);
        return;
    }
    uint16_t *halves = out;
    for (size_t i = 0; i < n; i++)
        halves[i] = dtype == SSM_DTYPE_BF16 ? to_bf16(in[i]) : to_f16(in[i]);
}

// ---- filling

typedef struct target {
    ssm_tensor tensor;
    tensor_fill fill;
    uint64_t key;
} target;

typedef struct painter {
    const blueprint *blueprint;
    target *targets;
    int32_t n_targets;
    const struct piece {
        int32_t target;
        uint64_t first;
    } * pieces;
    size_t n_pieces;
    atomic_size_t next;
} painter;

static void fill_block(const painter *p, const target *t, uint64_t first, size_t n, float *out) {
    const uint64_t cols = (uint64_t)t->tensor.cols;
    const double linear = 1 / sqrt(3.0 * (double)cols);
    switch (t->fill) {
    case FILL_LINEAR:
        fill_normal(t->key, linear, first, n, out);
        return;
    case FILL_RESIDUAL:
        fill_normal(t->key, linear / sqrt(p->blueprint->geometry.n_layers), first, n, out);
        return;
    case FILL_EMBEDDING:
        fill_normal(t->key, 0.02, first, n, out);
        return;
    default:
        break;
    }
    for (size_t k = 0; k < n; k++) {
        const uint64_t i = first + k;
        const double u = uniform(t->key, i);
        switch (t->fill) {
        case FILL_ONE:
            out[k] = 1;
            break;
        case FILL_CONV:
        case FILL_DT_PROJ: // U(-1, 1) / sqrt(inputs)
            out[k] = (float)((2 * u - 1) / sqrt((double)cols));
            break;
        case FILL_DT_BIAS:
            out[k] = dt_bias(u);
            break;
        case FILL_A_ORDINAL:
            out[k] = (float)log((double)(1 + i % cols));
            break;
        case FILL_A_UNIFORM:
            out[k] = (float)log(1 + 15 * u);
            break;
        default:
            out[k] = 0;
        }
    }
}

static void *paint(void *arg) {
    painter *p = arg;
    for (size_t next; (next = atomic_fetch_add(&p->next, 1)) < p->n_pieces;) {
        const target *t = &p->targets[p->pieces[next].target];
        const uint64_t total = (uint64_t)(t->tensor.rows * t->tensor.cols);
        const uint64_t first = p->pieces[next].first;
        const uint64_t end = first + PIECE < total ? first + PIECE : total;
        for (uint64_t i = first; i < end; i += BLOCK) {
            float block[BLOCK];
            const size_t n = end - i < BLOCK ? end - i : BLOCK;
            fill_block(p, t, i, n, block);
            char *out = (char *)t->tensor.data + ssm_dtype_bytes(t->tensor.dtype, i);
            store(block, n, t->tensor.dtype, out);
        }
    }
    return NULL;
}

static int usable_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int n = CPU_COUNT(&set);
    return n < MAX_THREADS ? n : MAX_THREADS;
}

static void paint_all(painter *p) {
    pthread_t threads[MAX_THREADS];
    int n = 0;
    const int wanted = usable_cores() - 1; // this thread is one of them
    while (n < wanted && pthread_create(&threads[n], NULL, paint, p) == 0)
        n++;
    paint(p);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

static int cut_pieces(painter *p, ssm_error *err) {
    size_t n = 0, cap = 0;
    for (int32_t i = 0; i < p->n_targets; i++) {
        const ssm_tensor *t = &p->targets[i].tensor;
        cap += (size_t)(t->rows * t->cols + PIECE - 1) / PIECE;
    }
    struct piece *pieces = malloc(cap * sizeof *pieces);
    if (!pieces)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model");
    for (int32_t i = 0; i < p->n_targets; i++) {
        const ssm_tensor *t = &p->targets[i].tensor;
        for (uint64_t first = 0; first < (uint64_t)(t->rows * t->cols); first += PIECE)
            pieces[n++] = (struct piece){i, first};
    }
    assert(n == cap);
    p->pieces = pieces;
    p->n_pieces = n;
    return 0;
}

// ---- layout

typedef struct builder {
    ssm_model *model;
    painter *painter;
    ssm_dtype dtype;
    uint64_t seed;
} builder;

static bool is_small(tensor_fill fill) {
    return fill == FILL_ONE || fill == FILL_DT_BIAS || fill == FILL_A_ORDINAL ||
           fill == FILL_A_UNIFORM;
}

// Appends a tensor. Its data is the offset in memory until place() makes it a pointer.
static const target *add(builder *b, const char *name, const int64_t *dims, tensor_fill fill) {
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
    target *t = &b->painter->targets[b->painter->n_targets++];
    *t = (target){.fill = fill, .key = mix(b->seed ^ mix((uint64_t)i + 1))};
    t->tensor.dtype = info->dtype;
    t->tensor.rows = dims[0];
    t->tensor.cols = (int64_t)n / dims[0];
    t->tensor.data = (const void *)(uintptr_t)model->memory_bytes;
    model->memory_bytes += (info->bytes + ALIGN - 1) / ALIGN * ALIGN;
    return t;
}

static int place(ssm_model *model, painter *p, ssm_error *err) {
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
    for (int32_t i = 0; i < p->n_targets; i++) {
        ssm_tensor *t = &p->targets[i].tensor;
        t->data = (const char *)memory + (uintptr_t)t->data;
    }
    return 0;
}

static int reserve(ssm_model *model, painter *p, const blueprint *b, ssm_error *err) {
    const size_t n = (size_t)b->geometry.n_layers * LAYER_MAX_TENSORS + 3;
    model->layers = calloc((size_t)b->geometry.n_layers, sizeof *model->layers);
    model->tensors = calloc(n, sizeof *model->tensors);
    model->names = calloc(n, NAME_BYTES);
    p->targets = calloc(n, sizeof *p->targets);
    if (!model->layers || !model->tensors || !model->names || !p->targets)
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
    const target *embedding = add(b, "backbone.embeddings.weight", table, FILL_EMBEDDING);
    const target *layers = embedding + 1;
    for (int32_t i = 0; i < g->n_layers; i++) {
        for (int k = 0; k < n; k++) {
            char name[NAME_BYTES];
            snprintf(name, sizeof name, "backbone.layers.%d.%s", i, list[k].name);
            add(b, name, list[k].dims, list[k].fill);
        }
    }
    const target *norm_f = add(b, "backbone.norm_f.weight", vector, FILL_ONE);
    const target *head = embedding;
    if (!bp->tied)
        head = add(b, "lm_head.weight", table, FILL_EMBEDDING);
    const int rc = place(model, b->painter, err);
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
    ssm_model *model = calloc(1, sizeof *model);
    painter p = {.blueprint = &b};
    builder to_model = {model, &p, dtype, seed};
    int rc = model ? reserve(model, &p, &b, err)
                   : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the model");
    if (rc == 0)
        rc = build(&to_model, &b, err);
    if (rc == 0)
        rc = cut_pieces(&p, err);
    if (rc)
        goto done;
    paint_all(&p);
    model->info.bos_id = model->info.pad_id = -1;
    model->info.n_eos = 1; // id 0, as in the GPT-NeoX vocabulary
    model_describe(model, &b);
    *out = model;
done:
    free((void *)p.pieces);
    free(p.targets);
    if (rc)
        ssm_model_free(model);
    return rc;
}
