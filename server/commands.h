// SPDX-License-Identifier: Apache-2.0
// The words that `ssmd` knows. A command is one file cmd_NAME.c and one row in main.c's table; its
// options are rows of option_table.c that carry its bit. argv[0] is the command's own name; the
// return value is the process's exit status.
#ifndef SSMD_COMMANDS_H
#define SSMD_COMMANDS_H

int cmd_serve(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_health(int argc, char **argv);
int cmd_session(int argc, char **argv);

#endif
