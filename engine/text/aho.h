// SPDX-License-Identifier: Apache-2.0
// An Aho-Corasick automaton over bytes: many strings found in one pass, in time linear in the text.
// Built once, then read by any number of threads; a state is a number that the caller keeps.
#ifndef SSM_ENGINE_TEXT_AHO_H
#define SSM_ENGINE_TEXT_AHO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct aho_node {
    int32_t fail;   // the longest proper suffix that is a node too
    int32_t match;  // the nearest node along itself, fail, fail's fail... that ends a string, or -1
    int32_t value;  // of the string that ends here, or -1
    uint32_t depth; // length of the string from the root
    int32_t parent;
    unsigned char byte; // the last byte of that string
} aho_node;

typedef struct aho {
    aho_node *nodes; // nodes[0] is the root
    size_t n, cap;
    uint64_t *edges; // open addressing: (node * 256 + byte) << 32 | target + 1
    size_t n_edges, edge_cap;
    bool starts[256]; // some string begins with this byte
} aho;

void aho_dispose(aho *a);

// Adds a non-empty string. Of equal strings the first counts. 0 or SSM_ENOMEM.
int aho_add(aho *a, const char *s, size_t len, int32_t value);
int aho_build(aho *a); // after the last aho_add; 0 or SSM_ENOMEM

int32_t aho_step(const aho *a, int32_t state, unsigned char byte);

#endif
