// SPDX-License-Identifier: Apache-2.0
#include "redis.h"

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ssm/engine.h>

enum { MOST_WORDS = 32 };

static bool can_run(const char *name) {
    char command[512];
    snprintf(command, sizeof command, "command -v '%s' >/dev/null 2>&1", name);
    return system(command) == 0;
}

static const char *find_program(void) {
    const char *wanted = getenv("SSM_TEST_REDIS");
    if (wanted) {
        ck_assert_msg(can_run(wanted), "SSM_TEST_REDIS=%s: there is no such program", wanted);
        return wanted;
    }
    return can_run("redis-server")    ? "redis-server"
           : can_run("valkey-server") ? "valkey-server"
                                      : NULL;
}

bool redis_is_here(void) {
    const bool is_here = strstr(ssm_engine_stores(), "redis") && find_program();
    ck_assert_msg(is_here || !getenv("SSM_EXPECT_REDIS"), "no Redis or Valkey, or no hiredis");
    if (!is_here)
        printf("skipped: no Redis or Valkey, or no hiredis\n");
    return is_here;
}

// True when it answers a PING.
static bool answers(const redis_server *r) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    char reply[8] = "";
    snprintf(at.sun_path, sizeof at.sun_path, "%s", r->path);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool is_up = connect(fd, (struct sockaddr *)&at, sizeof at) == 0 &&
                       write(fd, "PING\r\n", 6) == 6 && read(fd, reply, 7) > 0;
    close(fd);
    return is_up && strncmp(reply, "+PONG", 5) == 0;
}

void redis_restart(redis_server *r, const char *const *words) {
    const char *args[MOST_WORDS] = {find_program(), "--port", "0", "--unixsocket", r->path, "--dir",
                                    r->folder,      "--save", "",  "--logfile",    "log"};
    int n = 11;
    for (; words && *words; words++)
        args[n++] = *words;
    ck_assert_int_lt(n, MOST_WORDS);
    r->pid = fork();
    ck_assert_int_ge(r->pid, 0);
    if (r->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        const int null = open("/dev/null", O_RDWR);
        dup2(null, 1);
        execvp(args[0], (char *const *)args);
        _exit(127);
    }
    for (int i = 0; !answers(r); i++) {
        ck_assert_msg(i < 2000 && waitpid(r->pid, NULL, WNOHANG) == 0, "%s is not up", args[0]);
        usleep(10000);
    }
}

void redis_start(redis_server *r, const char *const *words) {
    strcpy(r->folder, "/tmp/ssm-redis-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(r->folder));
    snprintf(r->path, sizeof r->path, "%s/socket", r->folder);
    snprintf(r->url, sizeof r->url, "unix://%s", r->path);
    redis_restart(r, words);
}

void redis_kill(redis_server *r) {
    kill(r->pid, SIGKILL);
    ck_assert_int_eq(waitpid(r->pid, NULL, 0), r->pid);
    r->pid = 0;
    unlink(r->path);
}

void redis_dispose(redis_server *r) {
    char command[128];
    if (r->pid)
        redis_kill(r);
    snprintf(command, sizeof command, "rm -r '%s'", r->folder);
    ck_assert_int_eq(system(command), 0);
}
