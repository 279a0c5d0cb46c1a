// SPDX-License-Identifier: Apache-2.0
// S4 as a linear state-space layer (LSSL, Gu et al. 2021): one dense A and B a layer, HiPPO-LegS as
// a rule, shared by channels whose steps differ. `measure` in a config says what A and B were; the
// tensors are what counts.
#include "lti.h"

#include "kernels/lti.h"

// A discrete layer is a matrix a channel: 2^28 numbers are 1 GiB in fp32.
enum { MAX_DENSE_STATE = 1024, MAX_DENSE = 1 << 28 };

static void read(config *c, blueprint *b) {
    const ssm_geometry *g = &b->geometry;
    lti_read(c, b, SSM_BLOCK_S4);
    lti_read_activation(c);
    if (g->d_state > MAX_DENSE_STATE ||
        (int64_t)g->d_model * g->d_state * g->d_state > (int64_t)MAX_DENSE)
        config_fail(c, SSM_EUNSUPPORTED, "state_size",
                    "%d: %d channels of dense %d x %d states are more than 1 GiB a layer",
                    g->d_state, g->d_model, g->d_state, g->d_state);
}

static int layer(const blueprint *b, layer_tensor *out) {
    const ssm_geometry *g = &b->geometry;
    const int64_t width = g->d_model, n = g->d_state;
    const layer_tensor all[] = {
        {"norm.weight", LAYER_FIELD(norm), {width}, FILL_ONE},
        {"mixer.log_dt", LAYER_FIELD(lti.log_dt), {width}, FILL_ZERO},
        {"mixer.A", LAYER_FIELD(lti.A), {n, n}, FILL_ZERO},
        {"mixer.B", LAYER_FIELD(lti.B), {n}, FILL_ONE},
        {"mixer.C", LAYER_FIELD(lti.C), {width, n}, FILL_LINEAR},
        {"mixer.D", LAYER_FIELD(D), {width}, FILL_ONE},
        {"mixer.output_linear.0.weight",
         LAYER_FIELD(out_proj),
         {2 * width, width, 1},
         FILL_RESIDUAL},
        {"mixer.output_linear.0.bias", LAYER_FIELD(out_bias), {2 * width}, FILL_ZERO},
    };
    int count = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        layer_add(out, &count, all[i]);
    return count;
}

static void advance(ssm_tensor *t, int64_t row) {
    t->data = (const char *)t->data + ssm_dtype_bytes(t->dtype, (size_t)(row * t->cols));
    t->rows = 1;
}

// Discretises the channel of the longest step alone: see check_radius in kernels/lti.c.
static int check(const blueprint *b, const ssm_layer *l, const char *prefix, ssm_error *err) {
    int rc = lti_check_values(b, l, prefix, err);
    if (rc != 0)
        return rc;
    int64_t longest = 0;
    for (int64_t i = 1; i < l->lti.log_dt.rows; i++) {
        if (ssm_tensor_get(&l->lti.log_dt, (size_t)i) >
            ssm_tensor_get(&l->lti.log_dt, (size_t)longest))
            longest = i;
    }
    ssm_geometry g = b->geometry;
    ssm_layer one = *l;
    g.d_model = 1;
    advance(&one.lti.log_dt, longest);
    advance(&one.lti.C, longest);
    advance(&one.D, longest);
    lti_dense s;
    rc = lti_check_failed(lti_dense_init(&s, &g, &one, err), prefix, err);
    if (rc == 0)
        lti_dense_dispose(&s);
    return rc;
}

const architecture architecture_s4 = {
    .name = "s4",
    .read = read,
    .layer = layer,
    .check = check,
};
