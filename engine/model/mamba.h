// SPDX-License-Identifier: Apache-2.0
// What Falcon Mamba takes over from Mamba.
#ifndef SSM_MODEL_MAMBA_H
#define SSM_MODEL_MAMBA_H

#include "architecture.h"

void mamba_read(config *c, blueprint *b);
int mamba_layer(const blueprint *b, layer_tensor *out);

#endif
