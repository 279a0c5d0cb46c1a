// SPDX-License-Identifier: Apache-2.0
// Options: one table (option_table.c) that feeds flags, environment, configuration file, --help,
// --print-config, the JSON schema and the documentation.
//
// Precedence: flags > environment (SSMD_MAX_QUEUE) > file (--config, {"max_queue": 1024}) >
// defaults. A flag is --name VALUE or --name=VALUE; a bool is --name, --no-name or --name=true; a
// list option may be given several times (in the environment: separated by commas; in the file: an
// array). What is wrong is refused with the option's name, its range, and where it was said.
//
// A command calls options_load once, on the main thread; the result is frozen after that and may be
// read by any thread.
#ifndef SSMD_OPTIONS_H
#define SSMD_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <ssm/error.h>

// Bits of option_row.commands.
enum {
    OPTIONS_SERVE = 1,
    OPTIONS_GENERATE = 2,
    OPTIONS_BENCH = 4,
    OPTIONS_INSPECT = 8,
    OPTIONS_HEALTH = 16,
    OPTIONS_SESSION = 32,
};

typedef struct options_list {
    char **items; // owned
    size_t n;
} options_list;

enum { OPTIONS_MAX_ROWS = 96 };

// One field an option; strings are owned, NULL if not set and without a default.
typedef struct options {
    // what is served
    options_list model;
    bool any_model;
    // the engine
    char *device, *weight_dtype, *state_dtype, *activation_dtype, *packed_weights;
    int64_t threads, max_sessions, max_queue, step_tokens, chunk_tokens;
    int64_t cache_bytes, cache_host_bytes, cache_disk_bytes, checkpoint_tokens;
    int64_t session_ttl, session_max, session_max_bytes, session_key_max, session_key_max_bytes;
    bool pin_threads, poison_slots;
    // the server
    char *host, *api_key_file, *log_level, *log_to, *session_busy, *state_dir, *cache_dir;
    char *state_url;
    char *durability, *chat_template;
    int64_t default_max_tokens;
    int64_t port, loops, max_connections, max_body_bytes, max_request_memory, max_prompt_tokens,
        max_prompts;
    double header_timeout, drain_timeout, ping_interval;
    bool public_metrics;
    options_list api_key, cors_origin;
    // generate
    int64_t max_tokens, min_tokens, top_k, seed;
    double temperature, top_p, min_p, typical_p, presence_penalty, frequency_penalty,
        repetition_penalty;
    options_list stop;
    bool ignore_eos, echo, timings;
    // inspect
    bool json, tensors, memory;
    char *text, *text_file;
    // bench
    char *geometry, *batches, *prompts, *compare;
    double seconds, tolerance;
    // health
    double timeout;
    // session
    char *url;
    // all
    char *config;
    // what is left of the command line
    char **args; // borrowed from argv
    int n_args;
    unsigned char source[OPTIONS_MAX_ROWS]; // enum options_source, by row
} options;

enum options_source { OPTIONS_DEFAULT, OPTIONS_FILE, OPTIONS_ENVIRONMENT, OPTIONS_FLAG };

typedef enum option_type {
    OPTION_BOOL,   // bool
    OPTION_INT,    // int64_t
    OPTION_BYTES,  // int64_t; K, M, G (KiB, MiB, GiB) may follow the number
    OPTION_FLOAT,  // double
    OPTION_STRING, // char *; choices, if any, separated by '|'
    OPTION_LIST,   // options_list
} option_type;

#define OPTION_MOST 9007199254740992.0 // 2^53, what a double still counts exactly: no bound at all

typedef struct option_row {
    const char *name; // as a flag, without the dashes
    option_type type;
    size_t offset;        // of the field in struct options
    const char *fallback; // the default, as it would be written; NULL: none
    double min, max;      // numbers
    const char *choices;  // strings: "a|b|c", or NULL for any
    const char *metavar;  // "FILE", "SECONDS", ...
    const char *help;
    unsigned commands; // bits of OPTIONS_*
    bool secret;       // never printed
} option_row;

extern const option_row option_table[];
extern const size_t option_table_rows;

// Reads defaults, --config's file, the environment and argv (argv[0] is the command's name) for one
// command. Returns 0; 1 if --help, --print-config or the like has printed what was asked for and
// the command should exit with 0; or SSM_EINVAL, SSM_EIO, SSM_EFORMAT with err->param the option.
// *o is to be disposed of in every case.
int options_load(options *o, unsigned command, int argc, char **argv, ssm_error *err);
void options_dispose(options *o);

// Where an option's value came from, by its name.
enum options_source options_where(const options *o, const char *name);

// ---- parts of options_load, for tests

void options_init(options *o);                                       // every default
int options_set(options *o, const option_row *row, const char *text, // as a flag would
                enum options_source source, ssm_error *err);
int options_read_json(options *o, const char *json, size_t len, ssm_error *err);
const option_row *options_find(const char *name, size_t len); // '_' and '-' are the same here

// ---- printing (option_print.c)

void options_print_help(unsigned command, const char *word, FILE *to);
void options_print_config(const options *o, unsigned command, FILE *to); // JSON
void options_print_schema(FILE *to);                                     // JSON schema of the file
void options_print_reference(FILE *to);                                  // a table in Markdown

#endif
