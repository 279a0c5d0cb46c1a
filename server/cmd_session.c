// SPDX-License-Identifier: Apache-2.0
// ssmd session list|save|load|fork|rm: the sessions of a running server.
//
// Exit status: 0, done; 1, the server refused or did not answer, a file could not be read or
// written; 2, the command line is wrong. What the server says of a refusal is repeated as it is. A
// saved file is written beside its name and renamed when it is whole: a save that fails leaves an
// older file alone.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <ssm/session.h>

#include "auth.h"
#include "commands.h"
#include "json.h"
#include "options.h"
#include "remote.h"
#include "tenant.h"

typedef struct client {
    const options *o;
    char url[512];
    auth keys;
} client;

static int fail(const char *what) {
    fprintf(stderr, "ssmd session: %s\n", what);
    return 1;
}

static bool is_name(const char *name) {
    if (tenant_is_session(name)) {
        return true;
    }
    fprintf(stderr,
            "ssmd session: '%.140s' is no session's name: 1 to 128 characters of "
            "A-Z a-z 0-9 . _ -\n",
            name);
    return false;
}

// ---- one request

static remote request_of(const client *c, const char *method, const char *name, const char *rest) {
    remote r = {.url = c->url,
                .key = c->keys.keys.n > 0 ? c->keys.keys.items[0] : NULL,
                .timeout = c->o->timeout,
                .method = method,
                .from_bytes = -1};
    snprintf(r.path, sizeof r.path, "/v1/sessions%s%s%s", name ? "/" : "", name ? name : "", rest);
    return r;
}

// What the server said is wrong.
static void print_refusal(const remote *r) {
    ssm_error err;
    json_t *root = json_parse_object(r->body.data, r->body.len, &err);
    const char *message =
        json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    if (r->status == 401) {
        fprintf(stderr, "ssmd session: %s: %s (SSMD_API_KEY, --api-key-file)\n", r->url,
                message ? message : "an API key is needed");
    } else if (message) {
        fprintf(stderr, "ssmd session: %.400s\n", message);
    } else {
        fprintf(stderr, "ssmd session: %s answered %d, which no ssmd does\n", r->url, r->status);
    }
    json_decref(root);
}

// Runs it: 0 if the answer has the status wanted, else 1 and said why.
static int run(remote *r, int wanted) {
    ssm_error err = {0};
    if (remote_run(r, &err) < 0) {
        return fail(err.message);
    }
    if (r->status != wanted) {
        print_refusal(r);
        return 1;
    }
    return 0;
}

// ---- list

static void print_time(json_int_t at) {
    const time_t when = (time_t)at;
    struct tm tm;
    char text[32] = "?";
    if (localtime_r(&when, &tm)) {
        strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm);
    }
    printf("%s\n", text);
}

static int print_list(const remote *r) {
    ssm_error err = {0};
    json_t *root = json_parse_object(r->body.data, r->body.len, &err);
    const json_t *data = json_object_get(root, "data");
    const size_t n = json_array_size(data);
    if (!json_is_array(data)) {
        json_decref(root);
        return fail("the server's list cannot be read");
    }
    printf("%-32s %12s %12s  %-20s %s\n", "SESSION", "TOKENS", "BYTES", "MODEL", "LAST USED");
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_array_get(data, i);
        const char *id = json_string_value(json_object_get(s, "id"));
        const char *model = json_string_value(json_object_get(s, "model"));
        printf("%-32s %12lld %12lld  %-20s ", id ? id : "?",
               (long long)json_integer_value(json_object_get(s, "tokens")),
               (long long)json_integer_value(json_object_get(s, "bytes")), model ? model : "?");
        print_time(json_integer_value(json_object_get(s, "last_used")));
    }
    json_decref(root);
    return 0;
}

static int list(const client *c, char **args) {
    remote r = request_of(c, "GET", NULL, "");
    int status = run(&r, 200);
    if (status == 0 && c->o->json) {
        printf("%.*s\n", (int)r.body.len, r.body.data);
    } else if (status == 0) {
        status = print_list(&r);
    }
    buf_dispose(&r.body);
    return status;
}

// ---- save

static int save_to(const client *c, const char *name, FILE *to) {
    remote r = request_of(c, "GET", name, "/state");
    r.to = to;
    int status = run(&r, 200);
    const bool is_file = to != stdout; // the server's copy may be removed next
    if (status == 0 &&
        (fflush(to) != 0 || (is_file && fsync(fileno(to)) != 0 && errno != EINVAL))) {
        status = fail(strerror(errno));
    }
    if (status == 0 && is_file) {
        printf("%s: %llu bytes\n", name, (unsigned long long)r.received);
    }
    buf_dispose(&r.body);
    return status;
}

static int save_beside(const client *c, const char *name, const char *path) {
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.XXXXXX.tmp", path) >= (int)sizeof temporary) {
        return fail("the file's name is too long");
    }
    const int fd = mkostemps(temporary, 4, O_CLOEXEC);
    FILE *to = fd >= 0 ? fdopen(fd, "wb") : NULL;
    if (!to) {
        fprintf(stderr, "ssmd session: cannot write %s: %s\n", path, strerror(errno));
        return 1;
    }
    int status = save_to(c, name, to);
    if (fclose(to) != 0 || (status == 0 && rename(temporary, path) != 0)) {
        fprintf(stderr, "ssmd session: cannot write %s: %s\n", path, strerror(errno));
        status = 1;
    }
    if (status != 0) {
        (void)unlink(temporary);
    }
    return status;
}

static int save(const client *c, char **args) {
    if (strcmp(args[1], "-") != 0) {
        return save_beside(c, args[0], args[1]);
    }
    return isatty(STDOUT_FILENO) ? fail("a state is no text for a terminal: name a file, or a pipe")
                                 : save_to(c, args[0], stdout);
}

// ---- load, fork, rm

static int print_session(const remote *r) {
    ssm_error err = {0};
    json_t *root = json_parse_object(r->body.data, r->body.len, &err);
    const char *id = json_string_value(json_object_get(root, "id"));
    printf("%s: %lld tokens\n", id ? id : "?",
           (long long)json_integer_value(json_object_get(root, "tokens")));
    json_decref(root);
    return 0;
}

static int load(const client *c, char **args) {
    const bool is_stdin = strcmp(args[1], "-") == 0;
    FILE *from = is_stdin ? stdin : fopen(args[1], "rbe");
    struct stat st;
    int status = 1;
    if (!from || fstat(fileno(from), &st) != 0 || S_ISDIR(st.st_mode)) {
        fprintf(stderr, "ssmd session: cannot read %s: %s\n", args[1],
                from && S_ISDIR(st.st_mode) ? "a folder" : strerror(errno));
    } else {
        remote r = request_of(c, "PUT", args[0], "/state");
        r.from = from;
        r.from_bytes = S_ISREG(st.st_mode) && !is_stdin ? st.st_size : -1;
        status = run(&r, 201);
        status = status == 0 ? print_session(&r) : status;
        buf_dispose(&r.body);
    }
    if (from && !is_stdin) {
        fclose(from);
    }
    return status;
}

static int fork_session(const client *c, char **args) {
    remote r = request_of(c, "POST", args[0], "/fork");
    char body[SSM_SESSION_NAME + 16];
    snprintf(body, sizeof body, "{\"id\":\"%s\"}", args[1]);
    r.json = body;
    int status = run(&r, 201);
    status = status == 0 ? print_session(&r) : status;
    buf_dispose(&r.body);
    return status;
}

static int rm(const client *c, char **args) {
    remote r = request_of(c, "DELETE", args[0], "");
    const int status = run(&r, 200);
    if (status == 0) {
        printf("%s: removed\n", args[0]);
    }
    buf_dispose(&r.body);
    return status;
}

// ---- the command

static const struct word {
    const char *name, *arguments;
    int n_names, n_arguments; // -1: one or more, each in a run of its own
    int (*run)(const client *c, char **args);
} words[] = {
    {"list", "", 0, 0, list},
    {"save", " NAME FILE|-", 1, 2, save},
    {"load", " NAME FILE|-", 1, 2, load},
    {"fork", " NAME NEW", 2, 2, fork_session},
    {"rm", " NAME...", 1, -1, rm},
};

static void print_words(FILE *to) {
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        fprintf(to, "%s ssmd session %s%s [options]\n", i ? "      " : "usage:", words[i].name,
                words[i].arguments);
    }
}

static int run_word(const client *c, const struct word *w) {
    char **args = c->o->args + 1;
    const int n = c->o->n_args - 1;
    int status = 0;
    if (w->n_arguments >= 0 ? n != w->n_arguments : n < 1) {
        fprintf(stderr, "usage: ssmd session %s%s\n", w->name, w->arguments);
        return 2;
    }
    for (int i = 0; i < (w->n_arguments < 0 ? n : w->n_names); i++) {
        if (!is_name(args[i])) {
            return 2;
        }
    }
    for (int i = 0; i < (w->n_arguments < 0 ? n : 1); i++) {
        const int one = w->run(c, args + i);
        status = one > status ? one : status;
    }
    return fflush(stdout) == 0 ? status : fail(strerror(errno));
}

static const struct word *find_word(const options *o) {
    for (size_t i = 0; o->n_args > 0 && i < sizeof words / sizeof *words; i++) {
        if (strcmp(words[i].name, o->args[0]) == 0) {
            return &words[i];
        }
    }
    return NULL;
}

// A server that listens on every address is asked on the loopback.
static void find_url(client *c) {
    const options *o = c->o;
    const bool any = strcmp(o->host, "0.0.0.0") == 0 || strcmp(o->host, "::") == 0;
    const bool is_v6 = strchr(o->host, ':') != NULL;
    if (o->url && *o->url) {
        const bool has_scheme = strstr(o->url, "://") != NULL;
        snprintf(c->url, sizeof c->url, "%s%s", has_scheme ? "" : "http://", o->url);
    } else {
        snprintf(c->url, sizeof c->url, "http://%s%s%s:%d", is_v6 && !any ? "[" : "",
                 any ? "127.0.0.1" : o->host, is_v6 && !any ? "]" : "", (int)o->port);
    }
}

int cmd_session(int argc, char **argv) {
    options o;
    ssm_error err = {0};
    client c = {.o = &o};
    int status = 2;
    int rc = options_load(&o, OPTIONS_SESSION, argc, argv, &err);
    if (rc == 0) {
        rc = auth_init(&c.keys, &o, &err);
    }
    if (rc != 0) {
        status = rc > 0 ? 0 : 2;
        if (rc < 0) {
            fprintf(stderr, "ssmd session: %s\n", err.message);
        }
        goto done;
    }
    const struct word *word = find_word(&o);
    find_url(&c);
    if (word) {
        status = run_word(&c, word);
    } else {
        if (o.n_args > 0) {
            fprintf(stderr, "ssmd session: no word '%.60s'\n", o.args[0]);
        }
        print_words(stderr);
    }
done:
    auth_dispose(&c.keys);
    options_dispose(&o);
    return status;
}
