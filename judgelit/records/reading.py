"""Read one row, in any known form, as one record."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar, cast

from judgelit.errors import UserError
from judgelit.records.conversations import decode_turns
from judgelit.records.files import BrokenRow
from judgelit.records.forms import (
    ANSWERED,
    ASKED,
    AUTHORS,
    COMPARISONS,
    EXCHANGES,
    IDS,
    JUDGED,
    KEPT,
    Judged,
    complete_prompt,
    read_label,
)
from judgelit.records.records import AnswerSet, PreferenceExample, PreferencePair, Prompt, SFTExample
from judgelit.records.row_fields import Message, Row, bad_field, label_text, refuse_blank, refuse_equal
from judgelit.records.unicode import replace_surrogates

R = TypeVar("R", bound=PreferencePair | AnswerSet | Prompt | SFTExample | PreferenceExample)
Found = TypeVar("Found")
LossOn = Literal["last", "all"]

_SKIP_ADVICE = "; skip_invalid of FileSource leaves such rows out"
_REASONING = ("reasoning_content", "thinking", "reasoning")
_BAD = ("false", "0", "bad", "rejected", "undesirable", "negative")
"""What the label of an answer says, in unpaired preferences, if it is a bad one."""


def read_record(row: Row, at: str, kind: type[R], place: str) -> R:
    """Read a row as a record, as `read_records` does; of several examples, the last one."""
    return read_records(row, at, kind, place)[-1]


def read_records(row: Row, at: str, kind: type[R], place: str, loss_on: LossOn = "last") -> list[R]:
    """Read a row in any known form as a record, or for SFT as an example for each answer to train on.

    Args:
        row: Row of a file.
        at: Its place, for error messages.
        kind: PreferencePair, AnswerSet, Prompt, SFTExample or PreferenceExample.
        place: Its place within its source, from which the id of a pair without one is made.
        loss_on: Which answers of a conversation are trained on, if its turns have no weights.

    Raises:
        UserError: The row has no known form, or is invalid.
    """
    if isinstance(row, BrokenRow):
        raise row.error
    filled = {name: decode_turns(value, name, at) for name, value in row.items() if value is not None}
    found: Sequence[SFTExample | PreferenceExample | PreferencePair | AnswerSet | Prompt | None]
    if kind is SFTExample:
        found = _sft_examples(filled, at, loss_on)
    elif kind is PreferenceExample:
        found = [_preference(filled, at)]
    elif kind is AnswerSet:
        found = [_answer_set(filled, at, place)]
    elif kind is Prompt:
        found = [_asked_prompt(filled, at, place)]
    else:
        found = [_pair(filled, at, place)]
    if found[0] is None:
        raise _no_form(filled, [name for name in row if name not in filled], kind, at)
    return cast(list[R], found)


def _sft_examples(row: Row, at: str, loss_on: LossOn) -> Sequence[SFTExample | None]:
    """The examples of a row, one for each answer to train on; [None] if it has no known form.

    The prompt of an answer is all turns before it. So its ids are those that a model sees when it answers there, also
    where the chat template changes earlier turns, as those of thinking models do.
    """
    found = _first(EXCHANGES, row, at)
    if found is None:
        return [None]
    for name in ("label", "kto_tag"):
        if label_text(row.get(name)) in _BAD:
            raise bad_field(at, name, row[name], "an answer to train on; a bad answer is no SFT example")
    for name in _REASONING:
        if isinstance(row.get(name), str) and row[name].strip():
            raise bad_field(at, name, row[name], f"the reasoning as part of the field {found.name!r}")
    prompt = complete_prompt(row, found.prompt, at)
    turns = [*prompt, {"role": "assistant", "content": found.answer}]
    trained = _trained(turns, found.trained, loss_on)
    for number in trained:
        name = found.name if number == len(turns) - 1 else f"turn {number + 1} of {len(turns)}"
        refuse_blank(name, turns[number]["content"], at)
    whole = SFTExample(tuple(prompt), found.answer, _given_id(row), _kept(row) | _meta(row, at))
    if trained == [len(turns) - 1]:
        return [whole]
    # A split into training and validation keeps the answers of a conversation on one side.
    meta = {**whole.meta, "question": whole.group}
    return [SFTExample(tuple(turns[:number]), turns[number]["content"], whole.pair_id, meta) for number in trained]


def _trained(turns: Sequence[Message], weights: Sequence[bool] | None, loss_on: LossOn) -> list[int]:
    """The turns to train on: as their weights say if they have some, otherwise the last answer or all.

    `weights` are those of the last turns: the row's system text may stand before the conversation.
    """
    if weights is not None:
        first = len(turns) - len(weights)
        return [first + number for number, is_trained in enumerate(weights) if is_trained]
    last = len(turns) - 1
    if loss_on == "last":
        return [last]
    asked = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), last)
    return [number for number, turn in enumerate(turns) if turn["role"] == "assistant" and number > asked] or [last]


def _preference(row: Row, at: str) -> PreferenceExample | None:
    found = _first(COMPARISONS, row, at)
    if found is None:
        return None
    refuse_equal(found.names[0], found.chosen, found.names[1], found.rejected, at)
    refuse_blank(found.names[0], found.chosen, at)
    meta = _kept(row) | ({"pair_id": _given_id(row)} if _given_id(row) else {}) | _meta(row, at)
    return PreferenceExample(tuple(complete_prompt(row, found.prompt, at)), found.chosen, found.rejected, meta)


def _pair(row: Row, at: str, place: str) -> PreferencePair | None:
    """Read a pair. If the row has chosen and rejected, a hash of the id decides which of them is answer A."""
    if _is_own_pair(row):
        label, names = read_label(row, "label", at), ("answer_a", "answer_b")
        judged: Judged | None = Judged([_user(row["question"])], row["answer_a"], row["answer_b"], label, names)
    else:
        judged = _first(JUDGED, row, at)
    drawn = judged is None
    if judged is None:
        example = _preference(row, at)
        if example is None:
            return None
        prompt = [*example.messages]
        judged = Judged(prompt, example.chosen, example.rejected, "A", ("chosen", "rejected"))
    else:
        prompt = complete_prompt(row, judged.prompt, at)
    _refuse_senseless(judged, at)
    *context, last = prompt
    if last["role"] != "user":
        raise _not_the_users(last, at)
    identity = _given_id(row) or made_id((judged.answer_a, judged.answer_b), prompt, place)
    answers = {"answer_a": judged.answer_a, "answer_b": judged.answer_b, "label": judged.label}
    pair = {
        "id": identity,
        "question": last["content"],
        "context": context,
        **answers,
        **_kept(row),
        **_kept(row, AUTHORS),
    }
    first = PreferencePair.from_dict(pair, at)
    return on_drawn_side(first) if drawn else first


def on_drawn_side(pair: PreferencePair) -> PreferencePair:
    """The pair or the swapped pair, drawn by a hash of its id: for pairs whose better answer is always A."""
    return pair.swapped() if int(text_hash(f"side/{pair.id}"), 16) % 2 else pair


def _answer_set(row: Row, at: str, place: str) -> AnswerSet | None:
    found = _first(ANSWERED, _with_own_question(row) if "answers" in row else row, at)
    if found is None:
        return None
    prompt = complete_prompt(row, found.prompt, at)
    *context, last = prompt
    if last["role"] != "user":
        raise _not_the_users(last, at)
    identity = _given_id(row) or made_id(found.answers, prompt, place)
    meta = dict(found.meta) | _meta(row, at)
    content = {"id": identity, "question": last["content"], "answers": found.answers, "context": context, "meta": meta}
    return AnswerSet.from_dict({**content, **_kept(row), "right": row.get("right")}, at)


def _asked_prompt(row: Row, at: str, place: str) -> Prompt | None:
    found = _first(ASKED, _with_own_question(row), at)
    if found is None:
        return None
    prompt = complete_prompt(row, found, at)
    *context, last = prompt
    if last["role"] != "user":
        raise _not_the_users(last, at)
    return Prompt(_given_id(row) or made_id((), prompt, place), last["content"], tuple(context))


def _with_own_question(row: Row) -> Row:
    """The row; a question in judgelit's form is read as it is, even if it looks like a dialogue of a public form."""
    own = all(isinstance(row.get(name), str) for name in ("id", "question"))
    return {**row, "question": [_user(row["question"])]} if own else row


def _not_the_users(last: Message, at: str) -> UserError:
    return UserError(f"{at}: found a prompt that ends with a turn of the {last['role']}, expected the user's")


def _refuse_senseless(judged: Judged, at: str) -> None:
    """Reject a pair that a judge cannot compare: a blank answer, or two equal ones."""
    try:
        for name, answer in zip(judged.names, (judged.answer_a, judged.answer_b), strict=True):
            refuse_blank(name, answer, at)
        refuse_equal(judged.names[0], judged.answer_a, judged.names[1], judged.answer_b, at)
    except UserError as error:
        raise UserError(f"{error}{_SKIP_ADVICE}") from error


def without_skip_advice(error: UserError) -> str:
    """The message of an invalid row, for rows that are left out already."""
    return str(error).removesuffix(_SKIP_ADVICE)


def _is_own_pair(row: Row) -> bool:
    """Whether a row has judgelit's form of a pair."""
    if not {"id", "question", "answer_a", "answer_b", "label"} <= row.keys():
        return False
    texts = all(isinstance(row[name], str) for name in ("question", "answer_a", "answer_b"))
    return texts and isinstance(row["id"], str | int)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _first(forms: Mapping[str, Callable[[Row, str], Found | None]], row: Row, at: str) -> Found | None:
    return next((found for form in forms.values() if (found := form(row, at)) is not None), None)


def _kept(row: Row, fields: Mapping[str, Sequence[str]] = KEPT) -> dict[str, Any]:
    kept = {}
    for field, names in fields.items():
        text = next((row[name] for name in names if isinstance(row.get(name), str)), None)
        if text is not None:
            kept[field] = text
    return kept


def _given_id(row: Row) -> str:
    values = (row.get(name) for name in IDS)
    return next((str(value) for value in values if isinstance(value, str | int) and str(value).strip()), "")


def made_id(answers: Sequence[str], prompt: Sequence[Message], place: str) -> str:
    """An id for a row without one. It has a hash of the content, since many folders hold files of one name."""
    content = json.dumps([prompt, *answers])
    # The name of a file may be no UTF-8.
    return f"{replace_surrogates(place)}#{text_hash(content)[:8]}"


def text_hash(text: str) -> str:
    """A hash of a text, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _meta(row: Row, at: str) -> dict[str, Any]:
    """The field `meta`, which is an object. In Parquet it is JSON text."""
    meta = row.get("meta")
    if isinstance(meta, str):
        with suppress(ValueError, RecursionError):
            meta = json.loads(meta)
    found = dict(meta) if isinstance(meta, Mapping) else {} if meta is None else {"meta": meta}
    try:
        json.dumps(found)
    except TypeError as error:
        raise bad_field(at, "meta", meta, f"values that JSON can hold ({error})") from error
    return found


_FORMS: dict[type, tuple[str, Sequence[str]]] = {
    SFTExample: ("an SFT example", tuple(EXCHANGES)),
    PreferenceExample: ("a preference example", tuple(COMPARISONS)),
    Prompt: ("a prompt", tuple(ASKED)),
    AnswerSet: ("a question with a list of answers", tuple(ANSWERED)),
    PreferencePair: ("a preference pair", ("id + question + answer_a + answer_b + label", *JUDGED, *COMPARISONS)),
}


def _no_form(row: Row, empty: Sequence[str], kind: type, at: str) -> UserError:
    """The error for a row of no known form; `empty` are its fields that are null."""
    record, forms = _FORMS[kind]
    fields = ", ".join(map(repr, row)) or "no fields that are not null"
    if row and empty:
        fields += f", and null in {', '.join(map(repr, empty))}"
    if kind not in (PreferencePair, AnswerSet, Prompt) and _first(JUDGED, row, at) is not None:
        return UserError(
            f"{at}: found {fields}, a pair for a judge, expected {record}; make training data from pairs with "
            "`judgelit synthesize`"
        )
    return UserError(f"{at}: found {fields}, expected {record} with the fields {'; or '.join(forms)}")
