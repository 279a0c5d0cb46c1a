// SPDX-License-Identifier: Apache-2.0
// S4D (Gu et al. 2022): diagonal poles in conjugate pairs, a set and a step a channel. Names are
// those of state-spaces/s4 (s4d.py), whose 1x1 convolution output_linear is.
#include "lti.h"

static void read(config *c, blueprint *b) {
    lti_read(c, b, SSM_BLOCK_S4D);
    lti_read_activation(c);
    lti_read_pairs(c, &b->geometry);
}

static int layer(const blueprint *b, layer_tensor *out) {
    const ssm_geometry *g = &b->geometry;
    const int64_t width = g->d_model, poles = (g->d_state + 1) / 2;
    const layer_tensor all[] = {
        {"norm.weight", LAYER_FIELD(norm), {width}, FILL_ONE},
        {"mixer.kernel.log_dt", LAYER_FIELD(lti.log_dt), {width}, FILL_ZERO},
        {"mixer.kernel.log_A_real", LAYER_FIELD(A_log), {width, poles}, FILL_ZERO},
        {"mixer.kernel.A_imag", LAYER_FIELD(lti.A_imag), {width, poles}, FILL_ZERO},
        {"mixer.kernel.C", LAYER_FIELD(lti.C), {width, poles, 2}, FILL_LINEAR},
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

const architecture architecture_s4d = {
    .name = "s4d",
    .read = read,
    .layer = layer,
    .check = lti_check_diagonal,
};
