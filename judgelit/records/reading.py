"""Read one row, in any known form, as one record."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from judgelit.errors import UserError
from judgelit.records.conversations import read_answer, read_turns
from judgelit.records.forms import COMPARISONS, EXCHANGES, IDS, JUDGED, KEPT, Judged, read_label
from judgelit.records.records import PreferenceExample, PreferencePair, Row, SFTExample, bad_field

R = TypeVar("R", bound=PreferencePair | SFTExample | PreferenceExample)
Found = TypeVar("Found")

_OWN_PREFERENCE = "messages + chosen + rejected"


def read_record(row: Row, at: str, kind: type[R], place: str) -> R:
    """Read a row in any known form as a record.

    Args:
        row: Row of a file.
        at: Its place, for error messages.
        kind: PreferencePair, SFTExample or PreferenceExample.
        place: Its place within its source, from which the id of a pair without one is made.

    Raises:
        UserError: The row has no known form, or is invalid.
    """
    row = {name: value for name, value in row.items() if value is not None}
    if kind is SFTExample:
        return cast(R, _sft_example(row, at))
    if kind is PreferenceExample:
        return cast(R, _preference_example(row, at))
    return cast(R, _pair(row, at, place))


def _sft_example(row: Row, at: str) -> SFTExample:
    if {"messages", "completion"} <= row.keys():
        return SFTExample.from_dict(_own(row, at, "completion"), at)
    found = _first(EXCHANGES, row, at)
    if found is None:
        raise _no_form(row, at, "an SFT example", ("messages + completion", *EXCHANGES))
    example = {"messages": found.prompt, "completion": found.answer, "pair_id": _given_id(row), "meta": _kept(row)}
    return SFTExample.from_dict(example, at)


def _preference_example(row: Row, at: str) -> PreferenceExample:
    found = _preference(row, at)
    if found is None:
        raise _no_form(row, at, "a preference example", (_OWN_PREFERENCE, *COMPARISONS))
    return found


def _preference(row: Row, at: str) -> PreferenceExample | None:
    single = _is_single(row.get("chosen")) and _is_single(row.get("rejected"))
    if single and "messages" in row and "prompt" not in row:
        return PreferenceExample.from_dict(_own(row, at, "chosen", "rejected"), at)
    found = _first(COMPARISONS, row, at)
    if found is None:
        return None
    meta = _kept(row) | ({"pair_id": _given_id(row)} if _given_id(row) else {})
    turns = {"messages": found.prompt, "chosen": found.chosen, "rejected": found.rejected, "meta": meta}
    return PreferenceExample.from_dict(turns, at)


def _pair(row: Row, at: str, place: str) -> PreferencePair:
    """Read a pair. If the row has chosen and rejected, a hash of the id decides which of them is answer A."""
    if _is_own_pair(row):
        context = read_turns(row["context"], "context", at, blank=True) if row.get("context") else ()
        own = {**row, "id": str(row["id"]), "label": read_label(row, "label", at), "context": context}
        return PreferencePair.from_dict(own, at)
    judged = _first(JUDGED, row, at)
    drawn = judged is None
    if judged is None:
        example = _preference(row, at)
        if example is None:
            forms = ("id + question + answer_a + answer_b + label", *JUDGED, _OWN_PREFERENCE, *COMPARISONS)
            raise _no_form(row, at, "a preference pair", forms)
        judged = Judged(example.messages, example.chosen, example.rejected, "A")
    *context, last = judged.prompt
    if last["role"] != "user":
        raise UserError(f"{at}: found a prompt that ends with a turn of the {last['role']}, expected the user's")
    identity = _given_id(row) or _made_id(judged, place)
    answers = {"answer_a": judged.answer_a, "answer_b": judged.answer_b, "label": judged.label}
    pair = {"id": identity, "question": last["content"], "context": context, **answers, **_kept(row)}
    first = PreferencePair.from_dict(pair, at)
    return first.swapped() if drawn and int(_hash(f"side/{identity}"), 16) % 2 else first


def _is_own_pair(row: Row) -> bool:
    """Whether a row has judgelit's form of a pair."""
    if not {"id", "question", "answer_a", "answer_b", "label"} <= row.keys():
        return False
    texts = all(isinstance(row[name], str) for name in ("question", "answer_a", "answer_b"))
    return texts and isinstance(row["id"], str | int) and ("context" in row or "system" not in row)


def _is_single(answer: object) -> bool:
    """Whether an answer is a text, one message or a list of one message."""
    return isinstance(answer, str | Mapping) or (isinstance(answer, Sequence) and len(answer) == 1)


def _own(row: Row, at: str, *answers: str) -> Row:
    """The row in judgelit's form: `messages` as role and content, `answers` as text, `meta` as an object."""
    texts = {name: row[name] if isinstance(row[name], str) else _turn(row[name], name, at) for name in answers}
    return {**_with_meta(row, at), "messages": read_turns(row["messages"], "messages", at), **texts}


def _turn(value: object, name: str, at: str) -> str:
    if isinstance(value, bool | int | float):
        raise bad_field(at, name, value, "text or a single assistant turn")
    return read_answer(value, name, at)


def _first(forms: Mapping[str, Callable[[Row, str], Found | None]], row: Row, at: str) -> Found | None:
    return next((found for form in forms.values() if (found := form(row, at)) is not None), None)


def _kept(row: Row) -> dict[str, Any]:
    kept = {}
    for field, names in KEPT.items():
        text = next((row[name] for name in names if isinstance(row.get(name), str)), None)
        if text is not None:
            kept[field] = text
    return kept


def _given_id(row: Row) -> str:
    values = (row.get(name) for name in IDS)
    return next((str(value) for value in values if isinstance(value, str | int) and str(value).strip()), "")


def _made_id(judged: Judged, place: str) -> str:
    """An id for a row without one. It has a hash of the content, since many folders hold files of one name."""
    content = json.dumps([judged.prompt, judged.answer_a, judged.answer_b])
    return f"{place}#{_hash(content)[:8]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _with_meta(row: Row, at: str) -> Row:
    """The row with `meta` as an object. In Parquet it is JSON text."""
    meta = row.get("meta")
    if not isinstance(meta, str):
        return row
    try:
        return {**row, "meta": json.loads(meta)}
    except ValueError as error:
        raise bad_field(at, "meta", meta, "an object, or one as JSON text") from error


def _no_form(row: Row, at: str, record: str, forms: Sequence[str]) -> UserError:
    fields = ", ".join(map(repr, row)) or "no fields that are not null"
    if record != "a preference pair" and _first(JUDGED, row, at) is not None:
        return UserError(
            f"{at}: found {fields}, a pair for a judge, expected {record}; make training data from pairs with "
            "`judgelit synthesize`"
        )
    return UserError(f"{at}: found {fields}, expected {record} with the fields {'; or '.join(forms)}")
