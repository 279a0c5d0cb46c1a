// SPDX-License-Identifier: Apache-2.0
// config.json: read whole, then asked key by key.
//
// The getters keep the first failure (rc, and *err names the key) and answer with the lower bound
// from then on, so that a reader asks for all it needs in a row and looks at rc once. A key whose
// value is null counts as absent.
#ifndef SSM_MODEL_CONFIG_H
#define SSM_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>
#include <ssm/error.h>

typedef struct config {
    json_t *root;     // an object
    const char *file; // its name in messages, static
    ssm_error *err;
    int rc;
} config;

#define CONFIG_REQUIRED INT64_MIN // as `missing`: the key must be there

// Reads folder/file. SSM_EIO with errno's text, SSM_ENOTFOUND if there is no such file,
// SSM_EFORMAT.
int config_open(config *c, const char *folder, const char *file, ssm_error *err);

// The same from len bytes of JSON (borrowed during the call).
int config_parse(config *c, const char *text, size_t len, const char *file, ssm_error *err);
void config_dispose(config *c);

// An integer in [min, max].
int32_t config_int(config *c, const char *key, int32_t min, int32_t max, int64_t missing);

// A number in [min, max], the bounds included; infinities count as numbers, NaN never does.
double config_real(config *c, const char *key, double min, double max, double missing);

bool config_bool(config *c, const char *key, bool missing);

// Borrowed from the config; missing may be NULL.
const char *config_string(config *c, const char *key, const char *missing);

// An ascending pair of non-negative numbers; untouched if the key is absent.
void config_pair(config *c, const char *key, float *low, float *high);

// Adds the id or ids of a key to ids[*n], each once; ids must be in [0, vocab). More than max in
// all is SSM_EUNSUPPORTED.
void config_ids(config *c, const char *key, int32_t vocab, int32_t *ids, int32_t *n, int32_t max);

// Whether a key is there and asks for something: not null, false, 0, "", [] or {}.
bool config_asks(const config *c, const char *key);

// The value of a key unless it is null, borrowed.
json_t *config_get(const config *c, const char *key);

// Fails the config (unless it has failed already).
void config_fail(config *c, int code, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#endif
