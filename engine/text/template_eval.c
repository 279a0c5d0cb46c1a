// SPDX-License-Identifier: Apache-2.0
// Expressions of chat templates evaluated: names, attributes and items as jinja2's sandbox looks
// them up, operators as Python defines them.
#include "template.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_DEPTH = 1500 }; // of C frames; a tree is at most 250 high, the rest is for macros

// ---- look-ups

static tpl_value lookup(tpl_run *r, const char *name) {
    for (const tpl_frame *f = r->frame; f; f = f->parent) {
        for (size_t i = f->n; i-- > 0;) {
            if (f->vars[i].name == name)
                return f->vars[i].value;
        }
    }
    const tpl_value global = tpl_global(name);
    return global.kind != V_ABSENT ? global : tpl_undefined(name, strlen(name));
}

static void fail_undefined(tpl_run *r, tpl_value v) {
    tpl_fail(r, SSM_EINVAL, "'%.*s' is undefined", (int)(v.len < 60 ? v.len : 60), v.s);
}

static tpl_value loop_attribute(tpl_run *r, const tpl_loop *loop, const char *name) {
    const int64_t at = (int64_t)loop->at, n = (int64_t)loop->items->n;
    const struct {
        const char *name;
        tpl_value value;
    } attributes[] = {
        {"index", tpl_int(at + 1)},
        {"index0", tpl_int(at)},
        {"first", tpl_bool(at == 0)},
        {"last", tpl_bool(at == n - 1)},
        {"length", tpl_int(n)},
        {"revindex", tpl_int(n - at)},
        {"revindex0", tpl_int(n - at - 1)},
        {"depth", tpl_int(1)},
        {"depth0", tpl_int(0)}, // no recursive loops
    };
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        if (strcmp(attributes[i].name, name) == 0)
            return attributes[i].value;
    }
    if (strcmp(name, "previtem") == 0 && at > 0)
        return loop->items->items[at - 1];
    if (strcmp(name, "nextitem") == 0 && at + 1 < n)
        return loop->items->items[at + 1];
    return tpl_undefined(name, strlen(name));
}

// a.name: Python's attributes come first, as in the sandbox, then the items.
tpl_value tpl_attribute(tpl_run *r, tpl_value v, const char *name) {
    const tpl_value key = tpl_string(name, strlen(name));
    if (v.kind == V_UNDEFINED) {
        fail_undefined(r, v);
        return v;
    }
    if (v.kind == V_LOOP)
        return loop_attribute(r, v.loop, name);
    if (v.kind == V_NAMESPACE || v.kind == V_DICT) {
        if (tpl_is_method_name(v, name))
            tpl_fail(r, SSM_EINVAL,
                     "reading the method '%.60s' without calling it is not in the supported subset",
                     name);
        const tpl_value *found = tpl_dict_find(r, v.dict, key);
        return found ? *found : tpl_undefined(name, key.len);
    }
    if (tpl_is_method_name(v, name))
        tpl_fail(r, SSM_EINVAL, "the method '%.60s' of %s can only be called", name,
                 tpl_kind_name(v.kind));
    return tpl_undefined(name, key.len);
}

// The index of an element, negative ones from the end, or -1.
static int64_t place(tpl_value index, int64_t n) {
    int64_t i = tpl_integer(index);
    if (i < 0)
        i += n;
    return i >= 0 && i < n ? i : -1;
}

static tpl_value item_of_string(tpl_run *r, tpl_value v, tpl_value index) {
    const int64_t i = place(index, tpl_length(r, v));
    if (i < 0)
        return tpl_undefined("index", 5);
    const size_t at = tpl_char_offset(v.s, v.len, (size_t)i);
    return tpl_string(v.s + at, tpl_char_offset(v.s + at, v.len - at, 1));
}

// a[key]: items come first; a string that finds none is an attribute's name.
tpl_value tpl_item(tpl_run *r, tpl_value v, tpl_value key) {
    const bool is_index = key.kind == V_INT || key.kind == V_BOOL;
    if (v.kind == V_UNDEFINED) {
        fail_undefined(r, v);
        return v;
    }
    if (v.kind == V_DICT) {
        const tpl_value *found =
            key.kind == V_LIST || key.kind == V_DICT ? NULL : tpl_dict_find(r, v.dict, key);
        if (found)
            return *found;
    }
    if ((v.kind == V_LIST || v.kind == V_TUPLE) && is_index) {
        const int64_t i = place(key, (int64_t)v.list->n);
        return i < 0 ? tpl_undefined("index", 5) : v.list->items[i];
    }
    if (v.kind == V_STRING && is_index)
        return item_of_string(r, v, key);
    if (key.kind != V_STRING)
        return tpl_undefined("item", 4);
    const tpl_value name = tpl_copy(r, key.s, key.len);
    if (v.kind == V_DICT && !tpl_is_method_name(v, name.s))
        return tpl_undefined(name.s, name.len);
    return tpl_attribute(r, v, name.s);
}

// ---- slices

typedef struct span {
    int64_t begin, end, step;
} span;

static int64_t bound(tpl_value v, int64_t n, int64_t low, int64_t high, int64_t absent) {
    if (v.kind == V_NONE)
        return absent;
    int64_t i = tpl_integer(v);
    if (i < 0)
        i = i < -n ? low : i + n; // no overflow
    return i < low ? low : i > high ? high : i;
}

static tpl_value slice_part(tpl_run *r, const tpl_node *n) {
    const tpl_value v = n ? tpl_eval(r, n) : tpl_none();
    if (v.kind == V_INT || v.kind == V_BOOL || v.kind == V_NONE)
        return v;
    tpl_fail(r, SSM_EINVAL, "a slice takes integers, not %s", tpl_kind_name(v.kind));
    return tpl_none();
}

static span slice_span(tpl_run *r, const tpl_node *n, int64_t length) {
    const tpl_value begin = slice_part(r, n->b), end = slice_part(r, n->c);
    const tpl_value step = slice_part(r, n->d);
    span s = {.step = step.kind == V_NONE ? 1 : tpl_integer(step)};
    if (s.step == 0)
        tpl_fail(r, SSM_EINVAL, "a slice's step is 0");
    if (s.step > 0) {
        s.begin = bound(begin, length, 0, length, 0);
        s.end = bound(end, length, 0, length, length);
    } else {
        s.begin = bound(begin, length, -1, length - 1, length - 1);
        s.end = bound(end, length, -1, length - 1, -1);
    }
    if (s.step > length || s.step < -length) // one element at most: no overflow below
        s.step = s.step > 0 ? length + 1 : -length - 1;
    return s;
}

static bool is_inside(const span *s, int64_t i) {
    return s->step > 0 ? i < s->end : i > s->end;
}

static tpl_value slice_string(tpl_run *r, tpl_value v, const span *s) {
    if (s->step == 1) {
        const size_t n = s->end > s->begin ? (size_t)(s->end - s->begin) : 0;
        const size_t at = tpl_char_offset(v.s, v.len, (size_t)s->begin);
        return tpl_string(v.s + at, tpl_char_offset(v.s + at, v.len - at, n));
    }
    const tpl_list *chars = tpl_iterate(r, v);
    tpl_buffer b = {.r = r};
    for (int64_t i = s->begin; is_inside(s, i) && tpl_charge(r, 1); i += s->step)
        tpl_put(&b, chars->items[i].s, chars->items[i].len);
    return tpl_take(&b);
}

static tpl_value eval_slice(tpl_run *r, const tpl_node *n) {
    const tpl_value v = tpl_eval(r, n->a);
    if (v.kind == V_UNDEFINED)
        fail_undefined(r, v);
    if (v.kind != V_STRING && v.kind != V_LIST && v.kind != V_TUPLE)
        return tpl_undefined("slice", 5);
    const span s = slice_span(r, n, tpl_length(r, v));
    if (r->code != 0)
        return v;
    if (v.kind == V_STRING)
        return slice_string(r, v, &s);
    tpl_list *part = tpl_list_create(r, 0);
    if (s.step == 1 && r->code == 0 && v.list->n > 0) { // values do not change: share them
        part->items = v.list->items + (s.end > s.begin ? s.begin : 0);
        part->n = part->cap = s.end > s.begin ? (size_t)(s.end - s.begin) : 0;
        return tpl_list_value(v.kind, part);
    }
    for (int64_t i = s.begin; is_inside(&s, i) && tpl_charge(r, 1); i += s.step)
        tpl_list_push(r, part, v.list->items[i]);
    return tpl_list_value(v.kind, part);
}

// ---- arithmetic

static tpl_value fail_operands(tpl_run *r, const char *what, tpl_value a, tpl_value b) {
    if (a.kind == V_UNDEFINED)
        fail_undefined(r, a);
    if (b.kind == V_UNDEFINED)
        fail_undefined(r, b);
    tpl_fail(r, SSM_EINVAL, "%s of %s and %s", what, tpl_kind_name(a.kind), tpl_kind_name(b.kind));
    return tpl_none();
}

static tpl_value concat_strings(tpl_run *r, tpl_value a, tpl_value b) {
    char *s = tpl_charge(r, (a.len + b.len) / 64) ? tpl_alloc(r, a.len + b.len + 1) : NULL;
    if (!s)
        return tpl_string("", 0);
    memcpy(s, a.s, a.len);
    memcpy(s + a.len, b.s, b.len);
    return tpl_string(s, a.len + b.len);
}

static tpl_value concat_lists(tpl_run *r, tpl_value a, tpl_value b) {
    tpl_list *list = tpl_list_create(r, a.list->n + b.list->n);
    if (tpl_charge(r, (a.list->n + b.list->n) / 2)) {
        for (size_t i = 0; i < a.list->n; i++)
            tpl_list_push(r, list, a.list->items[i]);
        for (size_t i = 0; i < b.list->n; i++)
            tpl_list_push(r, list, b.list->items[i]);
    }
    return tpl_list_value(a.kind, list);
}

static tpl_value repeat(tpl_run *r, tpl_value v, tpl_value count) {
    const int64_t n = tpl_integer(count);
    tpl_buffer b = {.r = r};
    tpl_list *list = tpl_list_create(r, 0);
    for (int64_t i = 0; i < n && tpl_charge(r, 1); i++) {
        if (v.kind == V_STRING) {
            tpl_put(&b, v.s, v.len);
            continue;
        }
        for (size_t k = 0; k < v.list->n && tpl_charge(r, 1); k++)
            tpl_list_push(r, list, v.list->items[k]);
    }
    return v.kind == V_STRING ? tpl_take(&b) : tpl_list_value(v.kind, list);
}

static int64_t floor_div(int64_t a, int64_t b) {
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static tpl_value power(tpl_run *r, int64_t base, int64_t exponent) {
    if (exponent < 0)
        return tpl_float(pow((double)base, (double)exponent));
    int64_t result = 1;
    bool overflow = false;
    for (; exponent > 0 && !overflow; exponent >>= 1) {
        if (exponent & 1)
            overflow = __builtin_mul_overflow(result, base, &result);
        if (exponent > 1)
            overflow |= __builtin_mul_overflow(base, base, &base);
    }
    if (overflow)
        tpl_fail(r, SSM_EINVAL, "an integer beyond 64 bits");
    return tpl_int(result);
}

static tpl_value on_integers(tpl_run *r, tpl_op op, int64_t a, int64_t b) {
    int64_t c = 0;
    bool overflow = false;
    if ((op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD) && b == 0) {
        tpl_fail(r, SSM_EINVAL, "division by zero");
        return tpl_none();
    }
    switch (op) {
    case OP_ADD:
        overflow = __builtin_add_overflow(a, b, &c);
        break;
    case OP_SUB:
        overflow = __builtin_sub_overflow(a, b, &c);
        break;
    case OP_MUL:
        overflow = __builtin_mul_overflow(a, b, &c);
        break;
    case OP_DIV:
        return tpl_float((double)a / (double)b);
    case OP_POW:
        return power(r, a, b);
    default:
        overflow = a == INT64_MIN && b == -1;
        if (!overflow)
            c = op == OP_FLOORDIV ? floor_div(a, b) : a - floor_div(a, b) * b;
    }
    if (overflow)
        tpl_fail(r, SSM_EINVAL, "an integer beyond 64 bits");
    return tpl_int(c);
}

static tpl_value on_floats(tpl_run *r, tpl_op op, double a, double b) {
    if ((op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD) && b == 0)
        tpl_fail(r, SSM_EINVAL, "division by zero");
    switch (op) {
    case OP_ADD:
        return tpl_float(a + b);
    case OP_SUB:
        return tpl_float(a - b);
    case OP_MUL:
        return tpl_float(a * b);
    case OP_DIV:
        return tpl_float(a / b);
    case OP_POW:
        return tpl_float(pow(a, b));
    default: {
        double rest = fmod(a, b); // as CPython's float_divmod
        if (rest != 0 && (rest < 0) != (b < 0))
            rest += b;
        return tpl_float(op == OP_MOD ? rest : floor((a - rest) / b + 0.5));
    }
    }
}

static tpl_value eval_binary(tpl_run *r, const tpl_node *n) {
    const tpl_value a = tpl_eval(r, n->a), b = tpl_eval(r, n->b);
    static const char *const names[] = {"sum",      "difference", "product", "quotient",
                                        "quotient", "remainder",  "power"};
    if (r->code != 0)
        return tpl_none();
    if (tpl_is_number(a) && tpl_is_number(b)) {
        if (a.kind == V_FLOAT || b.kind == V_FLOAT)
            return on_floats(r, n->op, tpl_number(a), tpl_number(b));
        return on_integers(r, n->op, tpl_integer(a), tpl_integer(b));
    }
    if (n->op == OP_ADD && a.kind == V_STRING && b.kind == V_STRING)
        return concat_strings(r, a, b);
    if (n->op == OP_ADD && (a.kind == V_LIST || a.kind == V_TUPLE) && a.kind == b.kind)
        return concat_lists(r, a, b);
    const bool a_repeats = a.kind == V_STRING || a.kind == V_LIST || a.kind == V_TUPLE;
    const bool b_repeats = b.kind == V_STRING || b.kind == V_LIST || b.kind == V_TUPLE;
    if (n->op == OP_MUL && a_repeats && (b.kind == V_INT || b.kind == V_BOOL))
        return repeat(r, a, b);
    if (n->op == OP_MUL && b_repeats && (a.kind == V_INT || a.kind == V_BOOL))
        return repeat(r, b, a);
    return fail_operands(r, names[n->op], a, b);
}

static tpl_value eval_sign(tpl_run *r, const tpl_node *n) {
    const tpl_value v = tpl_eval(r, n->a);
    if (v.kind == V_FLOAT)
        return n->kind == N_NEGATE ? tpl_float(-v.f) : v;
    if (tpl_is_number(v))
        return on_integers(r, OP_SUB, n->kind == N_NEGATE ? 0 : tpl_integer(v),
                           n->kind == N_NEGATE ? tpl_integer(v) : 0);
    if (v.kind == V_UNDEFINED)
        fail_undefined(r, v);
    tpl_fail(r, SSM_EINVAL, "the sign of %s", tpl_kind_name(v.kind));
    return v;
}

// ---- comparisons

static bool compare(tpl_run *r, tpl_op op, tpl_value a, tpl_value b) {
    switch (op) {
    case OP_EQ:
        return tpl_equal(r, a, b);
    case OP_NE:
        return !tpl_equal(r, a, b);
    case OP_IN:
        return tpl_contains(r, b, a);
    case OP_NOT_IN:
        return !tpl_contains(r, b, a);
    default:
        break;
    }
    if (tpl_is_number(a) && tpl_is_number(b) && (isnan(tpl_number(a)) || isnan(tpl_number(b))))
        return false;
    const int order = tpl_order(r, a, b);
    return op == OP_LT   ? order < 0
           : op == OP_LE ? order <= 0
           : op == OP_GT ? order > 0
                         : order >= 0;
}

static tpl_value eval_compare(tpl_run *r, const tpl_node *n) {
    tpl_value left = tpl_eval(r, n->a);
    for (size_t i = 0; i < n->n_kids; i++) {
        const tpl_value right = tpl_eval(r, n->kids[i]);
        if (r->code != 0 || !compare(r, n->ops[i], left, right))
            return tpl_bool(false);
        left = right;
    }
    return tpl_bool(true);
}

// ---- the rest

static tpl_value eval_concat(tpl_run *r, const tpl_node *n) {
    tpl_buffer b = {.r = r};
    for (size_t i = 0; i < n->n_kids && r->code == 0; i++) {
        const tpl_value v = tpl_str(r, tpl_eval(r, n->kids[i]));
        tpl_put(&b, v.s, v.len);
    }
    return tpl_take(&b);
}

static tpl_value eval_items(tpl_run *r, const tpl_node *n) {
    tpl_list *list = tpl_list_create(r, n->n_kids);
    for (size_t i = 0; i < n->n_kids && r->code == 0; i++)
        tpl_list_push(r, list, tpl_eval(r, n->kids[i]));
    return tpl_list_value(n->kind == N_LIST ? V_LIST : V_TUPLE, list);
}

static tpl_value eval_dict(tpl_run *r, const tpl_node *n) {
    tpl_dict *dict = tpl_dict_create(r, n->n_kids / 2);
    for (size_t i = 0; i + 1 < n->n_kids && r->code == 0; i += 2) {
        const tpl_value key = tpl_eval(r, n->kids[i]);
        tpl_dict_set(r, dict, key, tpl_eval(r, n->kids[i + 1]));
    }
    return (tpl_value){.kind = V_DICT, .dict = dict};
}

static tpl_value eval_if_else(tpl_run *r, const tpl_node *n) {
    if (tpl_truth(tpl_eval(r, n->a)))
        return tpl_eval(r, n->b);
    return n->c ? tpl_eval(r, n->c) : tpl_undefined("inline if", 9);
}

static tpl_value eval_and_or(tpl_run *r, const tpl_node *n) {
    const tpl_value a = tpl_eval(r, n->a);
    return tpl_truth(a) == (n->kind == N_OR) ? a : tpl_eval(r, n->b);
}

static tpl_value eval_node(tpl_run *r, const tpl_node *n) {
    switch (n->kind) {
    case N_CONST:
        return n->constant;
    case N_NAME:
        return lookup(r, n->name);
    case N_TUPLE:
    case N_LIST:
        return eval_items(r, n);
    case N_DICT:
        return eval_dict(r, n);
    case N_ATTR:
        return tpl_attribute(r, tpl_eval(r, n->a), n->name);
    case N_ITEM: {
        const tpl_value v = tpl_eval(r, n->a);
        return tpl_item(r, v, tpl_eval(r, n->b));
    }
    case N_SLICE:
        return eval_slice(r, n);
    case N_NOT:
        return tpl_bool(!tpl_truth(tpl_eval(r, n->a)));
    case N_NEGATE:
    case N_PLUS:
        return eval_sign(r, n);
    case N_AND:
    case N_OR:
        return eval_and_or(r, n);
    case N_IF_ELSE:
        return eval_if_else(r, n);
    case N_COMPARE:
        return eval_compare(r, n);
    case N_BINARY:
        return eval_binary(r, n);
    case N_CONCAT:
        return eval_concat(r, n);
    case N_BLOCK_TEXT:
        return r->block_text;
    default:
        return tpl_call(r, n);
    }
}

tpl_value tpl_eval(tpl_run *r, const tpl_node *n) {
    if (!tpl_charge(r, 1))
        return tpl_undefined("", 0);
    r->line = n->line;
    if (++r->depth > MAX_DEPTH)
        tpl_fail(r, SSM_EINVAL, "nested too deep");
    const tpl_value v = r->code == 0 ? eval_node(r, n) : tpl_undefined("", 0);
    r->depth--;
    return v;
}
