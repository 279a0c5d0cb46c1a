// SPDX-License-Identifier: Apache-2.0
// What moving one state costs beside a plain copy of its bytes, part by part.
#ifndef STATE_COPIES_H
#define STATE_COPIES_H

#include "engine/engine.h"

// Of a session of owner {0, 0}; the engine must be idle. Writes and removes files in the working
// folder. Rows are measured in turns, so that a busy machine is as busy for all of them.
void state_copies(ssm_engine *engine, const char *name);

#endif
