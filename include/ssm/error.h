// SPDX-License-Identifier: Apache-2.0
// Errors of libssm.
//
// Every function that can fail returns int: 0, or one of the negative SSM_E* codes below. One table
// gives each code its name, its text, the HTTP status that a server should answer and the `type` of
// OpenAI's error object. Detail (which field, which tensor, both numbers) goes into a ssm_error
// that the caller owns; passing NULL for it is allowed everywhere. Nothing here allocates; every
// function may be called on any thread, a ssm_error belongs to one thread at a time.
#ifndef SSM_ERROR_H
#define SSM_ERROR_H

//  name             code  text                          status  type
#define SSM_ERRORS(X)                                                                              \
    X(SSM_EINVAL, -1, "invalid argument", 400, "invalid_request_error")                            \
    X(SSM_EFORMAT, -2, "malformed file", 500, "server_error")                                      \
    X(SSM_EUNSUPPORTED, -3, "not supported", 400, "invalid_request_error")                         \
    X(SSM_EIO, -4, "input/output error", 500, "server_error")                                      \
    X(SSM_ENOMEM, -5, "out of memory", 503, "server_error")                                        \
    X(SSM_EBUSY, -6, "queue full", 429, "rate_limit_exceeded")                                     \
    X(SSM_ECANCELED, -7, "cancelled", 499, "server_error")                                         \
    X(SSM_EDRAINING, -8, "shutting down", 503, "server_error")                                     \
    X(SSM_EDEVICE, -9, "device error", 500, "server_error")                                        \
    X(SSM_ENOTFOUND, -10, "not found", 404, "invalid_request_error")                               \
    X(SSM_EINTERNAL, -11, "internal error", 500, "server_error")                                   \
    X(SSM_ESESSIONBUSY, -12, "session busy", 409, "invalid_request_error")                         \
    X(SSM_EMISMATCH, -13, "session mismatch", 400, "invalid_request_error")                        \
    X(SSM_EMOVED, -14, "session has moved on", 409, "invalid_request_error")                       \
    X(SSM_EQUOTA, -15, "too many sessions", 403, "invalid_request_error")                          \
    X(SSM_EUNAVAILABLE, -16, "the store of sessions cannot be reached", 503, "server_error")       \
    X(SSM_ECONFLICT, -17, "session was continued elsewhere", 409, "invalid_request_error")         \
    X(SSM_EDISKFULL, -18, "the disk is full", 507, "server_error")

#define SSM_ERROR_ENUM(name, code, text, status, type) name = code,
enum { SSM_OK = 0, SSM_ERRORS(SSM_ERROR_ENUM) };
#undef SSM_ERROR_ENUM

typedef struct ssm_error {
    int code;          // 0 or SSM_E*
    char param[64];    // the request's field or the file's tensor at fault, "" if none
    char message[448]; // one sentence, valid UTF-8, foreign bytes quoted and cut
} ssm_error;

// Text, HTTP status and OpenAI type of a code; unknown codes read as SSM_EINTERNAL. Static strings.
const char *ssm_error_name(int code);
const char *ssm_error_text(int code);
int ssm_error_status(int code);
const char *ssm_error_type(int code);

// Fills *err (may be NULL) with a formatted message and returns code, so that a failing function
// can end in `return ssm_error_set(err, SSM_EINVAL, "top_p", "top_p must be in [0, 1], got %g",
// x);`. param may be NULL. What does not fit is cut; bytes that are not valid UTF-8 or are control
// characters become '?', so that a message can go to a log or into JSON as it is.
int ssm_error_set(ssm_error *err, int code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
