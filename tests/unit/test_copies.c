// SPDX-License-Identifier: Apache-2.0
// Copies made together come to the same as each at once, in whatever order they depend on each
// other; those that do not are one call.
#include <string.h>

#include "engine/state/copies.h"
#include "tests/suite.h"

enum { N = 12, MOST = 400 };

typedef struct memory {
    ssm_device device;
    int slots[MOST], rows[MOST];
    int slot_calls, row_calls;
    int fails; // calls until one does; 0: none
} memory;

// As backend.h has it: every destination is written from what was there before the call.
static int copy(int *array, const int32_t *src, const int32_t *dst, int32_t n) {
    int before[MOST];
    memcpy(before, array, sizeof before);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t k = 0; k < n; k++) {
            ck_assert_int_ne(src[i], dst[k]);
            ck_assert(i == k || dst[i] != dst[k]);
        }
        array[dst[i]] = before[src[i]];
    }
    return 0;
}

static int fails(memory *m) {
    return m->fails > 0 && --m->fails == 0;
}

static int slots_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                      ssm_error *err) {
    memory *m = (memory *)device;
    m->slot_calls++;
    if (fails(m))
        return ssm_error_set(err, SSM_EDEVICE, NULL, "the device has caught fire");
    return copy(m->slots, src, dst, n);
}

static int logits_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                       ssm_error *err) {
    memory *m = (memory *)device;
    m->row_calls++;
    return copy(m->rows, src, dst, n);
}

static const ssm_backend backend = {.slots_copy = slots_copy, .logits_copy = logits_copy};
static memory device;
static copies c;

static void begin(void) {
    device = (memory){.device.backend = &backend};
    for (int i = 0; i < MOST; i++)
        device.slots[i] = i, device.rows[i] = 1000 + i;
    c = (copies){.backend = &backend, .device = &device.device};
}

START_TEST(what_does_not_depend_is_one_call) {
    begin();
    for (int32_t i = 0; i < 8; i++) {
        ck_assert_int_eq(copies_add_slot(&c, i % 3, 10 + i, NULL), 0);
        ck_assert_int_eq(copies_add_row(&c, i, 20 + i, NULL), 0);
    }
    ck_assert_int_eq(device.slot_calls + device.row_calls, 0);
    ck_assert_int_eq(copies_make(&c, NULL), 0);
    ck_assert_int_eq(device.slot_calls, 1);
    ck_assert_int_eq(device.row_calls, 1);
    ck_assert_int_eq(device.slots[17], 1);
    ck_assert_int_eq(device.rows[27], 1007);
    ck_assert_int_eq(copies_make(&c, NULL), 0); // nothing is left
    ck_assert_int_eq(device.slot_calls + device.row_calls, 2);
    for (int32_t i = 0; i <= MOST_COPIES; i++) // more than wait
        ck_assert_int_eq(copies_add_row(&c, 0, 1 + i, NULL), 0);
    ck_assert_int_eq(device.row_calls, 2);
    ck_assert_int_eq(copies_make(&c, NULL), 0);
    ck_assert_int_eq(device.row_calls, 3);
    ck_assert_int_eq(device.rows[1 + MOST_COPIES], 1000);
    for (int32_t i = 0; i < 9; i++) // to the same place: the last counts
        ck_assert_int_eq(copies_add_slot(&c, i, 50, NULL), 0);
    ck_assert_int_eq(c.slots.n, 1);
    ck_assert_int_eq(copies_make(&c, NULL), 0);
    ck_assert_int_eq(device.slots[50], 8);
}
END_TEST

START_TEST(all_is_as_if_each_had_been_made_at_once) {
    uint32_t seed = 7;
    int slots[MOST], rows[MOST], n_slots = 0;
    begin();
    memcpy(slots, device.slots, sizeof slots);
    memcpy(rows, device.rows, sizeof rows);
    for (int i = 0; i < 20000; i++) {
        seed = seed * 1664525u + 1013904223u;
        const int32_t src = (int32_t)(seed >> 8) % N, dst = (int32_t)(seed >> 16) % N;
        if (src != dst && seed >> 31) {
            ck_assert_int_eq(copies_add_slot(&c, src, dst, NULL), 0);
            slots[dst] = slots[src];
            n_slots++;
        } else if (src != dst) {
            ck_assert_int_eq(copies_add_row(&c, src, dst, NULL), 0);
            rows[dst] = rows[src];
        }
        if (i % 7 == 0) { // something new to tell apart
            ck_assert_int_eq(copies_make(&c, NULL), 0);
            ck_assert_int_eq(memcmp(slots, device.slots, sizeof slots), 0);
            ck_assert_int_eq(memcmp(rows, device.rows, sizeof rows), 0);
            slots[i % N] = device.slots[i % N] = rows[i % N] = device.rows[i % N] = 10000 + i;
        }
    }
    ck_assert_int_lt(device.slot_calls, n_slots * 3 / 4);
}
END_TEST

START_TEST(a_device_that_fails_is_told_once) {
    ssm_error err;
    begin();
    device.fails = 1;
    ck_assert_int_eq(copies_add_slot(&c, 1, 2, &err), 0);
    ck_assert_int_eq(copies_add_row(&c, 1, 2, &err), 0);
    ck_assert_int_eq(copies_add_slot(&c, 2, 3, &err), SSM_EDEVICE); // depends on the first
    ck_assert_int_eq(device.row_calls, 0);
    ck_assert_int_eq(copies_make(&c, &err), 0); // none waits any more
    ck_assert_int_eq(device.slot_calls, 1);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("copies");
    TCase *tc = tcase_create("all");
    tcase_add_test(tc, what_does_not_depend_is_one_call);
    tcase_add_test(tc, all_is_as_if_each_had_been_made_at_once);
    tcase_add_test(tc, a_device_that_fails_is_told_once);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
