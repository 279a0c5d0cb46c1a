// SPDX-License-Identifier: Apache-2.0
// Goes into every test that is marked ssm_one_thread (CMakeLists.txt here) and so left out under
// TSan: one that starts a thread all the same ends there, in every build.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

int pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *),
                   void *arg) {
    fputs("a test marked ssm_one_thread starts a thread: take the mark away\n", stderr);
    abort();
}
