// SPDX-License-Identifier: Apache-2.0
// A start with a Redis that cannot be used says what is wrong, and tells no password.
#include <stdio.h>
#include <string.h>

#include "fixtures/shared.h"

START_TEST(a_start_says_what_is_wrong) {
    ssm_error err;
    char url[300];
    if (!begin(NULL))
        return;
    const struct {
        const char *url, *command, *undo, *says;
    } wrong[] = {
        {"redis://127.0.0.1:1", NULL, NULL, "refused"},
        {"unix:///tmp/there-is-none", NULL, NULL, "No such file"},
        {"unix://:secret@", NULL, NULL, "AUTH"},
        {"unix://someone:secret@", NULL, NULL, "WRONGPASS"},
        {"unix://?db=99", NULL, NULL, "out of range"},
        {"unix://", "ACL SETUSER default >secret resetpass >secret", "ACL SETUSER default nopass",
         "NOAUTH"},
        {"unix://", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"},
        {"unix://", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"},
        {"unix://", "ACL SETUSER default -eval", "ACL SETUSER default +eval", "NOPERM"},
        {"unix://", "SET ssmd:secret short", "DEL ssmd:secret", "16 bytes"},
        {"http://127.0.0.1", NULL, NULL, "begins with none"},
    };
    reach();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const char *path = strncmp(wrong[i].url, "unix://", 7) == 0 && !strstr(wrong[i].url, "tmp")
                               ? server.path
                               : "";
        const char *query = strchr(wrong[i].url, '?');
        snprintf(url, sizeof url, "%.*s%s%s", (int)strcspn(wrong[i].url, "?"), wrong[i].url, path,
                 query ? query : "");
        options.state_url = url;
        if (wrong[i].command)
            ask(wrong[i].command);
        const int rc = try_engine(A, &err);
        ck_assert_msg(rc == SSM_EUNAVAILABLE || rc == SSM_EINVAL, "%s: %d", url, rc);
        ck_assert_str_eq(err.param, "state_url");
        ck_assert_msg(strstr(err.message, wrong[i].says) && !strstr(err.message, "secret@"),
                      "%s: %s", url, err.message);
        if (wrong[i].undo)
            ask(wrong[i].undo);
    }
    options.state_url = server.url;
    options.state_dir = "/tmp";
    ck_assert_int_eq(try_engine(A, &err), SSM_EINVAL);
    options.state_dir = NULL;
    options.durability = SSM_DURABILITY_NONE;
    ck_assert_int_eq(try_engine(A, &err), SSM_EINVAL);
    ck_assert_str_eq(err.param, "durability");
    options.durability = SSM_DURABILITY_SYNC;
    ask("CONFIG SET requirepass se/cr%%et"); // hiredis reads %% as %
    snprintf(url, sizeof url, "unix://:se%%2Fcr%%25et@%s?db=3", server.path);
    options.state_url = url;
    open_engine(A);
    ck_assert_int_eq(turn_only(A, "s", 0), 0);
    close_engine(A);
    ask("SELECT 3");
    ck_assert_str_eq(ask("DBSIZE"), "4");
    finish();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("shared_start");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, a_start_says_what_is_wrong);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
