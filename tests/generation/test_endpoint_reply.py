"""Replies of servers: any JSON is read or refused, thinking is joined as the setting says, margins come from tokens."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.generation.endpoint_reply import (
    Choice,
    UnreadableReplyError,
    error_text,
    join_reasoning,
    letter_margin,
    read_reply,
)
from judgelit.generation.endpoint_server import context_of

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "model", "finish_reason", "logprobs", "error"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def one(message: Any, **more: Any) -> Choice:
    reply = {"choices": [{"message": message, "finish_reason": "stop", **more}]}
    return read_reply(json.dumps(reply)).choices[0]


@settings(max_examples=60, deadline=None)
@given(st.one_of(ANY, st.builds(lambda choice: {"choices": [choice]}, ANY)))
def test_any_json_is_read_or_refused(value: Any) -> None:
    try:
        reply = read_reply(json.dumps(value))
    except UnreadableReplyError as refused:
        assert refused.reason and "\n" not in refused.reason
    else:
        assert reply.choices and all(isinstance(choice.content, str) for choice in reply.choices)
    assert "\n" not in error_text(value) and len(error_text(value)) <= 300


@pytest.mark.parametrize("body", ["", "{", "[" * 100_000, b"\xff\xfe", "nul"])
def test_bodies_without_json(body: Any) -> None:
    with pytest.raises(UnreadableReplyError, match="unreadable JSON"):
        read_reply(body)


@pytest.mark.parametrize(
    ("said", "with_tokens", "counted"),
    [
        (2, True, 5),  # llama.cpp's server says the tokens of one choice alone.
        (9, True, 9),  # Tokens of hidden reasoning have no log-probabilities.
        (2, False, 2),
        (None, True, None),
    ],
)
def test_tokens_of_all_choices_are_counted(said: int | None, with_tokens: bool, counted: int | None) -> None:
    def choice(index: int, tokens: int) -> dict[str, Any]:
        content = [{"token": "x", "logprob": -1.0}] * tokens
        more = {"logprobs": {"content": content}} if with_tokens else {}
        return {"index": index, "message": {"content": "x" * tokens}, "finish_reason": "stop", **more}

    reply = {"choices": [choice(0, 2), choice(1, 3)], "usage": {"prompt_tokens": 4, "completion_tokens": said}}
    found = read_reply(json.dumps(reply))
    assert (found.prompt_tokens, found.new_tokens) == (4, counted)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no\n such", "code": 3}}, "no such"),
        ({"error": "plain"}, "plain"),
        ({"message": "top"}, "top"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}, "body.seed: Extra inputs"),
        ("<html><title>502</title>\nbusy<br>", "502 busy"),
        ("a < b\nand > c", "a < b and > c"),
        ({}, ""),
        (None, ""),
    ],
)
def test_what_an_error_says(body: Any, said: str) -> None:
    assert error_text(body) == said


def test_a_key_is_masked_before_an_error_is_cut() -> None:
    body = {"error": {"message": f"{'x' * 290} sk-secret-key"}}
    assert error_text(body, lambda text: text.replace("sk-secret-key", "***")) == f"{'x' * 290} ***"


def test_choices_are_read_by_their_index() -> None:
    def texts(*indices: Any) -> list[str]:
        choices = [{"index": index, "message": {"content": str(index)}} for index in indices]
        return [choice.content for choice in read_reply(json.dumps({"choices": choices})).choices]

    assert texts(2, 0, 1) == ["0", "1", "2"]
    assert texts(0, 0) == ["0", "0"] and texts(1, None) == ["1", "None"] and texts("b", "a") == ["b", "a"]


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e999, float("nan"), True, "3", None, [1]])
def test_numbers_that_are_none(number: Any) -> None:
    reply = json.dumps({"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": number}})
    assert read_reply(reply).prompt_tokens is None
    tokens = [{"token": "A", "logprob": number, "top_logprobs": [{"token": "B", "logprob": -1}]}]
    choice = read_reply(json.dumps({"choices": [{"message": {"content": "A"}, "logprobs": {"content": tokens}}]}))
    assert letter_margin(choice.choices[0], 0) is None
    assert context_of([{"id": "m", "max_model_len": number}], "m") is None


def test_content_in_parts_and_without_surrogates() -> None:
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "[[A]]"}, {"type": "image"}]
    assert one({"content": parts}).content == "It is [[A]]"
    assert read_reply('{"choices": [{"message": {"content": "a\\ud800b"}}]}').choices[0].content == "a\ufffdb"


class TestThinking:
    @pytest.mark.parametrize(
        "message",
        [
            {"content": "It is [[B]]", "reasoning_content": "hm, [[A]]?"},
            {"content": "It is [[B]]", "reasoning": "hm, [[A]]?"},
            {"content": "<think>\nhm, [[A]]?\n</think>\n\nIt is [[B]]"},
            {"content": "hm, [[A]]?\n</think>\n\nIt is [[B]]"},
        ],
    )
    def test_is_the_same_wherever_the_server_puts_it(self, message: Any) -> None:
        choice = one(message)
        assert join_reasoning(choice, "drop") == ("It is [[B]]", 0)
        assert join_reasoning(choice, "keep") == ("hm, [[A]]?\n\nIt is [[B]]", 12)
        text, begin = join_reasoning(choice, "tags")
        assert text == "<think>\nhm, [[A]]?\n</think>\n\nIt is [[B]]" and text[begin:] == "It is [[B]]"

    def test_that_the_limit_of_tokens_cut_stays_open(self) -> None:
        for message in ({"content": None, "reasoning_content": "so [[A]]"}, {"content": "<think>\nso [[A]]"}):
            choice = one(message, finish_reason="length")
            for thinking in ("tags", "keep"):
                assert choice.cut and join_reasoning(choice, thinking)[0] == "<think>\nso [[A]]\n"
            assert join_reasoning(choice, "drop")[0] == ""

    @pytest.mark.parametrize(
        ("reasoning", "content"),
        [
            ("Maybe [[B]].", "I cannot decide between the two."),
            ("Maybe [[B>A]].", "Verdict: [[A>B]]"),
            ("Perhaps 3 of 10: [[3]]", "Rating: 9"),
            ("Both are fine:\n[[B]]", "[[A]]"),  # as plain text a list of two verdicts
            ("Answer B says [[B]], but", "not [[B]]"),
        ],
    )
    def test_is_no_verdict_of_the_answer(self, reasoning: str, content: str) -> None:
        choice = one({"content": content, "reasoning_content": reasoning})
        text, begin = join_reasoning(choice, "keep")
        assert text == f"<think>\n{reasoning}\n</think>\n\n{content}" and text[begin:] == content
        for name in ("pairs", "judgebench", "rewardbench2-ratings"):
            read = BENCHMARKS[name].verdict
            assert read(text) == read(content)

    def test_an_answer_needs_no_thinking(self) -> None:
        assert join_reasoning(one({"content": "[[A]]", "reasoning_content": ""}), "tags") == ("[[A]]", 0)


def token(text: str, logprob: float = -0.5, **others: float) -> dict[str, Any]:
    top = [{"token": name, "logprob": value} for name, value in {text: logprob, **others}.items()]
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": top}


class TestMargin:
    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [
            ([token("[["), token("A", -0.25, B=-1.5), token("]]")], 1.25),
            ([token("[["), token("B", -0.25, A=-1.5), token("]]")], -1.25),
            ([token("[[A", -0.25, **{"[[B": -2.0}), token("]]")], 1.75),
            ([token("["), token("[A]]\n", -0.25, **{"[B]]\n": -2.0, "[B]]": -0.5})], 1.75),
            ([token("[["), token("a", -0.25, b=-1.5, B=-0.5), token("]]")], 1.25),
            ([token("[["), token("C", -0.25, A=-2.0, B=-1.5), token("]]")], -0.5),
            ([token("[["), token("A", -0.25, **{" B": -1.5}), token("]]")], None),
            ([token("[["), token("A", float("nan"), B=-1.5), token("]]")], None),
            ([token("other"), token("tokens")], None),
            ([{"token": 3}, 7, None], None),
        ],
    )
    def test_is_read_where_the_letter_is(self, tokens: list[Any], expected: float | None) -> None:
        said = "".join(one["token"] for one in tokens if isinstance(one, dict) and isinstance(one["token"], str))
        content = f"Grüße 好 {said}" if "[" in said else "[[A]]"
        at = content.index("[[") + 2
        before = [token("Reasoning [[A]]"), token("Grü"), token("ße 好"), token(" ")]
        after = [token("<|im_end|>")]
        choice = Choice(content, "", False, content, [*before, *tokens, *after])
        assert letter_margin(choice, at) == (None if expected is None else pytest.approx(expected))

    def test_after_thinking_in_the_text(self) -> None:
        tokens = [token("<think>"), token("[[A]]"), token("</think>"), token("\n\n[["), token("B", -0.1, A=-3.0)]
        message = {"content": "<think>[[A]]</think>\n\n[[B]]"}
        choice = one(message, logprobs={"content": [*tokens, token("]]")]})
        assert choice.content == "[[B]]" and letter_margin(choice, 2) == pytest.approx(-2.9)

    def test_without_log_probabilities(self) -> None:
        assert letter_margin(one({"content": "[[A]]"}), 2) is None
        assert letter_margin(one({"content": "[[A]]"}, logprobs={"content": []}), 2) is None
