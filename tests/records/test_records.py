import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair, SFTExample, question_key, swap_label
from judgelit.records.row_fields import bad_field

PAIR = {"id": "p1", "question": "2+2?", "answer_a": "4", "answer_b": "5", "label": "A"}
TURN = {"role": "user", "content": "2+2?"}
JUDGMENT = {
    "pair_id": "p1",
    "prompt": [TURN],
    "text": "[[A]]",
    "verdict": "A",
    "order": "ab",
    "template": "t",
    "engine": "e",
    "seed": 0,
}
EXAMPLE = {"messages": [TURN], "chosen": "4", "rejected": "5"}

texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
filled = texts.filter(str.strip)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}), max_size=3
).map(tuple)
pairs = st.builds(
    PreferencePair,
    id=filled,
    question=filled,
    answer_a=texts,
    answer_b=texts,
    label=st.sampled_from(["A", "B", "tie"]),
    category=texts,
    subset=texts,
    source=texts,
    context=conversations,
    author_a=texts,
    author_b=texts,
)


@given(pairs)
def test_a_pair_equals_the_one_from_its_dictionary(pair: PreferencePair) -> None:
    assert PreferencePair.from_dict(pair.to_dict(), "here") == pair


@given(pairs)
def test_swapping_moves_the_answers_and_the_label_and_keeps_the_id(pair: PreferencePair) -> None:
    swapped = pair.swapped()
    assert (swapped.id, swapped.answer_a, swapped.answer_b) == (pair.id, pair.answer_b, pair.answer_a)
    assert (swapped.author_a, swapped.author_b) == (pair.author_b, pair.author_a)
    assert (swapped.label == pair.label) == (pair.label == "tie")
    assert swapped.question_key == pair.question_key
    assert swapped.swapped() == pair
    assert pair.in_order("ba") == swapped and pair.in_order("ab") is pair


def test_labels_swap() -> None:
    assert [swap_label(label) for label in ("A", "B", "tie")] == ["B", "A", "tie"]


@pytest.mark.parametrize("same", ["what is  two", " What is\nTWO ", "what is \uff54wo"])
def test_the_key_of_a_question_ignores_case_spacing_and_unicode_form(same: str) -> None:
    assert question_key(same) == question_key("what is two")


def test_different_questions_and_contexts_have_different_keys() -> None:
    earlier = [{"role": "user", "content": "a"}]
    assert len({question_key("a b"), question_key("ab"), question_key("b", earlier), question_key("b")}) == 4


def test_a_key_takes_any_text() -> None:
    assert question_key("\ud800\x00") != question_key("\ud801\x00")


def test_the_group_is_the_judged_question_or_the_prompt() -> None:
    plain = SFTExample(({"role": "user", "content": "Q"},), "yes")
    assert plain.group == question_key("Q") == SFTExample(({"role": "user", "content": " q"},), "no").group
    assert SFTExample(plain.messages, "yes", meta={"question": "k"}).group == "k"
    assert PreferenceExample(plain.messages, "yes", "no", meta={"question": "k"}).group == "k"
    assert PreferenceExample(plain.messages, "yes", "no").group == plain.group


def test_a_judgment_may_lack_verdict_and_margin() -> None:
    judgment = Judgment.from_dict({**JUDGMENT, "verdict": None}, "here")
    assert judgment.verdict is None and judgment.margin is None
    assert Judgment.from_dict(judgment.to_dict(), "here") == judgment


def test_a_completion_of_a_preference_may_be_empty() -> None:
    assert PreferenceExample.from_dict({**EXAMPLE, "rejected": ""}, "here").rejected == ""


ORDERS = "expected 'ab', 'ba', or letters that name the answers as they were shown"
RATING = "expected a rating, such as '7', since one answer was shown"


@pytest.mark.parametrize(
    ("record", "row", "message"),
    [
        (PreferencePair, {**PAIR, "id": None}, "f:1: field 'id': found nothing, expected text"),
        (PreferencePair, {**PAIR, "id": 3}, "f:1: field 'id': found 3, expected text"),
        (
            PreferencePair,
            {**PAIR, "question": " "},
            "f:1: field 'question': found ' ', expected text that is not empty",
        ),
        (PreferencePair, {**PAIR, "label": "C"}, "f:1: field 'label': found 'C', expected one of 'A', 'B', 'tie'"),
        (PreferencePair, {**PAIR, "label": ["A"]}, "f:1: field 'label': found ['A'], expected one of 'A', 'B', 'tie'"),
        (PreferencePair, {**PAIR, "context": "x"}, "f:1: field 'context': found 'x', expected a list of messages"),
        (
            PreferencePair,
            {**PAIR, "context": [{"role": "human", "content": ""}]},
            "f:1: field 'context[0].role': found 'human', expected one of 'system', 'user', 'assistant'",
        ),
        (
            SFTExample,
            {"messages": [{"role": "user", "content": None}], "completion": "x"},
            "f:1: field 'messages[0].content': found nothing, expected text",
        ),
        *(
            (
                record,
                {**EXAMPLE, "completion": "x", "messages": [{"role": "user", "content": "\n"}]},
                "f:1: field 'messages[0].content': found '\\n', expected text that is not empty",
            )
            for record in (SFTExample, PreferenceExample)
        ),
        (
            SFTExample,
            {"messages": [TURN], "completion": ""},
            "f:1: field 'completion': found '', expected text that is not empty",
        ),
        (
            SFTExample,
            {"messages": [TURN], "completion": "x", "meta": [1]},
            "f:1: field 'meta': found [1], expected an object",
        ),
        (
            PreferenceExample,
            {**EXAMPLE, "rejected": "4"},
            "f:1: fields 'chosen' and 'rejected' are equal; expected two different answers",
        ),
        (
            PreferenceExample,
            {**EXAMPLE, "messages": []},
            "f:1: field 'messages': found [], expected a list of messages",
        ),
        (Judgment, {**JUDGMENT, "seed": True}, "f:1: field 'seed': found True, expected a whole number"),
        (Judgment, {**JUDGMENT, "margin": "1"}, "f:1: field 'margin': found '1', expected a number or null"),
        (Judgment, {**JUDGMENT, "order": "aa"}, f"f:1: field 'order': found 'aa', {ORDERS}"),
        (Judgment, {**JUDGMENT, "order": ""}, f"f:1: field 'order': found '', {ORDERS}"),
        (Judgment, {**JUDGMENT, "order": "ac"}, f"f:1: field 'order': found 'ac', {ORDERS}"),
        (Judgment, {**JUDGMENT, "sample": -1}, "f:1: field 'sample': found -1, expected a whole number from 0"),
        (Judgment, {**JUDGMENT, "verdict": "C"}, "f:1: field 'verdict': found 'C', expected one of 'A', 'B', 'tie'"),
        (Judgment, {**JUDGMENT, "order": "c", "verdict": "A"}, f"f:1: field 'verdict': found 'A', {RATING}"),
        (Judgment, {**JUDGMENT, "order": "c", "verdict": "nan"}, f"f:1: field 'verdict': found 'nan', {RATING}"),
    ],
)
def test_an_invalid_row_is_refused_with_its_field(
    record: type[PreferencePair], row: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        record.from_dict(row, "f:1")


def test_an_error_about_a_field_is_one_short_line() -> None:
    message = str(bad_field("f:1", "x", "a\nb\u2028" + "c" * 500, "text"))
    assert len(message.splitlines()) == 1 and len(message) < 150
