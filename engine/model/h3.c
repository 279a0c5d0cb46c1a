// SPDX-License-Identifier: Apache-2.0
// H3 (Fu et al. 2023): q, k and v as in attention, k through a shift SSM, the outer products k v
// through a diagonal one, q to read it. Names are those of HazyResearch/H3 (h3.py), where
// inv_A_real holds log -Re A; there is no attention layer and no MLP.
#include "lti.h"

static void read(config *c, blueprint *b) {
    ssm_geometry *g = &b->geometry;
    lti_read(c, b, SSM_BLOCK_H3);
    lti_read_pairs(c, g);
    g->head_dim = config_int(c, "head_dim", 1, MAX_WIDTH, CONFIG_REQUIRED);
    if (c->rc)
        return;
    g->n_heads = g->d_model / g->head_dim;
    if (g->n_heads * g->head_dim != g->d_model)
        config_fail(c, SSM_EFORMAT, "head_dim", "%d must divide hidden_size %d", g->head_dim,
                    g->d_model);
    else if ((int64_t)g->d_model * g->head_dim > MAX_INNER)
        config_fail(c, SSM_EUNSUPPORTED, "head_dim",
                    "%d x hidden_size %d pairs of channels are more than %d", g->head_dim,
                    g->d_model, MAX_INNER);
    else
        g->d_inner = g->d_model * g->head_dim;
    g->d_conv = g->d_state + 1; // the shift SSM's state
}

static int layer(const blueprint *b, layer_tensor *out) {
    const ssm_geometry *g = &b->geometry;
    const int64_t width = g->d_model, n = g->d_state, poles = (n + 1) / 2, heads = g->n_heads;
    const layer_tensor all[] = {
        {"norm.weight", LAYER_FIELD(norm), {width}, FILL_ONE},
        {"mixer.q_proj.weight", LAYER_FIELD(lti.q_proj), {width, width}, FILL_LINEAR},
        {"mixer.q_proj.bias", LAYER_FIELD(lti.q_bias), {width}, FILL_ZERO},
        {"mixer.k_proj.weight", LAYER_FIELD(lti.k_proj), {width, width}, FILL_LINEAR},
        {"mixer.k_proj.bias", LAYER_FIELD(lti.k_bias), {width}, FILL_ZERO},
        {"mixer.v_proj.weight", LAYER_FIELD(lti.v_proj), {width, width}, FILL_LINEAR},
        {"mixer.v_proj.bias", LAYER_FIELD(lti.v_bias), {width}, FILL_ZERO},
        {"mixer.ssm_k_kernel.kernel.B", LAYER_FIELD(lti.shift_B), {width, n}, FILL_LINEAR},
        {"mixer.ssm_k_kernel.kernel.C", LAYER_FIELD(lti.shift_C), {1, width, n}, FILL_LINEAR},
        {"mixer.ssm_k_D", LAYER_FIELD(lti.shift_D), {width}, FILL_ONE},
        {"mixer.kernel.kernel.log_dt", LAYER_FIELD(lti.log_dt), {heads}, FILL_ZERO},
        {"mixer.kernel.kernel.inv_A_real", LAYER_FIELD(A_log), {heads, poles}, FILL_ZERO},
        {"mixer.kernel.kernel.A_imag", LAYER_FIELD(lti.A_imag), {heads, poles}, FILL_ZERO},
        {"mixer.kernel.kernel.B", LAYER_FIELD(lti.B), {heads, poles, 2}, FILL_LINEAR},
        {"mixer.kernel.kernel.C", LAYER_FIELD(lti.C), {1, heads, poles, 2}, FILL_LINEAR},
        {"mixer.D", LAYER_FIELD(D), {heads}, FILL_ONE},
        {"mixer.output_linear.weight", LAYER_FIELD(out_proj), {width, width}, FILL_RESIDUAL},
        {"mixer.output_linear.bias", LAYER_FIELD(out_bias), {width}, FILL_ZERO},
    };
    int count = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        layer_add(out, &count, all[i]);
    return count;
}

const architecture architecture_h3 = {
    .name = "h3",
    .read = read,
    .layer = layer,
    .check = lti_check_diagonal,
};
