// SPDX-License-Identifier: Apache-2.0
// ssmd: the command table and nothing else.
#include <stdio.h>
#include <string.h>

#include <ssm/engine.h>
#include <ssm/version.h>

#include "commands.h"

static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"serve", cmd_serve, "answer OpenAI-style requests over HTTP"},
    {"inspect", cmd_inspect, "what a model's folder holds, and whether it can be served"},
    {"generate", cmd_generate, "one completion on the terminal"},
    {"bench", cmd_bench,
     "prefill and decode tables by batch, with shares of the machine's ceilings"},
    {"health", cmd_health, "exit 0 if a server answers"},
    {"session", cmd_session, "list, save, load, fork, remove the sessions of a running server"},
};

static void print_usage(FILE *to) {
    fprintf(to, "ssmd %s: an inference server for state-space language models\n\n", SSM_VERSION);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        fprintf(to, "    ssmd %-10s %s\n", commands[i].name, commands[i].help);
    }
    fprintf(to, "\nssmd COMMAND --help lists a command's options.\n");
}

static void print_version(void) {
    printf("ssmd %s (%s), backends: %s; sessions in: %s\n", SSM_VERSION, ssm_version_commit(),
           ssm_engine_backends(), ssm_engine_stores());
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "--help";
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(word, commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    if (strcmp(word, "--version") == 0 || strcmp(word, "version") == 0) {
        print_version();
        return 0;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_usage(argc > 1 ? stdout : stderr);
        return argc > 1 ? 0 : 2;
    }
    fprintf(stderr, "ssmd: no command '%.40s'\n\n", word);
    print_usage(stderr);
    return 2;
}
