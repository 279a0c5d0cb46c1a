// SPDX-License-Identifier: Apache-2.0
// A radix tree over token ids: which states are known for which beginnings of text.
//
// A node stands for the tokens on its path from the root; an edge owns a run of them. Some nodes
// carry a value (a snapshot, not owned). Tokens are compared one by one, never by a hash alone: a
// wrong match would be a wrong answer in silence. Children are found in one hash table over
// (parent, first token), so that a root with a hundred thousand beginnings costs what one with two
// does. A leaf without a value is pruned at once, and an inner node without one joined with its
// only child: the tree holds the tokens of the values in it and nothing else.
//
// A key comes in parts, so that a tenant's salt, a prompt and an answer need not be copied
// together. The salt is simply the first tokens of the key: no path crosses from one tenant to
// another.
#ifndef SSM_ENGINE_PREFIX_H
#define SSM_ENGINE_PREFIX_H

#include <stddef.h>
#include <stdint.h>

enum { PREFIX_PARTS = 3 };

typedef struct prefix_key {
    const int32_t *part[PREFIX_PARTS];
    size_t n[PREFIX_PARTS];
} prefix_key;

typedef struct prefix_node {
    struct prefix_node *parent;           // NULL: the root
    struct prefix_node *child;            // first of its children
    struct prefix_node *next, **previous; // siblings
    int32_t *run;                         // [n_run] tokens between the parent and here
    size_t n_run;
    size_t depth; // tokens between the root and here
    void *value;
} prefix_node;

typedef struct prefix_tree {
    prefix_node root;
    prefix_node **table; // open addressing, [cap], a power of two
    size_t n, cap;
    size_t tokens; // in all runs
} prefix_tree;

typedef struct prefix_match {
    prefix_node *node; // the deepest with a value on the key's path, or NULL
    size_t known;      // tokens of the key that the tree has, whether a value is there or not
} prefix_match;

void prefix_init(prefix_tree *tree);
void prefix_dispose(prefix_tree *tree); // values are the caller's

prefix_match prefix_find(const prefix_tree *tree, const prefix_key *key);

// The node of exactly this key, made if need be; NULL: no memory. One without a value must get it
// or be dropped before the next call.
prefix_node *prefix_insert(prefix_tree *tree, const prefix_key *key);

// Takes a node's value away, and what of the tree was there for it alone.
void prefix_drop(prefix_tree *tree, prefix_node *node);

// The nearest ancestor with a value, or NULL.
prefix_node *prefix_above(const prefix_node *node);

// Aborts unless the tree is sound: tests.
void prefix_check(const prefix_tree *tree);

#endif
