// SPDX-License-Identifier: Apache-2.0
#include <ssm/error.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <utf8proc.h>

typedef struct row {
    int code;
    const char *name, *text;
    int status;
    const char *type;
} row;

#define SSM_ERROR_ROW(name, code, text, status, type) {name, #name, text, status, type},
static const row rows[] = {SSM_ERRORS(SSM_ERROR_ROW)};
#undef SSM_ERROR_ROW

static const row *find(int code) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (rows[i].code == code)
            return &rows[i];
    }
    return find(SSM_EINTERNAL);
}

const char *ssm_error_name(int code) {
    return code == 0 ? "SSM_OK" : find(code)->name;
}

const char *ssm_error_text(int code) {
    return code == 0 ? "success" : find(code)->text;
}

int ssm_error_status(int code) {
    return code == 0 ? 200 : find(code)->status;
}

const char *ssm_error_type(int code) {
    return find(code)->type;
}

// Makes s safe for logs and JSON in place: control characters and broken UTF-8 become '?', and a
// character that the buffer's end cut in two goes.
static void make_printable(char *s) {
    size_t len = strlen(s);
    size_t i = 0;
    while (i < len) {
        utf8proc_int32_t c;
        const utf8proc_ssize_t n =
            utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(len - i), &c);
        if (n <= 0) {
            s[i++] = '?';
        } else if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {
            for (utf8proc_ssize_t k = 0; k < n; k++)
                s[i++] = '?';
        } else {
            i += (size_t)n;
        }
    }
}

int ssm_error_set(ssm_error *err, int code, const char *param, const char *fmt, ...) {
    if (!err)
        return code;
    err->code = code;
    snprintf(err->param, sizeof err->param, "%s", param ? param : "");
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    make_printable(err->param);
    make_printable(err->message);
    return code;
}
