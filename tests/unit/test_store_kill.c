// SPDX-License-Identifier: Apache-2.0
// A process that is killed at any moment has lost nothing that it had been told is durable, be it
// in a folder or in a Redis. SSM_TEST_KILLS: how often, else a few times.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixtures/store.h"

// In a process of its own: turn after turn of three sessions, each told once it is durable.
static void work_until_killed(int out) {
    static const char *const names[] = {"a", "b", "c"};
    waiter w;
    open_engine(SSM_DURABILITY_SYNC, true);
    uint64_t n[3];
    for (int s = 0; s < 3; s++)
        n[s] = tokens_of(names[s]) / PER_TURN;
    for (int i = 0;; i++) {
        const int s = i % 3;
        run_turn(names[s], (int)n[s]++, &w);
        waiter_dispose(&w);
        const uint64_t told[2] = {(uint64_t)s, n[s]};
        if (write(out, told, sizeof told) != sizeof told)
            _exit(1);
    }
}

static void assert_goes_on(const char *name, int turns) {
    waiter there, here;
    char fresh[16];
    snprintf(fresh, sizeof fresh, "%s-again", name);
    for (int k = 0; k < turns; k++) {
        run_turn(fresh, k, &here);
        waiter_dispose(&here);
    }
    run_turn(fresh, turns, &here);
    run_turn(name, turns, &there);
    assert_same_answer(&here.choices[0], &there.choices[0]);
    waiter_dispose(&here);
    waiter_dispose(&there);
    ck_assert_int_eq(ssm_session_delete(con.engine, owner, fresh, NULL), 0);
}

START_TEST(what_was_acknowledged_survives_a_kill) {
    const char *count = getenv("SSM_TEST_KILLS");
    const int kills = count ? atoi(count) : _i ? 4 : 12; // a claim left behind takes its time
    static const char *const names[] = {"a", "b", "c"};
    uint64_t told[3] = {0};
    if (!begin_in(_i))
        return;
    for (int kill_no = 0; kill_no < kills; kill_no++) {
        int ends[2];
        uint64_t one[2];
        ck_assert_int_eq(pipe(ends), 0);
        const pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) {
            close(ends[0]);
            work_until_killed(ends[1]);
        }
        close(ends[1]);
        for (int i = 0; i < 3 + kill_no % 4 && read(ends[0], one, sizeof one) == sizeof one; i++)
            told[one[0]] = one[1];
        usleep((useconds_t)(kill_no * 977 % 5000)); // anywhere in a write
        kill(child, SIGKILL);
        while (read(ends[0], one, sizeof one) == sizeof one)
            told[one[0]] = one[1];
        close(ends[0]);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
    }
    open_engine(SSM_DURABILITY_SYNC, true);
    ssm_stats stats;
    ssm_engine_get_stats(con.engine, &stats);
    ck_assert_uint_eq(stats.sessions_set_aside, 0);
    ck_assert_int_eq(count_files(".tmp", NULL), 0);
    for (int s = 0; s < 3; s++) {
        const uint64_t turns = tokens_of(names[s]) / PER_TURN;
        ck_assert_uint_gt(told[s], 0);
        ck_assert_uint_ge(turns, told[s]); // a write that was not yet acknowledged may be there
        assert_goes_on(names[s], (int)turns);
    }
    printf("%d kills, %llu turns told durable, none lost\n", kills,
           (unsigned long long)(told[0] + told[1] + told[2]));
    close_engine();
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store_kill");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, what_was_acknowledged_survives_a_kill, 0, 2);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
