// SPDX-License-Identifier: Apache-2.0
// S4D, S4 and H3 on the CPU: what model.c and device.c call for them.
#ifndef SSM_KERNELS_CPU_LTI_H
#define SSM_KERNELS_CPU_LTI_H

#include "step.h"

// Before packing: every layer's discrete form in fp64. SSM_ENOMEM or what lti.h refuses.
int cpu_lti_discretise(cpu_model *model, ssm_error *err);
void cpu_lti_forget(cpu_model *model); // after packing

// When prompts run as convolutions (lti_block.c). After discretising.
void cpu_lti_choose_form(cpu_model *model);

// What they need of one thread's part of a layer, counting or packing; false: no memory.
bool cpu_lti_pack_blocks(const cpu_model *model, cpu_thread *thread, int32_t layer);

// The same of H3 (lti_pairs.c), and floats of a thread while it runs a prompt so.
void cpu_lti_pack_pairs(const cpu_model *model, cpu_thread *thread, int32_t layer);
size_t cpu_lti_pairs_floats(const cpu_model *model);

// One thread's part of a layer, counting or packing.
void cpu_lti_pack(const cpu_model *model, cpu_thread *thread, int32_t layer);

void cpu_lti_step_run(cpu_step *step);

// As cpu_slot_read and cpu_slot_write (slots.h), whose layout other kinds share: H3.
void cpu_h3_slot_read(const cpu_model *model, const float *own, float *canonical, int32_t layer);
void cpu_h3_slot_write(const cpu_model *model, float *own, const float *canonical, int32_t layer);

#endif
