// SPDX-License-Identifier: Apache-2.0
// Options: order of sources, types, ranges, and that the files in config/ say what the table says.
#include "options.h"

#include <stdio.h>
#include <string.h>

#include "suite.h"

static int load(options *o, unsigned command, char **argv, ssm_error *err) {
    int argc = 0;
    while (argv[argc]) {
        argc++;
    }
    return options_load(o, command, argc, argv, err);
}

#define ARGS(...) ((char *[]){(char *)"serve", __VA_ARGS__, NULL})

static char *write_config(const char *json) {
    static char path[] = "/tmp/test_options_XXXXXX";
    strcpy(path, "/tmp/test_options_XXXXXX");
    const int fd = mkstemp(path);
    FILE *file = fdopen(fd, "w");
    ck_assert_ptr_nonnull(file);
    fputs(json, file);
    fclose(file);
    return path;
}

START_TEST(flags_win_over_environment_over_file_over_defaults) {
    options o;
    ssm_error err;
    char *path = write_config("{\"port\": 1, \"max_queue\": 2, \"loops\": 3, \"$schema\": \"x\"}");
    setenv("SSMD_PORT", "11", 1);
    setenv("SSMD_MAX_QUEUE", "12", 1);
    ck_assert_int_eq(load(&o, OPTIONS_SERVE, ARGS("--port", "21", "--config", path), &err), 0);
    ck_assert_int_eq(o.port, 21);
    ck_assert_int_eq(o.max_queue, 12);
    ck_assert_int_eq(o.loops, 3);
    ck_assert_int_eq(o.max_connections, 16384);
    ck_assert_int_eq(options_where(&o, "loops"), OPTIONS_FILE);
    ck_assert_int_eq(options_where(&o, "host"), OPTIONS_DEFAULT);
    options_dispose(&o);
    setenv("SSMD_CONFIG", path, 1);
    ck_assert_int_eq(load(&o, OPTIONS_SERVE, ARGS("--max-queue=7"), &err), 0);
    ck_assert_int_eq(o.port, 11);
    ck_assert_int_eq(o.loops, 3);
    options_dispose(&o);
    remove(path);
}
END_TEST

START_TEST(every_form_of_a_flag) {
    options o;
    ssm_error err;
    ck_assert_int_eq(load(&o, OPTIONS_SERVE,
                          ARGS("--any-model", "--no-pin-threads", "--public-metrics=true",
                               "--max-body-bytes=2MiB", "--header-timeout", "0.5", "--model", "a",
                               "--model=b=c"),
                          &err),
                     0);
    ck_assert(o.any_model && !o.pin_threads && o.public_metrics);
    ck_assert_int_eq(o.max_body_bytes, 2 << 20);
    ck_assert(o.header_timeout == 0.5);
    ck_assert_uint_eq(o.model.n, 2);
    ck_assert_str_eq(o.model.items[1], "b=c");
    options_dispose(&o);
}
END_TEST

START_TEST(arguments_are_what_is_no_flag) {
    options o;
    ssm_error err;
    char **argv = ARGS("--max-tokens", "3", "one", "--echo", "two", "--", "--three", "-");
    ck_assert_int_eq(load(&o, OPTIONS_GENERATE, argv, &err), 0);
    ck_assert_int_eq(o.n_args, 4);
    ck_assert_str_eq(o.args[0], "one");
    ck_assert_str_eq(o.args[1], "two");
    ck_assert_str_eq(o.args[2], "--three");
    ck_assert_str_eq(o.args[3], "-");
    options_dispose(&o);
}
END_TEST

static void refused(char **argv, const char *param, const char *says) {
    options o;
    ssm_error err = {0};
    const int rc = load(&o, OPTIONS_SERVE, argv, &err);
    ck_assert_msg(rc < 0, "%s was accepted", argv[1]);
    ck_assert_str_eq(err.param, param);
    ck_assert_msg(strstr(err.message, says) != NULL, "'%s' does not say '%s'", err.message, says);
    options_dispose(&o);
}

START_TEST(what_is_wrong_is_named) {
    refused(ARGS("--port", "65536"), "port", "between 0 and 65535");
    refused(ARGS("--port", "80x"), "port", "whole number");
    refused(ARGS("--port="), "port", "whole number");
    refused(ARGS("--port", " 80"), "port", "whole number");
    refused(ARGS("--port", "99999999999999999999"), "port", "between");
    refused(ARGS("--port"), "port", "needs a value");
    refused(ARGS("--header-timeout", "nan"), "header-timeout", "between");
    refused(ARGS("--any-model=maybe"), "any-model", "true or false");
    refused(ARGS("--log-level", "loud"), "log-level", "error|warn|info|debug");
    refused(ARGS("--packed-weights", "on"), "packed-weights", "auto|off");
    refused(ARGS("--max-body-bytes", "9999999T"), "max-body-bytes",
            "between 1024 and 9007199254740992");
    refused(ARGS("--max-body-bytes", "5Q"), "max-body-bytes", "number of bytes");
    refused(ARGS("--no-such"), "no-such", "no option --no-such");
    refused(ARGS("--no-port"), "no-port", "no option");
    refused(ARGS("--temperature", "1"), "temperature", "not an option of this command");
    refused(ARGS("-p", "1"), "", "no option -p");
    refused(ARGS("--config", "/nonexistent/x"), "config", "cannot open");
}
END_TEST

START_TEST(the_file_is_checked_like_a_flag) {
    static const char *const bad[][2] = {{"{\"port\": \"80\"}", "port"},
                                         {"{\"port\": 80.5}", "port"},
                                         {"{\"port\": 70000}", "port"},
                                         {"{\"any_model\": 1}", "any-model"},
                                         {"{\"model\": [1]}", "model"},
                                         {"{\"nonsense\": 1}", "nonsense"},
                                         {"[]", "config"},
                                         {"{\"port\": 1", "config"},
                                         {"{\"port\":1,\"port\":2}", "config"},
                                         {"{\"host\": 5}", "host"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        options o;
        ssm_error err = {0};
        options_init(&o);
        const int rc = options_read_json(&o, bad[i][0], strlen(bad[i][0]), &err);
        ck_assert_msg(rc < 0, "accepted: %s", bad[i][0]);
        ck_assert_str_eq(err.param, bad[i][1]);
        options_dispose(&o);
    }
    options o;
    ssm_error err;
    const char *good = "{\"port\": null, \"max-body-bytes\": \"1G\", \"model\": [\"a\", \"b\"], "
                       "\"drain_timeout\": 2, \"host\": \"::\"}";
    options_init(&o);
    ck_assert_int_eq(options_read_json(&o, good, strlen(good), &err), 0);
    ck_assert_int_eq(o.port, 8080);
    ck_assert_int_eq(o.max_body_bytes, 1 << 30);
    ck_assert_uint_eq(o.model.n, 2);
    options_dispose(&o);
}
END_TEST

START_TEST(an_orchestrators_variables_are_not_ours) {
    options o;
    ssm_error err;
    setenv("SSMD_PORT", "tcp://10.0.0.1:8080", 1);
    setenv("SSMD_SERVICE_HOST", "10.0.0.1", 1);
    setenv("SSMD_API_KEY", "one,two", 1);
    ck_assert_int_eq(load(&o, OPTIONS_SERVE, ARGS("--api-key", "three"), &err), 0);
    ck_assert_int_eq(o.port, 8080);
    ck_assert_uint_eq(o.api_key.n, 1); // a flag replaces what the environment listed
    ck_assert_str_eq(o.api_key.items[0], "three");
    options_dispose(&o);
    setenv("SSMD_PORT", "http", 1);
    ck_assert_int_eq(load(&o, OPTIONS_SERVE, ARGS("--any-model"), &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "port");
    ck_assert_ptr_nonnull(strstr(err.message, "environment"));
    options_dispose(&o);
}
END_TEST

static void same_as_file(const char *name, void (*print)(FILE *to)) {
    char path[512], *made = NULL;
    size_t made_len = 0;
    snprintf(path, sizeof path, "%s/%s", SSMD_CONFIG_DIR, name);
    FILE *memory = open_memstream(&made, &made_len);
    print(memory);
    fclose(memory);
    FILE *file = fopen(path, "rb");
    ck_assert_msg(file != NULL, "%s", path);
    char *stored = calloc(1, made_len + 2);
    const size_t n = fread(stored, 1, made_len + 1, file);
    ck_assert_msg(n == made_len && memcmp(stored, made, n) == 0,
                  "%s is not what the option table says: print it anew", name);
    fclose(file);
    free(stored);
    free(made);
}

static void print_defaults(FILE *to) {
    options o;
    options_init(&o);
    options_print_config(&o, OPTIONS_SERVE, to);
    options_dispose(&o);
}

START_TEST(the_files_in_config_say_what_the_table_says) {
    same_as_file("ssmd.json", print_defaults);
    same_as_file("ssmd.schema.json", options_print_schema);
}
END_TEST

START_TEST(secrets_are_not_printed) {
    options o;
    ssm_error err;
    char *text = NULL;
    size_t len = 0;
    ck_assert_int_eq(load(&o, OPTIONS_SERVE, ARGS("--api-key", "hunter2"), &err), 0);
    FILE *memory = open_memstream(&text, &len);
    options_print_config(&o, OPTIONS_SERVE, memory);
    fclose(memory);
    ck_assert_ptr_null(strstr(text, "hunter2"));
    free(text);
    options_dispose(&o);
}
END_TEST

START_TEST(the_table_is_sound) {
    for (size_t i = 0; i < option_table_rows; i++) {
        const option_row *row = &option_table[i];
        ck_assert_ptr_eq(options_find(row->name, strlen(row->name)), row); // no name twice
        ck_assert_msg(row->commands != 0 && row->help && *row->help, "%s", row->name);
        ck_assert_msg(strspn(row->name, "abcdefghijklmnopqrstuvwxyz-") == strlen(row->name), "%s",
                      row->name);
    }
}
END_TEST

int main(void) {
    const TTest *const tests[] = {flags_win_over_environment_over_file_over_defaults,
                                  every_form_of_a_flag,
                                  arguments_are_what_is_no_flag,
                                  what_is_wrong_is_named,
                                  the_file_is_checked_like_a_flag,
                                  an_orchestrators_variables_are_not_ours,
                                  the_files_in_config_say_what_the_table_says,
                                  secrets_are_not_printed,
                                  the_table_is_sound};
    return RUN_SUITE("options", tests);
}
