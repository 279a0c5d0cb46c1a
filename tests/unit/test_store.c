// SPDX-License-Identifier: Apache-2.0
// Sessions on disk: an engine that is opened again finds what the last one left, to the token; a
// process that is killed at any moment has lost nothing that it had been told is durable; files
// that are torn or foreign are set aside.
#include <check.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "support/consumer.h"

enum { TURN = 3, ANSWER = 2, PER_TURN = TURN + ANSWER };

static ssm_model *model;
static consumer con;
static char folder[64];
static const uint64_t owner[2] = {1, 2};

static void open_engine(ssm_durability durability, bool stores) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 4;
    o.threads = 1;
    o.cache_bytes = 3 * (int64_t)ssm_model_get_info(model)->state_bytes;
    o.state_dir = stores ? folder : NULL;
    o.durability = durability;
    const int rc = ssm_engine_create(model, &o, &engine, &err);
    ck_assert_msg(rc == 0, "%s", rc ? err.message : "");
    consumer_init(&con, engine);
}

static void close_engine(void) {
    consumer_dispose(&con);
    ssm_engine_free(con.engine);
}

static void begin(void) {
    ck_assert_int_eq(ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, NULL), 0);
    strcpy(folder, "/tmp/ssm-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

// Visits every file of the store: its one folder in the folder.
static int count_files(const char *suffix, const char *cut_to) {
    char inner[600] = "", path[1200];
    int n = 0;
    DIR *dir = opendir(folder);
    for (const struct dirent *d; (d = readdir(dir));) {
        if (d->d_name[0] != '.')
            snprintf(inner, sizeof inner, "%s/%s", folder, d->d_name);
    }
    closedir(dir);
    if (!inner[0] || !(dir = opendir(inner)))
        return 0;
    for (const struct dirent *d; (d = readdir(dir));) {
        const size_t len = strlen(d->d_name), end = strlen(suffix);
        if (d->d_name[0] == '.' || len < end || strcmp(d->d_name + len - end, suffix) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", inner, d->d_name);
        n++;
        if (cut_to && strcmp(cut_to, "remove") == 0)
            ck_assert_int_eq(unlink(path), 0);
        else if (cut_to)
            ck_assert_int_eq(truncate(path, 1000), 0);
    }
    closedir(dir);
    if (cut_to && strcmp(cut_to, "remove") == 0)
        rmdir(inner);
    return n;
}

static void end(void) {
    count_files("", "remove");
    ck_assert_int_eq(rmdir(folder), 0);
    ssm_model_free(model);
}

// The k-th turn of any session: the same tokens every time.
static void run_turn(const char *name, int k, waiter *w) {
    int32_t prompt[TURN];
    ssm_request r;
    ssm_request_init(&r);
    for (int i = 0; i < TURN; i++)
        prompt[i] = 1 + (k * 7 + i * 3) % 15;
    r.prompt = prompt;
    r.n_prompt = TURN;
    r.max_tokens = ANSWER;
    r.logprobs = 0;
    r.ignore_eos = true;
    r.session = name;
    memcpy(r.session_owner, owner, sizeof owner);
    consumer_run(&con, w, &r);
}

static uint64_t tokens_of(const char *name) {
    ssm_session_info info;
    const int rc = ssm_session_get(con.engine, owner, name, &info, NULL);
    return rc == 0 ? info.tokens : 0;
}

START_TEST(an_engine_opened_again_goes_on) {
    const ssm_durability durability = (ssm_durability)_i;
    waiter there, here;
    begin();
    open_engine(durability, true);
    for (int k = 0; k < 8; k++) {
        run_turn("one", k, &there);
        waiter_dispose(&there);
        run_turn("two", k, &there);
        waiter_dispose(&there);
    }
    ck_assert_int_eq(ssm_session_fork(con.engine, owner, "one", "three", NULL, NULL), 0);
    ck_assert_int_eq(ssm_session_delete(con.engine, owner, "two", NULL), 0);
    if (durability == SSM_DURABILITY_SYNC)
        ck_assert_int_eq(count_files(".session", NULL), 2);
    if (durability == SSM_DURABILITY_NONE)
        ck_assert_int_eq(count_files(".session", NULL), 0);
    close_engine();
    ck_assert_int_eq(count_files(".session", NULL), 2);
    ck_assert_int_eq(count_files("", NULL), 2); // and nothing else
    open_engine(durability, true);
    ck_assert_uint_eq(tokens_of("one"), 8 * PER_TURN);
    ck_assert_uint_eq(tokens_of("two"), 0);
    ck_assert_uint_eq(tokens_of("three"), 8 * PER_TURN);
    run_turn("three", 8, &there);
    ck_assert_uint_ge(there.usage.cached_tokens, 8 * PER_TURN - 1);
    close_engine();
    open_engine(durability, false); // one that remembers nothing, from the beginning
    for (int k = 0; k <= 8; k++) {
        run_turn("x", k, &here);
        if (k == 8)
            assert_same_answer(&here.choices[0], &there.choices[0]);
        waiter_dispose(&here);
    }
    waiter_dispose(&there);
    close_engine();
    end();
}
END_TEST

START_TEST(damaged_files_are_set_aside) {
    waiter w;
    ssm_stats stats;
    begin();
    open_engine(SSM_DURABILITY_SYNC, true);
    run_turn("one", 0, &w);
    waiter_dispose(&w);
    close_engine();
    ck_assert_int_eq(count_files(".session", "cut"), 1);
    open_engine(SSM_DURABILITY_SYNC, true);
    ssm_engine_get_stats(con.engine, &stats);
    ck_assert_uint_eq(stats.sessions_set_aside, 1);
    ck_assert_uint_eq(tokens_of("one"), 0);
    ck_assert_int_eq(count_files(".bad", NULL), 1);
    run_turn("one", 0, &w); // its name is free
    waiter_dispose(&w);
    close_engine();
    open_engine(SSM_DURABILITY_SYNC, true);
    ck_assert_uint_eq(tokens_of("one"), PER_TURN);
    close_engine();
    end();
}
END_TEST

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
    enum { KILLS = 12 };
    static const char *const names[] = {"a", "b", "c"};
    uint64_t told[3] = {0};
    begin();
    for (int kill_no = 0; kill_no < KILLS; kill_no++) {
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
    close_engine();
    end();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 240);
    tcase_add_loop_test(tc, an_engine_opened_again_goes_on, SSM_DURABILITY_ASYNC,
                        SSM_DURABILITY_NONE + 1);
    tcase_add_test(tc, damaged_files_are_set_aside);
    tcase_add_test(tc, what_was_acknowledged_survives_a_kill);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
