// SPDX-License-Identifier: Apache-2.0
// ssmd health [URL]: exit 0 if the server answers 200, 1 if not. For container health checks, so it
// needs nothing beside itself: a socket with a time limit and the first line of the answer.
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"
#include "options.h"

struct target {
    char host[256], port[8], path[512];
};

static int fail(const char *what, const struct target *target) {
    fprintf(stderr, "ssmd health: %s:%s: %s\n", target->host, target->port, what);
    return 1;
}

// http://host[:port][/path], or host[:port]; an IPv6 address in brackets. 0 or -1.
static int parse_url(const char *url, struct target *out) {
    if (strncmp(url, "http://", 7) == 0) {
        url += 7;
    } else if (strstr(url, "://")) {
        return -1;
    }
    const char *slash = strchr(url, '/');
    const size_t len = slash ? (size_t)(slash - url) : strlen(url);
    const bool bracket = url[0] == '[';
    const char *host_end = bracket ? memchr(url, ']', len) : memchr(url, ':', len);
    const char *host = url + bracket;
    host_end = host_end ? host_end : url + len;
    const char *colon = memchr(host_end, ':', (size_t)(url + len - host_end));
    const char *port = colon ? colon + 1 : "80";
    const int port_len = colon ? (int)(url + len - port) : 2;
    if (host_end == host || (size_t)(host_end - host) >= sizeof out->host || port_len > 5 ||
        port_len < 1 || (slash && strlen(slash) >= sizeof out->path)) {
        return -1;
    }
    snprintf(out->host, sizeof out->host, "%.*s", (int)(host_end - host), host);
    snprintf(out->port, sizeof out->port, "%.*s", port_len, port);
    snprintf(out->path, sizeof out->path, "%s", slash && slash[1] ? slash : "/health");
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// Waits for events until the deadline: 0, or -1 when it has passed.
static int wait_for(int fd, short events, double deadline) {
    struct pollfd p = {.fd = fd, .events = events};
    const double left = deadline - now();
    return left > 0 && poll(&p, 1, (int)(left * 1000) + 1) > 0 ? 0 : -1;
}

static int dial(const struct target *target, double deadline) {
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    int fd = -1;
    if (getaddrinfo(target->host, target->port, &hints, &list) != 0) {
        return -1;
    }
    for (const struct addrinfo *at = list; at && fd < 0; at = at->ai_next) {
        int error = 0;
        socklen_t size = sizeof error;
        fd = socket(at->ai_family, at->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            continue;
        }
        (void)connect(fd, at->ai_addr, at->ai_addrlen);
        if (wait_for(fd, POLLOUT, deadline) < 0 ||
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error != 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd;
}

// Sends the request and reads the answer's first line into line: 0 or -1.
static int ask(int fd, const struct target *target, double deadline, char *line, size_t size) {
    char request[1024];
    const int len = snprintf(request, sizeof request,
                             "GET %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n\r\n",
                             target->path, target->host, target->port);
    size_t got = 0;
    if (send(fd, request, (size_t)len, MSG_NOSIGNAL) != len) {
        return -1;
    }
    while (got + 1 < size && !memchr(line, '\n', got)) {
        const ssize_t n =
            wait_for(fd, POLLIN, deadline) == 0 ? recv(fd, line + got, size - 1 - got, 0) : -1;
        if (n <= 0) {
            return -1;
        }
        got += (size_t)n;
    }
    line[got] = '\0';
    line[strcspn(line, "\r\n")] = '\0';
    return 0;
}

static int check(const struct target *target, double deadline) {
    char line[256];
    const int fd = dial(target, deadline);
    if (fd < 0) {
        return fail("no answer (cannot connect)", target);
    }
    const int rc = ask(fd, target, deadline, line, sizeof line);
    close(fd);
    if (rc < 0) {
        return fail("no answer (timed out or closed)", target);
    }
    const char *status = strchr(line, ' ');
    if (strncmp(line, "HTTP/1.", 7) != 0 || !status || strncmp(status + 1, "200", 3) != 0) {
        return fail(line, target);
    }
    printf("ok\n");
    return 0;
}

int cmd_health(int argc, char **argv) {
    options o;
    ssm_error err;
    struct target target = {.path = "/health"};
    int status = 2;
    const int rc = options_load(&o, OPTIONS_HEALTH, argc, argv, &err);
    if (rc != 0) {
        status = rc > 0 ? 0 : 2;
        if (rc < 0) {
            fprintf(stderr, "ssmd health: %s\n", err.message);
        }
        goto done;
    }
    // A server that listens on every address is asked on the loopback.
    const bool any = strcmp(o.host, "0.0.0.0") == 0 || strcmp(o.host, "::") == 0;
    snprintf(target.host, sizeof target.host, "%s", any ? "127.0.0.1" : o.host);
    snprintf(target.port, sizeof target.port, "%d", (int)o.port);
    if (o.n_args > 1 || (o.n_args == 1 && parse_url(o.args[0], &target) < 0)) {
        fprintf(stderr, "ssmd health: one http://HOST[:PORT][/PATH] is wanted\n");
        goto done;
    }
    status = check(&target, now() + o.timeout);
done:
    options_dispose(&o);
    return status;
}
