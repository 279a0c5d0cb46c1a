// SPDX-License-Identifier: Apache-2.0
// The prefix tree against a list of keys that is searched one by one, over a small alphabet so that
// keys collide, split and join all the time.
#include <stdbool.h>
#include <string.h>

#include "engine/state/prefix.h"
#include "tests/suite.h"

enum { MAX_KEYS = 64, MAX_LEN = 24 };

typedef struct entry {
    int32_t tokens[MAX_LEN];
    size_t n;
    prefix_node *node;
} entry;

static prefix_tree tree;
static entry entries[MAX_KEYS];
static size_t n_entries;
static uint32_t seed;

static uint32_t draw(uint32_t below) {
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

// The tokens as a key of three parts, cut anywhere.
static prefix_key key_of(const int32_t *tokens, size_t n) {
    const size_t a = draw((uint32_t)n + 1), b = a + draw((uint32_t)(n - a) + 1);
    return (prefix_key){.part = {tokens, tokens + a, tokens + b}, .n = {a, b - a, n - b}};
}

static size_t common(const int32_t *a, size_t n_a, const int32_t *b, size_t n_b) {
    size_t n = 0;
    while (n < n_a && n < n_b && a[n] == b[n])
        n++;
    return n;
}

static void fill(int32_t *tokens, size_t *n) {
    *n = 1 + draw(MAX_LEN);
    for (size_t i = 0; i < *n; i++)
        tokens[i] = (int32_t)draw(2) - 1; // negative ids too: salts are any bits
}

static void add(void) {
    entry *e = &entries[n_entries];
    fill(e->tokens, &e->n);
    const prefix_key key = key_of(e->tokens, e->n);
    e->node = prefix_insert(&tree, &key);
    ck_assert_ptr_nonnull(e->node);
    ck_assert_uint_eq(e->node->depth, e->n);
    if (!e->node->value) { // not there before
        e->node->value = e;
        n_entries++;
    }
}

static void take_away(void) {
    entry *e = &entries[draw((uint32_t)n_entries)];
    prefix_drop(&tree, e->node);
    *e = entries[--n_entries];
    if (e != &entries[n_entries])
        e->node->value = e;
}

static void look(void) {
    int32_t tokens[MAX_LEN];
    size_t n, best = 0, known = 0;
    fill(tokens, &n);
    for (size_t i = 0; i < n_entries; i++) {
        const size_t c = common(tokens, n, entries[i].tokens, entries[i].n);
        known = c > known ? c : known;
        if (c == entries[i].n && c > best)
            best = c;
    }
    const prefix_key key = key_of(tokens, n);
    const prefix_match m = prefix_find(&tree, &key);
    ck_assert_uint_eq(m.known, known);
    ck_assert_uint_eq(m.node ? m.node->depth : 0, best);
    if (!m.node)
        return;
    const entry *e = m.node->value;
    ck_assert_uint_eq(e->n, best);
    ck_assert_int_eq(memcmp(e->tokens, tokens, best * sizeof *tokens), 0);
    const prefix_node *above = prefix_above(m.node);
    size_t next = 0;
    for (size_t i = 0; i < n_entries; i++) {
        if (entries[i].n < best && entries[i].n > next &&
            memcmp(entries[i].tokens, tokens, entries[i].n * sizeof *tokens) == 0)
            next = entries[i].n;
    }
    ck_assert_uint_eq(above ? above->depth : 0, next);
}

START_TEST(equals_a_list) {
    seed = (uint32_t)_i;
    prefix_init(&tree);
    n_entries = 0;
    for (int step = 0; step < 20000; step++) {
        const bool is_full = n_entries == MAX_KEYS - 1;
        if (n_entries > 0 && (is_full || draw(100) < (step / 2000 % 2 ? 60 : 35)))
            take_away();
        else
            add();
        look();
        prefix_check(&tree);
    }
    while (n_entries > 0)
        take_away();
    ck_assert_uint_eq(tree.n, 0); // nothing is left behind
    ck_assert_uint_eq(tree.tokens, 0);
    ck_assert_ptr_null(tree.root.child);
    prefix_dispose(&tree);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("prefix");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, equals_a_list, 0, 4);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
