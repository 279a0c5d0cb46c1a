// SPDX-License-Identifier: Apache-2.0
// Options of the command line that arrive at the backend.
#include <string.h>

#include <ssm/engine.h>
#include <ssm/tokenizer.h>

#include "engine/engine.h"
#include "options.h"
#include "registry.h"
#include "suite.h"

static ssm_device_options seen;

static int open_seen(const ssm_weights *weights, const ssm_device_options *o, ssm_device **out,
                     ssm_error *err) {
    seen = *o;
    return ssm_error_set(err, SSM_EUNSUPPORTED, "device", "seen");
}

static void open_with(char *name, char *value) {
    char *argv[] = {(char *)"serve", name, value, NULL};
    options o;
    ssm_error err = {0};
    ssm_tokenizer *tokenizer = NULL;
    ssm_model *model = NULL;
    ssm_engine *engine = NULL;
    ssm_engine_options e;
    ck_assert_int_eq(ssm_tokenizer_open(SSM_DEMO_MODEL, &tokenizer, &err), 0);
    ck_assert_int_eq(ssm_model_open(SSM_DEMO_MODEL, &model, &err), 0);
    ck_assert_int_eq(options_load(&o, OPTIONS_SERVE, name ? 3 : 1, argv, &err), 0);
    ssm_backend backend = ssm_backend_cpu;
    backend.open = open_seen;
    registry_engine_options(&o, tokenizer, ssm_model_get_info(model), &e);
    seen = (ssm_device_options){.unpacked = true};
    ck_assert_int_eq(engine_create_on(&backend, model, &e, &engine, &err), SSM_EUNSUPPORTED);
    options_dispose(&o);
    ssm_model_free(model);
    ssm_tokenizer_free(tokenizer);
}

START_TEST(packed_weights_are_kept_unless_off) {
    open_with(NULL, NULL);
    ck_assert(!seen.unpacked);
    open_with((char *)"--packed-weights", (char *)"auto");
    ck_assert(!seen.unpacked);
    open_with((char *)"--packed-weights", (char *)"off");
    ck_assert(seen.unpacked);
}
END_TEST

START_TEST(types_are_passed_on) {
    open_with((char *)"--weight-dtype", (char *)"f16");
    ck_assert_int_eq(seen.weight_dtype, SSM_DTYPE_F16);
    open_with((char *)"--state-dtype", (char *)"f16");
    ck_assert_int_eq(seen.state_dtype, SSM_DTYPE_F16);
    open_with((char *)"--activation-dtype", (char *)"bf16");
    ck_assert_int_eq(seen.activation_dtype, SSM_DTYPE_BF16);
    ck_assert_int_eq(seen.weight_dtype, SSM_DTYPE_AUTO);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {packed_weights_are_kept_unless_off, types_are_passed_on};
    return RUN_SUITE("device options", tests);
}
