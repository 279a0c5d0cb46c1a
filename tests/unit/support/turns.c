// SPDX-License-Identifier: Apache-2.0
#include "turns.h"

#include <string.h>

ssm_request turn_request(const char *name, int k, int32_t prompt[TURN]) {
    ssm_request r;
    ssm_request_init(&r);
    for (int i = 0; i < TURN; i++)
        prompt[i] = 1 + (k * 7 + i * 3) % 15;
    r.prompt = prompt;
    r.n_prompt = TURN;
    r.max_tokens = ANSWER;
    r.logprobs = 0;
    r.ignore_eos = true;
    r.session = name;
    memcpy(r.session_owner, owner, sizeof owner);
    return r;
}
