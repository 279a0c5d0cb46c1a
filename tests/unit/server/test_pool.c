// SPDX-License-Identifier: Apache-2.0
// Lines in front of libuv's pool: so many at once, in order, each told once; what is dropped is
// not; a line does not wait for another.
#include "pool.h"

#include <stdatomic.h>
#include <string.h>

#include "loop.h"
#include "options.h"
#include "server.h"
#include "suite.h"

enum { WORKS = 24 };

typedef struct one {
    pool_work work;
    int begun, ended; // places in their orders, from 1; 0: not
} one;

static options options_of_two = {.loops = 2};
static server the_server = {.o = &options_of_two};
static loop l;
static one works[WORKS];
static atomic_int begun, running, most, gate; // gate: works that may end
static int ended, room;

static void run(pool_work *w) {
    one *o = w->owner;
    o->begun = atomic_fetch_add(&begun, 1) + 1;
    const int now = atomic_fetch_add(&running, 1) + 1;
    for (int seen = most; now > seen && !atomic_compare_exchange_weak(&most, &seen, now);) {
    }
    while (atomic_load(&gate) < o->begun) {
        uv_sleep(1);
    }
    atomic_fetch_sub(&running, 1);
}

static void done(pool_work *w) {
    one *o = w->owner;
    ck_assert_int_eq(o->ended, 0);
    o->ended = ++ended;
}

static bool take(pool_work *w) {
    return room > 0 && room-- > 0;
}

static void give(pool_work *w) {
    room++;
}

static void begin(pool_line *line, int together) {
    memset(&l, 0, sizeof l);
    memset(works, 0, sizeof works);
    begun = running = most = gate = 0;
    ended = 0;
    l.server = &the_server;
    ck_assert_int_eq(uv_loop_init(&l.uv), 0);
    pool_line_init(line, &l, together);
}

static void join(pool_line *line, int first, int end) {
    for (int i = first; i < end; i++) {
        works[i].work = (pool_work){.run = run, .done = done, .owner = &works[i]};
        pool_join(line, &works[i].work);
    }
}

static void until(const atomic_int *n, int value) {
    while (atomic_load(n) < value) {
        uv_sleep(1);
    }
}

static void finish(void) { // all that are left
    gate = WORKS;
    while (l.n_works > 0) {
        uv_run(&l.uv, UV_RUN_ONCE);
    }
    ck_assert_int_eq(uv_loop_close(&l.uv), 0);
}

START_TEST(so_many_at_once) {
    pool_line line;
    begin(&line, 6); // of two loops: three each
    join(&line, 0, WORKS);
    until(&begun, 3);
    uv_sleep(20);
    ck_assert_int_eq(begun, 3);
    ck_assert_uint_eq(l.n_works, WORKS);
    finish();
    ck_assert_int_eq(most, 3);
    for (int i = 0; i < WORKS; i++) {
        ck_assert_int_gt(works[i].ended, 0);
    }
    ck_assert_int_eq(line.n, 0);
}
END_TEST

START_TEST(one_after_the_other_in_order) {
    pool_line line;
    begin(&line, 2);
    join(&line, 0, WORKS);
    finish();
    for (int i = 0; i < WORKS; i++) {
        ck_assert_int_eq(works[i].begun, i + 1);
        ck_assert_int_eq(works[i].ended, i + 1);
    }
}
END_TEST

START_TEST(what_is_dropped_in_line_is_not_told) {
    pool_line line;
    pool_work never = {.owner = NULL};
    begin(&line, 4);
    ck_assert(!pool_drop(&never));
    join(&line, 0, 8);
    until(&begun, 2);
    ck_assert(!pool_drop(&works[0].work)); // on the pool
    ck_assert(pool_drop(&works[3].work));
    ck_assert(!pool_drop(&works[3].work));
    ck_assert(pool_drop(&works[7].work)); // the last: what joins now stands behind the sixth
    ck_assert_uint_eq(l.n_works, 6);
    join(&line, 8, 10);
    ck_assert(pool_drop(&works[2].work)); // the first in line
    finish();
    for (int i = 0; i < 10; i++) {
        const bool dropped = i == 2 || i == 3 || i == 7;
        ck_assert_int_eq(works[i].ended > 0, !dropped);
        ck_assert_int_eq(works[i].begun > 0, !dropped);
    }
    ck_assert(!pool_drop(&works[0].work)); // over
}
END_TEST

START_TEST(a_full_line_is_no_other_ones_matter) {
    pool_line line, other;
    begin(&line, 2);
    pool_line_init(&other, &l, 2);
    join(&line, 0, 8);
    until(&begun, 1);
    join(&other, 8, 9);
    until(&begun, 2); // the other line's
    finish();
}
END_TEST

START_TEST(what_a_work_takes_is_given_back) {
    pool_line line;
    begin(&line, 8);
    line.take = take, line.give = give, room = 2;
    join(&line, 0, 8);
    until(&begun, 2);
    uv_sleep(20);
    ck_assert_int_eq(begun, 2); // of four places
    finish();
    ck_assert_int_eq(most, 2);
    ck_assert_int_eq(ended, 8);
    ck_assert_int_eq(room, 2);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {
        so_many_at_once, one_after_the_other_in_order, what_is_dropped_in_line_is_not_told,
        a_full_line_is_no_other_ones_matter, what_a_work_takes_is_given_back};
    return RUN_SUITE("pool", tests);
}
