// SPDX-License-Identifier: Apache-2.0
// Calls of chat templates: globals, macros, methods, filters and tests, and the filters that take
// another one along (map, select, reject).
#include "template.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

// ---- globals

static tpl_value argument(tpl_run *r, const tpl_node *n, size_t i) {
    return i < n->n_kids - n->n_names ? tpl_eval(r, n->kids[i]) : (tpl_value){.kind = V_ABSENT};
}

static bool takes(tpl_run *r, const tpl_node *n, size_t least, size_t most, bool named) {
    const size_t n_positional = n->n_kids - n->n_names;
    if (n_positional >= least && n_positional <= most && (named || n->n_names == 0))
        return true;
    tpl_fail(r, SSM_EINVAL, "%s is called with arguments that it does not take", n->a->name);
    return false;
}

static tpl_dict *named_arguments(tpl_run *r, const tpl_node *n) {
    tpl_dict *dict = tpl_dict_create(r, n->n_names);
    for (size_t i = 0; i < n->n_names && r->code == 0; i++)
        tpl_dict_set(r, dict, tpl_string(n->names[i], strlen(n->names[i])),
                     tpl_eval(r, n->kids[n->n_kids - n->n_names + i]));
    return dict;
}

static tpl_value call_namespace(tpl_run *r, const tpl_node *n) {
    if (!takes(r, n, 0, 0, true))
        return tpl_none();
    for (size_t i = 0; i < n->n_names; i++) {
        if (n->names[i][0] == '_')
            tpl_fail(r, SSM_EINVAL, "a namespace cannot hold '%.60s'", n->names[i]);
    }
    return (tpl_value){.kind = V_NAMESPACE, .dict = named_arguments(r, n)};
}

static tpl_value call_dict(tpl_run *r, const tpl_node *n) {
    if (!takes(r, n, 0, 0, true))
        return tpl_none();
    return (tpl_value){.kind = V_DICT, .dict = named_arguments(r, n)};
}

static tpl_value call_range(tpl_run *r, const tpl_node *n) {
    enum { MAX_RANGE = 100000 }; // the sandbox's
    if (!takes(r, n, 1, 3, false))
        return tpl_none();
    int64_t part[3] = {0, 0, 1};
    const size_t n_parts = n->n_kids;
    for (size_t i = 0; i < n_parts; i++) {
        const tpl_value v = argument(r, n, i);
        if (v.kind != V_INT && v.kind != V_BOOL)
            tpl_fail(r, SSM_EINVAL, "range takes integers, not %s", tpl_kind_name(v.kind));
        else
            part[n_parts == 1 ? 1 : i] = tpl_integer(v);
    }
    if (part[2] == 0)
        tpl_fail(r, SSM_EINVAL, "range with a step of 0");
    tpl_list *list = tpl_list_create(r, 0);
    int64_t at = part[0];
    while (r->code == 0 && (part[2] > 0 ? at < part[1] : at > part[1])) {
        if (list->n == MAX_RANGE)
            tpl_fail(r, SSM_EINVAL, "a range of more than %d", MAX_RANGE);
        tpl_charge(r, 1);
        tpl_list_push(r, list, tpl_int(at));
        if (__builtin_add_overflow(at, part[2], &at))
            break;
    }
    return tpl_list_value(V_LIST, list);
}

static tpl_value call_raise_exception(tpl_run *r, const tpl_node *n) {
    if (!takes(r, n, 1, 1, false))
        return tpl_none();
    const tpl_value message = tpl_str(r, argument(r, n, 0));
    if (r->code == 0)
        r->code = ssm_error_set(r->err, SSM_EINVAL, "messages", "%.*s",
                                (int)(message.len < 400 ? message.len : 400), message.s);
    return tpl_none();
}

static tpl_value call_strftime_now(tpl_run *r, const tpl_node *n) {
    if (!takes(r, n, 1, 1, false))
        return tpl_none();
    const tpl_value format = argument(r, n, 0);
    char pattern[128], text[512];
    if (format.kind != V_STRING || format.len >= sizeof pattern - 1 ||
        memchr(format.s, '\0', format.len)) {
        tpl_fail(r, SSM_EINVAL, "strftime_now takes a short format");
        return tpl_none();
    }
    // One character more, so that an empty text is told from one that does not fit.
    snprintf(pattern, sizeof pattern, "%.*s.", (int)format.len, format.s);
    const time_t now = r->now ? r->now : time(NULL);
    struct tm tm;
    localtime_r(&now, &tm);
    const size_t len = strftime(text, sizeof text, pattern, &tm);
    if (len == 0) {
        tpl_fail(r, SSM_EINVAL, "strftime_now writes too much");
        return tpl_none();
    }
    return tpl_copy(r, text, len - 1);
}

static const tpl_function functions[] = {
    {"namespace", call_namespace},
    {"dict", call_dict},
    {"range", call_range},
    {"raise_exception", call_raise_exception},
    {"strftime_now", call_strftime_now},
};

tpl_value tpl_global(const char *name) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (strcmp(functions[i].name, name) == 0)
            return (tpl_value){.kind = V_FUNCTION, .function = &functions[i]};
    }
    return (tpl_value){.kind = V_ABSENT};
}

// ---- macros

// The value that a call gives the i-th parameter, V_ABSENT if none.
static tpl_value macro_argument(tpl_run *r, const tpl_node *call, const tpl_node *def, size_t i) {
    const size_t n_positional = call->n_kids - call->n_names;
    if (i < n_positional)
        return tpl_eval(r, call->kids[i]);
    for (size_t k = 0; k < call->n_names; k++) {
        if (call->names[k] == def->names[i])
            return tpl_eval(r, call->kids[n_positional + k]);
    }
    return (tpl_value){.kind = V_ABSENT};
}

static bool has_parameter(const tpl_node *def, const char *name, size_t from) {
    for (size_t i = from; i < def->n_names; i++) {
        if (def->names[i] == name)
            return true;
    }
    return false;
}

static void check_arguments(tpl_run *r, const tpl_node *call, const tpl_node *def) {
    const size_t n_positional = call->n_kids - call->n_names;
    if (n_positional > def->n_names)
        tpl_fail(r, SSM_EINVAL, "the macro %.60s takes not more than %zu arguments", def->name,
                 def->n_names);
    for (size_t k = 0; k < call->n_names; k++) {
        if (!has_parameter(def, call->names[k], n_positional))
            tpl_fail(r, SSM_EINVAL, "the macro %.60s takes no argument '%.60s'", def->name,
                     call->names[k]);
    }
}

static tpl_value call_macro(tpl_run *r, const tpl_macro *macro, const tpl_node *call) {
    const tpl_node *def = macro->def;
    check_arguments(r, call, def);
    tpl_list *values = tpl_list_create(r, def->n_names);
    for (size_t i = 0; i < def->n_names; i++)
        tpl_list_push(r, values, macro_argument(r, call, def, i));
    tpl_frame *const caller = r->frame;
    tpl_value text = tpl_none();
    if (r->code == 0 && tpl_frame_push(r, macro->closure)) {
        for (size_t i = 0; i < def->n_names; i++) {
            tpl_value v = values->items[i];
            if (v.kind == V_ABSENT) // a default sees the parameters before it
                v = def->kids[i] ? tpl_eval(r, def->kids[i])
                                 : tpl_undefined(def->names[i], strlen(def->names[i]));
            tpl_frame_set(r, def->names[i], v);
        }
        text = tpl_exec_text(r, def->b);
    }
    r->frame = caller;
    return text;
}

static tpl_value call_value(tpl_run *r, const tpl_node *n) {
    const tpl_value callee = tpl_eval(r, n->a);
    if (callee.kind == V_MACRO)
        return call_macro(r, callee.macro, n);
    if (callee.kind == V_FUNCTION)
        return callee.function->call(r, n);
    if (callee.kind == V_UNDEFINED)
        tpl_fail(r, SSM_EINVAL, "'%.60s' is undefined", n->a->name);
    tpl_fail(r, SSM_EINVAL, "%s cannot be called", tpl_kind_name(callee.kind));
    return tpl_none();
}

// ---- rows

static void eval_arguments(tpl_run *r, const tpl_node *n, tpl_value *args) {
    for (size_t i = 0; i < TPL_MAX_ARGS; i++)
        args[i] =
            i < n->n_kids && n->kids[i] ? tpl_eval(r, n->kids[i]) : (tpl_value){.kind = V_ABSENT};
}

static tpl_value call_row(tpl_run *r, const tpl_node *n) {
    const tpl_value self = tpl_eval(r, n->a);
    const tpl_row *row = n->row;
    if (n->kind == N_METHOD) {
        row = tpl_method_of(self, n->name);
        if (self.kind == V_UNDEFINED)
            tpl_fail(r, SSM_EINVAL, "'%.*s' is undefined", (int)(self.len < 60 ? self.len : 60),
                     self.s);
        if (!row)
            tpl_fail(r, SSM_EINVAL, "%s has no method '%.60s'", tpl_kind_name(self.kind), n->name);
    }
    tpl_value args[TPL_MAX_ARGS];
    eval_arguments(r, n, args);
    return r->code == 0 ? row->call(r, self, args) : tpl_none();
}

// An item's attribute by a path: "a.b", "0.name" or an integer.
static tpl_value item_attribute(tpl_run *r, tpl_value item, tpl_value path) {
    if (path.kind != V_STRING)
        return tpl_item(r, item, path);
    for (size_t at = 0; at <= path.len && r->code == 0;) {
        const char *dot = memchr(path.s + at, '.', path.len - at);
        const size_t len = dot ? (size_t)(dot - path.s) - at : path.len - at;
        int64_t index = 0;
        size_t i = 0;
        for (; i < len && i < 9 && path.s[at + i] >= '0' && path.s[at + i] <= '9'; i++)
            index = 10 * index + (path.s[at + i] - '0');
        const tpl_value key = i == len && len > 0 ? tpl_int(index) : tpl_string(path.s + at, len);
        item = tpl_item(r, item, key);
        at += len + 1;
    }
    return item;
}

static tpl_value call_sift(tpl_run *r, const tpl_node *n) {
    const tpl_list *items = tpl_iterate(r, tpl_eval(r, n->a));
    const tpl_value path = n->b ? tpl_eval(r, n->b) : tpl_none();
    tpl_value args[TPL_MAX_ARGS];
    if (n->inner)
        eval_arguments(r, n, args);
    tpl_list *kept = tpl_list_create(r, 0);
    for (size_t i = 0; i < items->n && tpl_charge(r, 1); i++) {
        tpl_value v = n->b ? item_attribute(r, items->items[i], path) : items->items[i];
        if (n->inner && r->code == 0)
            v = n->inner->call(r, v, args);
        if (tpl_truth(v) == (n->op == OP_SELECT))
            tpl_list_push(r, kept, items->items[i]);
    }
    return tpl_list_value(V_ITERATOR, kept);
}

static tpl_value call_map(tpl_run *r, const tpl_node *n) {
    const tpl_list *items = tpl_iterate(r, tpl_eval(r, n->a));
    const tpl_value path = n->b ? tpl_eval(r, n->b) : tpl_none();
    const tpl_value fallback = n->c ? tpl_eval(r, n->c) : tpl_none();
    tpl_value args[TPL_MAX_ARGS];
    if (n->inner)
        eval_arguments(r, n, args);
    tpl_list *mapped = tpl_list_create(r, items->n);
    for (size_t i = 0; i < items->n && tpl_charge(r, 1); i++) {
        tpl_value v;
        if (n->inner) {
            v = n->inner->call(r, items->items[i], args);
        } else {
            v = item_attribute(r, items->items[i], path);
            if (v.kind == V_UNDEFINED && n->c && fallback.kind != V_NONE)
                v = fallback;
        }
        tpl_list_push(r, mapped, v);
    }
    return tpl_list_value(V_ITERATOR, mapped);
}

tpl_value tpl_call(tpl_run *r, const tpl_node *n) {
    switch (n->kind) {
    case N_CALL:
        return call_value(r, n);
    case N_SIFT:
        return call_sift(r, n);
    case N_MAP:
        return call_map(r, n);
    default:
        return call_row(r, n);
    }
}
