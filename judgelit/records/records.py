"""Pairs, answer sets, judgments and examples: one frozen dataclass for each kind, validated by its `from_dict`."""

import hashlib
import math
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from judgelit.records.row_fields import (
    Message,
    Row,
    bad_field,
    choice_field,
    dict_field,
    int_field,
    messages_field,
    refuse_blank,
    refuse_equal,
    text_field,
)

Label = Literal["A", "B", "tie"]
Order = Literal["ab", "ba"]
Finish = Literal["stop", "verdict", "length"]
"""How a generated text ended: by the model, with the line of its verdict, or at the limit of tokens."""

UNKNOWN = "unknown"
"""The engine or the template of a judgment that was made elsewhere, where its file names none."""
ANSWER_LETTERS = string.ascii_lowercase + string.ascii_uppercase
"""Names of the answers of a question in the order of a judgment: the first one is a."""
_SWAPPED: dict[Label, Label] = {"A": "B", "B": "A", "tie": "tie"}


def swap_label(label: Label) -> Label:
    """The label of a pair after its answers are swapped."""
    return _SWAPPED[label]


def question_key(question: str, context: Sequence[Message] = ()) -> str:
    """A hash of a question and its context that ignores case, spacing and Unicode form.

    Splits use it, so that no question is in both the training and the held-out part.
    """
    turns = [turn["content"] for turn in context] + [question]
    folded = "\x1f".join(" ".join(unicodedata.normalize("NFKC", turn).casefold().split()) for turn in turns)
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class PreferencePair:
    """A question, two answers and a label that says which is better.

    `context` is the system text and the earlier turns, if any, oldest first. `author_a` and `author_b` name the models
    that wrote the answers, if they are known; no judge sees them.
    """

    id: str
    question: str
    answer_a: str
    answer_b: str
    label: Label
    category: str = ""
    subset: str = ""
    source: str = ""
    context: tuple[Message, ...] = ()
    author_a: str = ""
    author_b: str = ""

    @property
    def question_key(self) -> str:
        return question_key(self.question, self.context)

    def swapped(self) -> Self:
        """The pair with its answers, their authors and its label swapped. The id stays the same."""
        return replace(
            self,
            answer_a=self.answer_b,
            answer_b=self.answer_a,
            author_a=self.author_b,
            author_b=self.author_a,
            label=swap_label(self.label),
        )

    def in_order(self, order: Order) -> Self:
        return self if order == "ab" else self.swapped()

    @classmethod
    def from_dict(cls, row: Row, at: str) -> Self:
        return cls(
            id=text_field(row, "id", at),
            question=text_field(row, "question", at),
            answer_a=text_field(row, "answer_a", at, empty=True),
            answer_b=text_field(row, "answer_b", at, empty=True),
            label=choice_field(row, "label", at, get_args(Label)),
            category=text_field(row, "category", at, default=""),
            subset=text_field(row, "subset", at, default=""),
            source=text_field(row, "source", at, default=""),
            context=tuple(messages_field(row, "context", at, empty=True) if row.get("context") else ()),
            author_a=text_field(row, "author_a", at, default=""),
            author_b=text_field(row, "author_b", at, default=""),
        )

    def to_dict(self) -> dict[str, Any]:
        known = {name: value for name, value in asdict(self).items() if value or not name.startswith("author_")}
        return {**known, "context": list(self.context)}


@dataclass(frozen=True)
class Prompt:
    """A question without an answer, which a policy is to answer.

    `context` is the system text and the earlier turns, if any, oldest first.
    """

    id: str
    question: str
    context: tuple[Message, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, which ends with the user's turn."""
        return (*self.context, {"role": "user", "content": self.question})

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "context": list(self.context)}


@dataclass(frozen=True)
class AnswerSet:
    """A question and any number of answers to it, such as samples of a policy or the answers of a ranking.

    `context` is the system text and the earlier turns, if any, oldest first. `right` has the indices of the right
    answers, if they are known. `meta` keeps what else is known, such as `scores` or `ranks`, one value an answer.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    context: tuple[Message, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    right: tuple[int, ...] = ()
    category: str = ""
    subset: str = ""
    source: str = ""

    @property
    def question_key(self) -> str:
        return question_key(self.question, self.context)

    @classmethod
    def from_dict(cls, row: Row, at: str) -> Self:
        answers = row.get("answers")
        if not isinstance(answers, Sequence) or isinstance(answers, str) or not answers:
            raise bad_field(at, "answers", answers, "a list of texts, one or more")
        for index, answer in enumerate(answers):
            if not isinstance(answer, str):
                raise bad_field(at, f"answers[{index}]", answer, "text")
        right = row.get("right") or []
        if not isinstance(right, Sequence) or not all(type(at) is int and 0 <= at < len(answers) for at in right):
            raise bad_field(at, "right", right, f"a list of whole numbers from 0 to {len(answers) - 1}")
        return cls(
            id=text_field(row, "id", at),
            question=text_field(row, "question", at),
            answers=tuple(answers),
            context=tuple(messages_field(row, "context", at, empty=True) if row.get("context") else ()),
            meta=dict_field(row, "meta", at),
            right=tuple(right),
            category=text_field(row, "category", at, default=""),
            subset=text_field(row, "subset", at, default=""),
            source=text_field(row, "source", at, default=""),
        )

    def to_dict(self) -> dict[str, Any]:
        lists = {"answers": list(self.answers), "context": list(self.context), "right": list(self.right)}
        return {**asdict(self), **lists}


@dataclass(frozen=True)
class Judgment:
    """Text of a judge about one pair in one order, and its verdict.

    `order` names the answers as the prompt shows them, and `verdict` is about the prompt: in order "ba" the verdict "A"
    means that the pair's `answer_b` is better. About N answers, the order "cadb" shows the third one first, and the
    verdict is a letter up to the N-th or "tie". About a single answer, such as "c" (after "z" comes "A"), it is a
    rating, such as "7". `margin` is log p([[A]]) - log p([[B]]), or None if the engine does not know it. `finish` says
    how the text ended, if known. `sample` numbers the texts that were sampled for one prompt, from 0.
    """

    pair_id: str
    prompt: tuple[Message, ...]
    text: str
    verdict: str | None
    order: str
    template: str
    engine: str
    seed: int
    margin: float | None = None
    finish: Finish | None = None
    sample: int = 0

    @classmethod
    def from_dict(cls, row: Row, at: str) -> Self:
        order = _order_field(row, at)
        margin = row.get("margin")
        if margin is not None and not isinstance(margin, int | float):
            raise bad_field(at, "margin", margin, "a number or null")
        return cls(
            pair_id=text_field(row, "pair_id", at),
            prompt=tuple(messages_field(row, "prompt", at)),
            text=text_field(row, "text", at, empty=True),
            verdict=_verdict_field(row, len(order), at),
            order=order,
            template=text_field(row, "template", at),
            engine=text_field(row, "engine", at),
            seed=int_field(row, "seed", at),
            margin=margin,
            finish=None if row.get("finish") is None else choice_field(row, "finish", at, get_args(Finish)),
            sample=_sample_field(row, at),
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "prompt": list(self.prompt)}


@dataclass(frozen=True)
class SFTExample:
    """A prompt and its completion.

    Files hold both as messages, `prompt` and `completion`, as TRL's trainers expect. `from_dict` also reads `messages`
    in place of `prompt`, and a completion that is a text.
    """

    messages: tuple[Message, ...]
    completion: str
    pair_id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Key of the examples that a split keeps together: the judged question if known, or the prompt."""
        return str(self.meta.get("question") or _prompt_key(self.messages))

    @classmethod
    def from_dict(cls, row: Row, at: str) -> Self:
        return cls(
            messages=tuple(_prompt_field(row, at)),
            completion=_completion_field(row, "completion", at),
            pair_id=text_field(row, "pair_id", at, default=""),
            meta=dict_field(row, "meta", at),
        )

    def to_dict(self) -> dict[str, Any]:
        completion = _completion(self.completion)
        return {"prompt": _copied(self.messages), "completion": completion, "pair_id": self.pair_id, "meta": self.meta}


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt and two completions, the better one first. The worse one may be empty, as in HH-RLHF.

    Files hold all three as messages, `prompt`, `chosen` and `rejected`, as TRL's trainers expect. `from_dict` also
    reads `messages` in place of `prompt`, and completions that are texts.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """Key of the examples that a split keeps together: the judged question if known, or the prompt."""
        return str(self.meta.get("question") or _prompt_key(self.messages))

    @classmethod
    def from_dict(cls, row: Row, at: str) -> Self:
        chosen = _completion_field(row, "chosen", at)
        rejected = _completion_field(row, "rejected", at, empty=True)
        refuse_equal("chosen", chosen, "rejected", rejected, at)
        return cls(
            messages=tuple(_prompt_field(row, at)),
            chosen=chosen,
            rejected=rejected,
            meta=dict_field(row, "meta", at),
        )

    def to_dict(self) -> dict[str, Any]:
        chosen, rejected = _completion(self.chosen), _completion(self.rejected)
        return {"prompt": _copied(self.messages), "chosen": chosen, "rejected": rejected, "meta": self.meta}


Record = PreferencePair | AnswerSet | Prompt | Judgment | SFTExample | PreferenceExample


def _order_field(row: Row, at: str) -> str:
    """The order of a judgment: distinct letters of ANSWER_LETTERS, the first ones, or one of them."""
    order: Any = row.get("order")
    is_text = isinstance(order, str) and order != ""
    if not is_text or not (
        order in ANSWER_LETTERS if len(order) == 1 else sorted(order) == sorted(ANSWER_LETTERS[: len(order)])
    ):
        raise bad_field(at, "order", order, "'ab', 'ba', or letters that name the answers as they were shown")
    return order


def _sample_field(row: Row, at: str) -> int:
    sample = 0 if row.get("sample") is None else int_field(row, "sample", at)
    if sample < 0:
        raise bad_field(at, "sample", sample, "a whole number from 0")
    return sample


def _verdict_field(row: Row, answers: int, at: str) -> str | None:
    """The verdict of a judgment that shows this many answers."""
    if row.get("verdict") is None:
        return None
    if answers > 1:
        choices = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:answers], "tie"]
        return str(choice_field(row, "verdict", at, choices))
    rating = row["verdict"]
    try:
        finite = isinstance(rating, str) and math.isfinite(float(rating))
    except ValueError:
        finite = False
    if not finite:
        raise bad_field(at, "verdict", rating, "a rating, such as '7', since one answer was shown")
    return str(rating)


def _prompt_field(row: Row, at: str) -> list[Message]:
    """`row["prompt"]`, or `row["messages"]`, as a prompt without empty user turns."""
    name = "messages" if row.get("prompt") is None and "messages" in row else "prompt"
    messages = messages_field(row, name, at)
    for index, turn in enumerate(messages):
        if turn["role"] == "user" and not turn["content"].strip():
            raise bad_field(at, f"{name}[{index}].content", turn["content"], "text that is not empty")
    return messages


def _completion_field(row: Row, name: str, at: str, *, empty: bool = False) -> str:
    """`row[name]`, a text or a list of one assistant turn, as text."""
    value = row.get(name)
    if not isinstance(value, str):
        turns = [] if value is None else messages_field(row, name, at)
        if [turn["role"] for turn in turns] != ["assistant"]:
            raise bad_field(at, name, value, "text or a single assistant turn")
        value = turns[0]["content"]
    if not empty:
        refuse_blank(name, value, at)
    return value


def _completion(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _copied(turns: Sequence[Message]) -> list[Message]:
    return [dict(turn) for turn in turns]


def _prompt_key(messages: Sequence[Message]) -> str:
    return question_key(messages[-1]["content"], messages[:-1])
