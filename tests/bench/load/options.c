// SPDX-License-Identifier: Apache-2.0
// The command line of ssmd-load: one row an option.
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

static const char usage[] =
    "usage: ssmd-load [OPTIONS]\n"
    "\n"
    "Asks a server for completions and measures how they come.\n"
    "\n"
    "  --url URL            the server (http://127.0.0.1:8080)\n"
    "  --model NAME         the model (the server's first)\n"
    "  --api-key KEY        sent as Authorization: Bearer KEY\n"
    "  --clients N          connections (16). Without --rate each asks again as soon as it is\n"
    "                       answered; with it, N bounds what is in flight\n"
    "  --rate R             R requests a second at random (Poisson) moments, whatever the server\n"
    "                       does; times count from the moment a request was due\n"
    "  --duration S         seconds measured (10)\n"
    "  --warmup S           seconds before them (1)\n"
    "  --prompt-tokens N    random ids, different in each request (32)\n"
    "  --text               prompts of N random letters, for servers that take no ids\n"
    "  --max-tokens N       generated, end of text ignored (64)\n"
    "  --vocab N            ids are drawn below N (256)\n"
    "  --temperature T      (1)\n"
    "  --seed N             of the prompts and the draws (1)\n"
    "  --no-stream          whole answers: no times of single tokens\n"
    "  --json               the result as one JSON object\n";

enum {
    URL = 256,
    MODEL,
    KEY,
    CLIENTS,
    RATE,
    DURATION,
    WARMUP,
    PROMPT,
    TEXT,
    MAX,
    VOCAB,
    TEMPERATURE,
    SEED,
    STREAM,
    NO_STREAM,
    JSON,
    HELP
};

static const struct option rows[] = {
    {"url", required_argument, NULL, URL},
    {"model", required_argument, NULL, MODEL},
    {"api-key", required_argument, NULL, KEY},
    {"clients", required_argument, NULL, CLIENTS},
    {"rate", required_argument, NULL, RATE},
    {"duration", required_argument, NULL, DURATION},
    {"warmup", required_argument, NULL, WARMUP},
    {"prompt-tokens", required_argument, NULL, PROMPT},
    {"text", no_argument, NULL, TEXT},
    {"max-tokens", required_argument, NULL, MAX},
    {"vocab", required_argument, NULL, VOCAB},
    {"temperature", required_argument, NULL, TEMPERATURE},
    {"seed", required_argument, NULL, SEED},
    {"stream", no_argument, NULL, STREAM},
    {"no-stream", no_argument, NULL, NO_STREAM},
    {"json", no_argument, NULL, JSON},
    {"help", no_argument, NULL, HELP},
    {NULL, 0, NULL, 0},
};

// The number of an option's text, or exit: this is a program's command line.
static double number(const char *text, double min, double max) {
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (errno != 0 || end == text || *end != '\0' || !(value >= min && value <= max)) {
        fprintf(stderr, "ssmd-load: '%s' is not a number from %g to %g\n", text, min, max);
        exit(2);
    }
    return value;
}

static int parse_url(load_options *o, const char *url) {
    const char *rest = strncmp(url, "http://", 7) == 0 ? url + 7 : url;
    char text[sizeof o->host];
    snprintf(text, sizeof text, "%s", rest);
    text[strcspn(text, "/")] = '\0';
    char *colon = strrchr(text, ':');
    if (strncmp(url, "https:", 6) == 0 || text[0] == '\0') {
        fprintf(stderr, "ssmd-load: not an http:// address: %s\n", url);
        return -1;
    }
    snprintf(o->port, sizeof o->port, "%s", colon && !strchr(colon, ']') ? colon + 1 : "80");
    if (colon && !strchr(colon, ']')) {
        *colon = '\0';
    }
    size_t len = strlen(text);
    bool bracketed = text[0] == '[' && text[len - 1] == ']';
    snprintf(o->host, sizeof o->host, "%.*s", (int)(len - (bracketed ? 2 : 0)),
             text + (bracketed ? 1 : 0));
    return 0;
}

static int resolve(load_options *o) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int rc = getaddrinfo(o->host, o->port, &hints, &found);
    if (rc != 0) {
        fprintf(stderr, "ssmd-load: %s:%s: %s\n", o->host, o->port, gai_strerror(rc));
        return -1;
    }
    memcpy(&o->address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

static void set(load_options *o, int row, const char *text) {
    switch (row) {
    case MODEL:
        o->model = text;
        break;
    case KEY:
        o->key = text;
        break;
    case CLIENTS:
        o->clients = (int)number(text, 1, 100000);
        break;
    case RATE:
        o->rate = number(text, 0, 1e6);
        break;
    case DURATION:
        o->duration = number(text, 0.1, 1e6);
        break;
    case WARMUP:
        o->warmup = number(text, 0, 1e6);
        break;
    case PROMPT:
        o->prompt_tokens = (int)number(text, 1, 1 << 24);
        break;
    case MAX:
        o->max_tokens = (int)number(text, 0, 1 << 30);
        break;
    case VOCAB:
        o->vocab = (int)number(text, 1, 1 << 24);
        break;
    case TEMPERATURE:
        o->temperature = number(text, 0, 2);
        break;
    case SEED:
        o->seed = (uint64_t)number(text, 0, 9e15);
        break;
    case STREAM:
    case NO_STREAM:
        o->stream = row == STREAM;
        break;
    case TEXT:
        o->text = true;
        break;
    case JSON:
        o->json = true;
        break;
    }
}

int load_options_parse(load_options *o, int argc, char **argv) {
    const char *url = "http://127.0.0.1:8080";
    *o = (load_options){.clients = 16,
                        .duration = 10,
                        .warmup = 1,
                        .prompt_tokens = 32,
                        .max_tokens = 64,
                        .vocab = 256,
                        .temperature = 1,
                        .seed = 1,
                        .stream = true};
    int row;
    while ((row = getopt_long(argc, argv, "", rows, NULL)) != -1) {
        if (row == HELP) {
            fputs(usage, stdout);
            return 1;
        }
        if (row == '?') {
            fputs(usage, stderr);
            return 3;
        }
        if (row == URL) {
            url = optarg;
        }
        set(o, row, optarg);
    }
    if (optind < argc) {
        fprintf(stderr, "ssmd-load: what is '%s'?\n", argv[optind]);
        return 3;
    }
    return parse_url(o, url) != 0 || resolve(o) != 0 ? 3 : 0;
}
