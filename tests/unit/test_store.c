// SPDX-License-Identifier: Apache-2.0
// Sessions in a store: an engine that is opened again finds what the last one left, to the token; a
// process that is killed at any moment has lost nothing that it had been told is durable; files
// that are torn or foreign are set aside. What both stores must do, a Redis does here too; what is
// its own is in test_shared.c.
#include <check.h>
#include <dirent.h>
#include <glob.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ssm/engine.h>
#include <ssm/session.h>

#include "engine/engine.h"
#include "engine/state/secret.h"
#include "support/consumer.h"
#include "support/late_backend.h"
#include "support/redis.h"

enum { TURN = 3, ANSWER = 2, PER_TURN = TURN + ANSWER };

static ssm_model *model;
static consumer con;
static char folder[64];
static bool is_redis; // or the folder
static redis_server server;
static const uint64_t owner[2] = {1, 2};

// Where sessions are and when: rows of the loops.
static const struct {
    bool is_redis;
    ssm_durability durability;
} places[] = {{false, SSM_DURABILITY_ASYNC},
              {false, SSM_DURABILITY_SYNC},
              {false, SSM_DURABILITY_NONE},
              {true, SSM_DURABILITY_ASYNC},
              {true, SSM_DURABILITY_SYNC}};

enum { N_PLACES = sizeof places / sizeof *places };

static void open_engine(ssm_durability durability, bool stores) {
    ssm_engine *engine;
    ssm_engine_options o;
    ssm_error err;
    ssm_engine_options_init(&o);
    o.max_sessions = 4;
    o.threads = 1;
    o.cache_bytes = 3 * (int64_t)ssm_model_get_info(model)->state_bytes;
    o.state_dir = stores && !is_redis ? folder : NULL;
    o.state_url = stores && is_redis ? server.url : NULL;
    o.durability = durability;
    // States that come late: a file must not be written before.
    const int rc = engine_create_on(late_backend(), model, &o, &engine, &err);
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

// False: it is not to be had.
static bool begin_in(bool redis) {
    if (redis && !redis_is_here())
        return false;
    begin();
    is_redis = redis;
    if (redis)
        redis_start(&server, NULL);
    return true;
}

static void flip_byte(const char *path, long at) {
    FILE *f = fopen(path, "r+");
    ck_assert(f && fseek(f, at, SEEK_SET) == 0);
    const int byte = fgetc(f);
    ck_assert_int_eq(fseek(f, at, SEEK_SET), 0);
    fputc(byte ^ 1, f);
    fclose(f);
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
        else if (cut_to && strcmp(cut_to, "flip") == 0)
            flip_byte(path, 5000);
        else if (cut_to)
            ck_assert_int_eq(truncate(path, 1000), 0);
    }
    closedir(dir);
    if (cut_to && strcmp(cut_to, "remove") == 0)
        rmdir(inner);
    return n;
}

// The files that are not sessions: there from the first start, and never more than these.
static void remove_hidden(void) {
    char path[1200];
    uint64_t hash[2];
    model_hash(model, hash);
    snprintf(path, sizeof path, "%s/%016" PRIx64 "%016" PRIx64 "/.lock", folder, hash[0], hash[1]);
    unlink(path);
    snprintf(path, sizeof path, "%s/.secret", folder);
    unlink(path);
}

static void end(void) {
    if (is_redis)
        redis_dispose(&server);
    remove_hidden();
    count_files("", "remove");
    ck_assert_int_eq(rmdir(folder), 0);
    ssm_model_free(model);
}

// The header of the one session that there is.
static void slurp_session(char *out, size_t size) {
    char pattern[200];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*/*.session", folder);
    ck_assert_int_eq(glob(pattern, 0, NULL, &found), 0);
    ck_assert_uint_eq(found.gl_pathc, 1);
    FILE *f = fopen(found.gl_pathv[0], "r");
    ck_assert_int_eq(fseek(f, 8, SEEK_SET), 0);
    out[fread(out, 1, 4096, f)] = '\0';
    fclose(f);
    globfree(&found);
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
    const ssm_durability durability = places[_i].durability;
    waiter there, here;
    if (!begin_in(places[_i].is_redis))
        return;
    open_engine(durability, true);
    for (int k = 0; k < 8; k++) {
        run_turn("one", k, &there);
        waiter_dispose(&there);
        run_turn("two", k, &there);
        waiter_dispose(&there);
    }
    ck_assert_int_eq(ssm_session_fork(con.engine, owner, "one", "three", NULL, NULL), 0);
    ck_assert_int_eq(ssm_session_delete(con.engine, owner, "two", NULL), 0);
    if (durability == SSM_DURABILITY_SYNC && !is_redis)
        ck_assert_int_eq(count_files(".session", NULL), 2);
    if (durability == SSM_DURABILITY_NONE)
        ck_assert_int_eq(count_files(".session", NULL), 0);
    close_engine();
    ck_assert_int_eq(count_files(".session", NULL), is_redis ? 0 : 2);
    ck_assert_int_eq(count_files("", NULL), is_redis ? 0 : 2); // and nothing else
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

// Forty sessions where the cache holds three: their states live on the disk, a start reads none of
// them, and every turn is that of one long prompt.
START_TEST(sessions_beyond_memory_are_read_when_used) {
    enum { NAMES = 40, TURNS = 3 };
    char name[16];
    waiter there[NAMES], here;
    ssm_stats stats;
    ssm_session_info *infos, one;
    size_t n;
    if (!begin_in(places[_i].is_redis))
        return;
    for (int k = 0; k < TURNS; k++) {
        open_engine(places[_i].durability, true);
        ssm_engine_get_stats(con.engine, &stats);
        ck_assert_uint_eq(stats.sessions, k > 0 ? NAMES : 0);
        ck_assert_uint_eq(stats.session_loads, 0);
        ck_assert_int_eq(ssm_session_list(con.engine, owner, &infos, &n, NULL), 0);
        ck_assert_uint_eq(n, k > 0 ? NAMES : 0);
        for (size_t i = 0; i < n; i++)
            ck_assert_uint_eq(infos[i].tokens, (uint64_t)k * PER_TURN);
        free(infos);
        for (int i = 0; i < NAMES; i++) {
            snprintf(name, sizeof name, "s%d", i);
            run_turn(name, k + i % 2, &there[i]);
            ck_assert_uint_eq(there[i].usage.cached_tokens > 0, k > 0);
            if (k < TURNS - 1)
                waiter_dispose(&there[i]);
        }
        ck_assert_int_eq(ssm_session_fork(con.engine, owner, "s0", "fork", &one, NULL), 0);
        ck_assert_uint_eq(one.tokens, (uint64_t)(k + 1) * PER_TURN);
        ck_assert_int_eq(ssm_session_delete(con.engine, owner, "fork", NULL), 0);
        do { // until the disk has it all
            usleep(1000);
            ssm_engine_get_stats(con.engine, &stats);
        } while (stats.cache[SSM_TIER_HOST].bytes > 0 &&
                 places[_i].durability != SSM_DURABILITY_NONE);
        ck_assert_uint_ge(stats.session_loads, k > 0 ? NAMES : 0);
        close_engine();
    }
    open_engine(SSM_DURABILITY_ASYNC, false);
    for (int i = 0; i < NAMES; i++) {
        snprintf(name, sizeof name, "s%d", i % 2);
        for (int k = 0; k < TURNS && i < 2; k++) {
            run_turn(name, k + i % 2, &here);
            if (k == TURNS - 1) {
                for (int other = i; other < NAMES; other += 2) {
                    assert_same_answer(&here.choices[0], &there[other].choices[0]);
                    waiter_dispose(&there[other]);
                }
            }
            waiter_dispose(&here);
        }
    }
    close_engine();
    end();
}
END_TEST

START_TEST(a_file_damaged_later_is_found_when_used) {
    waiter w;
    ssm_stats stats;
    ssm_error err;
    begin();
    open_engine(SSM_DURABILITY_SYNC, true);
    run_turn("one", 0, &w);
    waiter_dispose(&w);
    close_engine();
    ck_assert_int_eq(count_files(".session", "flip"), 1);
    open_engine(SSM_DURABILITY_SYNC, true); // its header is in order
    ck_assert_uint_eq(tokens_of("one"), PER_TURN);
    uint8_t *bytes;
    size_t size;
    ck_assert_int_eq(ssm_session_export_bytes(con.engine, owner, "one", &bytes, &size, &err),
                     SSM_EIO);
    ck_assert_uint_eq(tokens_of("one"), 0);
    ssm_engine_get_stats(con.engine, &stats);
    ck_assert_uint_eq(stats.sessions_set_aside, 1);
    ck_assert_int_eq(count_files(".bad", NULL), 1);
    run_turn("one", 0, &w); // its name is free
    waiter_dispose(&w);
    close_engine();
    end();
}
END_TEST

START_TEST(a_folder_has_one_holder) {
    ssm_engine *second;
    ssm_engine_options o;
    ssm_error err;
    char number[24];
    begin();
    open_engine(SSM_DURABILITY_ASYNC, true);
    ssm_engine_options_init(&o);
    o.device = "cpu";
    o.max_sessions = 1;
    o.state_dir = folder;
    ck_assert_int_eq(ssm_engine_create(model, &o, &second, &err), SSM_EIO);
    snprintf(number, sizeof number, "process %ld", (long)getpid());
    ck_assert_msg(strstr(err.message, number), "%s", err.message);
    close_engine();
    ck_assert_int_eq(ssm_engine_create(model, &o, &second, &err), 0);
    ssm_engine_free(second);
    end();
}
END_TEST

// From the reference code of the hash's authors: the input is 0, 1, 2 .., the key as long.
START_TEST(owners_on_the_disk_are_keyed) {
    static const uint8_t none[16] = {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6,
                                     0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93};
    static const uint8_t first[16] = {0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44,
                                      0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45};
    uint8_t key[16], out[16], secret[16], other[16];
    char path[1200], digits[40], text[5000];
    struct stat info;
    waiter w;
    for (uint8_t i = 0; i < 16; i++)
        key[i] = i;
    siphash128(key, key, 0, out);
    ck_assert_int_eq(memcmp(out, none, 16), 0);
    siphash128(key, key, 1, out);
    ck_assert_int_eq(memcmp(out, first, 16), 0);
    begin();
    open_engine(SSM_DURABILITY_SYNC, true);
    run_turn("one", 0, &w);
    waiter_dispose(&w);
    close_engine();
    snprintf(path, sizeof path, "%s/.secret", folder);
    ck_assert_int_eq(stat(path, &info), 0);
    ck_assert_int_eq(info.st_mode & 0777, 0600);
    ck_assert_int_eq(secret_open(folder, secret, NULL), 0);
    ck_assert_int_eq(secret_make(other, NULL), 0);
    ck_assert_int_ne(memcmp(secret, other, 16), 0);
    uint64_t hashed[2];
    secret_owner(secret, owner, hashed);
    slurp_session(text, sizeof text);
    snprintf(digits, sizeof digits, "%016" PRIx64 "%016" PRIx64, hashed[0], hashed[1]);
    ck_assert_ptr_nonnull(strstr(text, digits));
    snprintf(digits, sizeof digits, "%016" PRIx64, owner[0]);
    ck_assert_ptr_null(strstr(text, digits));
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
    end();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 600);
    tcase_add_loop_test(tc, an_engine_opened_again_goes_on, 0, N_PLACES);
    tcase_add_loop_test(tc, sessions_beyond_memory_are_read_when_used, 0, N_PLACES);
    tcase_add_test(tc, damaged_files_are_set_aside);
    tcase_add_test(tc, a_file_damaged_later_is_found_when_used);
    tcase_add_test(tc, a_folder_has_one_holder);
    tcase_add_test(tc, owners_on_the_disk_are_keyed);
    tcase_add_loop_test(tc, what_was_acknowledged_survives_a_kill, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
