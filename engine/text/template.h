// SPDX-License-Identifier: Apache-2.0
// Inside of the chat template interpreter: source -> tokens -> nodes (once), nodes + JSON -> text.
//
//   template_lex.c      tokens, whitespace control          template_eval.c     expressions
//   template_expr.c     expressions to nodes                template_exec.c     statements, scopes
//   template_parse.c    statements to nodes                 template_call.c     globals, macros
//   template_value.c    values, their order and equality    template_filter.c   filters
//   template_text.c     str() and repr()                    template_test.c     tests
//   template_json.c     JSON to values and back             template_method.c   methods of values
//   template_string.c   strings as Python sees them         template.c          the public calls
//
// Values are immutable (namespaces apart) and live, with everything else of a rendering, in one
// arena. Errors are sticky: the first one is kept in tpl_run.code, and from then on every function
// does nothing and gives undefined, so that only loops need to look.
#ifndef SSM_ENGINE_TEXT_TEMPLATE_H
#define SSM_ENGINE_TEXT_TEMPLATE_H

#include <ssm/template.h>

typedef struct tpl_node tpl_node;
typedef struct tpl_run tpl_run;

// ---- memory

typedef struct tpl_arena {
    struct tpl_chunk *chunks;
    size_t bytes, limit;
} tpl_arena;

void *tpl_arena_alloc(tpl_arena *arena, size_t n); // zeroed; NULL past the limit
void tpl_arena_dispose(tpl_arena *arena);

// ---- values

typedef enum tpl_kind {
    V_ABSENT, // an argument that was not given
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_FLOAT,
    V_STRING,
    V_LIST,
    V_TUPLE,
    V_VIEW,     // keys(), values(), items() of a dict: a list that has no index
    V_ITERATOR, // what map and select give: can be gone through once, has no length
    V_DICT,
    V_NAMESPACE,
    V_LOOP,
    V_MACRO,
    V_FUNCTION,
} tpl_kind;

typedef struct tpl_list tpl_list;
typedef struct tpl_dict tpl_dict;
typedef struct tpl_loop tpl_loop;
typedef struct tpl_macro tpl_macro;
typedef struct tpl_function tpl_function;

typedef struct tpl_value {
    tpl_kind kind;
    size_t len; // bytes of s
    union {
        bool b;
        int64_t i;
        double f;
        const char *s; // V_STRING: UTF-8; V_UNDEFINED: the name that was not found
        tpl_list *list;
        tpl_dict *dict; // V_NAMESPACE too
        tpl_loop *loop;
        tpl_macro *macro;
        const tpl_function *function;
    };
} tpl_value;

struct tpl_list {
    tpl_value *items;
    size_t n, cap;
    size_t taken; // V_ITERATOR
};

typedef struct tpl_pair {
    tpl_value key, value;
} tpl_pair;

struct tpl_dict { // in insertion order
    tpl_pair *pairs;
    size_t n, cap;
};

struct tpl_loop {
    const tpl_list *items;
    size_t at;
};

typedef struct tpl_frame tpl_frame;

struct tpl_macro {
    const tpl_node *def;
    tpl_frame *closure;
};

static inline tpl_value tpl_none(void) {
    return (tpl_value){.kind = V_NONE};
}
static inline tpl_value tpl_bool(bool b) {
    return (tpl_value){.kind = V_BOOL, .b = b};
}
static inline tpl_value tpl_int(int64_t i) {
    return (tpl_value){.kind = V_INT, .i = i};
}
static inline tpl_value tpl_float(double f) {
    return (tpl_value){.kind = V_FLOAT, .f = f};
}
static inline tpl_value tpl_string(const char *s, size_t len) { // borrowed
    return (tpl_value){.kind = V_STRING, .s = s, .len = len};
}
static inline tpl_value tpl_undefined(const char *name, size_t len) {
    return (tpl_value){.kind = V_UNDEFINED, .s = name, .len = len};
}
static inline bool tpl_is_number(tpl_value v) {
    return v.kind == V_INT || v.kind == V_FLOAT || v.kind == V_BOOL;
}
static inline bool tpl_is_array(tpl_value v) { // of items
    return v.kind == V_LIST || v.kind == V_TUPLE || v.kind == V_VIEW;
}
static inline int64_t tpl_integer(tpl_value v) { // V_INT, V_BOOL
    return v.kind == V_BOOL ? v.b : v.i;
}
static inline double tpl_number(tpl_value v) {
    return v.kind == V_FLOAT ? v.f : (double)tpl_integer(v);
}

const char *tpl_kind_name(tpl_kind kind);
bool tpl_truth(tpl_value v);
bool tpl_equal(tpl_run *r, tpl_value a, tpl_value b);
int tpl_order(tpl_run *r, tpl_value a, tpl_value b); // <0, 0, >0; fails if there is none
bool tpl_contains(tpl_run *r, tpl_value set, tpl_value item);
int64_t tpl_length(tpl_run *r, tpl_value v);

tpl_value tpl_copy(tpl_run *r, const char *s, size_t len); // a string of the arena's own
tpl_list *tpl_list_create(tpl_run *r, size_t cap);
void tpl_list_push(tpl_run *r, tpl_list *list, tpl_value v);
tpl_value tpl_list_value(tpl_kind kind, tpl_list *list);
tpl_dict *tpl_dict_create(tpl_run *r, size_t cap);
void tpl_dict_set(tpl_run *r, tpl_dict *dict, tpl_value key, tpl_value v);
const tpl_value *tpl_dict_find(tpl_run *r, const tpl_dict *dict, tpl_value key); // or NULL

// The items that going through a value gives: characters, keys, ...; an iterator is used up.
const tpl_list *tpl_iterate(tpl_run *r, tpl_value v);

// ---- text of values

// A string under construction; the bytes count against the run's memory when they are taken.
typedef struct tpl_buffer {
    tpl_run *r;
    ssm_text text;
} tpl_buffer;

void tpl_put(tpl_buffer *b, const char *s, size_t len);
void tpl_puts(tpl_buffer *b, const char *s);
tpl_value tpl_take(tpl_buffer *b); // the string; the buffer is empty and disposed of

tpl_value tpl_str(tpl_run *r, tpl_value v); // str(v)
void tpl_put_repr(tpl_buffer *b, tpl_value v, int depth);
void tpl_put_float(tpl_buffer *b, double f); // repr(f), as json.dumps too

typedef struct tpl_json_style {
    bool ensure_ascii, sort_keys, pretty;
    tpl_value indent, item_separator, key_separator; // strings
} tpl_json_style;
tpl_value tpl_to_json(tpl_run *r, tpl_value v, const tpl_json_style *style);

// The root frame's variables from a JSON object, as text or as jansson's tree.
struct json_t;
void tpl_load_context(tpl_run *r, const char *json, size_t len);
void tpl_take_context(tpl_run *r, struct json_t *root);

// ssm_template_render of a context that has been parsed; len: about the bytes of its text.
int tpl_render_tree(const ssm_template *tpl, struct json_t *context, size_t len,
                    const ssm_template_limits *limits, ssm_text *out, ssm_error *err);

// ---- strings (template_string.c): indices and widths count characters

bool tpl_is_space(int32_t c);                              // str.isspace
int32_t tpl_char_at(const char *s, size_t len, size_t *n); // one character; *n its bytes, >= 1
size_t tpl_char_count(const char *s, size_t len);
size_t tpl_char_offset(const char *s, size_t len, size_t chars); // bytes of the first chars
// Python's find: the byte offset of part in s, or -1.
ptrdiff_t tpl_find(tpl_value s, tpl_value part, bool last);
enum { TPL_LEFT = 1, TPL_RIGHT = 2 };
// chars V_ABSENT or V_NONE: white space.
tpl_value tpl_strip(tpl_run *r, tpl_value s, tpl_value chars, unsigned sides);
tpl_value tpl_replace(tpl_run *r, tpl_value s, tpl_value old, tpl_value new_, int64_t count);
tpl_value tpl_split(tpl_run *r, tpl_value s, tpl_value separator, int64_t most, bool from_right);
tpl_value tpl_split_lines(tpl_run *r, tpl_value s, bool keep_ends);
enum tpl_case { TPL_UPPER, TPL_LOWER, TPL_CAPITALIZE, TPL_TITLE, TPL_TITLE_WORDS };
tpl_value tpl_recase(tpl_run *r, tpl_value s, enum tpl_case how);
tpl_value tpl_join(tpl_run *r, tpl_value separator, const tpl_list *items, bool strict);
bool tpl_is_cased(tpl_value s, bool upper); // str.isupper, str.islower

// ---- tokens

typedef enum tpl_token_kind {
    T_END,
    T_DATA,
    T_PRINT,       // {{
    T_PRINT_CLOSE, // }}
    T_BLOCK,       // {%
    T_BLOCK_CLOSE, // %}
    T_NAME,
    T_STRING, // decoded
    T_INTEGER,
    T_FLOAT,
    T_OPERATOR,
} tpl_token_kind;

typedef struct tpl_token {
    tpl_token_kind kind;
    int line;
    const char *text;
    size_t len;
} tpl_token;

// source has its line ends normalised and lives as long as the tokens; the last token is T_END.
int tpl_lex(const char *source, size_t len, tpl_arena *arena, tpl_token **out, ssm_error *err);

// ---- nodes

typedef enum tpl_node_kind {
    // statements
    N_BODY,         // kids
    N_TEXT,         // constant
    N_PRINT,        // a
    N_IF,           // a: condition, b: body, c: else body (or a further N_IF)
    N_FOR,          // target, a: iterable, b: body, c: else body, d: filter
    N_SET,          // target, a: value
    N_SET_BLOCK,    // target, b: body, a: filters over N_BLOCK_TEXT
    N_MACRO,        // name, names: parameters, kids: their defaults or NULL, b: body
    N_WITH,         // kids: N_SET, b: body
    N_FILTER_BLOCK, // b: body, a: filters over N_BLOCK_TEXT
    N_SCOPE,        // b: body ({% generation %})
    N_BREAK,
    N_CONTINUE,
    // expressions
    N_CONST,  // constant
    N_NAME,   // name; a target too
    N_NSREF,  // target only: name . names[0]
    N_TUPLE,  // kids; a target too
    N_LIST,   // kids
    N_DICT,   // kids: key, value, key, value
    N_ATTR,   // a . name
    N_ITEM,   // a [ b ]
    N_SLICE,  // a [ b : c : d ], each or NULL
    N_CALL,   // a: callee, kids: positional, then n_names keyword arguments
    N_METHOD, // a: object, row, kids by the row's parameters, NULL where absent
    N_FILTER, // a: subject, row, kids likewise
    N_TEST,   // a: subject, row, kids likewise
    N_SIFT,   // select, reject (attr): a: subject, b: attribute or NULL, inner, kids; op: keep
    N_MAP,    // a: subject, inner, kids; or b: attribute, c: default or NULL
    N_NOT,
    N_NEGATE,
    N_PLUS,
    N_AND,
    N_OR,
    N_IF_ELSE,    // a: condition, b: value, c: other value or NULL
    N_COMPARE,    // a: first, kids: the rest, ops
    N_BINARY,     // a, b, op
    N_CONCAT,     // kids
    N_BLOCK_TEXT, // what the enclosing block wrote
} tpl_node_kind;

typedef enum tpl_op {
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
    OP_REJECT,
    OP_SELECT,
} tpl_op;

// A filter, a test or a method: arguments arrive in the order of params, V_ABSENT where not given.
// self is the subject; a method whose type does not have it is never called.
typedef struct tpl_row {
    const char *name;
    const char *params; // separated by spaces
    int required;       // of them
    tpl_value (*call)(tpl_run *r, tpl_value self, const tpl_value *args);
} tpl_row;

enum { TPL_MAX_ARGS = 8 };

struct tpl_node {
    tpl_node_kind kind;
    int line, height; // of the tree below, to bound recursion
    tpl_op op;
    tpl_value constant;
    const char *name; // interned: equal names are equal pointers
    const tpl_row *row, *inner;
    tpl_node *a, *b, *c, *d, *target;
    tpl_node **kids;
    size_t n_kids;
    const char **names;
    size_t n_names;
    const tpl_op *ops;
};

const tpl_row *tpl_filter_find(const char *name);
const tpl_row *tpl_test_find(const char *name);
// Some type has a method of that name; rows of one name agree in their parameters.
const tpl_row *tpl_method_find(const char *name);
// The row for a value's type, NULL if it has none.
const tpl_row *tpl_method_of(tpl_value self, const char *name);
// Python has an attribute of that name there: reading it without calling it is not in the subset.
bool tpl_is_method_name(tpl_value self, const char *name);

struct tpl_function { // a global
    const char *name;
    tpl_value (*call)(tpl_run *r, const tpl_node *n);
};

// ---- compiling

struct ssm_template {
    tpl_arena arena;
    char *source;       // line ends normalised
    const char **names; // the first is "loop"
    size_t n_names, cap_names;
    tpl_node *body;
};

typedef struct tpl_parser {
    ssm_template *tpl;
    const tpl_token *at;
    ssm_error *err;
    int code;
    int depth;
    int loops;      // around the statement, in this macro
    int n_safe;     // filters "safe" seen whose place is not known to be harmless yet
    tpl_node spare; // what is given out when memory has run out
} tpl_parser;

int tpl_parse(ssm_template *tpl, const tpl_token *tokens, ssm_error *err);
const char *tpl_intern(ssm_template *tpl, const char *name, size_t len); // NULL: too many

void tpl_parse_fail(tpl_parser *p, int code, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void tpl_unsupported(tpl_parser *p, int line, const char *what, const char *name);
tpl_node *tpl_node_create(tpl_parser *p, tpl_node_kind kind, int line);
void tpl_node_add(tpl_parser *p, tpl_node *n, tpl_node *kid); // NULL kids are kept
void tpl_node_name(tpl_parser *p, tpl_node *n, const char *name);
void tpl_node_measure(tpl_parser *p, tpl_node *n); // sets height; fails if it is too high
const char *tpl_expect_name(tpl_parser *p);        // interned
bool tpl_is_operator(const tpl_parser *p, const char *op);
bool tpl_is_word(const tpl_parser *p, const char *name);
bool tpl_skip_operator(tpl_parser *p, const char *op);
bool tpl_skip_word(tpl_parser *p, const char *name);
void tpl_expect_operator(tpl_parser *p, const char *op);
tpl_node *tpl_parse_expression(tpl_parser *p, bool with_condition);
tpl_node *tpl_parse_tuple(tpl_parser *p, bool with_condition, const char *end_word, bool parens);
tpl_node *tpl_parse_filters(tpl_parser *p, tpl_node *subject, bool started);
void tpl_parse_arguments(tpl_parser *p, tpl_node *call); // "(...)" into kids and names
// kids and names of n to the order of a row's parameters.
void tpl_bind_arguments(tpl_parser *p, tpl_node *n, const tpl_row *row, size_t from);

// ---- running

typedef struct tpl_variable {
    const char *name; // interned
    tpl_value value;
} tpl_variable;

struct tpl_frame {
    tpl_frame *parent;
    tpl_variable *vars;
    size_t n, cap;
    bool captured; // a macro was defined here: the frame may outlive its statement
};

struct tpl_run {
    const ssm_template *tpl;
    tpl_arena arena;
    tpl_frame *frame;
    ssm_text *out;
    tpl_value block_text;
    uint64_t steps, max_steps;
    size_t written, max_output;
    int depth;
    int line;
    time_t now;
    int code;
    ssm_error *err;
};

void tpl_fail(tpl_run *r, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
bool tpl_charge(tpl_run *r, uint64_t steps); // false: failed, now or before
void *tpl_alloc(tpl_run *r, size_t n);       // zeroed; NULL: failed

typedef enum tpl_flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE } tpl_flow;
tpl_flow tpl_exec(tpl_run *r, const tpl_node *n);
tpl_value tpl_exec_text(tpl_run *r, const tpl_node *body); // what the body writes, in its own scope
tpl_value tpl_eval(tpl_run *r, const tpl_node *n);
tpl_value tpl_call(tpl_run *r, const tpl_node *n);
tpl_value tpl_attribute(tpl_run *r, tpl_value v, const char *name);
tpl_value tpl_item(tpl_run *r, tpl_value v, tpl_value key);
tpl_value tpl_global(const char *name); // V_ABSENT if there is none
void tpl_frame_set(tpl_run *r, const char *name, tpl_value v);
tpl_frame *tpl_frame_push(tpl_run *r, tpl_frame *parent); // makes it the current one
void tpl_assign(tpl_run *r, const tpl_node *target, tpl_value v);

#endif
