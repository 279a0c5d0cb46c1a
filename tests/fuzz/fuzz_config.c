// SPDX-License-Identifier: Apache-2.0
// A config.json from foreign bytes, up to the list of a layer's tensors: whatever is accepted is
// within the bounds that every product relies on.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "engine/model/architecture.h"

static void must(bool holds) {
    if (!holds) {
        abort();
    }
}

static void look_at(const blueprint *b) {
    const ssm_geometry *g = &b->geometry;
    layer_tensor list[LAYER_MAX_TENSORS];
    const int n = b->architecture->layer(b, list);
    must(n > 0 && n <= LAYER_MAX_TENSORS);
    for (int i = 0; i < n; i++) {
        int64_t product = 1;
        for (int k = 0; k < TENSOR_MAX_DIMS && list[i].dims[k]; k++) {
            must(list[i].dims[k] > 0);
            must(!__builtin_mul_overflow(product, list[i].dims[k], &product));
        }
    }
    must(g->n_layers > 0 && g->d_model > 0 && g->d_inner > 0 && g->d_state > 0 && g->d_conv > 0);
    must(g->conv_dim >= (g->kind == SSM_BLOCK_H3 ? g->d_model : g->d_inner));
    must(g->norm_eps >= 0 && g->norm_eps <= 1);
    must(g->dt_min >= 0 && (g->kind == SSM_BLOCK_MAMBA || g->dt_max >= g->dt_min));
    must(ssm_state_ssm_floats(g) / (size_t)g->d_state / (size_t)g->d_inner == (size_t)g->n_layers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    config c;
    blueprint b;
    ssm_error err = {0};
    int rc = config_parse(&c, (const char *)data, size, "config.json", &err);
    if (rc == 0) {
        rc = blueprint_read(&b, &c);
        if (rc == 0) {
            look_at(&b);
        }
        config_dispose(&c);
    }
    must(rc == 0 || (err.code == rc && err.message[0]));
    return 0;
}
