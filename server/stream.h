// SPDX-License-Identifier: Apache-2.0
// Server-sent events over an exchange's stream.
#ifndef SSMD_STREAM_H
#define SSMD_STREAM_H

#include <stdbool.h>

#include "conn/http.h"

#define STREAM_TYPE "text/event-stream; charset=utf-8"

bool stream_event(exchange *ex, const buf *data); // data: one line of JSON; false: stop for now
void stream_ping(exchange *ex);                   // a comment, which clients skip
void stream_done(exchange *ex);                   // data: [DONE], and the end
void stream_error(exchange *ex, const ssm_error *err); // an event with `error`, and the end

#endif
