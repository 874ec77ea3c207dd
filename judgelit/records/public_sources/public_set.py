"""What a public data set is: where it is published, and how its rows become pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from judgelit.errors import UserError
from judgelit.records.row_fields import Message, Row


class Rated(NamedTuple):
    """Answers to one question, each with its score. Each two answers of different scores are a pair."""

    prompt: Sequence[Message]
    answers: Sequence[tuple[str, float]]
    """Texts and scores. The higher score is better; right and wrong answers have True and False."""
    kept: Mapping[str, str] = {}
    """Category, subset and source of the pairs."""
    id: str = ""
    """Id of the question, or empty."""
    left_out: Mapping[str, int] = {}
    """Number of answers that the row has beside these, by reason."""


class WrongColumnsError(UserError):
    """A row does not have the columns of its public set."""

    def __init__(self, at: str, row: Row, name: str, form: str) -> None:
        found = ", ".join(map(repr, row)) or "none"
        found = found if len(found) <= 300 else f"{found[:297]}..."
        super().__init__(f"{at}: found the columns {found}; source {name} has {form}")


@dataclass(frozen=True)
class PublicSet:
    """A public data set of preferences."""

    name: str
    """Its name on the command line."""
    hub: str
    """Its name on the hub. Empty: it is not published there in this form."""
    licence: str
    size: str
    form: str
    """The columns of its files, in words."""
    columns: tuple[str, ...] = ()
    """Columns that each row has."""
    read: Callable[[Row, str], Row | Rated | str] | None = None
    """What a row is: a row in a form of `records/forms.py`; rated answers; or, as text, which rows give no pair.

    It gets a row and its place for error messages, and raises UserError if the row is invalid. None: the rows have a
    form of `records/forms.py` already.
    """
    grouped: bool = False
    """Rated answers to one question may stand in several rows."""
    config: str | None = None
    """Configuration on the hub."""
    split: str = "train"
    """Split that is read from the hub by default."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Split to file in the hub's repository, for sets that `datasets` cannot load by configuration and split."""
    split_column: str | None = None
    """Column that names the split of a row, if a file holds several splits."""
