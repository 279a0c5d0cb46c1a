// SPDX-License-Identifier: Apache-2.0
// Turns of sessions: short, and the k-th of any session is the same tokens every time.
#ifndef SSM_TESTS_TURNS_H
#define SSM_TESTS_TURNS_H

#include <ssm/engine.h>

enum { TURN = 3, ANSWER = 2, PER_TURN = TURN + ANSWER }; // tokens

static const uint64_t owner[2] = {1, 2};

ssm_request turn_request(const char *name, int k, int32_t prompt[TURN]);

#endif
