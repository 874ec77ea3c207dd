"""LightningDataModule of pairs to judge: during and after training, and by `judgelit predict`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from judgelit.atomic import check_file_names
from judgelit.batches.flat_batch import pad_prompts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.judging.finished import VerdictEnd
from judgelit.judging.prompts import Asked, PromptReport, Templates, judge_prompts
from judgelit.records.sources import Sources, read_pairs


class SetReader(Protocol):
    """How the questions of a set are read, and how they become judge prompts. A benchmark is one."""

    @property
    def read(self) -> Callable[[Sources, int | None], Sequence[Any]]:
        """Reads the rows of a set: the first ones, that many, or all."""
        ...

    @property
    def prompts(self) -> Callable[..., tuple[Sequence[Any], PromptReport]]:
        """Makes prompts of the kind `Asked` from what was read, with the arguments of `judge_prompts`."""
        ...

    @property
    def stops_at_verdict(self) -> bool:
        """Whether a judgment may end with the line of its verdict."""
        ...


@dataclass(frozen=True)
class JudgeData:
    """Pairs to judge in both orders, during and after training."""

    sets: dict[str, Sources]
    """The pairs of each set, by the set's name."""
    templates: Templates = Templates()  # noqa: RUF009 (frozen, so sharing the default is safe)
    """Templates of the judge prompts."""
    max_new_tokens: int = 1024
    """Most tokens of a judgment."""
    stop_at_verdict: bool = True
    """End a judgment after the line with its verdict. Text after this line costs time and is not read, unless it holds
    another verdict."""
    batch_size: int = 16
    """Judgments to generate at once."""
    limit: int | None = None
    """Judge only this many pairs of each set, the first ones."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise UserError("judge.sets: found no set, expected at least one")
        check_file_names("judge.sets", self.sets)
        for field in ("max_new_tokens", "batch_size", "limit"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"judge.{field}: found {value}, expected 1 or more")


@dataclass(frozen=True)
class JudgeSet:
    """A set to judge."""

    items: Sequence[Any]
    """All that was read: pairs with their answers in their own order, or answer sets."""
    prompts: list[Asked]
    """The prompts about those that fit, in all orders of the answers."""


@dataclass(frozen=True)
class PromptBatch:
    """B judge prompts, padded on the left to T tokens, with the settings of their generation."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64, 0 on padding."""
    prompts: list[Asked]
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    ends: VerdictEnd | None = None
    """Tells whether a judgment has reached its verdict. None: a judgment goes on after it."""

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on another device. Lightning calls this for every batch."""
        return replace(self, input_ids=self.input_ids.to(device), attention_mask=self.attention_mask.to(device))


class JudgeDataModule(L.LightningDataModule):
    """Pairs to judge: all data of `judgelit predict`, and the held-out pairs of a training run."""

    def __init__(
        self,
        tokenizer: str,
        judge: JudgeData | None = None,
        max_length: int | None = None,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        base: str | None = None,
    ) -> None:
        """Store the settings. The pairs are read by `judge_sets`.

        Args:
            tokenizer: Hub name, folder or `nano`. The command line takes it from the adapter or, if that has none, from
                the model.
            judge: Pairs to judge.
            max_length: Most tokens of a prompt with one completion. By default the model's context.
            chat_template: A Jinja file to use in place of the tokenizer's chat template.
            trust_remote_code: Run Python code that comes with the tokenizer. The command line takes it from the model.
            chat_template_kwargs: Defaults of the chat template's variables, such as enable_thinking: false. They become
                part of the exported chat template.
            base: The model whose configuration says how many tokens it can take. By default the one in the tokenizer's
                folder. The command line takes it from the model.
        """
        super().__init__()
        if max_length is not None and max_length < 1:
            raise UserError(f"data.max_length: found {max_length}, expected 1 or more")
        self.tokenizer_name = tokenizer
        self.judge = judge
        self.chat_template = chat_template
        self.trust_remote_code = trust_remote_code
        self.chat_template_kwargs = chat_template_kwargs
        self.base = base
        self.benchmarks: Mapping[str, SetReader] = {}
        """How a set is read and asked, by the set's name; see `judge_sets`."""
        self._max_length = max_length
        self._tokenizer: ChatTokenizer | None = None

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer, loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = ChatTokenizer.load(
                self.tokenizer_name, self.chat_template, self.trust_remote_code, self.chat_template_kwargs, self.base
            )
        return self._tokenizer

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt with one completion."""
        context = self.tokenizer.context
        if self._max_length is None:
            return context
        if self._max_length > context:
            raise UserError(f"max_length: found {self._max_length}, expected at most the model's context of {context}")
        return self._max_length

    def stops_at_verdict(self, name: str) -> bool:
        """Whether a judgment of this set ends with the line of its verdict."""
        of_set = self.benchmarks.get(name)
        return self.judge is not None and self.judge.stop_at_verdict and (of_set is None or of_set.stops_at_verdict)

    def verdict_end(self, name: str) -> VerdictEnd | None:
        """What ends a judgment of this set; None if it goes on after its verdict."""
        return VerdictEnd(self.tokenizer) if self.stops_at_verdict(name) else None

    def judge_sets(self, benchmarks: Mapping[str, SetReader] | None = None) -> dict[str, JudgeSet]:
        """Return every set with its prompts.

        Args:
            benchmarks: How a set is read and asked, by the set's name. Other sets are labelled pairs.
        """
        if self.judge is None:
            return {}
        prompt_tokens = self.max_length - self.judge.max_new_tokens
        if prompt_tokens < 1:
            raise UserError(
                f"judge.max_new_tokens: found {self.judge.max_new_tokens}, expected less than the {self.max_length} "
                "tokens of a prompt with its judgment"
            )
        templates = self.judge.templates.load()
        sets: dict[str, JudgeSet] = {}
        for name, value in self.judge.sets.items():
            of_set = (benchmarks or {}).get(name)
            read, make_prompts = (read_pairs, judge_prompts) if of_set is None else (of_set.read, of_set.prompts)
            items = read(value, self.judge.limit)
            prompts, report = make_prompts(
                items, templates, self.tokenizer, prompt_tokens, seed=self.judge.templates.seed
            )
            rank_zero_info(f"{name}: {report}")
            if not prompts:
                raise UserError(f"{name}: no pair fits the {prompt_tokens} tokens that remain for a judge prompt")
            sets[name] = JudgeSet(items, list(prompts))
        return sets

    def predict_dataloader(self) -> list[DataLoader]:
        """Return one loader of judge prompts for each set."""
        if self.judge is None:
            raise UserError("data.judge is not set; expected the pairs to judge")
        self.predict_sets = {name: of_set.prompts for name, of_set in self.judge_sets(self.benchmarks).items()}
        rank, world_size = rank_and_world_size(self.trainer)
        return [
            DataLoader(
                prompts[rank::world_size],  # type: ignore[arg-type]
                batch_size=self.judge.batch_size,
                collate_fn=partial(
                    _collate_prompts,
                    tokenizer=self.tokenizer,
                    max_new_tokens=self.judge.max_new_tokens,
                    ends=self.verdict_end(name),
                ),
            )
            for name, prompts in self.predict_sets.items()
        ]


def _collate_prompts(
    prompts: Sequence[Asked], tokenizer: ChatTokenizer, max_new_tokens: int, ends: VerdictEnd | None
) -> PromptBatch:
    ids = [tokenizer.prompt_ids(prompt.messages) for prompt in prompts]
    return PromptBatch(
        *pad_prompts(ids, tokenizer.pad_id), list(prompts), max_new_tokens, tokenizer.stop_ids, tokenizer.pad_id, ends
    )


def rank_and_world_size(trainer: L.Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes, each of which takes its share of the batches.

    Lightning would share the batches out once more, so this turns the Trainer's `use_distributed_sampler` off.
    """
    if trainer is None:
        return 0, 1
    trainer._accelerator_connector.use_distributed_sampler = False
    return trainer.global_rank, trainer.world_size
