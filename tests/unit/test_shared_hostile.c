// SPDX-License-Identifier: Apache-2.0
// What lies in Redis may be anybody's: a session whose fields do not hold is set aside, and its
// name is free.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixtures/shared.h"

static const struct {
    const char *name, *how[2]; // commands; %s is the session's key
    bool is_lost;              // else it is as good as ever
} hostile[] = {
    {"a part that is changed", {"HSET %s 1 x"}, true},
    {"a part of the right length",
     {"EVAL redis.call('HSET',KEYS[1],'1',redis.call('HGET',KEYS[1],'1'):sub(1,-2)..'~') 1 %s"},
     true},
    {"a part that is missing", {"HDEL %s 0"}, true},
    {"the last part is missing",
     {"EVAL redis.call('HDEL',KEYS[1],redis.call('HLEN',KEYS[1])-10) 1 %s"},
     true},
    {"no size", {"HDEL %s size"}, true},
    {"a size of nothing", {"HSET %s size 0"}, true},
    {"a negative size", {"HSET %s size -1"}, true},
    {"a size of all", {"HSET %s size 18446744073709551615"}, true},
    {"a size beyond numbers", {"HSET %s size 99999999999999999999999"}, true},
    {"a size that is a word", {"HSET %s size many"}, true},
    {"a size one too small", {"HINCRBY %s size -1"}, true},
    {"no stamp", {"HDEL %s stamp"}, true},
    {"a stamp of zeros", {"HSET %s stamp 0000000000000000"}, true},
    {"a stamp that is a word", {"HSET %s stamp hello"}, true},
    {"another's name", {"HSET %s name t"}, true},
    {"another's", {"HSET %s owner 00000000000000000000000000000000"}, true},
    {"a time that is none", {"HSET %s created never"}, true},
    {"no hash", {"DEL %s", "SET %s hello"}, true},
    {"a list", {"DEL %s", "RPUSH %s hello"}, true},
    {"an empty hash", {"DEL %s", "HSET %s x y"}, true},
    {"a memo that is none", {"HSET %s memo xyz"}, false},
    {"tokens that are none", {"HSET %s tokens many"}, false},
    {"more fields", {"HSET %s hello world"}, false},
};

START_TEST(hostile_values_are_set_aside) {
    static const int past[] = {0, 1};
    char key[200], command[400];
    ssm_session_info *infos;
    size_t n;
    ssm_error err;
    uint8_t *bytes = NULL;
    if (!begin(NULL))
        return;
    open_engine(A);
    open_engine(B);
    ck_assert_int_eq(turn_only(A, "t", 0), 0);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    ck_assert_int_eq(turn_only(A, "s", 1), 0);
    reach();
    key_named("s", key);
    for (int i = 0; i < 2; i++) {
        if (!hostile[_i].how[i])
            continue;
        snprintf(command, sizeof command, hostile[_i].how[i], key);
        ask(command);
    }
    // Whoever lists sees the good ones.
    ck_assert_int_eq(ssm_session_list(con[B].engine, owner, &infos, &n, &err), 0);
    ck_assert(n >= 1 && strcmp(infos[n - 1].name, "t") == 0);
    free(infos);
    const uint64_t seen = tokens_of(B, "s");
    ck_assert_msg(seen == 0 || seen == 2 * PER_TURN, "%s", hostile[_i].name);
    // B has no copy: a turn, or a call, that wants it finds out. A has one: it must not use it.
    const bool by_call = _i % 2 == 1;
    size_t size;
    const int rc = by_call
                       ? ssm_session_export_bytes(con[B].engine, owner, "s", &bytes, &size, &err)
                       : turn_only(B, "s", 2);
    free(bytes);
    ck_assert_msg(rc == (hostile[_i].is_lost ? SSM_EIO : 0), "%s: %d", hostile[_i].name, rc);
    if (hostile[_i].is_lost) {
        for (int i = 0; stats_of(B).sessions_set_aside != 1; i++, usleep(1000))
            ck_assert_int_lt(i, 5000);
        copy_key("*:b:*", key);
        ck_assert_int_gt(atoi(ask("TTL %s", key)), 600000);
        assert_follows(A, "s", NULL, 0, 2); // the name is free
    } else if (by_call) {
        assert_follows(A, "s", past, 2, 2);
    }
    ck_assert_int_eq(turn_only(B, "t", 1), 0);
    close_engine(A);
    close_engine(B);
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared_hostile");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, hostile_values_are_set_aside, 0, sizeof hostile / sizeof *hostile);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
