// SPDX-License-Identifier: Apache-2.0
// fidelity MODEL TEXT: what each type of weights and activations costs in accuracy on a text that
// the model was not trained on. For every token: the Kullback-Leibler divergence of the next
// token's distribution from that of weights as stored with f32 activations, whether the likeliest
// token is the same, and the loss. CSV on standard output; exit status 1 if a type misses its
// gate (results/ and kernels/cpu/quantise.c have what was measured).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/model.h>
#include <ssm/tokenizer.h>

#include "engine/model/model.h"
#include "kernels/backend.h"

enum { PIECE = 128 };

typedef struct setting {
    const char *name, *backend;
    ssm_dtype weights, activations;
    double gate; // on the mean divergence; 0: none
} setting;

static const setting settings[] = {
    {"as stored", "cpu", SSM_DTYPE_AUTO, SSM_DTYPE_AUTO, 0},
    {"reference", "reference", SSM_DTYPE_AUTO, SSM_DTYPE_AUTO, 1e-9},
    {"f32", "cpu", SSM_DTYPE_F32, SSM_DTYPE_AUTO, 1e-9},
    {"f16", "cpu", SSM_DTYPE_F16, SSM_DTYPE_AUTO, 1e-6},
    {"bf16", "cpu", SSM_DTYPE_BF16, SSM_DTYPE_AUTO, 0},
    {"bf16, bf16 activations", "cpu", SSM_DTYPE_BF16, SSM_DTYPE_BF16, 2e-5},
    {"int8", "cpu", SSM_DTYPE_INT8, SSM_DTYPE_AUTO, 2e-4},
    {"int6", "cpu", SSM_DTYPE_INT6, SSM_DTYPE_AUTO, 1e-3},
    {"int5", "cpu", SSM_DTYPE_INT5, SSM_DTYPE_AUTO, 4e-3},
    {"int4", "cpu", SSM_DTYPE_INT4, SSM_DTYPE_AUTO, 1.5e-2},
};
enum { N_SETTINGS = sizeof settings / sizeof settings[0] };

// Log-probabilities of every next token, [n][vocab].
static int run(const ssm_model *model, const setting *s, const ssm_ids *ids, float *out,
               ssm_error *err) {
    const ssm_backend *backend = ssm_backend_find(s->backend);
    const ssm_device_options o = {.n_slots = 1,
                                  .max_tokens = PIECE,
                                  .max_rows = PIECE,
                                  .weight_dtype = s->weights,
                                  .activation_dtype = s->activations};
    const size_t vocab = (size_t)ssm_model_get_info(model)->vocab_size;
    ssm_device *device = NULL;
    int rc = backend->open(ssm_model_weights(model), &o, &device, err);
    for (size_t done = 0; rc == 0 && done < ids->len; done += PIECE) {
        const size_t left = ids->len - done;
        const int32_t n = (int32_t)(left < PIECE ? left : PIECE);
        const ssm_segment segment = {0, 0, n, done == 0, SSM_WANT_ALL};
        const ssm_plan plan = {ids->data + done, n, &segment, 1};
        rc = backend->step(device, &plan, err);
        for (int32_t i = 0; rc == 0 && i < n; i++)
            rc = backend->logits_read(device, i, out + (done + (size_t)i) * vocab, err);
    }
    if (device)
        backend->close(device);
    for (size_t i = 0; rc == 0 && i < ids->len; i++) {
        float *row = out + i * vocab;
        double max = -INFINITY, sum = 0;
        for (size_t k = 0; k < vocab; k++)
            max = fmax(max, (double)row[k]);
        for (size_t k = 0; k < vocab; k++)
            sum += exp((double)row[k] - max);
        for (size_t k = 0; k < vocab; k++)
            row[k] = (float)((double)row[k] - max - log(sum));
    }
    return rc;
}

typedef struct score {
    double divergence, agreement, loss;
} score;

// p and q are logarithms, p_share the probabilities of p.
static score compare(const float *p, const double *p_share, const float *q, const ssm_ids *ids,
                     size_t vocab) {
    score s = {0};
    for (size_t i = 0; i + 1 < ids->len; i++, p += vocab, p_share += vocab, q += vocab) {
        size_t best_p = 0, best_q = 0;
        for (size_t k = 0; k < vocab; k++) {
            s.divergence += p_share[k] * ((double)p[k] - (double)q[k]);
            best_p = p[k] > p[best_p] ? k : best_p;
            best_q = q[k] > q[best_q] ? k : best_q;
        }
        s.agreement += best_p == best_q;
        s.loss -= (double)q[ids->data[i + 1]];
    }
    const double n = (double)(ids->len - 1);
    return (score){s.divergence / n, s.agreement / n, s.loss / n};
}

static char *read_file(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *text = malloc(1 << 20);
    *len = text ? fread(text, 1, 1 << 20, file) : 0;
    fclose(file);
    return text;
}

static int run_all(const ssm_model *model, const ssm_ids *ids, ssm_error *err) {
    const size_t vocab = (size_t)ssm_model_get_info(model)->vocab_size;
    const size_t n = ids->len * vocab;
    float *base = malloc(n * sizeof *base), *other = malloc(n * sizeof *other);
    double *share = malloc(n * sizeof *share);
    int rc = base && other && share ? run(model, &settings[0], ids, base, err) : SSM_ENOMEM;
    int missed = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        share[i] = exp((double)base[i]);
    printf("weights,tokens,kl,top1_agreement,loss\n");
    for (int i = 0; rc == 0 && i < N_SETTINGS; i++) {
        const setting *s = &settings[i];
        if (s->activations == SSM_DTYPE_BF16 && s->weights == SSM_DTYPE_AUTO)
            continue;
        if (i > 0)
            rc = run(model, s, ids, other, err);
        const score r = compare(base, share, i > 0 ? other : base, ids, vocab);
        const bool is_missed = s->gate > 0 && !(fabs(r.divergence) <= s->gate);
        missed += is_missed;
        printf("\"%s\",%zu,%.3e,%.4f,%.5f\n", s->name, ids->len, r.divergence, r.agreement, r.loss);
        if (is_missed)
            fprintf(stderr, "%s: a divergence of %g is over %g\n", s->name, r.divergence, s->gate);
    }
    free(base);
    free(other);
    free(share);
    return rc != 0 ? rc : missed;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: fidelity MODEL TEXT\n");
        return 2;
    }
    ssm_error err = {0};
    ssm_model *model = NULL;
    ssm_tokenizer *tokenizer = NULL;
    ssm_ids ids = {0};
    size_t len = 0;
    char *text = read_file(argv[2], &len);
    int rc = text ? ssm_model_open(argv[1], &model, &err)
                  : ssm_error_set(&err, SSM_EIO, NULL, "%s cannot be read", argv[2]);
    if (rc == 0)
        rc = ssm_tokenizer_open(argv[1], &tokenizer, &err);
    if (rc == 0)
        rc = ssm_tokenizer_encode(tokenizer, text, len, 0, &ids, &err);
    if (rc == 0)
        rc = run_all(model, &ids, &err);
    if (rc < 0)
        fprintf(stderr, "fidelity: %s\n", err.message);
    ssm_ids_dispose(&ids);
    ssm_tokenizer_free(tokenizer);
    ssm_model_free(model);
    free(text);
    return rc != 0;
}
