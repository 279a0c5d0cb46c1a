// SPDX-License-Identifier: Apache-2.0
// Slots in use by each client, for fairness between them. Engine thread only.
#ifndef SSM_ENGINE_CLIENTS_H
#define SSM_ENGINE_CLIENTS_H

#include <stdint.h>

typedef struct client {
    struct client *next; // in its bucket
    uint64_t key;
    int32_t jobs;  // that refer to it: it is freed with the last
    int32_t slots; // in use
} client;

enum { CLIENT_BUCKETS = 256 };
typedef struct clients {
    client *buckets[CLIENT_BUCKETS];
} clients;

client *clients_ref(clients *all, uint64_t key); // NULL: no memory
void clients_unref(clients *all, client *c);

#endif
