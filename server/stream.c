// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

bool stream_event(exchange *ex, const buf *data) {
    if (data->failed) {
        ex->out.failed = true; // out of memory: the stream breaks off
        return false;
    }
    http_stream_write(ex, "data: ", 6);
    http_stream_write(ex, data->data, data->len);
    return http_stream_write(ex, "\n\n", 2);
}

void stream_ping(exchange *ex) {
    http_stream_write(ex, ": ping\n\n", 8);
}

void stream_done(exchange *ex) {
    http_stream_write(ex, "data: [DONE]\n\n", 14);
    http_stream_end(ex);
}

void stream_error(exchange *ex, const ssm_error *err) {
    buf data = {0};
    http_put_error(&data, ssm_error_type(err->code), err->param, http_error_code(err->code),
                   *err->message ? err->message : ssm_error_text(err->code));
    stream_event(ex, &data);
    buf_dispose(&data);
    http_stream_end(ex);
}
