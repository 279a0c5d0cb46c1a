# SPDX-License-Identifier: Apache-2.0
"""`session` in chats: clients send the whole conversation, the session runs what is new of it.

A turn is checked three ways: its answer is that of a plain completion of the very tokens that the
session holds; the text of those tokens is the text that the template makes of the messages (up to
white space around answers, which templates trim); and what was not new has not run again.
"""

import json
import shutil
import threading

import pytest

from harness import models
from harness.client import Answer
from test_chat import joined, open_stream, post, stream
from test_chat import chat as chat_whole

pytestmark = pytest.mark.own_server

GREEDY = {"temperature": 0, "return_token_ids": True}
EOS = 0
END = 1023  # a token of the test's models that a template writes behind an answer


def without_space(text):
    return "".join(text.split())


class Talk:
    """A conversation as a client keeps it, and the tokens that its session must hold."""

    def __init__(self, client, session="s"):
        self.client, self.session = client, session
        self.messages, self.past = [], []

    def tokens(self):
        answer = self.client.get(f"/v1/sessions/{self.session}")
        return answer.json()["tokens"] if answer.status == 200 else 0

    def ask(self, streamed=False, **parameters):
        """One turn of the messages as they are: (content, token ids run, token ids drawn)."""
        options = {"session": self.session, **GREEDY, **parameters}
        if not streamed:
            answer = chat_whole(self.client, self.messages, **options)
            (choice,), self.usage = answer["choices"], answer["usage"]
            self.reason = choice["finish_reason"]
            return choice["message"]["content"], choice["prompt_token_ids"], choice["token_ids"]
        chunks = stream(self.client, self.messages, stream_options={"include_usage": True}, **options)
        choices = [c for chunk in chunks for c in chunk["choices"]]
        self.usage, self.reason = chunks[-1]["usage"], choices[-1]["finish_reason"]
        drawn = [token for c in choices for token in c["token_ids"]]
        return joined(chunks).get(0, ""), choices[0]["prompt_token_ids"], drawn

    def check(self, content, ran, drawn, **parameters):
        before = len(self.past)
        assert self.usage["prompt_tokens"] == before + len(ran)
        plain = {k: v for k, v in parameters.items()
                 if k not in ("continue_final_message", "add_generation_prompt")}
        (same,) = self.client.complete(self.past + ran, cache_prompt=False, **GREEDY, **plain)["choices"]
        assert (same["text"], same["finish_reason"]) == (content, self.reason)
        assert same["token_ids"] == drawn
        held = self.client.post("/detokenize", {"tokens": self.past + ran, "skip_special_tokens": False}).json()["content"]
        rendered = self.client.post("/apply-template", {
            "messages": self.messages,
            "continue_final_message": parameters.get("continue_final_message", False)}).json()["prompt"]
        assert without_space(held) == without_space(rendered)
        kept = self.tokens() - before - len(ran)
        assert 0 <= kept <= len(drawn)
        self.past += ran + drawn[:kept]
        return kept

    def turn(self, text, streamed=False, strip=False, **parameters):
        """A turn with a new message; the answer becomes part of the conversation."""
        self.messages.append({"role": "user", "content": text})
        content, ran, drawn = self.ask(streamed, **parameters)
        self.kept = self.check(content, ran, drawn, **parameters)
        self.messages.append({"role": "assistant", "content": content.strip() if strip else content})
        return content, ran, drawn

    def refused(self, messages=None):
        before = self.tokens()
        post(self.client, messages or self.messages, session=self.session, max_tokens=3).error(
            400, param="messages", code="session_mismatch")
        assert self.tokens() == before


# ---- models with templates of all kinds

TEMPLATES = models.ROOT / "tests" / "data" / "templates"
FORMS = {  # the template, its special tokens, the one behind an answer
    "plain": ("plain", {}, "<|unused|>"),
    "chatml": (TEMPLATES / "chatml.jinja", {}, "<|im_end|>"),
    "zephyr": (TEMPLATES / "zephyr.jinja", {"eos_token": "</s>"}, "</s>"),
    "llama-3": (TEMPLATES / "llama-3.jinja", {"bos_token": "<|endoftext|>"}, "<|eot_id|>"),
    "falcon-mamba": (TEMPLATES / "falcon-mamba.jinja", {}, "<|im_end|>"),
    "closed-by-eos": ("zephyr", {"eos_token": "<|endoftext|>"}, "<|unused|>"),
}


def chat_model(folder, form):
    """The demonstration model with a special token at END, a template, and its special tokens."""
    template, specials, end = FORMS[form]
    shutil.copytree(models.folder(models.DEMO), folder, copy_function=shutil.copy)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    (old,) = [piece for piece, number in tokenizer["model"]["vocab"].items() if number == END]
    del tokenizer["model"]["vocab"][old]
    tokenizer["model"]["vocab"][end] = END
    tokenizer["model"]["merges"].pop()
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": END, "content": end})
    path.write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(specials))
    return "--model", f"m={folder}", "--chat-template", template


@pytest.fixture
def start_form(start, tmp_path):
    return lambda form, *options: start(*chat_model(tmp_path / form, form), *options).client


ENDS = {
    "length": {"max_tokens": 9, "ignore_eos": True},
    "one token": {"max_tokens": 1, "ignore_eos": True},
    "end of turn": {"min_tokens": 5, "max_tokens": 30, "logit_bias": {END: 100}, "stop_token_ids": [END]},
    "end of text": {"min_tokens": 5, "max_tokens": 30, "logit_bias": {EOS: 100}},
    "end of text at once": {"max_tokens": 30, "logit_bias": {EOS: 100}},
    "stop string": {"max_tokens": 400, "stop": ["e", "o", "\n"], "min_tokens": 4, "ignore_eos": True},
    "stop string at once": {"max_tokens": 400, "stop": [" ", "a", "e", "i", "o", "\n"], "ignore_eos": True},
    "stop string kept": {"max_tokens": 400, "stop": ["e", "o"], "min_tokens": 3, "ignore_eos": True,
                         "include_stop_str_in_output": True},
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_an_answer_ends(start_form, form, streamed):
    talk = Talk(start_form(form))
    talk.messages.append({"role": "system", "content": "Speak as they do in the play. "})
    for round_ in range(2):
        for end, parameters in ENDS.items():
            before = len(talk.past)
            _, ran, drawn = talk.turn(f"And then, {end}? ", streamed=streamed, strip=round_ == 1, **parameters)
            if before > 0:
                assert len(ran) < 120, "only what is new runs"
            if end == "end of turn":
                assert drawn[-1] == END
                closes = FORMS[form][2] != "<|unused|>"
                assert talk.kept == len(drawn) - (not closes)
            if end == "end of text":
                assert drawn[-1] == EOS
                assert talk.kept == len(drawn) - (form != "closed-by-eos")
            if end == "length":
                assert talk.kept == len(drawn)


def test_what_is_new_costs_what_is_new(start_form):
    talk = Talk(start_form("chatml"))
    talk.turn("Tell me of the war. " * 300, max_tokens=20, ignore_eos=True)
    _, ran, _ = talk.turn("And then?", max_tokens=5, ignore_eos=True)
    assert talk.usage["prompt_tokens_details"]["cached_tokens"] > 1500
    assert len(ran) < 60


def test_a_later_turn_equals_one_without_a_session(start_form):
    """Where the answer is text that is encoded as it was drawn: bit for bit the same conversation."""
    client = start_form("chatml")
    talk = Talk(client)
    same = 0
    for text in ("Good morrow.", "What news?", "And the king?", "Farewell."):
        talk.turn(text, min_tokens=5, max_tokens=12, logit_bias={END: 100}, stop_token_ids=[END])
        plain = client.post("/apply-template", {"messages": talk.messages[:-1]}).json()["prompt"]
        ids = client.post("/tokenize", {"content": plain}).json()["tokens"]
        same += talk.past[:len(ids)] == ids
    assert same >= 2


# ---- what is another conversation


def test_other_conversations_are_refused(start_form):
    talk = Talk(start_form("chatml"))
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    content, _, _ = talk.turn("What news?", max_tokens=8, ignore_eos=True)
    talk.messages.append({"role": "user", "content": "And the king?"})
    right = talk.messages

    def changed(index, **fields):
        return [{**m, **fields} if i == index else m for i, m in enumerate(right)]

    talk.refused(changed(0, content="Good evening."))
    talk.refused(changed(0, content="Good morrow. "))  # of a message's text every byte counts
    talk.refused(changed(1, content="Nay."))
    talk.refused(changed(3, content=content[:-2] + "xx"))
    talk.refused(changed(3, content=content.strip()[:-1]))
    talk.refused(changed(3, role="user"))
    talk.refused([{"role": "system", "content": "Be brief."}, *right])
    talk.refused(right[2:])
    talk.refused(right[:3])  # the last turn again: the session is past it
    talk.refused(right[:1])
    talk.refused([{"role": "user", "content": ""}])
    talk.messages = right[:-1]
    talk.turn("And the king?", max_tokens=8, ignore_eos=True)


def test_an_answer_that_grew_is_still_begun_with(start_form):
    """A client may put words behind an answer that no end-of-turn token has closed."""
    talk = Talk(start_form("chatml"))
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    talk.messages[-1]["content"] += ", said the queen."
    talk.turn("What?", max_tokens=8, ignore_eos=True)
    talk.turn("Who?", min_tokens=3, max_tokens=8, logit_bias={END: 100}, stop_token_ids=[END])
    talk.messages[-1]["content"] += ", said the king."
    talk.refused([*talk.messages, {"role": "user", "content": "What?"}])


def test_space_around_answers_is_the_clients(start_form):
    talk = Talk(start_form("zephyr"))
    for space in ("", " ", "\n", " \u2003\n\t "):
        talk.turn("Speak.", max_tokens=6, ignore_eos=True)
        talk.messages[-1]["content"] = space + talk.messages[-1]["content"].strip() + space


def test_assistant_last(start_form):
    """continue_final_message goes on inside the answer; without it the assistant begins anew."""
    client = start_form("chatml")
    talk = Talk(client)
    first, _, _ = talk.turn("Good morrow.", max_tokens=7, ignore_eos=True)
    talk.messages[-1]["content"] = first.rstrip()
    parameters = dict(max_tokens=7, ignore_eos=True, continue_final_message=True)
    second, ran, drawn = talk.ask(**parameters)
    assert ran == [], "nothing is new: the session goes on from where it is"
    talk.check(second, ran, drawn, **parameters)
    (whole,) = client.complete(
        client.post("/apply-template", {"messages": talk.messages[:1]}).json()["prompt"],
        max_tokens=14, temperature=0, ignore_eos=True, add_special_tokens=False)["choices"]
    assert first + second == whole["text"]
    talk.messages[-1]["content"] = first + second
    third, ran, drawn = talk.ask(max_tokens=5, ignore_eos=True)  # a new turn of the assistant
    assert len(ran) > 0
    talk.check(third, ran, drawn, max_tokens=5, ignore_eos=True)
    post(client, [], session="s").error(400, param="messages")


# ---- beside other turns, forks, files, restarts


def test_the_next_turn_waits_for_the_one_under_way(start_form):
    client = start_form("chatml")
    talk, twin = Talk(client), Talk(client, "twin")
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    assert client.post("/v1/sessions/s/fork", {"id": "twin"}).status == 201
    twin.messages, twin.past = list(talk.messages), list(talk.past)
    slow = dict(max_tokens=200, ignore_eos=True)
    twin.turn("What news?", **slow)  # the same answer, so that what follows can be sent early
    talk.messages.append({"role": "user", "content": "What news?"})
    late = {}

    def next_turn():
        messages = [*twin.messages, {"role": "user", "content": "And then?"}]
        late["answer"] = post(client, messages, session="s", max_tokens=4, **GREEDY)

    with open_stream(client, talk.messages, session="s", **slow, **GREEDY) as events:
        events = iter(events)
        next(events)
        thread = threading.Thread(target=next_turn)
        thread.start()
        for _ in events:
            pass
        thread.join()
    assert late["answer"].status == 200, late["answer"]
    twin.messages.append({"role": "user", "content": "And then?"})
    content, _, _ = twin.ask(max_tokens=4)
    assert late["answer"].json()["choices"][0]["message"]["content"] == content


def test_the_same_turn_twice_at_once(start_form):
    client = start_form("chatml")
    talk = Talk(client)
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    talk.messages.append({"role": "user", "content": "What news?"})
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(
        post(client, talk.messages, session="s", max_tokens=60, ignore_eos=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.status for a in answers) == [200, 400, 400, 400]
    for answer in answers:
        if answer.status == 400:
            answer.error(400, code="session_mismatch")


def test_busy_sessions_answer_409_where_told(start_form):
    client = start_form("chatml", "--session-busy", "409")
    hello = [{"role": "user", "content": "Speak."}]
    with open_stream(client, hello, session="s", max_tokens=100000, ignore_eos=True) as events:
        next(iter(events))
        answer = post(client, hello, session="s")
        answer.error(409, code="session_busy")
        assert answer.headers["Retry-After"] == "1"


def test_a_client_that_leaves_changes_nothing(start_form):
    client = start_form("chatml")
    talk = Talk(client)
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    talk.messages.append({"role": "user", "content": "What news?"})
    with open_stream(client, talk.messages, session="s", max_tokens=100000, ignore_eos=True) as events:
        next(iter(events))
    talk.messages.pop()
    talk.turn("What news?", max_tokens=8, ignore_eos=True)


def test_forks_and_files_go_on(start_form, tmp_path):
    client = start_form("chatml", "--state-dir", tmp_path / "states", "--durability", "sync")
    talk = Talk(client)
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    state = client.get("/v1/sessions/s/state").body
    assert client.post("/v1/sessions/s/fork", {"id": "fork"}).status == 201
    assert client.request("PUT", "/v1/sessions/copy/state", state).status == 201
    answers = set()
    for name in ("s", "fork", "copy"):
        one = Talk(client, name)
        one.messages, one.past = list(talk.messages), list(talk.past)
        answers.add(one.turn("What news?", max_tokens=8, ignore_eos=True)[0])
    assert len(answers) == 1


def test_a_chat_goes_on_after_a_kill(start, tmp_path):
    options = (*chat_model(tmp_path / "model", "chatml"), "--state-dir", tmp_path / "states", "--durability", "sync")
    server = start(*options)
    talk = Talk(server.client)
    talk.turn("Good morrow.", max_tokens=8, ignore_eos=True)
    server.kill()
    talk.client = start(*options).client
    _, ran, _ = talk.turn("What news?", max_tokens=8, ignore_eos=True)
    assert len(ran) < 60


def test_completions_and_chats_share_a_session(start_form):
    """What a completion has made is compared by its tokens; what a chat has made, by its text."""
    client = start_form("chatml")
    talk = Talk(client)
    system = {"role": "system", "content": "Speak as they do in the play."}
    prompt = client.post("/apply-template", {"messages": [system], "add_generation_prompt": False}).json()["prompt"]
    talk.past = client.complete(prompt, session="s", max_tokens=0, **GREEDY)["choices"][0]["prompt_token_ids"]
    talk.messages = [system, {"role": "user", "content": "Good morrow."}]
    answer = chat_whole(client, talk.messages, session="s", max_tokens=5, **GREEDY)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(talk.past)
    talk.refused([{"role": "system", "content": "Be brief."}, talk.messages[1]])
    client.complete(" and", session="s", max_tokens=3, ignore_eos=True)
    talk.refused([*talk.messages, {"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
                  {"role": "user", "content": "So?"}])


@pytest.mark.parametrize("parameters", [{"session": "a b"}, {"session": ""}, {"session": 5}, {"session": "s", "n": 2}])
def test_what_no_session_can_do(client, parameters):
    post(client, **parameters).error(400, "session")
