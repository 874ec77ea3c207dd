"""The fields of a row that was read from a file, checked. An error names the place, the field and what was found."""

from collections.abc import Mapping, Sequence
from typing import Any

from judgelit.errors import UserError

Message = dict[str, str]
"""One turn of a conversation: {"role": "system" | "user" | "assistant", "content": text}."""
Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")


def bad_field(at: str, name: str, found: object, expected: str) -> UserError:
    """The error about a field: `file:line: field 'x': found ..., expected ...`."""
    shown = "nothing" if found is None else repr(found)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return UserError(f"{at}: field {name!r}: found {shown}, expected {expected}")


def text_field(row: Row, name: str, at: str, *, default: str | None = None, empty: bool = False) -> str:
    """`row[name]` as text.

    Args:
        row: A row.
        name: Name of the field.
        at: Place of the row, for error messages.
        default: Value of a missing or null field. Without a default the field is required.
        empty: Accept an empty text in a required field.

    Raises:
        UserError: The field is missing, empty or not text.
    """
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad_field(at, name, value, "text")
    if default is None and not empty and not value.strip():
        raise bad_field(at, name, value, "text that is not empty")
    return value


def int_field(row: Row, name: str, at: str) -> int:
    value = row.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise bad_field(at, name, value, "a whole number")
    return value


def label_text(value: object) -> str:
    """A label in lower case, to look it up."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Tables store whole numbers as floats if the column has missing values.
    return str(value).strip().lower()


def dict_field(row: Row, name: str, at: str) -> dict[str, Any]:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise bad_field(at, name, value, "an object")
    return dict(value)


def choice_field(row: Row, name: str, at: str, choices: Sequence[str]) -> Any:
    value = row.get(name)
    if value not in choices:
        raise bad_field(at, name, value, "one of " + ", ".join(repr(choice) for choice in choices))
    return value


def messages_field(row: Row, name: str, at: str, *, empty: bool = False) -> list[Message]:
    """`row[name]` as a list of messages, each with a known role and a text."""
    value = row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or (not value and not empty):
        raise bad_field(at, name, value, "a list of messages")
    messages = []
    for index, turn in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(turn, Mapping):
            raise bad_field(at, where, turn, "a message with 'role' and 'content'")
        if turn.get("role") not in ROLES:
            raise bad_field(at, f"{where}.role", turn.get("role"), "one of " + ", ".join(map(repr, ROLES)))
        if not isinstance(turn.get("content"), str):
            raise bad_field(at, f"{where}.content", turn.get("content"), "text")
        messages.append({"role": turn["role"], "content": turn["content"]})
    return messages


def refuse_equal(first: str, one: str, second: str, other: str, at: str) -> None:
    """Reject two answers, of the fields `first` and `second`, that differ in nothing but space around them."""
    if one.strip() == other.strip():
        raise UserError(f"{at}: fields {first!r} and {second!r} are equal; expected two different answers")


def refuse_blank(name: str, answer: str, at: str) -> None:
    """Reject an answer, of the field `name`, that has no text."""
    if not answer.strip():
        raise bad_field(at, name, answer, "text that is not empty")
