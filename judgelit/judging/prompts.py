"""Preference pairs to judge prompts: template, order and room, the same way for training, sampling and evaluation."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from judgelit.judging.template import DEFAULT_TEMPLATE, Template, draw_template, load_templates
from judgelit.judging.token_ids import PromptTokenizer
from judgelit.judging.truncation import fit_prompt
from judgelit.records.records import Message, Order, PreferencePair


@dataclass(frozen=True)
class Templates:
    """Which judge prompts are used; each pair draws one, the same in both orders."""

    names: list[str] | None = None
    """Templates by id or pattern (`en-*`); none: the one closest to the paper's inference prompt."""
    folder: str | None = None
    """Folder of templates of your own, beside the shipped ones."""
    seed: int = 0
    """Seed of the draw."""

    def load(self) -> dict[str, Template]:
        """The chosen templates by id."""
        return load_templates(self.names or [DEFAULT_TEMPLATE], self.folder)


@dataclass(frozen=True)
class JudgePrompt:
    """One question to the judge: a pair in one order, under one template.

    `pair` stands as the judge sees it: its label is the right verdict.
    """

    pair: PreferencePair
    order: Order
    template: str
    messages: tuple[Message, ...]

    def meta(self, **more: str) -> dict[str, str]:
        """What travels with an example made of this prompt."""
        pair = self.pair
        return {
            "pair_id": pair.id,
            "question": pair.question_key,
            "template": self.template,
            "order": self.order,
            "verdict": pair.label,
            "category": pair.category,
            "subset": pair.subset,
            **more,
        }


@dataclass(frozen=True)
class PromptReport:
    """What became of pairs on their way to prompts."""

    prompts: int
    shortened: int
    skipped: tuple[str, ...]
    """Ids of the pairs whose question alone leaves no room for their answers."""

    def __str__(self) -> str:
        text = f"{self.prompts} judge prompts"
        if self.shortened:
            text += f", {self.shortened} with shortened answers"
        if self.skipped:
            shown = ", ".join(self.skipped[:3]) + (", ..." if len(self.skipped) > 3 else "")
            text += f", {len(self.skipped)} pairs skipped as too long ({shown})"
        return text


def in_drawn_order(prompts: Sequence[JudgePrompt], seed: int) -> list[JudgePrompt]:
    """Of the two orders of each pair the one that a coin, fixed by seed and id, has drawn."""
    return [prompt for prompt in prompts if prompt.order == drawn_order(prompt.pair.id, seed)]


def drawn_order(pair_id: str, seed: int) -> Order:
    """The order that a coin, fixed by seed and id, has drawn for a pair."""
    return "ab" if random.Random(f"{seed}/order/{pair_id}").random() < 0.5 else "ba"


def judge_prompts(
    pairs: Sequence[PreferencePair],
    templates: Mapping[str, Template],
    tokenizer: PromptTokenizer,
    max_tokens: int,
    *,
    seed: int = 0,
    orders: Sequence[Order] = ("ab", "ba"),
) -> tuple[list[JudgePrompt], PromptReport]:
    """Prompts for all `pairs` in all `orders`, each at most `max_tokens` long.

    A pair keeps its template in both orders, and is skipped in both if it does not fit in one.
    """
    prompts: list[JudgePrompt] = []
    skipped: list[str] = []
    shortened = 0
    for pair in pairs:
        template = draw_template(templates, pair.id, seed)
        fitted = [(order, fit_prompt(pair.in_order(order), template.render, tokenizer, max_tokens)) for order in orders]
        if any(prompt is None for _, prompt in fitted):
            skipped.append(pair.id)
            continue
        for order, prompt in fitted:
            assert prompt is not None
            shortened += prompt.shortened
            prompts.append(JudgePrompt(pair.in_order(order), order, template.id, prompt.messages))
    return prompts, PromptReport(len(prompts), shortened, tuple(skipped))
