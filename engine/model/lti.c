// SPDX-License-Identifier: Apache-2.0
// Reading and checking of layers that are linear and time-invariant.
//
// Their values are looked at when a model is opened, unlike those of the other architectures:
// log_dt and the poles go through two exponentials before they meet a state, and a file that holds
// NaN, a step of e^100 or a pole in the right half plane loads, runs and answers nonsense. What is
// read for it is the whole of a layer; these models have a few megabytes.
#include "lti.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/lti.h"

enum { BATCH = 512 };

// Of log_dt, log -Re A and |Im A|. Published models lie in [-10, 0], [-3, 8] and [0, 1e4]; at the
// bounds every product below is far from the ends of a double.
static const double min_log_dt = -30, max_log_dt = 10, max_log_rate = 20, max_frequency = 1e9;

void lti_read(config *c, blueprint *b, ssm_block_kind kind) {
    ssm_geometry *g = &b->geometry;
    blueprint_read_family(c, b, true);
    g->kind = kind;
    g->d_inner = g->conv_dim = g->d_model;
    g->d_conv = 1;
    const char *rule = config_string(c, "discretization", NULL);
    if (rule && strcmp(rule, "bilinear") == 0)
        g->rule = SSM_RULE_BILINEAR;
    else if (rule && strcmp(rule, "zoh") == 0)
        g->rule = SSM_RULE_ZOH;
    else if (rule)
        config_fail(c, SSM_EUNSUPPORTED, "discretization",
                    "%.32s is not supported: only zoh and bilinear keep every stable layer stable",
                    rule);
    else
        config_fail(c, SSM_EFORMAT, "discretization", "is missing");
}

void lti_read_activation(config *c) {
    const char *act = config_string(c, "activation", "gelu");
    if (strcmp(act, "gelu") != 0)
        config_fail(c, SSM_EUNSUPPORTED, "activation", "%.32s is not supported: only gelu is", act);
}

void lti_read_pairs(config *c, const ssm_geometry *g) {
    if (g->d_state % 2 != 0)
        config_fail(c, SSM_EFORMAT, "state_size",
                    "%d is odd: poles are kept in conjugate pairs, so it must be even", g->d_state);
}

static int check_range(const ssm_tensor *t, const char *prefix, const char *name, double min,
                       double max, ssm_error *err) {
    const size_t n = (size_t)t->rows * (size_t)t->cols;
    for (size_t i = 0; i < n; i++) {
        const double x = (double)ssm_tensor_get(t, i);
        char whole[128];
        if (x >= min && x <= max)
            continue;
        snprintf(whole, sizeof whole, "%s%s", prefix, name);
        return ssm_error_set(err, SSM_EFORMAT, whole, "tensor %s holds %g, outside [%g, %g]", whole,
                             x, min, max);
    }
    return 0;
}

int lti_check_finite(const ssm_tensor *t, const char *name, ssm_error *err) {
    const size_t n = (size_t)t->rows * (size_t)t->cols;
    float x[BATCH];
    for (size_t i = 0; i < n; i += BATCH) {
        const size_t count = n - i < BATCH ? n - i : BATCH;
        ssm_tensor_read(t, i, count, x);
        for (size_t k = 0; k < count; k++) {
            if (!isfinite(x[k]))
                return ssm_error_set(err, SSM_EFORMAT, name, "tensor %s holds %g, not a number %s",
                                     name, (double)x[k], "that a layer can work with");
        }
    }
    return 0;
}

int lti_check_values(const blueprint *b, const ssm_layer *l, const char *prefix, ssm_error *err) {
    layer_tensor list[LAYER_MAX_TENSORS];
    const int n = b->architecture->layer(b, list);
    int rc = 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        const ssm_tensor *t = (const ssm_tensor *)((const char *)l + list[i].field);
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, list[i].name);
        rc = lti_check_finite(t, name, err);
        if (rc == 0 && list[i].field == LAYER_FIELD(lti.log_dt))
            rc = check_range(t, prefix, list[i].name, min_log_dt, max_log_dt, err);
        if (rc == 0 && list[i].field == LAYER_FIELD(A_log))
            rc = check_range(t, prefix, list[i].name, -max_log_rate * 3, max_log_rate, err);
        if (rc == 0 && list[i].field == LAYER_FIELD(lti.A_imag))
            rc = check_range(t, prefix, list[i].name, -max_frequency, max_frequency, err);
    }
    return rc;
}

int lti_check_failed(int rc, const char *prefix, ssm_error *err) {
    if (rc == 0 || !err)
        return rc;
    const ssm_error inner = *err;
    return ssm_error_set(err, rc, inner.param, "%smixer: %s", prefix, inner.message);
}

int lti_check_diagonal(const blueprint *b, const ssm_layer *l, const char *prefix, ssm_error *err) {
    lti_diagonal s;
    int rc = lti_check_values(b, l, prefix, err);
    if (rc == 0) {
        rc = lti_check_failed(lti_diagonal_init(&s, &b->geometry, l, err), prefix, err);
        if (rc == 0)
            lti_diagonal_dispose(&s);
    }
    return rc;
}
