// SPDX-License-Identifier: Apache-2.0
// Which model a state belongs to: a hash over the geometry and every weight, as stored. It is
// computed when it is first needed, for that touches all of a mapped checkpoint: 130m parameters in
// bf16 take 50 ms from the page cache, and as long as the disk takes when they are not there.
#include <stddef.h>

#include "engine/model/model.h"
#include "hash.h"
#include "snapshot_file.h"

static void add_tensor(XXH3_state_t *h, const ssm_tensor *t) {
    const int64_t shape[] = {t->data != NULL, (int64_t)t->dtype, t->rows, t->cols};
    XXH3_128bits_update(h, shape, sizeof shape);
    if (t->data)
        XXH3_128bits_update(h, t->data,
                            ssm_dtype_bytes(t->dtype, (size_t)t->rows * (size_t)t->cols));
}

// Field by field: a struct has holes.
static void add_geometry(XXH3_state_t *h, const ssm_geometry *g) {
    const int32_t sizes[] = {(int32_t)g->kind, g->n_layers, g->d_model,    g->d_inner,
                             g->d_state,       g->d_conv,   g->dt_rank,    g->n_heads,
                             g->head_dim,      g->n_groups, g->vocab_size, g->bc_dt_norm};
    const float numbers[] = {g->norm_eps, g->gate_eps, g->bc_dt_eps, g->dt_min, g->dt_max};
    XXH3_128bits_update(h, sizes, sizeof sizes);
    XXH3_128bits_update(h, numbers, sizeof numbers);
    const int32_t rule = (int32_t)g->rule;
    if (ssm_block_is_lti(g->kind))
        XXH3_128bits_update(h, &rule, sizeof rule);
}

static void compute(const ssm_model *model, uint64_t out[2]) {
    const ssm_weights *w = ssm_model_weights(model);
    XXH3_state_t *h = XXH3_createState();
    out[0] = out[1] = 0;
    if (!h)
        return; // no memory for half a kilobyte: all models are one
    XXH3_128bits_reset(h);
    add_geometry(h, &w->geometry);
    add_tensor(h, &w->embedding);
    add_tensor(h, &w->norm_f);
    add_tensor(h, &w->lm_head);
    for (int32_t i = 0; i < w->geometry.n_layers; i++) {
        _Static_assert(sizeof(ssm_layer) % sizeof(ssm_tensor) == 0, "a layer is tensors alone");
        const ssm_tensor *t = (const ssm_tensor *)&w->layers[i];
        const bool lti = ssm_block_is_lti(w->geometry.kind);
        const size_t bytes = lti ? sizeof(ssm_layer) : offsetof(ssm_layer, lti);
        for (size_t k = 0; k < bytes / sizeof(ssm_tensor); k++)
            add_tensor(h, &t[k]);
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(h);
    XXH3_freeState(h);
    out[0] = hash.high64;
    out[1] = hash.low64;
}

void model_hash(const ssm_model *const_model, uint64_t out[2]) {
    ssm_model *model = (ssm_model *)const_model; // what is remembered is no part of the value
    pthread_mutex_lock(&model->hash_lock);
    if (!model->has_hash)
        compute(model, model->hash);
    model->has_hash = true;
    out[0] = model->hash[0];
    out[1] = model->hash[1];
    pthread_mutex_unlock(&model->hash_lock);
}
