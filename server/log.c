// SPDX-License-Identifier: Apache-2.0
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static const char *const level_text[] = {"error", "warn", "info", "debug"};
static enum log_level most = LOG_INFO; // frozen before threads start
static int output = STDERR_FILENO;     // likewise

void log_set_level(const char *name) {
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++) {
        if (strcmp(name, level_text[i]) == 0) {
            most = (enum log_level)i;
        }
    }
}

void log_set_output(const char *name) {
    output = strcmp(name, "stdout") == 0 ? STDOUT_FILENO : STDERR_FILENO;
}

bool log_is_on(enum log_level level) {
    return level <= most;
}

static void put_quoted(buf *line, const char *value) {
    enum { CUT = 200 };
    const size_t len = strlen(value);
    if (len > 0 && len <= CUT && strcspn(value, " \"=\\\n\r\t") == len &&
        utf8_is_valid(value, len)) {
        buf_add(line, value, len);
    } else {
        json_put_string(line, value, len < CUT ? len : CUT); // escapes what could forge a line
    }
}

void log_begin(buf *line, enum log_level level, const char *msg) {
    struct timespec now;
    struct tm utc;
    char text[40];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    buf_printf(line, "time=%s.%03dZ level=%s msg=", text, (int)(now.tv_nsec / 1000000),
               level_text[level]);
    put_quoted(line, msg);
}

void log_text(buf *line, const char *key, const char *value) {
    buf_printf(line, " %s=", key);
    put_quoted(line, value);
}

void log_int(buf *line, const char *key, int64_t value) {
    buf_printf(line, " %s=%lld", key, (long long)value);
}

void log_ms(buf *line, const char *key, uint64_t ns) {
    buf_printf(line, " %s=%.3f", key, (double)ns * 1e-6);
}

void log_end(buf *line) {
    buf_add(line, "\n", 1);
    if (!line->failed) {
        const ssize_t n = write(output, line->data, line->len);
        (void)n; // there is nowhere to complain
    }
    buf_dispose(line);
}

void log_write(enum log_level level, const char *fmt, ...) {
    char text[1024];
    va_list args;
    buf line = {0};
    if (!log_is_on(level)) {
        return;
    }
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    log_begin(&line, level, "");
    line.len -= 2; // the empty msg's quotes
    json_put_string(&line, text, strlen(text));
    log_end(&line);
}
