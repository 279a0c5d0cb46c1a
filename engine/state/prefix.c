// SPDX-License-Identifier: Apache-2.0
#include "prefix.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// ---- keys

static size_t key_length(const prefix_key *key) {
    size_t n = 0;
    for (int p = 0; p < PREFIX_PARTS; p++)
        n += key->n[p];
    return n;
}

// How many of a run's tokens the key has from `at` on.
static size_t key_common(const prefix_key *key, size_t at, const int32_t *run, size_t n) {
    size_t done = 0;
    for (int p = 0; p < PREFIX_PARTS && done < n; p++) {
        if (at >= key->n[p]) {
            at -= key->n[p];
            continue;
        }
        const int32_t *part = key->part[p] + at;
        const size_t most = key->n[p] - at < n - done ? key->n[p] - at : n - done;
        size_t i = 0;
        while (i < most && part[i] == run[done + i])
            i++;
        done += i;
        if (i < most)
            break;
        at = 0;
    }
    return done;
}

static void key_copy(const prefix_key *key, size_t at, size_t n, int32_t *out) {
    for (int p = 0; p < PREFIX_PARTS && n > 0; p++) {
        if (at >= key->n[p]) {
            at -= key->n[p];
            continue;
        }
        const size_t count = key->n[p] - at < n ? key->n[p] - at : n;
        memcpy(out, key->part[p] + at, count * sizeof *out);
        out += count;
        n -= count;
        at = 0;
    }
    assert(n == 0);
}

static int32_t key_at(const prefix_key *key, size_t at) {
    int32_t token;
    key_copy(key, at, 1, &token);
    return token;
}

// ---- the table of children

static size_t bucket(const prefix_tree *t, const prefix_node *parent, int32_t first) {
    uint64_t x = (uint64_t)(uintptr_t)parent ^ (uint64_t)(uint32_t)first * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (size_t)(x ^ x >> 31) & (t->cap - 1);
}

static prefix_node *find_child(const prefix_tree *t, const prefix_node *parent, int32_t first) {
    if (t->cap == 0)
        return NULL;
    for (size_t i = bucket(t, parent, first); t->table[i]; i = (i + 1) & (t->cap - 1)) {
        if (t->table[i]->parent == parent && t->table[i]->run[0] == first)
            return t->table[i];
    }
    return NULL;
}

static void put(prefix_tree *t, prefix_node *node) {
    size_t i = bucket(t, node->parent, node->run[0]);
    while (t->table[i])
        i = (i + 1) & (t->cap - 1);
    t->table[i] = node;
    t->n++;
}

// Room for two more nodes, at most half full.
static bool reserve(prefix_tree *t) {
    if (2 * (t->n + 2) <= t->cap)
        return true;
    const size_t cap = t->cap ? 2 * t->cap : 64;
    prefix_node **old = t->table, **table = calloc(cap, sizeof(prefix_node *));
    if (!table)
        return false;
    const size_t n_old = t->cap;
    t->table = table;
    t->cap = cap;
    t->n = 0;
    for (size_t i = 0; i < n_old; i++) {
        if (old[i])
            put(t, old[i]);
    }
    free(old);
    return true;
}

// Takes a node out; those behind it in its chain move up, so that no tombstones gather.
static void take(prefix_tree *t, const prefix_node *node) {
    const size_t mask = t->cap - 1;
    size_t hole = bucket(t, node->parent, node->run[0]);
    while (t->table[hole] != node)
        hole = (hole + 1) & mask;
    for (size_t i = (hole + 1) & mask; t->table[i]; i = (i + 1) & mask) {
        const size_t home = bucket(t, t->table[i]->parent, t->table[i]->run[0]);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            t->table[hole] = t->table[i];
            hole = i;
        }
    }
    t->table[hole] = NULL;
    t->n--;
}

// ---- nodes

static void link_child(prefix_tree *t, prefix_node *parent, prefix_node *node) {
    node->parent = parent;
    node->next = parent->child;
    node->previous = &parent->child;
    if (node->next)
        node->next->previous = &node->next;
    parent->child = node;
    put(t, node);
}

static void unlink_child(prefix_tree *t, prefix_node *node) {
    take(t, node);
    *node->previous = node->next;
    if (node->next)
        node->next->previous = node->previous;
}

static prefix_node *create_node(size_t n_run, size_t depth) {
    prefix_node *node = calloc(1, sizeof *node);
    if (!node)
        return NULL;
    if (!(node->run = malloc(n_run * sizeof *node->run))) {
        free(node);
        return NULL;
    }
    node->n_run = n_run;
    node->depth = depth;
    return node;
}

static void free_node(prefix_node *node) {
    free(node->run);
    free(node);
}

static prefix_node *add_leaf(prefix_tree *t, prefix_node *parent, const prefix_key *key, size_t n) {
    prefix_node *leaf = create_node(n - parent->depth, n);
    if (!leaf)
        return NULL;
    key_copy(key, parent->depth, leaf->n_run, leaf->run);
    t->tokens += leaf->n_run;
    link_child(t, parent, leaf);
    return leaf;
}

// A new node after the first `count` tokens of a node's run.
static prefix_node *split(prefix_tree *t, prefix_node *node, size_t count) {
    assert(count > 0 && count < node->n_run);
    prefix_node *middle = create_node(count, node->depth - node->n_run + count);
    if (!middle)
        return NULL;
    memcpy(middle->run, node->run, count * sizeof *node->run);
    prefix_node *parent = node->parent;
    unlink_child(t, node);
    link_child(t, parent, middle);
    node->n_run -= count;
    memmove(node->run, node->run + count, node->n_run * sizeof *node->run);
    int32_t *shorter = realloc(node->run, node->n_run * sizeof *node->run);
    if (shorter)
        node->run = shorter;
    link_child(t, middle, node);
    return middle;
}

// A node that says nothing joins its only child. If memory is short it stays: longer, not wrong.
static void join(prefix_tree *t, prefix_node *node) {
    prefix_node *child = node->child, *parent = node->parent;
    int32_t *run = malloc((node->n_run + child->n_run) * sizeof *run);
    if (!run)
        return;
    memcpy(run, node->run, node->n_run * sizeof *run);
    memcpy(run + node->n_run, child->run, child->n_run * sizeof *run);
    unlink_child(t, child);
    unlink_child(t, node);
    free(child->run);
    child->run = run;
    child->n_run += node->n_run;
    free_node(node);
    link_child(t, parent, child);
}

// ---- the tree

void prefix_init(prefix_tree *tree) {
    *tree = (prefix_tree){0};
}

void prefix_dispose(prefix_tree *tree) {
    for (size_t i = 0; i < tree->cap; i++) {
        if (tree->table[i])
            free_node(tree->table[i]);
    }
    free(tree->table);
    *tree = (prefix_tree){0};
}

prefix_match prefix_find(const prefix_tree *tree, const prefix_key *key) {
    const size_t n = key_length(key);
    const prefix_node *node = &tree->root;
    prefix_match match = {0};
    while (node->depth < n) {
        prefix_node *child = find_child(tree, node, key_at(key, node->depth));
        if (!child)
            break;
        const size_t count = key_common(key, node->depth, child->run, child->n_run);
        match.known = node->depth + count;
        if (count < child->n_run)
            break;
        node = child;
        if (child->value)
            match.node = child;
    }
    return match;
}

prefix_node *prefix_insert(prefix_tree *tree, const prefix_key *key) {
    const size_t n = key_length(key);
    prefix_node *node = &tree->root;
    assert(n > 0);
    if (!reserve(tree))
        return NULL;
    while (node->depth < n) {
        prefix_node *child = find_child(tree, node, key_at(key, node->depth));
        if (!child)
            return add_leaf(tree, node, key, n);
        const size_t count = key_common(key, node->depth, child->run, child->n_run);
        if (count == child->n_run) {
            node = child;
            continue;
        }
        prefix_node *middle = split(tree, child, count);
        if (!middle || middle->depth == n)
            return middle;
        prefix_node *leaf = add_leaf(tree, middle, key, n);
        if (!leaf)
            join(tree, middle);
        return leaf;
    }
    return node;
}

void prefix_drop(prefix_tree *tree, prefix_node *node) {
    node->value = NULL;
    while (node->parent && !node->child && !node->value) {
        prefix_node *parent = node->parent;
        unlink_child(tree, node);
        tree->tokens -= node->n_run;
        free_node(node);
        node = parent;
    }
    if (node->parent && !node->value && !node->child->next)
        join(tree, node);
}

prefix_node *prefix_above(const prefix_node *node) {
    prefix_node *above = node->parent;
    while (above && !above->value)
        above = above->parent;
    return above;
}

void prefix_check(const prefix_tree *tree) {
    size_t n = 0, tokens = 0;
    for (size_t i = 0; i < tree->cap; i++) {
        const prefix_node *node = tree->table[i];
        if (!node)
            continue;
        n++;
        tokens += node->n_run;
        assert(node->n_run > 0 && node->depth == node->parent->depth + node->n_run);
        assert(node->value || node->child);
        assert(find_child(tree, node->parent, node->run[0]) == node);
        assert(*node->previous == node);
    }
    assert(n == tree->n && tokens == tree->tokens);
    (void)n, (void)tokens;
}
