// SPDX-License-Identifier: Apache-2.0
// Statements of chat templates run, with jinja2's scopes: loops, macros, with and text blocks have
// their own, if has none; what is set in a scope is gone with it; each round of a loop begins
// anew. A macro sees the scopes around its definition as they are when it is called.
#include "template.h"

#include <string.h>

// ---- scopes

tpl_frame *tpl_frame_push(tpl_run *r, tpl_frame *parent) {
    tpl_frame *f = tpl_alloc(r, sizeof *f);
    if (!f)
        return NULL;
    f->parent = parent;
    return r->frame = f;
}

void tpl_frame_set(tpl_run *r, const char *name, tpl_value v) {
    tpl_frame *f = r->frame;
    if (r->code != 0)
        return;
    for (size_t i = 0; i < f->n; i++) {
        if (f->vars[i].name == name) {
            f->vars[i].value = v;
            return;
        }
    }
    if (f->n == f->cap) {
        const size_t cap = f->cap ? 2 * f->cap : 4;
        tpl_variable *bigger = tpl_alloc(r, cap * sizeof *bigger);
        if (!bigger)
            return;
        if (f->n > 0)
            memcpy(bigger, f->vars, f->n * sizeof *bigger);
        f->vars = bigger;
        f->cap = cap;
    }
    f->vars[f->n++] = (tpl_variable){name, v};
}

static void assign_attribute(tpl_run *r, const tpl_node *target, tpl_value v) {
    const tpl_node name = {.kind = N_NAME, .line = target->line, .name = target->name};
    const tpl_value ns = tpl_eval(r, &name);
    if (ns.kind != V_NAMESPACE) {
        tpl_fail(r, SSM_EINVAL, "'%.60s' is not a namespace", target->name);
        return;
    }
    tpl_dict_set(r, ns.dict, tpl_string(target->names[0], strlen(target->names[0])), v);
}

void tpl_assign(tpl_run *r, const tpl_node *target, tpl_value v) {
    if (target->kind == N_NAME) {
        tpl_frame_set(r, target->name, v);
        return;
    }
    if (target->kind == N_NSREF) {
        assign_attribute(r, target, v);
        return;
    }
    const tpl_list *items = tpl_iterate(r, v);
    if (r->code == 0 && items->n != target->n_kids)
        tpl_fail(r, SSM_EINVAL, "%zu values for %zu names", items->n, target->n_kids);
    for (size_t i = 0; i < target->n_kids && r->code == 0; i++)
        tpl_assign(r, target->kids[i], items->items[i]);
}

// ---- output

static void print(tpl_run *r, tpl_value v) {
    const tpl_value s = tpl_str(r, v);
    if (!tpl_charge(r, s.len / 64))
        return;
    r->written += s.len;
    if (r->written > r->max_output)
        tpl_fail(r, SSM_EINVAL, "writes more than %zu bytes", r->max_output);
    else if (ssm_text_append(r->out, s.s, s.len) != 0)
        tpl_fail(r, SSM_ENOMEM, "out of memory");
}

tpl_value tpl_exec_text(tpl_run *r, const tpl_node *body) {
    tpl_frame *frame = r->frame;
    ssm_text *out = r->out;
    ssm_text text = {0};
    r->out = &text;
    if (tpl_frame_push(r, frame))
        tpl_exec(r, body);
    r->frame = frame;
    r->out = out;
    const tpl_value v = tpl_copy(r, text.data, text.len);
    ssm_text_dispose(&text);
    return v;
}

// The text of a body through the filters of its block.
static tpl_value filtered_text(tpl_run *r, const tpl_node *n) {
    const tpl_value outer = r->block_text;
    r->block_text = tpl_exec_text(r, n->b);
    const tpl_value v = tpl_eval(r, n->a);
    r->block_text = outer;
    return v;
}

// ---- statements

static const tpl_list *loop_items(tpl_run *r, const tpl_node *n) {
    const tpl_list *all = tpl_iterate(r, tpl_eval(r, n->a));
    if (!n->d)
        return all;
    tpl_list *kept = tpl_list_create(r, 0);
    tpl_frame *outer = r->frame, *frame = tpl_frame_push(r, outer);
    for (size_t i = 0; i < all->n && r->code == 0; i++) {
        frame->n = 0;
        tpl_assign(r, n->target, all->items[i]);
        if (tpl_truth(tpl_eval(r, n->d)))
            tpl_list_push(r, kept, all->items[i]);
    }
    r->frame = outer;
    return kept;
}

static void exec_for(tpl_run *r, const tpl_node *n) {
    tpl_frame *const outer = r->frame;
    const tpl_list *items = loop_items(r, n);
    tpl_loop *loop = tpl_alloc(r, sizeof *loop);
    tpl_frame *frame = tpl_frame_push(r, outer);
    bool has_completed = false;
    for (size_t i = 0; i < items->n && tpl_charge(r, 1); i++) {
        if (frame && frame->captured)
            frame = tpl_frame_push(r, outer);
        if (!frame)
            break;
        frame->n = 0;
        *loop = (tpl_loop){.items = items, .at = i};
        tpl_frame_set(r, r->tpl->names[0], (tpl_value){.kind = V_LOOP, .loop = loop});
        tpl_assign(r, n->target, items->items[i]);
        const tpl_flow flow = tpl_exec(r, n->b);
        has_completed |= flow == FLOW_ON;
        if (flow == FLOW_BREAK)
            break;
    }
    // jinja2's own reading of else: no round came to its end, be it by break or continue.
    r->frame = outer;
    if (!has_completed && n->c && r->code == 0 && tpl_frame_push(r, outer))
        tpl_exec(r, n->c);
    r->frame = outer;
}

static void exec_macro(tpl_run *r, const tpl_node *n) {
    tpl_macro *macro = tpl_alloc(r, sizeof *macro);
    if (!macro)
        return;
    *macro = (tpl_macro){.def = n, .closure = r->frame};
    for (tpl_frame *f = r->frame; f && !f->captured; f = f->parent)
        f->captured = true;
    tpl_frame_set(r, n->name, (tpl_value){.kind = V_MACRO, .macro = macro});
}

static tpl_flow exec_with(tpl_run *r, const tpl_node *n) {
    tpl_frame *const outer = r->frame;
    tpl_list *values = tpl_list_create(r, n->n_kids);
    for (size_t i = 0; i < n->n_kids; i++) // all of them see the outer scope
        tpl_list_push(r, values, tpl_eval(r, n->kids[i]->a));
    tpl_flow flow = FLOW_ON;
    if (tpl_frame_push(r, outer)) {
        for (size_t i = 0; i < values->n; i++)
            tpl_assign(r, n->kids[i]->target, values->items[i]);
        flow = tpl_exec(r, n->b);
    }
    r->frame = outer;
    return flow;
}

static tpl_flow exec_if(tpl_run *r, const tpl_node *n) {
    const bool is_true = tpl_truth(tpl_eval(r, n->a));
    const tpl_node *branch = is_true ? n->b : n->c;
    return branch && r->code == 0 ? tpl_exec(r, branch) : FLOW_ON;
}

static tpl_flow exec_body(tpl_run *r, const tpl_node *n) {
    tpl_flow flow = FLOW_ON;
    for (size_t i = 0; i < n->n_kids && flow == FLOW_ON && r->code == 0; i++)
        flow = tpl_exec(r, n->kids[i]);
    return flow;
}

tpl_flow tpl_exec(tpl_run *r, const tpl_node *n) {
    if (!tpl_charge(r, 1))
        return FLOW_BREAK;
    r->line = n->line;
    switch (n->kind) {
    case N_BODY:
        return exec_body(r, n);
    case N_TEXT:
        print(r, n->constant);
        return FLOW_ON;
    case N_PRINT:
        print(r, tpl_eval(r, n->a));
        return FLOW_ON;
    case N_IF:
        return exec_if(r, n);
    case N_FOR:
        exec_for(r, n);
        return FLOW_ON;
    case N_SET:
        tpl_assign(r, n->target, tpl_eval(r, n->a));
        return FLOW_ON;
    case N_SET_BLOCK:
        tpl_assign(r, n->target, filtered_text(r, n));
        return FLOW_ON;
    case N_MACRO:
        exec_macro(r, n);
        return FLOW_ON;
    case N_WITH:
        return exec_with(r, n);
    case N_FILTER_BLOCK:
        print(r, filtered_text(r, n));
        return FLOW_ON;
    case N_SCOPE:
        print(r, tpl_exec_text(r, n->b));
        return FLOW_ON;
    case N_CONTINUE:
        return FLOW_CONTINUE;
    default:
        return FLOW_BREAK;
    }
}
