// SPDX-License-Identifier: Apache-2.0
#include "engine/text/aho.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/error.h>

void aho_dispose(aho *a) {
    free(a->nodes);
    free(a->edges);
    *a = (aho){0};
}

static size_t edge_slot(const aho *a, int32_t node, unsigned char byte) {
    const uint64_t key = (uint64_t)node << 8 | byte;
    uint64_t h = key * 0x9e3779b97f4a7c15u;
    size_t at = (h ^ h >> 32) & (a->edge_cap - 1);
    while (a->edges[at] != 0 && a->edges[at] >> 32 != key)
        at = (at + 1) & (a->edge_cap - 1);
    return at;
}

static int32_t child(const aho *a, int32_t node, unsigned char byte) {
    if (a->edge_cap == 0)
        return -1;
    const uint64_t edge = a->edges[edge_slot(a, node, byte)];
    return edge == 0 ? -1 : (int32_t)(uint32_t)edge - 1;
}

static int grow_edges(aho *a) {
    if (2 * (a->n_edges + 1) < a->edge_cap)
        return 0;
    aho bigger = {.edge_cap = a->edge_cap ? 2 * a->edge_cap : 64};
    bigger.edges = calloc(bigger.edge_cap, sizeof *bigger.edges);
    if (!bigger.edges)
        return SSM_ENOMEM;
    for (size_t i = 0; i < a->edge_cap; i++) {
        const uint64_t edge = a->edges[i];
        if (edge != 0)
            bigger.edges[edge_slot(&bigger, (int32_t)(edge >> 40), (unsigned char)(edge >> 32))] =
                edge;
    }
    free(a->edges);
    a->edges = bigger.edges;
    a->edge_cap = bigger.edge_cap;
    return 0;
}

static int add_node(aho *a, int32_t parent, unsigned char byte, uint32_t depth) {
    if (a->n == a->cap) {
        const size_t want = a->cap ? 2 * a->cap : 64;
        aho_node *bigger = realloc(a->nodes, want * sizeof *bigger);
        if (!bigger)
            return SSM_ENOMEM;
        a->nodes = bigger;
        a->cap = want;
    }
    a->nodes[a->n++] =
        (aho_node){.match = -1, .value = -1, .depth = depth, .parent = parent, .byte = byte};
    return 0;
}

int aho_add(aho *a, const char *s, size_t len, int32_t value) {
    assert(len > 0);
    if (a->n == 0 && add_node(a, 0, 0, 0) != 0)
        return SSM_ENOMEM;
    int32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        const unsigned char byte = (unsigned char)s[i];
        int32_t next = child(a, at, byte);
        if (next < 0) {
            if (a->n >= (1 << 24)) // edges keep a node in 24 bits
                return SSM_ENOMEM;
            next = (int32_t)a->n;
            if (grow_edges(a) != 0 || add_node(a, at, byte, (uint32_t)i + 1) != 0)
                return SSM_ENOMEM;
            a->edges[edge_slot(a, at, byte)] =
                ((uint64_t)at << 8 | byte) << 32 | ((uint32_t)next + 1);
            a->n_edges++;
        }
        at = next;
    }
    if (a->nodes[at].value < 0)
        a->nodes[at].value = value;
    a->starts[(unsigned char)s[0]] = true;
    return 0;
}

// Nodes in order of depth: a counting sort, since a node may come after a deeper one.
static int32_t *by_depth(const aho *a) {
    uint32_t deepest = 0;
    for (size_t i = 0; i < a->n; i++)
        deepest = a->nodes[i].depth > deepest ? a->nodes[i].depth : deepest;
    size_t *start = calloc((size_t)deepest + 2, sizeof *start);
    int32_t *order = malloc(a->n * sizeof *order);
    if (start && order) {
        for (size_t i = 0; i < a->n; i++)
            start[a->nodes[i].depth + 1]++;
        for (size_t d = 0; d <= deepest; d++)
            start[d + 1] += start[d];
        for (size_t i = 0; i < a->n; i++)
            order[start[a->nodes[i].depth]++] = (int32_t)i;
    } else {
        free(order);
        order = NULL;
    }
    free(start);
    return order;
}

int aho_build(aho *a) {
    if (a->n == 0)
        return 0;
    int32_t *order = by_depth(a);
    if (!order)
        return SSM_ENOMEM;
    for (size_t i = 1; i < a->n; i++) {
        aho_node *node = &a->nodes[order[i]];
        // Along the parent's suffixes: shallower nodes, whose links are set.
        node->fail = node->depth == 1 ? 0 : aho_step(a, a->nodes[node->parent].fail, node->byte);
        node->match = node->value >= 0 ? order[i] : a->nodes[node->fail].match;
    }
    free(order);
    return 0;
}

int32_t aho_step(const aho *a, int32_t state, unsigned char byte) {
    for (;;) {
        const int32_t next = child(a, state, byte);
        if (next >= 0)
            return next;
        if (state == 0)
            return 0;
        state = a->nodes[state].fail;
    }
}
