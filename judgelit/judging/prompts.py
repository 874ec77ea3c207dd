"""Turn preference pairs into judge prompts, in one way for training, sampling and evaluation."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from judgelit.console import printable
from judgelit.errors import UserError
from judgelit.judging.template import DEFAULT_TEMPLATE, Template, draw_template, load_templates
from judgelit.judging.token_ids import PromptCounter
from judgelit.judging.truncation import fit_prompt
from judgelit.records.records import AnswerSet, Order, PreferencePair
from judgelit.records.row_fields import Message

WORDING = ("language", "role", "criteria", "format")
"""Fields of a template that the examples record."""


@dataclass(frozen=True)
class Templates:
    """Judge templates to use. Each pair draws one of them, the same in both orders."""

    names: list[str] | None = None
    """Ids of templates, or patterns such as `en-*`. Default: `rise`, which is closest to the prompt of RISE-Judge."""
    folder: str | None = None
    """Folder with your own templates, beside the shipped ones; `names` says which to use."""
    seed: int = 0
    """Seed of the draw."""

    def load(self) -> dict[str, Template]:
        """The chosen templates by id.

        Raises:
            UserError: One is wrong or unknown, or none of the folder's is chosen.
        """
        if self.folder is not None and self.names is None:
            raise UserError(
                f"templates.folder: found {self.folder!r} without templates.names, expected the names of those to use; "
                "`--templates.names '[NAME]'` takes ids and patterns such as '*'"
            )
        return load_templates([DEFAULT_TEMPLATE] if self.names is None else self.names, self.folder)


@dataclass(frozen=True)
class JudgePrompt:
    """Prompt for the judge: one pair in one order with one template.

    The answers of `pair` are in the order of the prompt, so its label is the right verdict.
    """

    pair: PreferencePair
    order: Order
    template: str
    messages: tuple[Message, ...]
    wording: Mapping[str, str] = field(default_factory=dict)
    """Language, role, criteria and format of the template that it was asked with."""
    shortened: bool = False
    """Whether an answer was shortened."""

    @property
    def item(self) -> PreferencePair:
        """The pair in the order ab."""
        return self.pair.in_order(self.order)

    def meta(self, **more: Any) -> dict[str, Any]:
        """The `meta` of an example that is made from this prompt. Lengths of the answers are in characters."""
        pair = self.pair
        better, worse = (pair.answer_b, pair.answer_a) if pair.label == "B" else (pair.answer_a, pair.answer_b)
        return {
            "pair_id": pair.id,
            "question": pair.question_key,
            "template": self.template,
            **self.wording,
            "order": self.order,
            "verdict": pair.label,
            "category": pair.category,
            "subset": pair.subset,
            "better_characters": len(better),
            "worse_characters": len(worse),
            **more,
        }


@dataclass(frozen=True)
class AnswersPrompt:
    """Prompt for the judge: some answers of a question, or one of them, in one order with one template."""

    item: AnswerSet
    """The question with its answers, in their own order."""
    order: str
    """The answers as shown: "cadb" shows the third one first; "c" shows the third one alone."""
    template: str
    messages: tuple[Message, ...]


class Asked(Protocol):
    """A judge prompt of any kind, and what it asks about."""

    @property
    def item(self) -> PreferencePair | AnswerSet:
        """What is judged, with its answers in their own order."""
        ...

    @property
    def order(self) -> str:
        """The answers as shown; see `Judgment`."""
        ...

    @property
    def template(self) -> str:
        """The id of the template."""
        ...

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt."""
        ...


@dataclass(frozen=True)
class PromptReport:
    """Report of `judge_prompts`."""

    prompts: int
    """Number of prompts."""
    shortened: int
    """Number of prompts with shortened answers."""
    skipped: tuple[str, ...]
    """Ids of the pairs that do not fit, even with the shortest answers or without making two answers equal."""
    note: str = ""
    """What else the user must know, such as that the templates were not asked with."""

    def __str__(self) -> str:
        text = f"{self.prompts} judge prompts"
        if self.shortened:
            text += f", {self.shortened} with shortened answers"
        if self.skipped:
            shown = ", ".join(map(printable, self.skipped[:3])) + (", ..." if len(self.skipped) > 3 else "")
            text += f", {len(self.skipped)} pairs skipped as too long ({shown})"
        return f"{text}; {self.note}" if self.note else text


def in_drawn_order(prompts: Sequence[JudgePrompt], seed: int) -> list[JudgePrompt]:
    """The prompts in the drawn order of their pair: one of each pair if `prompts` has both orders."""
    return [prompt for prompt in prompts if prompt.order == drawn_order(prompt.pair.id, seed)]


def drawn_order(pair_id: str, seed: int) -> Order:
    """The order of a pair, drawn at random from its id and the seed."""
    return "ab" if random.Random(f"{seed}/order/{pair_id}").random() < 0.5 else "ba"


def judge_prompts(
    pairs: Sequence[PreferencePair],
    templates: Mapping[str, Template],
    tokenizer: PromptCounter,
    max_tokens: int,
    *,
    seed: int = 0,
    orders: Sequence[Order] = ("ab", "ba"),
    reword: Callable[[Template, str], Template] | None = None,
) -> tuple[list[JudgePrompt], PromptReport]:
    """Prompts for all pairs, and a report.

    Args:
        pairs: Pairs to judge.
        templates: Templates by id. Each pair draws one for all orders.
        tokenizer: Counts the tokens of a prompt.
        max_tokens: Longest prompt. Longer ones lose the middle of their answers. A pair is skipped in all orders if
            it does not fit in one of them, or only if its two answers look the same.
        seed: Seed of the draw of templates.
        orders: Orders in which to show the answers of each pair.
        reword: Gives the template to ask with, from the drawn one and the pair's id. Default: the drawn one.

    Raises:
        UserError: A pair has earlier turns and its template has no place for them.
    """

    prompts: list[JudgePrompt] = []
    skipped: list[str] = []
    for pair in pairs:
        template = draw_template(templates, pair.id, seed)
        if reword is not None:
            template = reword(template, pair.id)
        wording = {name: getattr(template, name) for name in WORDING}
        fitted = [
            (order, fit_prompt(pair.in_order(order), template.render, tokenizer.count, max_tokens)) for order in orders
        ]
        if any(prompt is None for _, prompt in fitted):
            skipped.append(pair.id)
            continue
        for order, prompt in fitted:
            assert prompt is not None
            shown = pair.in_order(order)
            prompts.append(JudgePrompt(shown, order, template.id, prompt.messages, wording, prompt.shortened))
    return prompts, PromptReport(len(prompts), sum(prompt.shortened for prompt in prompts), tuple(skipped))
