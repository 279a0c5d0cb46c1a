// SPDX-License-Identifier: Apache-2.0
// A CPU's backend that behaves as a GPU's does at its worst: steps return early (run_ahead), and
// copies between slots and the host are done as late as their tickets allow. Until then an export's
// memory is full of NaN, and an import has not read its own.
#ifndef SSM_TEST_LATE_BACKEND_H
#define SSM_TEST_LATE_BACKEND_H

#include "kernels/backend.h"

const ssm_backend *late_backend(void);

#endif
