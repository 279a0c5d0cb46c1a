// SPDX-License-Identifier: Apache-2.0
// The reference runs a text and shows every layer's steps. Their number is tokens x channels, that
// of decays times the states of each, 118 million for 200 tokens of mamba-130m: they are counted,
// not kept, in bins of 1/32 of an octave, which is the error of a quantile: 1% up or down. A decay
// is exp(-rate), a half-life ln 2 / rate: one count of rates is both.
#include "memory_steps.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model.h"
#include "kernels/reference/model.h"

enum { FINE = 32, LEAST_OCTAVE = -48, MOST_OCTAVE = 16 };
enum { N_BINS = (MOST_OCTAVE - LEAST_OCTAVE) * FINE };

typedef struct counts {
    uint64_t steps[N_BINS], rates[N_BINS];
} counts;

typedef struct measuring {
    const ssm_geometry *g;
    counts *counts;  // [n_layers]
    double **log_a;  // [n_layers][channels or heads][states]: log2 of -A
    size_t n_states; // of a step
} measuring;

static int bin_of(double octave) { // NaN goes to the first
    const double bin = floor((octave - LEAST_OCTAVE) * FINE);
    return bin >= N_BINS ? N_BINS - 1 : bin > 0 ? (int)bin : 0;
}

static void on_steps(void *ctx, int32_t layer, const float *delta, size_t n) {
    const measuring *m = ctx;
    counts *c = &m->counts[layer];
    for (size_t i = 0; i < n; i++) {
        const double octave = log2((double)delta[i]);
        c->steps[bin_of(octave)]++;
        for (size_t k = 0; k < m->n_states; k++)
            c->rates[bin_of(octave + m->log_a[layer][i * m->n_states + k])]++;
    }
}

// ---- what the counts say

static double middle_of(int bin) {
    return exp2(LEAST_OCTAVE + (bin + 0.5) / FINE);
}

// The value below which a share of all lies.
static double quantile(const uint64_t *bins, double share) {
    uint64_t all = 0, below = 0;
    for (int i = 0; i < N_BINS; i++)
        all += bins[i];
    int i = 0;
    while (i < N_BINS - 1 && (double)(below += bins[i]) < share * (double)all)
        i++;
    return middle_of(i);
}

static void describe(const counts *c, ssm_layer_steps *out) {
    memset(out, 0, sizeof *out);
    for (int i = 0; i < SSM_STEP_QUANTILES; i++) { // what is fast decays most and is halved first
        const double share = ssm_step_shares[i];
        const double rate = quantile(c->rates, 1 - share);
        out->delta[i] = quantile(c->steps, share);
        out->decay[i] = exp(-rate);
        out->half_life[i] = log(2) / rate;
    }
    uint64_t all = 0;
    for (int i = 0; i < N_BINS; i++)
        all += c->rates[i];
    for (int i = 0; i < N_BINS; i++)
        out->shares[memory_bin(log(2) / middle_of(i))] += (double)c->rates[i] / (double)all;
}

// ---- a run

static bool add_layers(measuring *m, const ref_model *model) {
    const ssm_geometry *g = m->g;
    const bool is_mamba = g->kind == SSM_BLOCK_MAMBA;
    const size_t n = is_mamba ? (size_t)g->d_inner * (size_t)g->d_state : (size_t)g->n_heads;
    m->n_states = is_mamba ? (size_t)g->d_state : 1;
    m->counts = calloc((size_t)g->n_layers, sizeof *m->counts);
    m->log_a = calloc((size_t)g->n_layers, sizeof *m->log_a);
    for (int32_t i = 0; m->counts && m->log_a && i < g->n_layers; i++) {
        if (!(m->log_a[i] = malloc(n * sizeof **m->log_a)))
            return false;
        for (size_t k = 0; k < n; k++)
            m->log_a[i][k] = (double)model->layers[i].a_log[k] / log(2);
    }
    return m->counts && m->log_a;
}

static void dispose(measuring *m) {
    for (int32_t i = 0; m->log_a && i < m->g->n_layers; i++)
        free(m->log_a[i]);
    free(m->log_a);
    free(m->counts);
}

int memory_steps(const ssm_weights *w, const int32_t *tokens, size_t n, ssm_layer_steps *out,
                 ssm_error *err) {
    const ssm_geometry *g = &w->geometry;
    measuring m = {.g = g};
    ref_model model;
    int rc = ref_model_init(&model, w, err);
    if (rc != 0)
        return rc;
    float *state = calloc(ssm_state_conv_floats(g) + ssm_state_ssm_floats(g), sizeof *state);
    if (!state || !add_layers(&m, &model)) {
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the layers' steps");
        goto done;
    }
    model.on_steps = on_steps;
    model.on_steps_ctx = &m;
    for (size_t i = 0; i < n; i++)
        ref_model_forward(&model, tokens[i], state, NULL);
    for (int32_t i = 0; i < g->n_layers; i++)
        describe(&m.counts[i], &out[i]);
done:
    dispose(&m);
    free(state);
    ref_model_dispose(&model);
    return rc;
}

const double ssm_step_shares[SSM_STEP_QUANTILES] = {0.05, 0.25, 0.5, 0.75, 0.95};

int ssm_model_get_steps(const ssm_model *model, const int32_t *tokens, size_t n,
                        ssm_layer_steps *out, ssm_error *err) {
    const ssm_weights *w = ssm_model_weights(model);
    if (ssm_block_is_lti(w->geometry.kind))
        return ssm_error_set(err, SSM_EUNSUPPORTED, "architecture",
                             "a %s layer's poles are the same for every text",
                             ssm_model_get_info(model)->architecture);
    if (n == 0)
        return ssm_error_set(err, SSM_EINVAL, "text", "the text is empty: there is no step");
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= w->geometry.vocab_size)
            return ssm_error_set(err, SSM_EINVAL, "text", "token %d is not in the vocabulary",
                                 tokens[i]);
    }
    return memory_steps(w, tokens, n, out, err);
}
