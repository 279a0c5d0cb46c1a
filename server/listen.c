// SPDX-License-Identifier: Apache-2.0
#include "listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 4096 }; // the kernel cuts it to net.core.somaxconn

static int try_bind(const struct addrinfo *at, bool shared) {
    const int on = 1, off = 0;
    const int fd =
        socket(at->ai_family, at->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, at->ai_protocol);
    if (fd < 0) {
        return -1;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (at->ai_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off); // :: takes IPv4 too
    }
    if ((shared && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) < 0) ||
        bind(fd, at->ai_addr, at->ai_addrlen) < 0) {
        const int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int port_of(int fd) {
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &len) < 0) {
        return 0;
    }
    return ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                               : ((struct sockaddr_in *)&address)->sin_port);
}

int listen_bind(const char *host, int *port, bool shared, ssm_error *err) {
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                                   .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[16];
    int fd = -1;
    snprintf(service, sizeof service, "%d", *port);
    const int rc = getaddrinfo(*host ? host : NULL, service, &hints, &list);
    if (rc != 0) {
        return ssm_error_set(err, SSM_EIO, "host", "--host %.80s: %s", host, gai_strerror(rc));
    }
    errno = EADDRNOTAVAIL;
    for (const struct addrinfo *at = list; at && fd < 0; at = at->ai_next) {
        fd = try_bind(at, shared);
    }
    const int error = errno;
    freeaddrinfo(list);
    if (fd < 0) {
        return ssm_error_set(err, SSM_EIO, "port", "cannot listen on %.80s port %d: %s%s", host,
                             *port, strerror(error),
                             error == EADDRINUSE ? " (--port picks another, --port 0 a free one)"
                                                 : "");
    }
    *port = port_of(fd);
    return fd;
}

int listen_start(int fd, ssm_error *err) {
    return listen(fd, BACKLOG) == 0
               ? 0
               : ssm_error_set(err, SSM_EIO, "port", "cannot listen: %s%s", strerror(errno),
                               errno == EADDRINUSE ? " (--port picks another)" : "");
}

void listen_url(const char *host, int port, char *out, unsigned long size) {
    const bool any = strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0 || !*host;
    const bool six = strchr(host, ':') != NULL && !any;
    snprintf(out, size, "http://%s%s%s:%d", six ? "[" : "", any ? "127.0.0.1" : host,
             six ? "]" : "", port);
}
