// SPDX-License-Identifier: Apache-2.0
// Statements of chat templates, and the nodes that they become.
//
// Everything that walks the tree recurses, so its height is bounded here, once: a node knows the
// height of what is below it and refuses to grow past MAX_HEIGHT. Blocks, includes, imports,
// recursive loops and everything else that needs a second template or an open end are refused.
#include "template.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_HEIGHT = 250, MAX_NAMES = 4096, MAX_DEPTH = 100 };

static tpl_node *parse_body(tpl_parser *p, const char *const *ends);

// ---- errors and tokens

void tpl_parse_fail(tpl_parser *p, int code, int line, const char *fmt, ...) {
    if (p->code != 0)
        return;
    char what[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    p->code =
        ssm_error_set(p->err, code, "chat_template", "chat template, line %d: %s", line, what);
}

void tpl_unsupported(tpl_parser *p, int line, const char *what, const char *name) {
    tpl_parse_fail(p, SSM_EUNSUPPORTED, line, "%s '%.60s' is not in the supported subset", what,
                   name);
}

static bool is_token(const tpl_parser *p, tpl_token_kind kind, const char *text) {
    return p->at->kind == kind && p->at->len == strlen(text) &&
           memcmp(p->at->text, text, p->at->len) == 0;
}

bool tpl_is_operator(const tpl_parser *p, const char *op) {
    return is_token(p, T_OPERATOR, op);
}

bool tpl_is_word(const tpl_parser *p, const char *name) {
    return is_token(p, T_NAME, name);
}

bool tpl_skip_operator(tpl_parser *p, const char *op) {
    const bool is = tpl_is_operator(p, op);
    p->at += is;
    return is;
}

bool tpl_skip_word(tpl_parser *p, const char *name) {
    const bool is = tpl_is_word(p, name);
    p->at += is;
    return is;
}

void tpl_expect_operator(tpl_parser *p, const char *op) {
    if (!tpl_skip_operator(p, op))
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "'%s' is expected", op);
}

static void expect_word(tpl_parser *p, const char *name) {
    if (!tpl_skip_word(p, name))
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "'%s' is expected", name);
}

static void expect_kind(tpl_parser *p, tpl_token_kind kind, const char *what) {
    if (p->at->kind == kind)
        p->at++;
    else
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "%s is expected", what);
}

const char *tpl_intern(ssm_template *tpl, const char *name, size_t len) {
    for (size_t i = 0; i < tpl->n_names; i++) {
        if (strncmp(tpl->names[i], name, len) == 0 && tpl->names[i][len] == '\0')
            return tpl->names[i];
    }
    if (tpl->n_names == MAX_NAMES || memchr(name, '\0', len))
        return NULL;
    if (tpl->n_names == tpl->cap_names) {
        const size_t cap = tpl->cap_names ? 2 * tpl->cap_names : 64;
        const char **bigger = realloc(tpl->names, cap * sizeof *bigger);
        if (!bigger)
            return NULL;
        tpl->names = bigger;
        tpl->cap_names = cap;
    }
    char *kept = tpl_arena_alloc(&tpl->arena, len + 1);
    if (!kept)
        return NULL;
    memcpy(kept, name, len);
    return tpl->names[tpl->n_names++] = kept;
}

const char *tpl_expect_name(tpl_parser *p) {
    const char *name = NULL;
    if (p->at->kind == T_NAME) {
        name = tpl_intern(p->tpl, p->at->text, p->at->len);
        if (!name)
            tpl_parse_fail(p, SSM_EUNSUPPORTED, p->at->line, "too many names");
        p->at++;
    } else {
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "a name is expected");
    }
    return name ? name : "";
}

// ---- nodes

tpl_node *tpl_node_create(tpl_parser *p, tpl_node_kind kind, int line) {
    tpl_node *n = tpl_arena_alloc(&p->tpl->arena, sizeof *n);
    if (!n) {
        tpl_parse_fail(p, SSM_ENOMEM, line, "out of memory");
        p->spare = (tpl_node){0};
        n = &p->spare;
    }
    n->kind = kind;
    n->line = line;
    n->height = 1;
    return n;
}

static void grow(tpl_parser *p, tpl_node *n, const tpl_node *below) {
    if (below && below->height >= n->height)
        n->height = below->height + 1;
    if (n->height > MAX_HEIGHT)
        tpl_parse_fail(p, SSM_EUNSUPPORTED, n->line, "an expression or a block nested too deep");
}

void tpl_node_measure(tpl_parser *p, tpl_node *n) {
    const tpl_node *const below[] = {n->a, n->b, n->c, n->d, n->target};
    for (size_t i = 0; i < sizeof below / sizeof *below; i++)
        grow(p, n, below[i]);
}

void tpl_node_add(tpl_parser *p, tpl_node *n, tpl_node *kid) {
    if ((n->n_kids & (n->n_kids - 1)) == 0) { // a power of two, or none: full
        const size_t cap = n->n_kids ? 2 * n->n_kids : 1;
        tpl_node **bigger = tpl_arena_alloc(&p->tpl->arena, cap * sizeof *bigger);
        if (!bigger) {
            tpl_parse_fail(p, SSM_ENOMEM, n->line, "out of memory");
            return;
        }
        if (n->n_kids > 0)
            memcpy(bigger, n->kids, n->n_kids * sizeof *bigger);
        n->kids = bigger;
    }
    n->kids[n->n_kids++] = kid;
    grow(p, n, kid);
}

void tpl_node_name(tpl_parser *p, tpl_node *n, const char *name) {
    enum { MAX = 64 };
    if (!n->names)
        n->names = tpl_arena_alloc(&p->tpl->arena, MAX * sizeof *n->names);
    if (!n->names || n->n_names == MAX)
        tpl_parse_fail(p, SSM_EUNSUPPORTED, n->line, "more than %d named arguments", MAX);
    else
        n->names[n->n_names++] = name;
}

// ---- arguments

void tpl_parse_arguments(tpl_parser *p, tpl_node *call) {
    tpl_expect_operator(p, "(");
    while (p->code == 0 && !tpl_is_operator(p, ")")) {
        const tpl_token *next = p->at + (p->at->kind != T_END);
        if (tpl_is_operator(p, "*") || tpl_is_operator(p, "**"))
            tpl_unsupported(p, p->at->line, "unpacking arguments with", "*");
        if (p->at->kind == T_NAME && next->kind == T_OPERATOR && next->len == 1 &&
            next->text[0] == '=') {
            tpl_node_name(p, call, tpl_expect_name(p));
            tpl_skip_operator(p, "=");
        } else if (call->n_names > 0) {
            tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "a positional argument after a named one");
        }
        tpl_node_add(p, call, tpl_parse_expression(p, true));
        if (!tpl_skip_operator(p, ","))
            break;
    }
    tpl_expect_operator(p, ")");
}

// The index of a name in "first second third", or -1.
static int parameter_index(const char *params, const char *name) {
    const size_t len = strlen(name);
    for (int i = 0; *params; i++) {
        const size_t n = strcspn(params, " ");
        if (n == len && memcmp(params, name, n) == 0)
            return i;
        params += n + (params[n] == ' ');
    }
    return -1;
}

static size_t parameter_count(const char *params) {
    size_t n = *params != '\0';
    for (; *params; params++)
        n += *params == ' ';
    return n;
}

void tpl_bind_arguments(tpl_parser *p, tpl_node *n, const tpl_row *row, size_t from) {
    if (p->code != 0)
        return;
    const size_t n_params = parameter_count(row->params);
    const size_t n_positional = n->n_kids - n->n_names;
    tpl_node **bound = tpl_arena_alloc(&p->tpl->arena, (n_params + 1) * sizeof *bound);
    if (!bound) {
        tpl_parse_fail(p, SSM_ENOMEM, n->line, "out of memory");
        return;
    }
    if (n_positional - from > n_params)
        tpl_parse_fail(p, SSM_EUNSUPPORTED, n->line, "%s with %zu arguments: it takes %zu",
                       row->name, n_positional - from, n_params);
    for (size_t i = from; p->code == 0 && i < n->n_kids; i++) {
        const int at = i < n_positional ? (int)(i - from)
                                        : parameter_index(row->params, n->names[i - n_positional]);
        if (at < 0 || bound[at])
            tpl_parse_fail(p, SSM_EUNSUPPORTED, n->line, "%s with the argument '%s'", row->name,
                           i < n_positional ? "?" : n->names[i - n_positional]);
        else
            bound[at] = n->kids[i];
    }
    for (int i = 0; p->code == 0 && i < row->required; i++) {
        if (!bound[i])
            tpl_parse_fail(p, SSM_EFORMAT, n->line, "%s needs %d arguments", row->name,
                           row->required);
    }
    n->row = row;
    n->kids = bound;
    n->n_kids = n_params;
    n->n_names = 0;
    tpl_node_measure(p, n);
}

// ---- statements

// name, name.attribute (in a set), or names and tuples of them separated by commas.
static tpl_node *parse_target_item(tpl_parser *p, bool with_namespace);

static tpl_node *parse_target(tpl_parser *p, bool with_namespace) {
    tpl_node *first = parse_target_item(p, with_namespace);
    if (!tpl_is_operator(p, ","))
        return first;
    tpl_node *tuple = tpl_node_create(p, N_TUPLE, first->line);
    tpl_node_add(p, tuple, first);
    while (p->code == 0 && tpl_skip_operator(p, ",")) {
        if (p->at->kind != T_NAME && !tpl_is_operator(p, "("))
            break;
        if (tpl_is_word(p, "in"))
            break;
        tpl_node_add(p, tuple, parse_target_item(p, with_namespace));
    }
    return tuple;
}

static tpl_node *parse_target_item(tpl_parser *p, bool with_namespace) {
    const int line = p->at->line;
    if (tpl_skip_operator(p, "(")) {
        if (++p->depth > MAX_DEPTH)
            tpl_parse_fail(p, SSM_EUNSUPPORTED, line, "a target nested too deep");
        tpl_node *inner =
            p->code == 0 ? parse_target(p, with_namespace) : tpl_node_create(p, N_TUPLE, line);
        p->depth--;
        tpl_expect_operator(p, ")");
        return inner;
    }
    tpl_node *n = tpl_node_create(p, N_NAME, line);
    n->name = tpl_expect_name(p);
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++) {
        if (strcmp(n->name, reserved[i]) == 0)
            tpl_parse_fail(p, SSM_EFORMAT, line, "'%s' cannot be assigned to", n->name);
    }
    if (with_namespace && tpl_skip_operator(p, ".")) {
        n->kind = N_NSREF;
        const char *attribute = tpl_expect_name(p);
        if (attribute[0] == '_')
            tpl_unsupported(p, line, "the attribute", attribute);
        tpl_node_name(p, n, attribute);
    }
    return n;
}

static const char *const end_if[] = {"elif", "else", "endif", NULL};
static const char *const end_else[] = {"endif", NULL};
static const char *const end_for[] = {"else", "endfor", NULL};
static const char *const end_for_else[] = {"endfor", NULL};

// A body and its closing word, when only one can close it.
static tpl_node *parse_closed(tpl_parser *p, const char *end) {
    const char *const ends[] = {end, NULL};
    tpl_node *body = parse_body(p, ends);
    expect_word(p, end);
    return body;
}

static tpl_node *parse_if(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_IF, p->at->line);
    tpl_node *last = n;
    tpl_node *chain[MAX_HEIGHT];
    int n_chain = 0;
    for (;;) {
        chain[n_chain++] = last;
        last->a = tpl_parse_tuple(p, false, NULL, false);
        last->b = parse_body(p, end_if);
        if (p->code != 0 || !tpl_skip_word(p, "elif"))
            break;
        last->c = tpl_node_create(p, N_IF, p->at->line);
        last = last->c;
        if (n_chain == MAX_HEIGHT) {
            tpl_parse_fail(p, SSM_EUNSUPPORTED, n->line, "too many elif branches");
            break;
        }
    }
    if (tpl_skip_word(p, "else"))
        last->c = parse_body(p, end_else);
    expect_word(p, "endif");
    while (n_chain > 0)
        tpl_node_measure(p, chain[--n_chain]);
    return n;
}

static tpl_node *parse_for(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_FOR, p->at->line);
    n->target = parse_target(p, false);
    expect_word(p, "in");
    n->a = tpl_parse_tuple(p, false, "recursive", false);
    if (tpl_skip_word(p, "if"))
        n->d = tpl_parse_expression(p, true);
    if (tpl_is_word(p, "recursive"))
        tpl_unsupported(p, n->line, "a loop that is", "recursive");
    p->loops++;
    n->b = parse_body(p, end_for);
    p->loops--;
    if (tpl_skip_word(p, "else"))
        n->c = parse_body(p, end_for_else);
    expect_word(p, "endfor");
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_set(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_SET, p->at->line);
    n->target = parse_target(p, true);
    if (tpl_skip_operator(p, "=")) {
        n->a = tpl_parse_tuple(p, true, NULL, false);
    } else {
        n->kind = N_SET_BLOCK;
        n->a = tpl_parse_filters(p, tpl_node_create(p, N_BLOCK_TEXT, n->line), false);
        n->b = parse_closed(p, "endset");
    }
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_macro(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_MACRO, p->at->line);
    n->name = tpl_expect_name(p);
    tpl_expect_operator(p, "(");
    bool has_defaults = false;
    while (p->code == 0 && !tpl_is_operator(p, ")")) {
        tpl_node_name(p, n, tpl_expect_name(p));
        if (tpl_skip_operator(p, "=")) {
            tpl_node_add(p, n, tpl_parse_expression(p, true));
            has_defaults = true;
        } else {
            tpl_node_add(p, n, NULL);
            if (has_defaults)
                tpl_parse_fail(p, SSM_EFORMAT, n->line, "a parameter without a default after one");
        }
        if (!tpl_skip_operator(p, ","))
            break;
    }
    tpl_expect_operator(p, ")");
    const int loops = p->loops;
    p->loops = 0;
    n->b = parse_closed(p, "endmacro");
    p->loops = loops;
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_with(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_WITH, p->at->line);
    while (p->code == 0 && p->at->kind != T_BLOCK_CLOSE) {
        if (n->n_kids > 0)
            tpl_expect_operator(p, ",");
        tpl_node *set = tpl_node_create(p, N_SET, p->at->line);
        set->target = parse_target_item(p, false);
        tpl_expect_operator(p, "=");
        set->a = tpl_parse_expression(p, true);
        tpl_node_measure(p, set);
        tpl_node_add(p, n, set);
    }
    n->b = parse_closed(p, "endwith");
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_filter_block(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_FILTER_BLOCK, p->at->line);
    n->a = tpl_parse_filters(p, tpl_node_create(p, N_BLOCK_TEXT, n->line), true);
    n->b = parse_closed(p, "endfilter");
    tpl_node_measure(p, n);
    return n;
}

// {% generation %}: marks what the assistant wrote; for us only a scope.
static tpl_node *parse_generation(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_SCOPE, p->at->line);
    n->b = parse_closed(p, "endgeneration");
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_jump(tpl_parser *p, tpl_node_kind kind) {
    if (p->loops == 0)
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "break or continue outside a loop");
    return tpl_node_create(p, kind, p->at->line);
}

static tpl_node *parse_break(tpl_parser *p) {
    return parse_jump(p, N_BREAK);
}

static tpl_node *parse_continue(tpl_parser *p) {
    return parse_jump(p, N_CONTINUE);
}

static const struct {
    const char *word;
    tpl_node *(*parse)(tpl_parser *p);
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"with", parse_with},
    {"filter", parse_filter_block},
    {"generation", parse_generation},
    {"break", parse_break},
    {"continue", parse_continue},
};

static tpl_node *parse_statement(tpl_parser *p) {
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (tpl_skip_word(p, statements[i].word))
            return statements[i].parse(p);
    }
    char word[32] = "";
    if (p->at->kind == T_NAME)
        snprintf(word, sizeof word, "%.*s", (int)p->at->len, p->at->text);
    if (strncmp(word, "end", 3) == 0 || strncmp(word, "el", 2) == 0)
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "'%s' closes nothing here", word);
    else if (word[0])
        tpl_unsupported(p, p->at->line, "the tag", word);
    tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "a tag's name is expected");
    return tpl_node_create(p, N_BODY, p->at->line);
}

static tpl_node *parse_print(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_PRINT, p->at->line);
    p->at++;
    n->a = tpl_parse_tuple(p, true, NULL, false);
    // Marked-up strings behave differently only when something is done with them.
    for (; n->a->kind == N_FILTER && !n->a->row && p->code == 0; n->a = n->a->a)
        p->n_safe--;
    expect_kind(p, T_PRINT_CLOSE, "'}}'");
    tpl_node_measure(p, n);
    return n;
}

static bool is_any(const tpl_parser *p, const char *const *words) {
    for (; words && *words; words++) {
        if (tpl_is_word(p, *words))
            return true;
    }
    return false;
}

// Up to one of the ends (which stays the current token), or with ends NULL to the template's end.
static void fill_body(tpl_parser *p, tpl_node *body, const char *const *ends) {
    while (p->code == 0 && p->at->kind != T_END) {
        if (p->at->kind == T_DATA) {
            tpl_node *n = tpl_node_create(p, N_TEXT, p->at->line);
            n->constant = tpl_string(p->at->text, p->at->len);
            tpl_node_add(p, body, n);
            p->at++;
        } else if (p->at->kind == T_PRINT) {
            tpl_node_add(p, body, parse_print(p));
        } else {
            expect_kind(p, T_BLOCK, "'{%'");
            if (is_any(p, ends))
                return;
            tpl_node_add(p, body, parse_statement(p));
            expect_kind(p, T_BLOCK_CLOSE, "'%}'");
        }
        if (p->n_safe > 0)
            tpl_unsupported(p, p->at->line, "inside of an expression, the filter", "safe");
    }
    if (ends)
        tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "'%s' is missing", ends[0]);
}

// The body behind a statement's head.
static tpl_node *parse_body(tpl_parser *p, const char *const *ends) {
    tpl_skip_operator(p, ":");
    expect_kind(p, T_BLOCK_CLOSE, "'%}'");
    tpl_node *body = tpl_node_create(p, N_BODY, p->at->line);
    if (++p->depth > MAX_DEPTH)
        tpl_parse_fail(p, SSM_EUNSUPPORTED, p->at->line, "blocks nested too deep");
    if (p->code == 0)
        fill_body(p, body, ends);
    p->depth--;
    return body;
}

int tpl_parse(ssm_template *tpl, const tpl_token *tokens, ssm_error *err) {
    tpl_parser p = {.tpl = tpl, .at = tokens, .err = err};
    tpl->body = tpl_node_create(&p, N_BODY, 1);
    fill_body(&p, tpl->body, NULL);
    return p.code;
}
