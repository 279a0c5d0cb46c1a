// SPDX-License-Identifier: Apache-2.0
// ssmd-load: a load generator for completion servers. One thread reads 40,000 events a second and
// more; what it measures is what a client sees on its socket.
#include <signal.h>
#include <stdio.h>

#include "load.h"

static load_driver driver; // too large for a stack

int main(int argc, char **argv) {
    load_options options;
    int leave = load_options_parse(&options, argc, argv);
    if (leave != 0) {
        return leave - 1;
    }
    signal(SIGPIPE, SIG_IGN);
    int rc = load_driver_run(&driver, &options);
    load_report(&options, &driver.stats);
    if (rc != 0) {
        fprintf(stderr, "ssmd-load: no request to %s:%s was answered\n", options.host,
                options.port);
    }
    return rc == 0 ? 0 : 1;
}
