"""Held-out pairs as a LightningDataModule: what is judged during and after training, and by `judgelit predict`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from judgelit.batches.flat_batch import pad_prompts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.judging.finished import VerdictEnd
from judgelit.judging.prompts import JudgePrompt, PromptReport, Templates, judge_prompts
from judgelit.records.records import PreferencePair
from judgelit.records.sources import Sources, read_pairs


@dataclass(frozen=True)
class JudgeData:
    """Held-out pairs, judged in both orders during and after training."""

    sets: dict[str, Sources]
    """Pairs of each named set."""
    templates: Templates = Templates()  # noqa: RUF009 (frozen, so sharing the default is safe)
    """Judge prompts to ask with."""
    max_new_tokens: int = 1024
    """Longest judgment, in tokens."""
    stop_at_verdict: bool = True
    """End a judgment with the line that says its verdict: what a model writes after it takes time and is not read,
    unless it goes on to another verdict."""
    batch_size: int = 16
    """Judgments generated at once."""
    limit: int | None = None
    """Judge only the first pairs of each set, this many."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise UserError("judge.sets: found no set, expected at least one")
        for name in self.sets:
            if not name or "/" in name or name.startswith("."):
                raise UserError(f"judge.sets: found the name {name!r}, expected one that can stand in a file's name")
        for field in ("max_new_tokens", "batch_size", "limit"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"judge.{field}: found {value}, expected 1 or more")


@dataclass(frozen=True)
class PromptBatch:
    """Judge prompts padded on the left, with all that generation must know."""

    input_ids: Tensor
    attention_mask: Tensor
    prompts: list[JudgePrompt]
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    ends: VerdictEnd | None = None
    """Tells whether a judgment has come to its verdict; None if it may go on."""

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device; Lightning calls this for every batch."""
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


class JudgeDataModule(L.LightningDataModule):
    """Pairs for a judge to judge: all that `judgelit predict` needs, and the held-out side of a training run."""

    def __init__(
        self,
        tokenizer: str,
        judge: JudgeData | None = None,
        max_length: int | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            tokenizer: Hub name, folder or `nano`; the command line takes it from the model.
            judge: Pairs to judge.
            max_length: Longest prompt and completion together, in tokens; the model's context if not given.
            chat_template: A Jinja file in place of the tokenizer's own chat template.
            trust_remote_code: Run Python code that comes with the tokenizer; the command line takes it from the model.
        """
        super().__init__()
        if max_length is not None and max_length < 1:
            raise UserError(f"data.max_length: found {max_length}, expected 1 or more")
        self.tokenizer_name = tokenizer
        self.judge = judge
        self.chat_template = chat_template
        self.trust_remote_code = trust_remote_code
        self._max_length = max_length
        self._tokenizer: ChatTokenizer | None = None

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer, loaded when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = ChatTokenizer.load(self.tokenizer_name, self.chat_template, self.trust_remote_code)
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """Tokens that prompt and completion may take together."""
        context = self.tokenizer.context
        if self._max_length is None:
            return context
        if self._max_length > context:
            raise UserError(f"max_length: found {self._max_length}, expected at most the model's context of {context}")
        return self._max_length

    def judge_sets(
        self,
        read: Callable[[Sources], list[PreferencePair]] = read_pairs,
        make_prompts: Callable[..., tuple[list[JudgePrompt], PromptReport]] = judge_prompts,
    ) -> dict[str, list[JudgePrompt]]:
        """The prompts of every set of pairs, both orders of each pair.

        Args:
            read: Reads the rows of a set as pairs; a benchmark may bring its own function.
            make_prompts: Makes the prompts of pairs, with the arguments of `judge_prompts`.
        """
        if self.judge is None:
            return {}
        room = self.max_length - self.judge.max_new_tokens
        if room < 1:
            raise UserError(
                f"judge.max_new_tokens: found {self.judge.max_new_tokens}, expected less than the {self.max_length} "
                "tokens that prompt and judgment may take together"
            )
        templates = self.judge.templates.load()
        sets = {}
        for name, value in self.judge.sets.items():
            pairs = read(value)[: self.judge.limit]
            prompts, report = make_prompts(pairs, templates, self.tokenizer, room, seed=self.judge.templates.seed)
            rank_zero_info(f"{name}: {report}")
            if not prompts:
                raise UserError(f"{name}: no pair fits the {room} tokens left for a judge prompt")
            sets[name] = prompts
        return sets

    def predict_dataloader(self) -> list[DataLoader]:
        """The judge prompts, a loader a set."""
        if self.judge is None:
            raise UserError("data.judge is not set; expected the pairs to judge")
        self.predict_sets = self.judge_sets()
        ends = VerdictEnd(self.tokenizer) if self.judge.stop_at_verdict else None
        rank, world = place_among_ranks(self.trainer)
        return [
            DataLoader(
                prompts[rank::world],  # type: ignore[arg-type]
                batch_size=self.judge.batch_size,
                collate_fn=partial(
                    _collate_prompts, tokenizer=self.tokenizer, max_new_tokens=self.judge.max_new_tokens, ends=ends
                ),
            )
            for prompts in self.predict_sets.values()
        ]


def _collate_prompts(
    prompts: Sequence[JudgePrompt], tokenizer: ChatTokenizer, max_new_tokens: int, ends: VerdictEnd | None
) -> PromptBatch:
    ids = [tokenizer.prompt_ids(prompt.messages) for prompt in prompts]
    return PromptBatch(
        *pad_prompts(ids, tokenizer.pad_id), list(prompts), max_new_tokens, tokenizer.stop_ids, tokenizer.pad_id, ends
    )


def place_among_ranks(trainer: L.Trainer | None) -> tuple[int, int]:
    return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
