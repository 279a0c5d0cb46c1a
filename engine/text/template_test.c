// SPDX-License-Identifier: Apache-2.0
// The tests of chat templates ("x is defined"), a row each.
#include "template.h"

#include <math.h>
#include <string.h>

#define TEST_KIND(name, condition)                                                                 \
    static tpl_value name(tpl_run *r, tpl_value v, const tpl_value *args) {                        \
        return tpl_bool(condition);                                                                \
    }

TEST_KIND(test_defined, v.kind != V_UNDEFINED)
TEST_KIND(test_undefined, v.kind == V_UNDEFINED)
TEST_KIND(test_none, v.kind == V_NONE)
TEST_KIND(test_boolean, v.kind == V_BOOL)
TEST_KIND(test_true, v.kind == V_BOOL && v.b)
TEST_KIND(test_false, v.kind == V_BOOL && !v.b)
TEST_KIND(test_integer, v.kind == V_INT)
TEST_KIND(test_float, v.kind == V_FLOAT)
TEST_KIND(test_number, tpl_is_number(v))
TEST_KIND(test_string, v.kind == V_STRING)
TEST_KIND(test_mapping, v.kind == V_DICT)
// Undefined has a length and a subscript, if only to fail: Python takes it for a sequence.
TEST_KIND(test_sequence, v.kind == V_STRING || v.kind == V_LIST || v.kind == V_TUPLE ||
                             v.kind == V_DICT || v.kind == V_UNDEFINED)
TEST_KIND(test_iterable, v.kind == V_STRING || tpl_is_array(v) || v.kind == V_DICT ||
                             v.kind == V_UNDEFINED || v.kind == V_ITERATOR || v.kind == V_LOOP)
TEST_KIND(test_callable,
          v.kind == V_MACRO || v.kind == V_FUNCTION || v.kind == V_LOOP || v.kind == V_UNDEFINED)
TEST_KIND(test_in, tpl_contains(r, args[0], v))
TEST_KIND(test_eq, tpl_equal(r, v, args[0]))
TEST_KIND(test_ne, !tpl_equal(r, v, args[0]))
TEST_KIND(test_lt, tpl_order(r, v, args[0]) < 0)
TEST_KIND(test_le, tpl_order(r, v, args[0]) <= 0)
TEST_KIND(test_gt, tpl_order(r, v, args[0]) > 0)
TEST_KIND(test_ge, tpl_order(r, v, args[0]) >= 0)
TEST_KIND(test_lower, tpl_is_cased(tpl_str(r, v), false))
TEST_KIND(test_upper, tpl_is_cased(tpl_str(r, v), true))

static tpl_value test_sameas(tpl_run *r, tpl_value v, const tpl_value *args) {
    if (v.kind != args[0].kind || v.kind == V_FLOAT)
        return tpl_bool(false);
    if (v.kind == V_STRING || v.kind == V_INT) // Python's answer depends on its caches
        tpl_fail(r, SSM_EINVAL, "sameas of %s is not in the supported subset",
                 tpl_kind_name(v.kind));
    if (v.kind == V_UNDEFINED || v.kind == V_NONE)
        return tpl_bool(v.kind == V_NONE);
    return tpl_bool(v.kind == V_BOOL ? v.b == args[0].b : v.list == args[0].list);
}

static int64_t remainder_of(tpl_run *r, tpl_value v, tpl_value by) {
    if ((v.kind != V_INT && v.kind != V_BOOL) || (by.kind != V_INT && by.kind != V_BOOL) ||
        tpl_integer(by) == 0) {
        tpl_fail(r, SSM_EINVAL, "the remainder of %s by %s", tpl_kind_name(v.kind),
                 tpl_kind_name(by.kind));
        return 0;
    }
    return tpl_integer(by) == -1 ? 0 : tpl_integer(v) % tpl_integer(by);
}

TEST_KIND(test_odd, remainder_of(r, v, tpl_int(2)) != 0)
TEST_KIND(test_even, remainder_of(r, v, tpl_int(2)) == 0)
TEST_KIND(test_divisibleby, remainder_of(r, v, args[0]) == 0)

static const tpl_row tests[] = {
    {"!=", "other", 1, test_ne},
    {"<", "other", 1, test_lt},
    {"<=", "other", 1, test_le},
    {"==", "other", 1, test_eq},
    {">", "other", 1, test_gt},
    {">=", "other", 1, test_ge},
    {"boolean", "", 0, test_boolean},
    {"callable", "", 0, test_callable},
    {"defined", "", 0, test_defined},
    {"divisibleby", "num", 1, test_divisibleby},
    {"eq", "other", 1, test_eq},
    {"equalto", "other", 1, test_eq},
    {"even", "", 0, test_even},
    {"false", "", 0, test_false},
    {"float", "", 0, test_float},
    {"ge", "other", 1, test_ge},
    {"greaterthan", "other", 1, test_gt},
    {"gt", "other", 1, test_gt},
    {"in", "seq", 1, test_in},
    {"integer", "", 0, test_integer},
    {"iterable", "", 0, test_iterable},
    {"le", "other", 1, test_le},
    {"lessthan", "other", 1, test_lt},
    {"lower", "", 0, test_lower},
    {"lt", "other", 1, test_lt},
    {"mapping", "", 0, test_mapping},
    {"ne", "other", 1, test_ne},
    {"none", "", 0, test_none},
    {"number", "", 0, test_number},
    {"odd", "", 0, test_odd},
    {"sameas", "other", 1, test_sameas},
    {"sequence", "", 0, test_sequence},
    {"string", "", 0, test_string},
    {"true", "", 0, test_true},
    {"undefined", "", 0, test_undefined},
    {"upper", "", 0, test_upper},
};

const tpl_row *tpl_test_find(const char *name) {
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (strcmp(tests[i].name, name) == 0)
            return &tests[i];
    }
    return NULL;
}
