// SPDX-License-Identifier: Apache-2.0
// The log: one line an event, `time=... level=... msg=... key=value ...`, written with one
// write(2), so that lines of several threads never mix. It goes to standard error, where it does
// not mix with what a command was asked to print, or to standard output, where containers look for
// it. No prompt and no answer ever goes into it. Level and place are set once, before the first
// thread starts.
#ifndef SSMD_LOG_H
#define SSMD_LOG_H

#include <stdbool.h>

#include "buf.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(const char *name);  // "error", "warn", "info", "debug"
void log_set_output(const char *name); // "stderr", "stdout"
bool log_is_on(enum log_level level);

// A line of its own: time, level and msg="...".
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// A line in parts: begin, fields, end.
void log_begin(buf *line, enum log_level level, const char *msg);
void log_text(buf *line, const char *key, const char *value); // quoted where needed, cut at 200
void log_int(buf *line, const char *key, int64_t value);
void log_ms(buf *line, const char *key, uint64_t ns);
void log_end(buf *line);

#endif
