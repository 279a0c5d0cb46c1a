// SPDX-License-Identifier: Apache-2.0
// Between the files that make up a completer. Others see completer.h.
#ifndef SSMD_COMPLETER_PARTS_H
#define SSMD_COMPLETER_PARTS_H

#include "completer.h"

// ---- completer.c

completer *completer_create(exchange *ex, bool is_chat); // NULL: no memory
void completer_dispose_run(completion_run *run);
void completer_free(completer *c);
void completer_free_if_over(completer *c);
void completer_touch(completer *c); // it is flushed after this step
void completer_leave(completer *c); // the exchange is not used any more
// What it will answer; the first one holds.
void completer_fail(completer *c, int code, const char *param, const char *message);

// ---- completer_submit.c

void completer_start_encoding(completer *c); // then its prompts are submitted
void completer_submit_more(completer *c);
void completer_start_again(completer *c);

// ---- completer_answer.c

extern const exchange_listener completer_listener; // its exchange's

#endif
