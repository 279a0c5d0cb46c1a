// SPDX-License-Identifier: Apache-2.0
// Falcon Mamba (Zuo et al. 2024): Mamba whose dt, B and C are RMS-normed, without weights, as they
// come from x_proj. FalconMambaForCausalLM of transformers.
#include "mamba.h"

static void read(config *c, blueprint *b) {
    mamba_read(c, b);
    b->geometry.bc_dt_norm = true;
    b->geometry.bc_dt_eps = (float)config_real(c, "mixer_rms_eps", 0, 1, 1e-6);
}

const architecture architecture_falcon_mamba = {
    .name = "falcon_mamba",
    .read = read,
    .layer = mamba_layer,
};
