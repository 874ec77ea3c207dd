"""The answers of a conversation that SFT trains on: the last, all, or those with a weight."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.reading import read_records
from judgelit.records.records import PreferencePair, SFTExample, question_key
from judgelit.records.sources import FileSource


def chat(*turns: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Turns from (role, content) or (role, content, weight)."""
    names = ("role", "content", "weight")
    return [dict(zip(names, turn, strict=False)) for turn in turns]


def read(row: dict[str, Any], loss_on: Any = "last") -> list[SFTExample]:
    return read_records(row, "f:1", SFTExample, "f:1", loss_on)


def answers(row: dict[str, Any], loss_on: Any = "last") -> list[tuple[int, str]]:
    """The turns before each example's answer, and the answer."""
    return [(len(example.messages), example.completion) for example in read(row, loss_on)]


THREE = chat(
    ("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q3"),
    ("assistant", "a3"),
)  # fmt: skip


def test_all_answers_are_examples_with_the_turns_before_them() -> None:
    assert answers({"messages": THREE}) == [(6, "a3")]
    examples = read({"messages": THREE, "id": "c1", "category": "chat"}, "all")
    assert [(example.messages, example.completion) for example in examples] == [
        (tuple(THREE[:2]), "a1"),
        (tuple(THREE[:4]), "a2"),
        (tuple(THREE[:6]), "a3"),
    ]
    assert {(example.pair_id, example.meta["category"]) for example in examples} == {("c1", "chat")}
    # A split keeps a conversation on one side, the side of its last answer.
    (last,) = read({"messages": THREE})
    assert {example.group for example in examples} == {last.group}


def test_all_holds_for_every_form_of_a_conversation() -> None:
    sharegpt = [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}, {"from": "human", "value": "q2"}]
    assert answers({"conversations": [*sharegpt, {"from": "gpt", "value": "a2"}]}, "all") == [(1, "a1"), (3, "a2")]
    history = {"instruction": "q2", "output": "a2", "history": [["q1", "a1"]], "system": "s"}
    assert answers(history, "all") == [(2, "a1"), (4, "a2")]
    assert answers({"prompt": THREE[:4], "completion": "x"}, "all") == [(2, "a1"), (4, "x")]
    assert answers({"prompt": "q", "completion": "x"}, "all") == [(1, "x")]


def test_what_the_assistant_says_before_the_user_is_not_trained_on() -> None:
    turns = chat(("assistant", "Hello!"), ("user", "q"), ("assistant", "a"))
    assert answers({"messages": turns}, "all") == [(2, "a")]
    assert answers({"messages": chat(("system", "s"), ("assistant", "a"))}, "all") == [(1, "a")]


@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_weights_decide_whatever_the_setting(loss_on: Any) -> None:
    def weighted(first: Any, second: Any) -> list[tuple[int, str]]:
        marks = [() if mark is None else (mark,) for mark in (first, second)]
        turns = chat(("user", "q1", 1), ("assistant", "a1", *marks[0]), ("user", "q2"), ("assistant", "a2", *marks[1]))
        return answers({"messages": turns, "system": "added before"}, loss_on)

    assert weighted(1, 0) == [(2, "a1")]
    assert weighted(0, 1) == [(4, "a2")]
    assert weighted(1.0, True) == [(2, "a1"), (4, "a2")]
    # An answer without a weight has the weight 1 if another one has a weight.
    assert weighted(0, None) == [(4, "a2")] and weighted(None, 0) == [(2, "a1")]
    shown = chat(("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    shown[1]["train"], shown[3]["weight"] = False, None
    assert answers({"messages": shown}, loss_on) == [(3, "a2")]


@pytest.mark.parametrize(
    ("turns", "field"),
    [
        ((("user", "q"), ("assistant", "a", 0)), "messages[1].weight"),
        ((("user", "q"), ("assistant", "a", 0.5)), "messages[1].weight"),
        ((("user", "q"), ("assistant", "a", "1")), "messages[1].weight"),
        ((("assistant", "hi", 1), ("user", "q"), ("assistant", "a", 1)), "messages[0].weight"),
        ((("user", "q"), ("assistant", " ", 1), ("user", "q"), ("assistant", "a")), "turn 2 of 4"),
    ],
)
def test_wrong_weights_and_empty_answers_are_refused(turns: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        read({"messages": chat(*turns)})
    assert str(caught.value).startswith(f"f:1: field {field!r}: found ")


@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.booleans()), min_size=1, max_size=4))
def test_each_trained_answer_is_an_example_once(conversation: list[tuple[str, bool]]) -> None:
    turns = [
        turn
        for number, (text, weight) in enumerate(conversation)
        for turn in chat(("user", f"q{number}"), ("assistant", text, int(weight)))
    ]
    wanted = [(2 * number + 1, text) for number, (text, weight) in enumerate(conversation) if weight]
    if wanted:
        assert answers({"messages": turns}) == wanted


def test_the_setting_is_for_sft_examples_alone(tmp_path: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(UserError, match="loss_on: found 'all', expected it only for SFT examples"):
        FileSource(str(path), loss_on="all").read(PreferencePair)


def test_a_given_question_stays_the_group() -> None:
    examples = read({"messages": THREE, "meta": {"question": "mine"}}, "all")
    assert {example.group for example in examples} == {"mine"}
    assert read({"messages": THREE})[0].group == question_key("q3", THREE[:5])
