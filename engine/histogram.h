// SPDX-License-Identifier: Apache-2.0
// Counts by size: what /metrics shows as a histogram. Bounds are in ssm/engine.h.
#ifndef SSM_ENGINE_HISTOGRAM_H
#define SSM_ENGINE_HISTOGRAM_H

#include <ssm/engine.h>

void histogram_add(ssm_histogram *h, const double *bounds, double value);

#endif
