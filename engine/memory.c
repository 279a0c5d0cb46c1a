// SPDX-License-Identifier: Apache-2.0
#include "memory_steps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model.h"
#include "kernels/lti.h"

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int memory_bin(double tokens) {
    const double bin = tokens < 1 ? 0 : 1 + floor(2 * log10(tokens));
    return bin < SSM_MEMORY_BINS - 1 ? (int)bin : SSM_MEMORY_BINS - 1;
}

// Magnitudes of poles to what the record says of them; sorts them.
static void describe(double *magnitudes, size_t n, ssm_layer_memory *out) {
    qsort(magnitudes, n, sizeof *magnitudes, by_size);
    for (size_t i = 0; i < n; i++) {
        magnitudes[i] = magnitudes[i] < 1 ? -1 / log(magnitudes[i]) : INFINITY; // 0: at once
        out->shares[memory_bin(magnitudes[i])] += 1 / (double)n;
    }
    out->shortest = magnitudes[0];
    out->median = magnitudes[n / 2];
    out->longest = magnitudes[n - 1];
}

// The first token from which |k| sums to less than 1% of its whole, or -1.
static int32_t reach_of(const double *k) {
    double all = 0, left = 0;
    for (int32_t t = 0; t < SSM_MEMORY_MOST; t++)
        all += fabs(k[t]);
    for (int32_t t = SSM_MEMORY_MOST - 1; t >= 0; t--) {
        left += fabs(k[t]);
        if (left >= all / 100)
            return t == SSM_MEMORY_MOST - 1 ? -1 : t + 1;
    }
    return 0;
}

// Four poles beside each other: a pole's next power waits for its last one.
enum { TOGETHER = 4 };
typedef double poles_of __attribute__((vector_size(TOGETHER * sizeof(double))));

static void diagonal_kernel(const lti_diagonal *s, size_t ch, double *k) {
    const size_t end = 2 * (ch + 1) * s->n;
    memset(k, 0, SSM_MEMORY_MOST * sizeof *k);
    for (size_t at = 2 * ch * s->n; at < end; at += 2 * TOGETHER) {
        poles_of re = {0}, im = {0}, a_re = {0}, a_im = {0}, c_re = {0}, c_im = {0};
        for (size_t j = 0, i = at; j < TOGETHER && i < end; j++, i += 2) {
            re[j] = s->bb[i], im[j] = s->bb[i + 1];
            a_re[j] = s->ab[i], a_im[j] = s->ab[i + 1];
            c_re[j] = 2 * s->c[i], c_im[j] = 2 * s->c[i + 1];
        }
        for (int32_t t = 0; t < SSM_MEMORY_MOST; t++) {
            const poles_of heard = c_re * re - c_im * im, next = a_re * re - a_im * im;
            k[t] += (heard[0] + heard[1]) + (heard[2] + heard[3]);
            im = a_re * im + a_im * re;
            re = next;
        }
    }
}

static int measure_diagonal(const ssm_geometry *g, const ssm_layer *l, ssm_layer_memory *out,
                            ssm_error *err) {
    lti_diagonal s;
    const int rc = lti_diagonal_init(&s, g, l, err);
    if (rc != 0)
        return rc;
    const size_t poles = s.channels * s.n;
    double *work = malloc((poles + SSM_MEMORY_MOST + s.channels) * sizeof *work);
    if (work) {
        double *k = work + poles, *reach = k + SSM_MEMORY_MOST;
        for (size_t i = 0; i < poles; i++)
            work[i] = hypot(s.ab[2 * i], s.ab[2 * i + 1]);
        describe(work, poles, out);
        for (size_t ch = 0; ch < s.channels; ch++) {
            diagonal_kernel(&s, ch, k);
            const int32_t tokens = reach_of(k);
            reach[ch] = tokens < 0 ? INFINITY : tokens;
        }
        qsort(reach, s.channels, sizeof *reach, by_size);
        const double most = reach[s.channels - 1], half = reach[s.channels / 2];
        out->reach = isfinite(most) ? (int32_t)most : -1;
        out->median_reach = isfinite(half) ? (int32_t)half : -1;
        out->radius = s.radius;
    }
    lti_diagonal_dispose(&s);
    free(work);
    return work ? 0 : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a layer's kernels");
}

// A triangle's eigenvalues stand on its diagonal; of another matrix the radius alone is said.
static int measure_dense(const ssm_geometry *g, const ssm_layer *l, ssm_layer_memory *out,
                         ssm_error *err) {
    lti_dense s;
    const int rc = lti_dense_init(&s, g, l, err);
    if (rc != 0)
        return rc;
    const size_t n = s.n, poles = s.is_lower ? s.channels * n : 1;
    double *work = malloc(poles * sizeof *work);
    if (work) {
        work[0] = s.radius;
        for (size_t i = 0; s.is_lower && i < poles; i++)
            work[i] = fabs(s.ab[i / n * n * n + i % n * (n + 1)]);
        describe(work, poles, out);
        out->radius = s.radius;
        out->reach = out->median_reach = (int32_t)fmin(ceil(log(100) * out->longest), INT32_MAX);
    }
    lti_dense_dispose(&s);
    free(work);
    return work ? 0 : ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a layer's kernels");
}

int ssm_model_get_memory(const ssm_model *model, int32_t layer, ssm_layer_memory *out,
                         ssm_error *err) {
    const ssm_weights *w = ssm_model_weights(model);
    *out = (ssm_layer_memory){0};
    if (!ssm_block_is_lti(w->geometry.kind))
        return ssm_error_set(err, SSM_EUNSUPPORTED, "architecture",
                             "what a %s layer remembers depends on the text: only s4d, s4 and h3 "
                             "have fixed poles",
                             ssm_model_get_info(model)->architecture);
    if (layer < 0 || layer >= w->geometry.n_layers)
        return SSM_ENOTFOUND;
    return w->geometry.kind == SSM_BLOCK_S4
               ? measure_dense(&w->geometry, &w->layers[layer], out, err)
               : measure_diagonal(&w->geometry, &w->layers[layer], out, err);
}
