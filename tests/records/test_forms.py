import json
import os
import re
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.records.conversations import part_texts, read_dialogue
from judgelit.records.reading import read_record
from judgelit.records.records import AnswerSet, PreferenceExample, PreferencePair, SFTExample


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    said = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system is not None else []) + said


def sharegpt(*contents: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(contents)]


def sft(row: dict[str, Any]) -> SFTExample:
    return read_record(row, "f:1", SFTExample, "f:1")


def preference(row: dict[str, Any]) -> PreferenceExample:
    return read_record(row, "f:1", PreferenceExample, "f:1")


def pair(row: dict[str, Any]) -> PreferencePair:
    return read_record(row, "f:1", PreferencePair, "f:1")


def answer_set(row: dict[str, Any]) -> AnswerSet:
    return read_record(row, "f:1", AnswerSet, "f:1")


def better_and_worse(found: PreferencePair) -> tuple[str, str]:
    first = (found.answer_a, found.answer_b)
    return first if found.label == "A" else first[::-1]


# SFT examples.


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": turns("q"), "completion": "a"}, turns("q")),
        ({"messages": turns("q", "a")}, turns("q")),
        ({"messages": turns("1", "2", "q", "a", system="s")}, turns("1", "2", "q", system="s")),
        ({"prompt": "q", "completion": "a"}, turns("q")),
        ({"prompt": turns("q", system="s"), "completion": turns("", "a")[1:]}, turns("q", system="s")),
        ({"prompt": turns("1", "2", "q"), "completion": "a"}, turns("1", "2", "q")),
        ({"prompt": "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: q\n\nAssistant:", "completion": "a"}, turns("1", "2", "q")),
        ({"prompt": "Human: 1\n\nAssistant: 2", "completion": "a"}, turns("Human: 1\n\nAssistant: 2")),
        ({"conversations": sharegpt("q", "a")}, turns("q")),
        ({"conversations": sharegpt("q", "a"), "system": "s", "id": 7}, turns("q", system="s")),
        (
            {"conversations": [{"from": "system", "value": "s"}, *sharegpt("q", "a")], "system": "s\n"},
            turns("q", system="s"),
        ),
        ({"conversation": turns("1", "2", "q", "a")}, turns("1", "2", "q")),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}], "system": ""},
            turns("q"),
        ),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "bing", "value": "a"}]}, turns("q")),
        (
            # Arrow merges two forms in one column like this.
            {
                "conversations": [{"role": None, "content": None, **turn} for turn in sharegpt("q", "a")],
                "messages": None,
            },
            turns("q"),
        ),
        ({"instruction": "q", "input": "", "output": "a"}, turns("q")),
        ({"instruction": "q", "output": "a"}, turns("q")),
        ({"instruction": "q", "input": "with this", "output": "a", "text": "..."}, turns("q\n\nwith this")),
        ({"instruction": "", "input": "q", "output": "a"}, turns("q")),
        ({"instruction": "Is it prime?", "input": 7, "output": "a"}, turns("Is it prime?\n\n7")),
        ({"instruction": "q", "input": float("nan"), "output": "a"}, turns("q")),
        ({"instruction": "q", "input": [], "output": "a"}, turns("q")),
        ({"prompt": "Do: q\nWith: 7", "instruction": "q", "input": 7, "output": "a"}, turns("Do: q\nWith: 7")),
        ({"prompt": "q", "instruction": "q", "input": "", "completion": "a"}, turns("q")),
    ],
)
def test_sft_forms(row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    found = sft(row)
    assert (list(found.messages), found.completion) == (prompt, "a")


def test_own_sft_examples_keep_all_fields_and_read_meta_from_json() -> None:
    row = {"messages": turns("q"), "completion": "a", "pair_id": "p", "meta": {"question": "k", "n": 1}}
    assert sft(row) == SFTExample(tuple(turns("q")), "a", "p", {"question": "k", "n": 1})
    assert sft({**row, "meta": '{"question": "k", "n": 1}'}) == sft(row)


def test_public_examples_keep_id_and_origin() -> None:
    row = {"id": 7, "prompt": "q", "completion": "a", "source": "s", "category": None, "subset": 3}
    assert (sft(row).pair_id, sft(row).meta) == ("7", {"source": "s"})
    row = {"prompt_id": "p", "prompt": "q", "chosen": "a", "rejected": "b", "subset": "s"}
    assert preference(row).meta == {"subset": "s", "pair_id": "p"}


# Preferences.

DIALOGUE = "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: q\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": turns("q", system="s"), "chosen": "a", "rejected": "b"}, turns("q", system="s")),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, turns("q")),
        ({"prompt": turns("1", "2", "q"), "chosen": "a", "rejected": "b"}, turns("1", "2", "q")),
        ({"prompt": "q", "chosen": turns("", "a")[1:], "rejected": turns("", "b")[1:]}, turns("q")),
        # UltraFeedback binarized, which also has the chosen conversation as `messages`.
        (
            {"prompt": "q", "chosen": turns("q", "a"), "rejected": turns("q", "b"), "messages": turns("q", "a")},
            turns("q"),
        ),
        (
            {"prompt": "q ", "chosen": turns("q", "a", system="s"), "rejected": turns("q", "b", system="s")},
            turns("q", system="s"),
        ),
        (
            {"prompt": turns("q"), "system": "s", "chosen": turns("q", "a"), "rejected": turns("q", "b")},
            turns("q", system="s"),
        ),
        # Skywork.
        (
            {"chosen": turns("1", "2", "q", "a"), "rejected": turns("1", "2", "q", "b"), "source": "x"},
            turns("1", "2", "q"),
        ),
        ({"chosen": sharegpt("q", "a"), "rejected": sharegpt("q", "b")}, turns("q")),
        ({"chosen": DIALOGUE + "a", "rejected": DIALOGUE + "b"}, turns("1", "2", "q")),
        ({"chosen": "What is it?\na", "rejected": "What is it?\nb"}, turns("What is it?")),
        (
            {
                "conversations": sharegpt("1", "2", "q"),
                "chosen": sharegpt("", "a")[1],
                "rejected": sharegpt("", "b")[1],
            },
            turns("1", "2", "q"),
        ),
        (
            {"conversations": sharegpt("q"), "chosen": sharegpt("", "a")[1:], "rejected": sharegpt("", "b")[1:]},
            turns("q"),
        ),
        ({"conversations": sharegpt("q"), "chosen": "a", "rejected": "b", "system": "s"}, turns("q", system="s")),
        ({"question": "q", "chosen": "a", "rejected": "b"}, turns("q")),
        ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, turns("q", system="s")),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, turns("q")),
        ({"instruction": "do", "input": "this", "chosen": "a", "rejected": "b"}, turns("do\n\nthis")),
    ],
)
def test_preference_forms_as_examples_and_as_pairs(row: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    example = preference(row)
    assert (list(example.messages), example.chosen, example.rejected) == (prompt, "a", "b")
    judged = pair(row)
    assert better_and_worse(judged) == ("a", "b")
    assert [*judged.context, {"role": "user", "content": judged.question}] == prompt
    assert judged.source == row.get("source", "")


def test_own_preference_examples_keep_meta() -> None:
    row = {"messages": turns("q"), "chosen": "a", "rejected": "b", "meta": '{"pair_id": "p"}'}
    assert preference(row) == PreferenceExample(tuple(turns("q")), "a", "b", {"pair_id": "p"})


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", "blue.", "green.")),
        ("The sky is black.", "The sky is blue.", ("The sky is", "black.", "blue.")),
        ("Q: x\n\nA: y", "Q: x\n\nA: z", ("Q: x\n\nA:", "y", "z")),
        ("Q: x\ny", "Q: x\n  z", ("Q: x", "y", "  z")),
        ("say it", "say", ("", "say it", "say")),
        ("say it now", "say it", ("say", "it now", "it")),
        ("yes", "no", ("", "yes", "no")),
        ("", "no", ("", "", "no")),
    ],
)
def test_texts_are_split_between_words(chosen: str, rejected: str, parts: tuple[str, str, str]) -> None:
    assert part_texts(chosen, rejected) == parts


def test_dialogues_join_turns_of_one_speaker_and_ignore_names_inside_a_line() -> None:
    text = "\n\nHuman: a Human: b\n\nAssistant:  c\n\nAssistant: d\nHuman: e\n\nHuman:f\n\nAssistant:"
    assert read_dialogue(text) == turns("a Human: b", "c\n\nd\nHuman: e", "f", "")
    assert read_dialogue("Human: only") is None and read_dialogue("So\n\nHuman: a\n\nAssistant: b") is None


def test_dialogues_that_differ_early_keep_the_rest_as_text() -> None:
    other = "\n\nHuman: 1\n\nAssistant: other"
    found = preference({"chosen": DIALOGUE + "a", "rejected": other})
    assert list(found.messages) == turns("1")
    assert (found.chosen, found.rejected) == ("2\n\nHuman: q\n\nAssistant: a", "other")


def test_an_empty_rejected_answer_is_an_answer() -> None:
    assert preference({"chosen": DIALOGUE + "b", "rejected": DIALOGUE}).rejected == ""


def test_a_text_field_with_an_unknown_name_may_be_the_prompt_and_is_not_ignored() -> None:
    row = {"chosen": "I think so", "rejected": "I do not", "score": 1.0, "model_name": "m", "id": "1", "source": "s"}
    assert preference(row).messages[0]["content"] == "I"
    with pytest.raises(
        UserError, match=r"^f:1: found 'query', 'chosen', 'rejected', expected a preference example with"
    ):
        preference({"query": "q", "chosen": "I think so", "rejected": "I do not"})


# Pairs.

TWO = {"question": "q", "answer_a": "x", "answer_b": "y"}
PANDA = {"idx": 3, "instruction": "q", "input": "", "response1": "x", "response2": "y"}
STEER = {"prompt": "q", "response_1": "x", "response_2": "y", "split": "train"}


def votes(*values: int) -> dict[str, Any]:
    return PANDA | {f"annotator{n}": value for n, value in enumerate(values, 1)}


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({**TWO, "id": "p", "label": "tie"}, "tie"),
        ({**TWO, "label": "b"}, "B"),
        ({**TWO, "winner": "tie (bothbad)"}, "tie"),
        ({"prompt": "q", "response_a": "x", "response_b": "y", "winner": "model_a"}, "A"),
        ({"prompt": turns("q"), "response_a": "x", "response_b": "y", "label": "Tie"}, "tie"),
        ({"question": "q", "response_A": "x", "response_B": "y", "label": "A>B", "response_model": "m"}, "A"),
        ({"question": "q", "response_A": "x", "response_B": "y", "label": "B>A"}, "B"),
        ({"question": "q", "response_A": "x", "response_B": "y", "label": "A=B"}, "tie"),
        ({"input": "q", "output_1": "x", "output_2": "y", "label": 1}, "A"),
        ({"instruction": "q", "output_1": "x", "output_2": "y", "label": "2"}, "B"),
        ({"instruction": "q", "output_1": "x", "output_2": "y", "label": 2.0}, "B"),
        ({"instruction": "q", "response1": "x", "response2": "y", "label": "1"}, "A"),
        (votes(0, 0, 1), "tie"),
        (votes(2, 1, 2), "B"),
        (votes(0, 1, 1), "A"),
        ({"prompt": "q", "response 1": "x", "response 2": "y", "label": 0}, "A"),
        ({"prompt": "q", "response 1": "x", "response 2": "y", "label": 1}, "B"),
        ({"prompt": "q", "response 1": "x", "response 2": "y", "label": 2}, "tie"),
        ({**STEER, "preference_strength": -3}, "A"),
        ({**STEER, "preference_strength": 1}, "B"),
        ({**STEER, "preference_strength": 0}, "tie"),
        ({"conversation_a": turns("q", "x"), "conversation_b": turns("q", "y"), "winner": "model_b", "turn": 1}, "B"),
    ],
)
def test_two_answers_and_a_label(row: dict[str, Any], label: str) -> None:
    found = pair(row)
    assert (found.question, found.answer_a, found.answer_b, found.label) == ("q", "x", "y", label)


def test_turns_of_helpsteer_are_the_context() -> None:
    prompt = "1\n<extra_id_1>Assistant\n2\n<extra_id_1>User\nq"
    row = {"prompt": prompt, "response_1": "a", "response_2": "b", "preference_strength": 0}
    assert (list(pair(row).context), pair(row).question) == (turns("1", "2"), "q")
    ended = {**row, "prompt": "1\n<extra_id_1>Assistant\n2"}
    with pytest.raises(UserError, match="field 'prompt': the last turn is the assistant's, expected the user's"):
        pair(ended)


def test_own_pairs_keep_all_fields() -> None:
    own = PreferencePair("p", "q", "x", "y", "B", "c", "t", "s", tuple(turns("1", "2", system="z")))
    assert pair(own.to_dict()) == own


def test_the_authors_of_answers_are_kept_and_move_with_them() -> None:
    row = {"prompt": "q", "chosen": "good", "chosen_model": "x", "rejected": "bad", "rejected_model": "y"}
    for number in range(8):
        found = pair({**row, "id": number})
        assert {found.answer_a: found.author_a, found.answer_b: found.author_b} == {"good": "x", "bad": "y"}
    both = pair({"question": "q", "response_A": "1", "response_B": "2", "label": "A>B", "response_model": "m"})
    assert (both.author_a, both.author_b) == ("m", "m")
    own = PreferencePair("p", "q", "x", "y", "B", author_a="m")
    assert pair(own.to_dict()) == own and "author_b" not in own.to_dict()


def test_category_subset_and_source_are_kept() -> None:
    bench = {"id": 30, "prompt": "q", "chosen": "x", "rejected": "y", "subset": "alpacaeval-easy", "chosen_model": "m"}
    assert (pair(bench).id, pair(bench).subset) == ("30", "alpacaeval-easy")
    row = {"instruction": "q", "response1": "x", "response2": "y", "label": "1"}
    assert pair({**row, "bias": "length bias"}).category == "length bias"
    assert (
        pair({"prompt": "q", "response 1": "x", "response 2": "y", "label": 0, "scenario": "code"}).category == "code"
    )
    judge = {"pair_id": "j", "source": "mmlu-pro-law", "question": "q", "response_A": "x", "response_B": "y"}
    assert (pair({**judge, "label": "A>B"}).id, pair({**judge, "label": "A>B"}).source) == ("j", "mmlu-pro-law")


def test_mt_bench_turns() -> None:
    row = {
        "conversation_a": turns("q", "x", "more", "x2"),
        "conversation_b": turns("q", "y", "more", "y2"),
        "winner": "tie",
    }
    first, second = pair({**row, "turn": 1}), pair({**row, "turn": 2})
    assert (first.question, first.answer_a, first.answer_b) == ("q", "x", "y")
    assert (second.question, second.answer_a) == ("q", "x\n\nHuman: more\n\nAssistant: x2")


def test_truth_values_are_read_as_answers() -> None:
    assert pair({**votes(1, 1, 1), "response1": True}).answer_a == "True"


def test_the_place_of_the_better_answer_depends_only_on_the_id_and_is_balanced() -> None:
    rows = [{"id": str(n), "prompt": "q", "chosen": "a", "rejected": "b"} for n in range(2000)]
    labels = [pair(row).label for row in rows]
    assert labels == [pair({**row, "prompt": "other", "chosen": "c"}).label for row in rows]
    assert 900 < labels.count("A") < 1100


def test_a_made_id_depends_on_place_and_content() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    ids = {
        read_record(row, "here", PreferencePair, "f:1").id,
        read_record(row, "there", PreferencePair, "f:1").id,
        read_record(row, "here", PreferencePair, "f:2").id,
        read_record({**row, "chosen": "c"}, "here", PreferencePair, "f:1").id,
    }
    assert read_record(row, "here", PreferencePair, os.fsdecode(b"caf\xe9:1")).id.encode().startswith(b"caf")
    assert len(ids) == 3 and all(re.fullmatch(r"f:[12]#[0-9a-f]{8}", made) for made in ids)


@pytest.mark.parametrize("identity", [{"id": "7"}, {"id": 7}, {}])
def test_labels_do_not_depend_on_the_type_of_the_id(identity: dict[str, Any]) -> None:
    for written, label in (("a", "A"), ("B", "B"), ("Tie", "tie")):
        found = pair({**TWO, **identity, "label": written})
        assert (found.label, found.id == "7") == (label, bool(identity))
    with pytest.raises(UserError) as caught:
        pair({**TWO, **identity, "label": "C"})
    assert str(caught.value) == "f:1: field 'label': found 'C', expected one of 'A', 'B', 'tie'"


@pytest.mark.parametrize("identity", ["7", 7])
def test_a_pair_with_any_type_of_id_keeps_its_context_and_system_text(identity: str | int) -> None:
    row = {**TWO, "id": identity, "label": "A"}
    assert list(pair({**row, "context": sharegpt("1", "2")}).context) == turns("1", "2")
    assert list(pair({**row, "system": "s"}).context) == turns(system="s")


# Ways of writing turns.


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image_url": None} for text in texts]


PROMPTS = [
    (turns("q", system="s"), turns("q", system="s")),
    (sharegpt("1", "2", "q"), turns("1", "2", "q")),
    ([{"role": "user", "content": parts("what", " now")}], turns("what now")),
    (
        [{"role": "Developer", "content": "s"}, {"role": "Human", "content": "q", "name": "n", "weight": 1}],
        turns("q", system="s"),
    ),
]
ANSWERS = [
    lambda text: text,
    lambda text: {"role": "assistant", "content": text},
    lambda text: [{"role": "Assistant", "content": text, "tool_calls": []}],
    lambda text: [{"from": "GPT", "value": text}],
    lambda text: [{"role": "assistant", "content": parts(text)}],
]


@pytest.mark.parametrize(("written", "prompt"), PROMPTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_turns_and_answers_in_any_form(written: list[Any], prompt: list[Any], answer: Any) -> None:
    example = sft({"messages": written, "completion": answer("a")})
    assert (list(example.messages), example.completion) == (prompt, "a")
    row = {"messages": written, "chosen": answer("a"), "rejected": answer("b")}
    found = preference(row)
    assert (list(found.messages), found.chosen, found.rejected) == (prompt, "a", "b")
    judged = pair(row)
    assert better_and_worse(judged) == ("a", "b")
    assert [*judged.context, {"role": "user", "content": judged.question}] == prompt


def test_empty_answers_of_preferences_are_read_in_any_form() -> None:
    row = {"messages": turns("q"), "chosen": turns("", "a")[1:], "rejected": turns("", "")[1:]}
    assert preference(row).rejected == ""


BLANK = "found ' ', expected text that is not empty"
SILENT = "\n\nHuman: \n\nAssistant: "


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (sft, {"messages": turns(" "), "completion": "a"}, f"f:1: field 'messages[0].content': {BLANK}"),
        (sft, {"messages": turns("1", "2", " ", "a")}, f"f:1: field 'messages[2].content': {BLANK}"),
        (sft, {"conversations": sharegpt(" ", "a")}, f"f:1: field 'conversations[0].value': {BLANK}"),
        (
            preference,
            {"messages": turns(" "), "chosen": "a", "rejected": "b"},
            f"f:1: field 'messages[0].content': {BLANK}",
        ),
        (
            preference,
            {"chosen": turns(" ", "a"), "rejected": turns(" ", "b")},
            f"f:1: field 'chosen[0].content': {BLANK}",
        ),
        (
            preference,
            {"chosen": SILENT + "a", "rejected": SILENT + "b"},
            "f:1: field 'chosen': found '\\n\\nHuman: \\n\\nAssistant: a', expected a dialogue in which no turn of the "
            "Human is empty",
        ),
        (
            sft,
            {"prompt": SILENT, "completion": "a"},
            "f:1: field 'prompt': found '\\n\\nHuman: \\n\\nAssistant: ', expected a dialogue in which no turn of the "
            "Human is empty",
        ),
    ],
)
def test_an_empty_user_turn_is_refused(read: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(row)
    assert str(caught.value) == message


@pytest.mark.parametrize("role", ["tool", "Function", 7])
def test_tool_turns_are_refused(role: object) -> None:
    with pytest.raises(UserError, match=rf"^f:1: field 'messages\[1\].role': found {role!r}, expected one of 'system'"):
        sft({"messages": [*turns("q"), {"role": role, "content": "x"}], "completion": "a"})


# What must not be lost.


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1)


@pytest.mark.parametrize("stored", [as_json, lambda value: " " + json.dumps(value) + "\n"])
def test_messages_stored_as_json_text_are_read(stored: Any) -> None:
    answer = turns("q", "a")[1:]
    for row in (
        {"messages": stored(turns("q", "a"))},
        {"conversations": stored(sharegpt("q", "a"))},
        {"prompt": stored(turns("q")), "completion": stored(answer)},
        {"messages": stored(turns("q")), "completion": stored(answer[0])},
    ):
        assert (list(sft(row).messages), sft(row).completion) == (turns("q"), "a")
    for row in (
        {"prompt": stored(turns("q")), "chosen": stored(answer), "rejected": "b"},
        {"prompt": "q", "chosen": stored(turns("q", "a")), "rejected": stored(turns("q", "b"))},
        {"chosen": stored(turns("q", "a")), "rejected": stored(turns("q", "b"))},
        {"chosen": stored(sharegpt("q", "a")), "rejected": stored(sharegpt("q", "b"))},
    ):
        assert (list(preference(row).messages), preference(row).chosen, preference(row).rejected) == (
            turns("q"),
            "a",
            "b",
        )
    row = {"prompt": stored(turns("1", "2", "q")), "answer_a": stored(answer), "answer_b": "b", "label": "A"}
    assert (list(pair(row).context), pair(row).answer_a) == (turns("1", "2"), "a")
    row = {**TWO, "id": "p", "label": "A", "context": stored(turns("1", "2"))}
    assert list(pair(row).context) == turns("1", "2")


def test_surrogates_in_json_text_are_replaced() -> None:
    row = {"messages": r'[{"role": "user", "content": "q\ud800"}, {"role": "assistant", "content": "\ud83d\ude00"}]'}
    assert (sft(row).messages[0]["content"], sft(row).completion) == ("q\ufffd", "\U0001f600")


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        '{"role": "admin"}',
        '[{"role": "user", "content": "x"}] is what I sent. Why?',
        '[{"from": "Rome", "to": "Oslo"}]',
        '{"role": "user", "content": ' + "[" * 5000 + "}",
    ],
)
def test_other_text_that_looks_like_json_stays_text(text: str) -> None:
    assert sft({"prompt": text, "completion": text}) == SFTExample(({"role": "user", "content": text},), text)


def test_messages_as_python_prints_them_are_refused() -> None:
    with pytest.raises(UserError, match=r"^f:1: field 'messages': found .* this is how Python prints one$"):
        sft({"messages": str(turns("q", "a"))})


HISTORY = [["1", "2"]]


@pytest.mark.parametrize("history", [HISTORY, as_json(HISTORY), turns("1", "2"), as_json(turns("1", "2"))])
@pytest.mark.parametrize("asked", [{"instruction": "q", "input": ""}, {"prompt": "q"}, {"question": "q"}])
def test_earlier_turns_beside_the_prompt_are_read(history: Any, asked: dict[str, str]) -> None:
    row = {**asked, "history": history, "system": "s"}
    prompt = turns("1", "2", "q", system="s")
    if "question" not in asked:
        answer = {"output": "a"} if "instruction" in asked else {"completion": "a"}
        assert list(sft({**row, **answer}).messages) == prompt
    assert list(preference({**row, "chosen": "a", "rejected": "b"}).messages) == prompt
    for one in ({**row, "id": "p"}, row, {**row, "context": turns("0", "0"), "history": []}):
        judged = pair({**one, "answer_a": "x", "answer_b": "y", "label": "A"})
        assert judged.context[0] == {"role": "system", "content": "s"} and len(judged.context) == 3


def test_an_empty_history_is_none() -> None:
    for empty in ([], "", "[]", None):
        assert list(sft({"instruction": "q", "output": "a", "history": empty}).messages) == turns("q")


@pytest.mark.parametrize(
    ("read", "row", "field"),
    [
        (sft, {"instruction": "q", "input": ["this"], "output": "a"}, "input"),
        (sft, {"instruction": "q", "input": {"x": 1}, "output": "a"}, "input"),
        (pair, {"instruction": "q", "input": ["this"], "output_1": "x", "output_2": "y", "label": 1}, "input"),
        (sft, {"question": "q", "instruction": "do", "input": "this", "output": "a"}, "instruction"),
        (sft, {"question": "do", "instruction": "do", "input": "this", "output": "a"}, "input"),
        (sft, {"prompt": "Shorten", "input": "this", "completion": "a"}, "input"),
        (sft, {"messages": turns("q", "a", system="t"), "system": "s"}, "system"),
        (
            preference,
            {"prompt": turns("q", system="t"), "system_prompt": "s", "chosen": "a", "rejected": "b"},
            "system_prompt",
        ),
        (sft, {"prompt": "q", "completion": "a", "system": "s", "system_prompt": "t"}, "system_prompt"),
        (sft, {"instruction": "q", "output": "a", "history": [["1"]]}, "history[0]"),
        (sft, {"instruction": "q", "output": "a", "history": "we spoke"}, "history"),
        (sft, {"messages": turns("1", "2", "q", "a"), "history": HISTORY}, "history"),
        (preference, {"prompt": "q", "context": "a passage", "chosen": "a", "rejected": "b"}, "context"),
        (
            sft,
            {"messages": [*turns("q"), {"role": "assistant", "content": "a", "reasoning_content": "r"}]},
            "messages[1].reasoning_content",
        ),
        (
            sft,
            {"messages": [*turns("q"), {"role": "assistant", "content": "a", "thinking": "r"}]},
            "messages[1].thinking",
        ),
        (sft, {"prompt": "q", "completion": "a", "reasoning_content": "r"}, "reasoning_content"),
        (sft, {"messages": turns("q", "a"), "tools": [{"name": "f"}]}, "tools"),
        (sft, {"messages": turns("q", "a"), "tools": '[{"name": "f"}]'}, "tools"),
        (preference, {"prompt": "q", "chosen": "a", "rejected": "b", "images": ["x"]}, "images"),
        (sft, {"prompt": "q", "completion": "a", "label": False}, "label"),
        (sft, {"prompt": "q", "completion": "a", "label": 0}, "label"),
        (sft, {"prompt": "q", "completion": "a", "label": 0.0}, "label"),
        (sft, {"prompt": turns("q"), "completion": "a", "label": "False"}, "label"),
        (sft, {"messages": turns("q", "a"), "kto_tag": False}, "kto_tag"),
        (sft, {"messages": [*turns("q"), {"role": "assistant", "content": "a", "weight": 0}]}, "messages[1].weight"),
        (sft, {"messages": [*turns("q"), {"role": "assistant", "content": None}]}, "messages[1].content"),
        (sft, {"conversations": [{"from": "human", "value": None}]}, "conversations[0].value"),
        (sft, {"messages": turns("q", " ")}, "messages"),
        (sft, {"instruction": "q", "output": ""}, "output"),
        (preference, {"prompt": "q", "chosen": " ", "rejected": "b"}, "chosen"),
        (pair, {**TWO, "answer_a": "", "label": "B"}, "answer_a"),
        (pair, {**STEER, "response_2": "\n", "preference_strength": -1}, "response_2"),
        (pair, {"prompt": "q", "chosen": "a", "rejected": ""}, "rejected"),
        (preference, {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"]}, "chosen"),
        (preference, {"prompt": "q", "chosen": [turns("", "a")[1:]] * 2, "rejected": "b"}, "chosen"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(read: Any, row: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        read(row)
    assert str(caught.value).startswith(f"f:1: field {field!r}: found ")
    assert len(str(caught.value).splitlines()) == 1


def test_good_answers_of_unpaired_preferences_and_empty_extras_are_read() -> None:
    row = {"prompt": "q", "completion": "a", "label": True, "tools": [], "images": None, "reasoning_content": ""}
    assert sft(row).completion == "a"
    empty = {"reasoning_content": None, "tool_calls": [], "weight": 1}
    assert sft({"messages": [*turns("q"), {"role": "assistant", "content": "a", **empty}]}).completion == "a"


@pytest.mark.parametrize("label", ["A", "B", "tie"])
def test_identical_answers_are_refused(label: str) -> None:
    with pytest.raises(UserError, match=r"fields 'answer_a' and 'answer_b' are equal; .*; skip_invalid of FileSource"):
        pair({**TWO, "answer_b": "x ", "label": label})


# Refusals.

EQUAL = "f:1: fields 'chosen' and 'rejected' are equal; expected two different answers"
PARTED = (
    "f:1: fields 'chosen' and 'rejected' begin with different prompts; expected two answers to one prompt, or a "
    "field 'prompt'"
)
LAST_ANSWER = "the last turn is the user's, expected the assistant's"
HINT = ", a pair for a judge, expected {}; make training data from pairs with `judgelit synthesize`"


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (sft, {"messages": turns("q", "a", "q2")}, f"f:1: field 'messages': {LAST_ANSWER}"),
        (sft, {"conversations": sharegpt("q")}, f"f:1: field 'conversations': {LAST_ANSWER}"),
        (
            sft,
            {"messages": turns("", "a")[1:]},
            "f:1: field 'messages': found [{'role': 'assistant', 'content': 'a'}], expected a conversation with turns "
            "before the answer",
        ),
        (
            sft,
            {"conversations": [{"from": "tool", "value": "x"}]},
            "f:1: field 'conversations[0].from': found 'tool', expected one of 'system', 'developer', 'user', 'human', "
            "'assistant', 'gpt', 'chatgpt', 'model', 'bing'",
        ),
        (
            sft,
            {"conversations": [{"from": "human", "value": None}]},
            "f:1: field 'conversations[0].value': found nothing, expected text",
        ),
        (
            sft,
            {"messages": ["q", "a"]},
            "f:1: field 'messages[0]': found 'q', expected a message with 'role' and 'content' or 'from' and 'value'",
        ),
        (
            sft,
            {"messages": [{"role": "user", "content": [*parts("q"), {"type": "image"}]}], "completion": "a"},
            "f:1: field 'messages[0].content[1]': found {'type': 'image'}, expected a part that is text, with 'type': "
            "'text' and 'text'",
        ),
        (
            sft,
            {"messages": turns("q"), "completion": 5},
            "f:1: field 'completion': found 5, expected text or a single assistant turn",
        ),
        (sft, {"messages": "q"}, "f:1: field 'messages': found 'q', expected a list of messages"),
        (sft, {"prompt": " ", "completion": "a"}, "f:1: field 'prompt': found ' ', expected text that is not empty"),
        (
            sft,
            {"prompt": turns("q", "a"), "completion": "a"},
            "f:1: field 'prompt': the last turn is the assistant's, expected the user's",
        ),
        (
            sft,
            {"prompt": "q", "completion": turns("q")},
            "f:1: field 'completion': found [{'role': 'user', 'content': 'q'}], "
            "expected text or a single assistant turn",
        ),
        (sft, {"prompt": "q", "completion": ""}, "f:1: field 'completion': found '', expected text that is not empty"),
        (sft, {"conversations": sharegpt("q", "a"), "system": 1}, "f:1: field 'system': found 1, expected text"),
        (
            sft,
            {"text": "x", "meta": None},
            "f:1: found 'text', and null in 'meta', expected an SFT example with the fields prompt or messages + "
            "completion; or messages or conversations that end with an answer; or instruction + output",
        ),
        (
            sft,
            {**TWO, "label": "A"},
            "f:1: found 'question', 'answer_a', 'answer_b', 'label'" + HINT.format("an SFT example"),
        ),
        (
            preference,
            {**TWO, "id": "p", "label": "A"},
            "f:1: found 'question', 'answer_a', 'answer_b', 'id', 'label'" + HINT.format("a preference example"),
        ),
        (
            preference,
            {"messages": None},
            "f:1: found no fields that are not null, expected a preference example with the fields prompt, question, "
            "instruction, messages or conversations + chosen + rejected; or chosen + rejected as conversations; or "
            "chosen + rejected as 'Human: ... Assistant: ...' dialogues; or chosen + rejected as texts that begin with "
            "their prompt",
        ),
        (preference, {"prompt": "q", "chosen": "a", "rejected": "a"}, EQUAL),
        (pair, {"prompt": "q", "chosen": "a", "rejected": "a"}, EQUAL),
        (pair, {"chosen": turns("q", "a"), "rejected": turns("q", "a")}, EQUAL),
        (pair, {"chosen": DIALOGUE + "a", "rejected": DIALOGUE + "a"}, EQUAL),
        (pair, {"chosen": "the same", "rejected": "the same"}, EQUAL),
        (preference, {"chosen": turns("q", "a"), "rejected": turns("p", "b")}, PARTED),
        (preference, {"chosen": turns("1", "2", "q", "a"), "rejected": turns("1", "other")}, PARTED),
        (preference, {"chosen": "\n\nHuman: 1\n\nAssistant: a", "rejected": "\n\nHuman: 2\n\nAssistant: b"}, PARTED),
        (preference, {"chosen": "yes", "rejected": "no"}, PARTED),
        (
            preference,
            {"chosen": DIALOGUE + "a\n\nHuman: so?", "rejected": DIALOGUE + "b"},
            "f:1: field 'chosen': found 't: 2\\n\\nHuman: q\\n\\nAssistant: a\\n\\nHuman: so?', expected a dialogue "
            "that ends with an answer of the Assistant",
        ),
        (
            preference,
            {"prompt": "p", "chosen": turns("q", "a"), "rejected": turns("q", "b")},
            "f:1: the conversations in fields 'chosen' and 'rejected' do not repeat the row's prompt; expected "
            "conversations that do, or single answers",
        ),
        (
            preference,
            {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]},
            "f:1: field 'chosen': found a list of answers, 3 of them, expected one answer; write a row for each pair "
            "of a better and a worse answer",
        ),
        (
            pair,
            {"messages": turns("q", "a"), "chosen": "a", "rejected": "b"},
            "f:1: field 'messages': the last turn is the assistant's, expected the user's",
        ),
        (
            pair,
            {**TWO, "winner": "C"},
            "f:1: field 'winner': found 'C', expected one of 'A', 'B', 'tie'",
        ),
        (
            pair,
            {"input": "q", "output_1": "x", "output_2": "y", "label": 0},
            "f:1: field 'label': found 0, expected one of '1', '2'",
        ),
        (
            pair,
            {"input": "q", "output_1": "x", "output_2": "y", "label": True},
            "f:1: field 'label': found True, expected one of '1', '2'",
        ),
        (
            pair,
            {"prompt": "q", "response 1": "x", "response 2": "y", "label": 3},
            "f:1: field 'label': found 3, expected one of '0', '1', '2'",
        ),
        (pair, votes(0, 1, 2), "f:1: field 'annotator1 to 3': found ['tie', 'A', 'B'], expected two that agree"),
        (pair, votes(0, 1, 3), "f:1: field 'annotator3': found 3, expected one of '0', '1', '2'"),
        (
            pair,
            {**STEER, "preference_strength": 4},
            "f:1: field 'preference_strength': found 4, expected a number from -3 to 3",
        ),
        (
            pair,
            {"conversation_a": turns("q", "x"), "conversation_b": turns("p", "y"), "winner": "tie"},
            "f:1: field 'conversation_b': found 'p', expected a conversation that begins as conversation_a does",
        ),
        (
            pair,
            {**TWO, "answer_b": ["y"], "label": "A"},
            "f:1: field 'answer_b': found a list of answers, 1 of them, expected one answer; write a row for each pair "
            "of a better and a worse answer",
        ),
        (
            pair,
            {**TWO, "question": {"problem": "q"}, "label": "A"},
            "f:1: field 'question': found {'problem': 'q'}, expected a list of messages",
        ),
    ],
)
def test_a_wrong_row_is_refused_in_one_line(read: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(row)
    assert str(caught.value) == message


def test_the_error_about_a_pair_of_unknown_form_lists_all_forms() -> None:
    with pytest.raises(UserError) as caught:
        pair({"question": "q", "answer": "a"})
    message = str(caught.value)
    assert message.startswith(
        "f:1: found 'question', 'answer', expected a preference pair with the fields id + question"
    )
    assert "conversation_a + conversation_b + winner" in message and "chosen + rejected as conversations" in message
    assert len(message.splitlines()) == 1


# A list of answers.


@pytest.mark.parametrize(
    ("row", "context", "meta"),
    [
        ({"question": "q", "answers": ["a", "b", "a"]}, [], {}),
        ({"prompt": "q", "responses": ["a", "b", "a"], "system": "s"}, [{"role": "system", "content": "s"}], {}),
        ({"messages": turns("1", "2", "q"), "completions": ["a", "b", "a"]}, turns("1", "2"), {}),
        ({"prompt": turns("q"), "answers": [turns("", text)[1:] for text in "aba"]}, [], {}),
        ({"instruction": "q", "answers": ["a", "b", "a"], "scores": [1, 0.5, 1]}, [], {"scores": [1, 0.5, 1]}),
        (
            {
                "prompt": "\n\nHuman: q\n\nAssistant: ",
                "answers": [{"answer": t, "rank": 1, "model": "m"} for t in "aba"],
            },
            [],
            {"ranks": [1, 1, 1], "models": ["m", "m", "m"]},
        ),
        ({"id": "x", "question": "q", "answers": ["a", "b", "a"], "meta": '{"k": 1}'}, [], {"k": 1}),
    ],
)
def test_lists_of_answers(row: dict[str, Any], context: list[Any], meta: dict[str, Any]) -> None:
    found = answer_set(row)
    assert (found.question, found.answers, list(found.context), found.meta) == ("q", ("a", "b", "a"), context, meta)
    assert found.id == row.get("id", found.id) and found.id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answers": []}, "field 'answers': found \\[\\], expected a list of texts, one or more"),
        ({"question": "q", "answers": ["a", None]}, "field 'answers\\[1\\]': found nothing"),
        ({"question": "q", "answers": [{"said": "a"}]}, "expected a text, or an object with 'answer' or 'response'"),
        ({"question": "q", "answers": ["a"], "scores": [1, 2]}, "'scores': found \\[1, 2\\], expected 1 values"),
        ({"question": "q", "answer_a": "a"}, "expected a question with a list of answers with the fields question"),
        ({"prompt": "q", "answers": ["a"], "tools": ["t"]}, "'tools'"),
    ],
)
def test_a_wrong_list_of_answers_is_refused_in_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        answer_set(row)
    assert "\n" not in str(error.value)
