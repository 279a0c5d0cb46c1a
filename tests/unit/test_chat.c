// SPDX-License-Identifier: Apache-2.0
// A model's chat template: where it is found, and the ends of a prompt.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ssm/template.h>

#include "tests/suite.h"

static char folder[64];

static void put_file(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static void make_folder(void) {
    strcpy(folder, "/tmp/ssm-chat-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void) {
    static const char *const names[] = {"chat_template.jinja", "tokenizer_config.json",
                                        "special_tokens_map.json", "other.jinja"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    ck_assert_int_eq(rmdir(folder), 0);
}

static ssm_chat *open_chat(const char *choice) {
    ssm_chat *chat = NULL;
    ssm_error err = {0};
    const int rc = ssm_chat_open(folder, choice, &chat, &err);
    ck_assert_msg(rc == 0, "%d: %s", rc, err.message);
    return chat;
}

static void expect_text(const ssm_chat *chat, const char *messages, const ssm_chat_options *options,
                        const char *want) {
    ssm_text text = {0};
    ssm_error err = {0};
    const int rc = ssm_chat_render(chat, messages, strlen(messages), options, &text, &err);
    ck_assert_msg(rc == 0, "%d: %s", rc, err.message);
    ck_assert_str_eq(text.data ? text.data : "", want);
    ssm_text_dispose(&text);
}

static void expect_error(const ssm_chat *chat, const char *messages,
                         const ssm_chat_options *options, const char *param) {
    ssm_text text = {0};
    ssm_error err = {0};
    ck_assert_int_eq(ssm_chat_render(chat, messages, strlen(messages), options, &text, &err),
                     SSM_EINVAL);
    ck_assert_str_eq(err.param, param);
    ssm_text_dispose(&text);
}

#define HI "[{\"role\":\"user\",\"content\":\"hi \"}]"
#define ANSWER                                                                                     \
    "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"well \"}]"

static const ssm_chat_options turn = {.add_generation_prompt = true};
static const ssm_chat_options go_on = {.continue_final_message = true};

START_TEST(base_models_get_the_plain_form) {
    ssm_chat *chat = open_chat(NULL);
    ck_assert(ssm_chat_is_plain(chat));
    expect_text(chat, HI, &turn, "User: hi\n\nAssistant:");
    expect_text(chat, HI, NULL, "User: hi\n\n");
    expect_text(chat, "[]", &turn, "Assistant:");
    expect_text(chat, ANSWER, &go_on, "User: hi\n\nAssistant: well");
    ssm_chat_free(chat);
}
END_TEST

START_TEST(templates_are_found) {
    ssm_error err = {0};
    ssm_chat *chat = NULL;
    put_file("tokenizer_config.json",
             "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\",\"lstrip\":false},"
             "\"chat_template\":\"{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ "
             "pad_token }}\"}");
    put_file("special_tokens_map.json", "{\"pad_token\":\"<pad>\",\"bos_token\":\"<other>\"}");
    chat = open_chat(NULL);
    ck_assert(!ssm_chat_is_plain(chat));
    ck_assert_str_eq(ssm_chat_origin(chat), "tokenizer_config.json");
    expect_text(chat, HI, &turn, "<s>hi </s><pad>");
    ssm_chat_free(chat);

    put_file("tokenizer_config.json",
             "{\"chat_template\":[{\"name\":\"default\",\"template\":\"D\"},{\"name\":\"rag\","
             "\"template\":\"R\"}]}");
    chat = open_chat(NULL);
    expect_text(chat, HI, &turn, "D");
    ssm_chat_free(chat);
    chat = open_chat("rag");
    expect_text(chat, HI, &turn, "R");
    ssm_chat_free(chat);
    chat = open_chat("chatml");
    expect_text(chat, HI, &turn, "<|im_start|>user\nhi <|im_end|>\n<|im_start|>assistant\n");
    ssm_chat_free(chat);
    ck_assert_int_eq(ssm_chat_open(folder, "nope", &chat, &err), SSM_ENOTFOUND);

    put_file("chat_template.jinja", "file {{ messages | length }}{{ extra }}");
    chat = open_chat(NULL);
    const ssm_chat_options more = {.kwargs = "{\"extra\":\" x\"}", .kwargs_len = 14};
    expect_text(chat, HI, &more, "file 1 x");
    ssm_chat_free(chat);

    char path[128];
    put_file("other.jinja", "line one\n{% nonsense %}");
    snprintf(path, sizeof path, "%s/other.jinja", folder);
    ck_assert_int_eq(ssm_chat_open(folder, path, &chat, &err), SSM_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.message, "line 2"));
    ck_assert_int_eq(ssm_chat_open(folder, "missing.jinja", &chat, &err), SSM_EIO);
    put_file("tokenizer_config.json", "{\"chat_template\":");
    ck_assert_int_eq(ssm_chat_open(folder, NULL, &chat, &err), SSM_EFORMAT);
}
END_TEST

START_TEST(last_messages_are_continued) {
    ssm_chat *chat = open_chat("chatml");
    expect_text(chat, ANSWER, &go_on,
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nwell ");
    expect_text(chat, ANSWER, &turn,
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nwell <|im_end|>\n"
                "<|im_start|>assistant\n");
    const ssm_chat_options both = {.add_generation_prompt = true, .continue_final_message = true};
    expect_error(chat, ANSWER, &both, "continue_final_message");
    expect_error(chat, "[]", &go_on, "continue_final_message");
    expect_error(chat, "[{\"role\":\"user\"}]", &go_on, "continue_final_message");
    expect_error(chat, "{}", &turn, "messages");
    expect_error(chat, "[{\"role\":\"user\"}]", &turn, "chat_template");
    const ssm_chat_options broken = {.kwargs = "[]", .kwargs_len = 2};
    expect_error(chat, HI, &broken, "chat_template_kwargs");
    ssm_chat_free(chat);
}
END_TEST

START_TEST(built_in_templates_compile) {
    int n = 0;
    for (const char *name; (name = ssm_chat_builtin(n)); n++)
        ssm_chat_free(open_chat(name));
    ck_assert_int_ge(n, 4);
    ck_assert_ptr_null(ssm_chat_builtin(-1));
}
END_TEST

int main(void) {
    Suite *suite = suite_create("chat");
    TCase *tc = tcase_create("all");
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_test(tc, base_models_get_the_plain_form);
    tcase_add_test(tc, templates_are_found);
    tcase_add_test(tc, last_messages_are_continued);
    tcase_add_test(tc, built_in_templates_compile);
    suite_add_tcase(suite, tc);
    return suite_run(suite);
}
