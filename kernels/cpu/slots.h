// SPDX-License-Identifier: Apache-2.0
// A slot's state between the backend's layout and the canonical one (kernels/weights.h). See
// slots.c.
#ifndef SSM_KERNELS_CPU_SLOTS_H
#define SSM_KERNELS_CPU_SLOTS_H

#include "model.h"

// One layer of a slot: `own` is [conv blocks][d_conv - 1][16], then [inner blocks][d_state][16];
// `canonical` is the whole state. Layers may be moved by several threads at once.
void cpu_slot_read(const cpu_model *model, const float *own, float *canonical, int32_t layer);
void cpu_slot_write(const cpu_model *model, float *own, const float *canonical, int32_t layer);

#endif
