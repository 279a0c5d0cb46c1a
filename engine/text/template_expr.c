// SPDX-License-Identifier: Apache-2.0
// Expressions of chat templates: a recursive descent with jinja2's own order of precedence
// (if-else, or, and, not, comparisons, + and -, ~, the products, **, signs, postfixes, filters and
// tests). Filters, tests and methods are looked up and their arguments put in order here, so that
// an unknown one is refused with its line before anything runs.
#include "template.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static tpl_node *parse_unary(tpl_parser *p, bool with_filters);
static tpl_node *parse_or(tpl_parser *p);

static tpl_node *binary(tpl_parser *p, tpl_node_kind kind, tpl_op op, int line, tpl_node *a,
                        tpl_node *b) {
    tpl_node *n = tpl_node_create(p, kind, line);
    n->op = op;
    n->a = a;
    n->b = b;
    tpl_node_measure(p, n);
    return n;
}

// ---- primaries

static tpl_node *parse_constant(tpl_parser *p, tpl_value v) {
    tpl_node *n = tpl_node_create(p, N_CONST, p->at->line);
    n->constant = v;
    p->at++;
    return n;
}

static tpl_node *parse_number(tpl_parser *p) {
    char digits[64];
    size_t n = 0;
    for (size_t i = 0; i < p->at->len && n + 1 < sizeof digits; i++) {
        if (p->at->text[i] != '_')
            digits[n++] = p->at->text[i];
    }
    digits[n] = '\0';
    errno = 0;
    tpl_value v = p->at->kind == T_FLOAT ? tpl_float(strtod(digits, NULL))
                                         : tpl_int(strtoll(digits, NULL, 10));
    if (n + 1 == sizeof digits || (p->at->kind == T_INTEGER && errno == ERANGE))
        tpl_unsupported(p, p->at->line, "the number", digits);
    return parse_constant(p, v);
}

// Adjacent strings are one.
static tpl_node *parse_string(tpl_parser *p) {
    const tpl_token *first = p->at;
    size_t len = 0;
    for (; p->at->kind == T_STRING; p->at++)
        len += p->at->len;
    char *text = tpl_arena_alloc(&p->tpl->arena, len + 1), *to = text;
    tpl_node *n = tpl_node_create(p, N_CONST, first->line);
    if (!text) {
        tpl_parse_fail(p, SSM_ENOMEM, first->line, "out of memory");
        return n;
    }
    for (const tpl_token *t = first; t != p->at; t++) {
        memcpy(to, t->text, t->len);
        to += t->len;
    }
    n->constant = tpl_string(text, len);
    return n;
}

static tpl_node *parse_name(tpl_parser *p) {
    static const char *const refused[] = {"self",   "super",  "caller", "varargs",
                                          "lipsum", "cycler", "joiner", "kwargs"};
    const int line = p->at->line;
    const struct {
        const char *name;
        tpl_value value;
    } words[] = {{"true", tpl_bool(true)},   {"True", tpl_bool(true)},   {"none", tpl_none()},
                 {"false", tpl_bool(false)}, {"False", tpl_bool(false)}, {"None", tpl_none()}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (tpl_is_word(p, words[i].name))
            return parse_constant(p, words[i].value);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (tpl_is_word(p, refused[i]))
            tpl_unsupported(p, line, "the name", refused[i]);
    }
    tpl_node *n = tpl_node_create(p, N_NAME, line);
    n->name = tpl_expect_name(p);
    return n;
}

static tpl_node *parse_list(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_LIST, p->at->line);
    tpl_expect_operator(p, "[");
    while (p->code == 0 && !tpl_is_operator(p, "]")) {
        tpl_node_add(p, n, tpl_parse_expression(p, true));
        if (!tpl_skip_operator(p, ","))
            break;
    }
    tpl_expect_operator(p, "]");
    return n;
}

static tpl_node *parse_dict(tpl_parser *p) {
    tpl_node *n = tpl_node_create(p, N_DICT, p->at->line);
    tpl_expect_operator(p, "{");
    while (p->code == 0 && !tpl_is_operator(p, "}")) {
        tpl_node_add(p, n, tpl_parse_expression(p, true));
        tpl_expect_operator(p, ":");
        tpl_node_add(p, n, tpl_parse_expression(p, true));
        if (!tpl_skip_operator(p, ","))
            break;
    }
    tpl_expect_operator(p, "}");
    return n;
}

static tpl_node *parse_primary(tpl_parser *p) {
    switch (p->at->kind) {
    case T_NAME:
        return parse_name(p);
    case T_STRING:
        return parse_string(p);
    case T_INTEGER:
    case T_FLOAT:
        return parse_number(p);
    default:
        break;
    }
    if (tpl_skip_operator(p, "(")) {
        tpl_node *n = tpl_parse_tuple(p, true, NULL, true);
        tpl_expect_operator(p, ")");
        return n;
    }
    if (tpl_is_operator(p, "["))
        return parse_list(p);
    if (tpl_is_operator(p, "{"))
        return parse_dict(p);
    tpl_parse_fail(p, SSM_EFORMAT, p->at->line, "an expression is expected");
    return tpl_node_create(p, N_CONST, p->at->line);
}

// ---- postfixes

static tpl_node *parse_subscript(tpl_parser *p, tpl_node *object) {
    const int line = p->at->line;
    tpl_expect_operator(p, "[");
    tpl_node *parts[3] = {NULL};
    int n_colons = 0;
    for (;;) {
        if (!tpl_is_operator(p, ":") && !tpl_is_operator(p, "]"))
            parts[n_colons] = tpl_parse_expression(p, true);
        if (n_colons == 2 || !tpl_skip_operator(p, ":"))
            break;
        n_colons++;
    }
    if (tpl_is_operator(p, ","))
        tpl_unsupported(p, line, "a subscript with", ",");
    tpl_expect_operator(p, "]");
    if (n_colons == 0 && !parts[0])
        tpl_parse_fail(p, SSM_EUNSUPPORTED, line, "an empty subscript");
    tpl_node *n = tpl_node_create(p, n_colons ? N_SLICE : N_ITEM, line);
    n->a = object;
    n->b = parts[0];
    n->c = parts[1];
    n->d = parts[2];
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_attribute(tpl_parser *p, tpl_node *object) {
    const int line = p->at->line;
    tpl_expect_operator(p, ".");
    tpl_node *n;
    if (p->at->kind == T_INTEGER) {
        n = tpl_node_create(p, N_ITEM, line);
        n->b = parse_number(p);
    } else {
        n = tpl_node_create(p, N_ATTR, line);
        n->name = tpl_expect_name(p);
        if (n->name[0] == '_' && n->name[1] == '_')
            tpl_unsupported(p, line, "the attribute", n->name);
    }
    n->a = object;
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_call(tpl_parser *p, tpl_node *callee) {
    const int line = p->at->line;
    tpl_node *n = tpl_node_create(p, N_CALL, line);
    tpl_parse_arguments(p, n);
    if (callee->kind == N_NAME) {
        n->a = callee;
        tpl_node_measure(p, n);
        return n;
    }
    if (callee->kind != N_ATTR) {
        tpl_parse_fail(
            p, SSM_EUNSUPPORTED, line,
            "calling what is neither a name nor a method is not in the supported subset");
        return n;
    }
    const tpl_row *row = tpl_method_find(callee->name);
    if (!row) {
        tpl_unsupported(p, line, "the method", callee->name);
        return n;
    }
    n->kind = N_METHOD;
    n->name = callee->name;
    n->a = callee->a;
    tpl_bind_arguments(p, n, row, 0);
    return n;
}

static tpl_node *parse_postfix(tpl_parser *p, tpl_node *n) {
    while (p->code == 0) {
        if (tpl_is_operator(p, "."))
            n = parse_attribute(p, n);
        else if (tpl_is_operator(p, "["))
            n = parse_subscript(p, n);
        else if (tpl_is_operator(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    return n;
}

// ---- filters and tests

// The name that the first `at`-th argument, a string, gives to an inner filter or test; NULL: none.
static const char *inner_name(tpl_parser *p, const tpl_node *n, size_t at, const char *what) {
    if (at >= n->n_kids - n->n_names)
        return NULL;
    const tpl_node *kid = n->kids[at];
    const char *name = NULL;
    if (kid->kind == N_CONST && kid->constant.kind == V_STRING)
        name = tpl_intern(p->tpl, kid->constant.s, kid->constant.len);
    if (!name)
        tpl_unsupported(p, n->line, what, "whose name is computed");
    return name;
}

// select, reject, selectattr, rejectattr: ([attribute,] [test, its arguments...])
static void bind_sift(tpl_parser *p, tpl_node *n, const char *name) {
    const size_t from = strstr(name, "attr") ? 1 : 0;
    n->kind = N_SIFT;
    n->op = name[0] == 's' ? OP_SELECT : OP_REJECT;
    if (from == 1 && n->n_kids - n->n_names < 1) {
        tpl_parse_fail(p, SSM_EFORMAT, n->line, "%s needs an attribute", name);
        return;
    }
    n->b = from == 1 ? n->kids[0] : NULL;
    const char *test = inner_name(p, n, from, "a test");
    if (p->code != 0)
        return;
    if (!test) {
        if (n->n_names > 0)
            tpl_parse_fail(p, SSM_EFORMAT, n->line, "%s takes no such argument", name);
        return;
    }
    n->inner = tpl_test_find(test);
    if (!n->inner)
        tpl_unsupported(p, n->line, "the test", test);
    else
        tpl_bind_arguments(p, n, n->inner, from + 1);
}

// map(filter, its arguments...) or map(attribute=..., default=...)
static void bind_map(tpl_parser *p, tpl_node *n) {
    n->kind = N_MAP;
    const char *filter = inner_name(p, n, 0, "a filter");
    if (p->code != 0)
        return;
    if (filter) {
        n->inner = tpl_filter_find(filter);
        if (!n->inner)
            tpl_unsupported(p, n->line, "map with the filter", filter);
        else
            tpl_bind_arguments(p, n, n->inner, 1);
        return;
    }
    for (size_t i = 0; i < n->n_names; i++) {
        if (strcmp(n->names[i], "attribute") == 0)
            n->b = n->kids[i];
        else if (strcmp(n->names[i], "default") == 0)
            n->c = n->kids[i];
        else
            tpl_parse_fail(p, SSM_EFORMAT, n->line, "map takes no argument '%s'", n->names[i]);
    }
    if (!n->b)
        tpl_parse_fail(p, SSM_EFORMAT, n->line, "map needs a filter or an attribute");
}

static tpl_node *parse_filter(tpl_parser *p, tpl_node *subject) {
    tpl_node *n = tpl_node_create(p, N_FILTER, p->at->line);
    const char *name = tpl_expect_name(p);
    n->a = subject;
    n->name = name;
    if (tpl_is_operator(p, "("))
        tpl_parse_arguments(p, n);
    if (p->code != 0)
        return n;
    static const char *const sifts[] = {"select", "reject", "selectattr", "rejectattr"};
    for (size_t i = 0; i < sizeof sifts / sizeof *sifts; i++) {
        if (strcmp(name, sifts[i]) == 0) {
            bind_sift(p, n, name);
            tpl_node_measure(p, n);
            return n;
        }
    }
    const tpl_row *row = tpl_filter_find(name);
    if (strcmp(name, "map") == 0)
        bind_map(p, n);
    else if (strcmp(name, "safe") == 0 && n->n_kids == 0)
        p->n_safe++;
    else if (row)
        tpl_bind_arguments(p, n, row, 0);
    else
        tpl_unsupported(p, n->line, "the filter", name);
    tpl_node_measure(p, n);
    return n;
}

tpl_node *tpl_parse_filters(tpl_parser *p, tpl_node *subject, bool started) {
    while (p->code == 0 && (started || tpl_skip_operator(p, "|"))) {
        started = false;
        subject = parse_filter(p, subject);
    }
    return subject;
}

// A test's argument without parentheses may follow its name.
static bool is_bare_argument(const tpl_parser *p) {
    if (p->at->kind == T_NAME)
        return !tpl_is_word(p, "else") && !tpl_is_word(p, "or") && !tpl_is_word(p, "and");
    return p->at->kind == T_STRING || p->at->kind == T_INTEGER || p->at->kind == T_FLOAT ||
           tpl_is_operator(p, "[") || tpl_is_operator(p, "{");
}

static tpl_node *parse_test(tpl_parser *p, tpl_node *subject) {
    const int line = p->at->line;
    tpl_skip_word(p, "is");
    const bool is_negated = tpl_skip_word(p, "not");
    tpl_node *n = tpl_node_create(p, N_TEST, line);
    const char *name = tpl_expect_name(p);
    n->a = subject;
    if (tpl_is_operator(p, "(")) {
        tpl_parse_arguments(p, n);
    } else if (is_bare_argument(p)) {
        if (tpl_is_word(p, "is"))
            tpl_parse_fail(p, SSM_EFORMAT, line, "tests cannot be chained with 'is'");
        tpl_node_add(p, n, parse_postfix(p, parse_primary(p)));
    }
    const tpl_row *row = tpl_test_find(name);
    if (row)
        tpl_bind_arguments(p, n, row, 0);
    else
        tpl_unsupported(p, line, "the test", name);
    return is_negated ? binary(p, N_NOT, 0, line, n, NULL) : n;
}

// ---- operators, tightest first

static tpl_node *parse_unary(tpl_parser *p, bool with_filters) {
    const int line = p->at->line;
    tpl_node *n;
    if (++p->depth > 200)
        tpl_parse_fail(p, SSM_EUNSUPPORTED, line, "an expression that is nested too deep");
    if (p->code != 0)
        n = tpl_node_create(p, N_CONST, line);
    else if (tpl_skip_operator(p, "-"))
        n = binary(p, N_NEGATE, 0, line, parse_unary(p, false), NULL);
    else if (tpl_skip_operator(p, "+"))
        n = binary(p, N_PLUS, 0, line, parse_unary(p, false), NULL);
    else
        n = parse_primary(p);
    n = parse_postfix(p, n);
    while (with_filters && p->code == 0) {
        if (tpl_is_operator(p, "|"))
            n = tpl_parse_filters(p, n, false);
        else if (tpl_is_word(p, "is"))
            n = parse_test(p, n);
        else if (tpl_is_operator(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    p->depth--;
    return n;
}

typedef struct operation {
    const char *text;
    tpl_op op;
} operation;

static const operation powers[] = {{"**", OP_POW}, {NULL, 0}};
static const operation products[] = {
    {"*", OP_MUL}, {"/", OP_DIV}, {"//", OP_FLOORDIV}, {"%", OP_MOD}, {NULL, 0}};
static const operation sums[] = {{"+", OP_ADD}, {"-", OP_SUB}, {NULL, 0}};
static const operation comparisons[] = {{"==", OP_EQ}, {"!=", OP_NE}, {"<", OP_LT}, {"<=", OP_LE},
                                        {">", OP_GT},  {">=", OP_GE}, {NULL, 0}};

static bool skip_operation(tpl_parser *p, const operation *table, tpl_op *op) {
    for (; table->text; table++) {
        if (tpl_skip_operator(p, table->text)) {
            *op = table->op;
            return true;
        }
    }
    return false;
}

static tpl_node *parse_power(tpl_parser *p) {
    const int line = p->at->line;
    tpl_node *n = parse_unary(p, true);
    tpl_op op;
    while (p->code == 0 && skip_operation(p, powers, &op))
        n = binary(p, N_BINARY, op, line, n, parse_unary(p, true));
    return n;
}

static tpl_node *parse_product(tpl_parser *p) {
    const int line = p->at->line;
    tpl_node *n = parse_power(p);
    tpl_op op;
    while (p->code == 0 && skip_operation(p, products, &op))
        n = binary(p, N_BINARY, op, line, n, parse_power(p));
    return n;
}

static tpl_node *parse_concat(tpl_parser *p) {
    tpl_node *n = parse_product(p);
    if (!tpl_is_operator(p, "~"))
        return n;
    tpl_node *all = tpl_node_create(p, N_CONCAT, p->at->line);
    tpl_node_add(p, all, n);
    while (p->code == 0 && tpl_skip_operator(p, "~"))
        tpl_node_add(p, all, parse_product(p));
    return all;
}

static tpl_node *parse_sum(tpl_parser *p) {
    const int line = p->at->line;
    tpl_node *n = parse_concat(p);
    tpl_op op;
    while (p->code == 0 && skip_operation(p, sums, &op))
        n = binary(p, N_BINARY, op, line, n, parse_concat(p));
    return n;
}

static bool skip_comparison(tpl_parser *p, tpl_op *op) {
    if (skip_operation(p, comparisons, op))
        return true;
    if (tpl_skip_word(p, "in")) {
        *op = OP_IN;
        return true;
    }
    const tpl_token *next = p->at + 1;
    if (!tpl_is_word(p, "not") || next->kind != T_NAME || next->len != 2 ||
        memcmp(next->text, "in", 2) != 0)
        return false;
    p->at += 2;
    *op = OP_NOT_IN;
    return true;
}

static tpl_node *parse_comparison(tpl_parser *p) {
    enum { MAX_CHAIN = 32 };
    const int line = p->at->line;
    tpl_node *first = parse_sum(p), *n = NULL;
    tpl_op ops[MAX_CHAIN];
    while (p->code == 0) {
        const size_t at = n ? n->n_kids : 0;
        if (at == MAX_CHAIN) {
            tpl_parse_fail(p, SSM_EUNSUPPORTED, line, "a chain of more than 32 comparisons");
            break;
        }
        if (!skip_comparison(p, &ops[at]))
            break;
        if (!n) {
            n = tpl_node_create(p, N_COMPARE, line);
            n->a = first;
        }
        tpl_node_add(p, n, parse_sum(p));
    }
    if (!n)
        return first;
    tpl_op *kept = tpl_arena_alloc(&p->tpl->arena, (n->n_kids + 1) * sizeof *kept);
    if (!kept)
        tpl_parse_fail(p, SSM_ENOMEM, line, "out of memory");
    else
        memcpy(kept, ops, n->n_kids * sizeof *kept);
    n->ops = kept;
    tpl_node_measure(p, n);
    return n;
}

static tpl_node *parse_not(tpl_parser *p) {
    const int line = p->at->line;
    if (!tpl_skip_word(p, "not"))
        return parse_comparison(p);
    if (++p->depth > 200)
        tpl_parse_fail(p, SSM_EUNSUPPORTED, line, "an expression that is nested too deep");
    tpl_node *inner = p->code == 0 ? parse_not(p) : tpl_node_create(p, N_CONST, line);
    p->depth--;
    return binary(p, N_NOT, 0, line, inner, NULL);
}

static tpl_node *parse_and(tpl_parser *p) {
    const int line = p->at->line;
    tpl_node *n = parse_not(p);
    while (p->code == 0 && tpl_skip_word(p, "and"))
        n = binary(p, N_AND, 0, line, n, parse_not(p));
    return n;
}

static tpl_node *parse_or(tpl_parser *p) {
    const int line = p->at->line;
    tpl_node *n = parse_and(p);
    while (p->code == 0 && tpl_skip_word(p, "or"))
        n = binary(p, N_OR, 0, line, n, parse_and(p));
    return n;
}

tpl_node *tpl_parse_expression(tpl_parser *p, bool with_condition) {
    tpl_node *value = parse_or(p);
    while (with_condition && p->code == 0 && tpl_is_word(p, "if")) {
        tpl_node *n = tpl_node_create(p, N_IF_ELSE, p->at->line);
        tpl_skip_word(p, "if");
        n->a = parse_or(p);
        n->b = value;
        if (tpl_skip_word(p, "else")) {
            if (++p->depth > 200)
                tpl_parse_fail(p, SSM_EUNSUPPORTED, n->line, "an expression nested too deep");
            n->c = p->code == 0 ? tpl_parse_expression(p, true) : NULL;
            p->depth--;
        }
        tpl_node_measure(p, n);
        value = n;
    }
    return value;
}

static bool is_tuple_end(const tpl_parser *p, const char *end_word) {
    return p->at->kind == T_PRINT_CLOSE || p->at->kind == T_BLOCK_CLOSE ||
           tpl_is_operator(p, ")") || (end_word && tpl_is_word(p, end_word));
}

tpl_node *tpl_parse_tuple(tpl_parser *p, bool with_condition, const char *end_word, bool parens) {
    const int line = p->at->line;
    tpl_node *tuple = NULL, *first = NULL;
    while (p->code == 0 && !is_tuple_end(p, end_word)) {
        tpl_node *item = tpl_parse_expression(p, with_condition);
        if (tuple)
            tpl_node_add(p, tuple, item);
        else
            first = item;
        if (!tpl_skip_operator(p, ","))
            break;
        if (!tuple) {
            tuple = tpl_node_create(p, N_TUPLE, line);
            tpl_node_add(p, tuple, first);
        }
    }
    if (tuple)
        return tuple;
    if (!first && !parens)
        tpl_parse_fail(p, SSM_EFORMAT, line, "an expression is expected");
    return first ? first : tpl_node_create(p, N_TUPLE, line);
}
