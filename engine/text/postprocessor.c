// SPDX-License-Identifier: Apache-2.0
#include "engine/text/postprocessor.h"

#include <string.h>

#include "engine/text/fields.h"

enum { MAX_NESTING = 16 };

void postprocessor_dispose(postprocessor *p) {
    ssm_ids_dispose(&p->before);
    ssm_ids_dispose(&p->after);
}

static int push_id(fields *f, ssm_ids *to, json_int_t id, int32_t n_ids) {
    if (id < 0 || id >= n_ids)
        return fields_fail(f, SSM_EFORMAT, "id %lld is not in the vocabulary", (long long)id);
    const int32_t value = (int32_t)id;
    return f->code = ssm_ids_append(to, &value, 1);
}

// {"SpecialToken": {"id": name, ...}} in the template: the ids that special_tokens gives the name.
static int push_special(fields *f, const json_t *specials, const char *name, ssm_ids *to,
                        int32_t n_ids) {
    const json_t *ids = json_object_get(json_object_get(specials, name), "ids");
    if (!json_is_array(ids))
        return fields_fail(f, SSM_EFORMAT, "special token %.60s is not defined", name);
    size_t i;
    json_t *id;
    json_array_foreach((json_t *)ids, i, id) {
        if (!json_is_integer(id))
            return fields_fail(f, SSM_EFORMAT, "an id of %.60s is not an integer", name);
        if (push_id(f, to, json_integer_value(id), n_ids) != 0)
            return f->code;
    }
    return 0;
}

static int read_template(postprocessor *p, fields *f, int32_t n_ids) {
    const json_t *single = fields_array(f, "single", true);
    const json_t *specials = fields_object(f, "special_tokens", true);
    fields_any(f, "pair"); // for two texts at once, which are never given here
    if (f->code != 0)
        return f->code;
    size_t i, texts = 0;
    json_t *item;
    json_array_foreach((json_t *)single, i, item) {
        const json_t *sequence = json_object_get(item, "Sequence");
        const char *name =
            json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (sequence) {
            const char *which = json_string_value(json_object_get(sequence, "id"));
            if (!which || strcmp(which, "A") != 0)
                return fields_fail(f, SSM_EFORMAT, "single uses a second text");
            texts++;
        } else if (!name) {
            return fields_fail(f, SSM_EFORMAT, "piece %zu is neither Sequence nor SpecialToken", i);
        } else if (push_special(f, specials, name, texts ? &p->after : &p->before, n_ids) != 0) {
            return f->code;
        }
    }
    if (texts != 1)
        return fields_fail(f, SSM_EUNSUPPORTED, "a template with %zu texts is not supported",
                           texts);
    return 0;
}

// ["<s>", 1], as Roberta's and Bert's processors have it.
static int read_pair(fields *f, const char *key, ssm_ids *to, int32_t n_ids) {
    const json_t *pair = fields_array(f, key, true);
    if (f->code != 0)
        return f->code;
    if (json_array_size(pair) != 2 || !json_is_integer(json_array_get(pair, 1)))
        return fields_fail(f, SSM_EFORMAT, "%s is not a token and its id", key);
    return push_id(f, to, json_integer_value(json_array_get(pair, 1)), n_ids);
}

static int read(postprocessor *p, const json_t *json, int32_t n_ids, int depth, ssm_error *err) {
    fields f = fields_open(json, "post_processor", true, err);
    if (f.code != 0)
        return f.code;
    if (depth > MAX_NESTING)
        return fields_fail(&f, SSM_EUNSUPPORTED, "nested too deep");
    if (strcmp(f.type, "Sequence") == 0) {
        const json_t *list = fields_array(&f, "processors", true);
        size_t i;
        json_t *item;
        json_array_foreach((json_t *)list, i, item) {
            if (f.code == 0)
                f.code = read(p, item, n_ids, depth + 1, err);
        }
        return fields_done(&f);
    }
    const bool is_template = strcmp(f.type, "ByteLevel") != 0;
    if (is_template && p->is_template)
        return fields_fail(&f, SSM_EUNSUPPORTED, "a second template is not supported");
    p->is_template = p->is_template || is_template;
    // Both of these are about offsets, which are not kept here.
    fields_bool(&f, "trim_offsets", true);
    fields_bool(&f, "add_prefix_space", true);
    if (strcmp(f.type, "ByteLevel") == 0) {
        fields_bool(&f, "use_regex", true);
    } else if (strcmp(f.type, "TemplateProcessing") == 0) {
        read_template(p, &f, n_ids);
    } else if (strcmp(f.type, "RobertaProcessing") == 0 || strcmp(f.type, "BertProcessing") == 0) {
        if (read_pair(&f, "cls", &p->before, n_ids) == 0)
            read_pair(&f, "sep", &p->after, n_ids);
    } else {
        return fields_unsupported(&f);
    }
    return fields_done(&f);
}

int postprocessor_init(postprocessor *p, const json_t *json, int32_t n_ids, ssm_error *err) {
    *p = (postprocessor){0};
    if (!json || json_is_null(json))
        return 0;
    const int rc = read(p, json, n_ids, 0, err);
    if (rc != 0)
        postprocessor_dispose(p);
    return rc;
}
