"""LightningDataModules of training: examples in, batches of token ids out.

They work with any Trainer:

    data = SFTDataModule(tokenizer="nano", train="examples.jsonl", val_fraction=0.1)
    L.Trainer(max_epochs=1).fit(model, data)
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from judgelit.batches.flat_batch import (
    Batch,
    flatten_completions,
    flatten_preferences,
)
from judgelit.batches.judge_datamodule import JudgeData, JudgeDataModule, rank_and_world_size
from judgelit.batches.sampler import BatchSampler, ResumableBatchSampler, visits
from judgelit.batches.token_store import Example, Row, TokenRows, TokenStore, open_store
from judgelit.errors import UserError
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.sources import Source, Sources, as_sources

_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The parts of the data that each trainer function needs."""

_Sampler = TypeVar("_Sampler", bound=BatchSampler)


class _Opened(NamedTuple):
    """A source, the setting of `data` that names it, and its store."""

    setting: str
    source: Source
    store: TokenStore

    @property
    def tag(self) -> str:
        return self.source.tag or ("general" if self.setting == "general" else "")


class TrainingDataModule(JudgeDataModule, ABC):
    """Examples to train on. A subclass sets their kind and how they become batches."""

    kind: ClassVar[type[Example]]
    prepare_rows: Callable[[str, TokenRows], None] | None = None
    """Hook, called with the name of a part of the data and its rows before they are first loaded."""

    @staticmethod
    @abstractmethod
    def collate(rows: Any, tags: tuple[str, ...]) -> Batch:
        """Return rows as a batch; `tags` are those of all rows of the data set."""

    def __init__(
        self,
        tokenizer: str,
        train: Sources,
        val: Sources | None = None,
        val_fraction: float = 0.0,
        test: Sources | None = None,
        batch_size: int = 8,
        tokens_per_batch: int | None = None,
        group_by_length: bool = True,
        judge: JudgeData | None = None,
        max_length: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
        cache: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        base: str | None = None,
        general: Sources | None = None,
    ) -> None:
        """Store the settings. The data are read by `prepare_data` and `setup`.

        Args:
            tokenizer: Hub name, folder or `nano`. The command line takes it from the adapter or, if that has none, from
                the model.
            train: Examples to train on.
            val: Examples to validate on. If not given, `val_fraction` of `train`.
            val_fraction: Share of the questions of `train` to hold out for validation. Both orders of a question are
                held out together.
            test: Examples on which `judgelit test` computes the loss.
            batch_size: Examples of a micro-batch on one device. Examples of one prompt are in one batch if they fit.
            tokens_per_batch: Tokens of a micro-batch, in place of `batch_size`. A prompt counts once for all its
                examples. An example that is longer is a batch by itself.
            group_by_length: Put examples of similar length into one micro-batch, for less padding. If the length of a
                judgment depends on its kind, a batch then holds one kind, and random batches may train better.
            judge: Pairs to judge during and after training.
            max_length: Most tokens of a prompt with one completion. By default the model's context.
            seed: Seed of the batches and of the split.
            num_workers: Processes that prepare batches.
            chat_template: A Jinja file to use in place of the tokenizer's chat template.
            trust_remote_code: Run Python code that comes with the tokenizer. The command line takes it from the model.
            cache: Folder of tokenised examples. They are reused while data, tokenizer and chat template stay the same.
                By default a folder in the Hugging Face datasets cache.
            chat_template_kwargs: Defaults of the chat template's variables, such as enable_thinking: false. They become
                part of the exported chat template.
            base: The model whose configuration says how many tokens it can take. By default the one in the tokenizer's
                folder. The command line takes it from the model.
            general: SFT examples to mix with `train`, which keep general ability. In DPO the negative log-likelihood of
                their completions is part of the loss. Their loss is logged apart, as loss/general unless a source has
                another tag. `val_fraction` holds out a share of them too.
        """
        super().__init__(tokenizer, judge, max_length, chat_template, trust_remote_code, chat_template_kwargs, base)
        if batch_size is None or batch_size < 1:  # a configuration may say null
            raise UserError(f"data.batch_size: found {batch_size}, expected 1 or more")
        if tokens_per_batch is not None and tokens_per_batch < 1:
            raise UserError(f"data.tokens_per_batch: found {tokens_per_batch}, expected 1 or more")
        if num_workers < 0:
            raise UserError(f"data.num_workers: found {num_workers}, expected 0 or more")
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction: found {val_fraction}, expected 0 <= val_fraction < 1")
        if val is not None and val_fraction:
            raise UserError("data.val and data.val_fraction are both set; expected one of them")
        self.train, self.val, self.test, self.general = train, val, test, general
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.group_by_length = group_by_length
        self.seed = seed
        self.num_workers = num_workers
        self.cache = cache
        self._stores: dict[str, list[_Opened]] = {}
        self._rows: dict[str, TokenRows] = {}
        self._shares: list[tuple[int, float]] = []
        self._prepared: dict[str, Callable[[str, TokenRows], None]] = {}
        self._resume = (0, 0)

    @property
    def cache_folder(self) -> Path:
        """The folder of tokenised examples."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        # The same as in `datasets.config`, which is slow to import.
        home = os.environ.get("HF_HOME", os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface")
        return Path(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets"), "judgelit").expanduser()

    def rows(self, part: str) -> TokenRows:
        """Return the examples of `train`, `val` or `test` after `setup`."""
        return self._rows[part]

    def prepare_data(self) -> None:
        """Tokenise the data that the trainer function needs, once a node, unless a store exists."""
        function = None if self.trainer is None else self.trainer.state.fn
        for part in ("train", "val", "test") if function is None else _PARTS.get(function, ()):
            self._open(part)

    def setup(self, stage: str) -> None:
        """Select the rows that the trainer function needs."""
        for part in _PARTS.get(stage, ()):
            if part not in self._rows:
                self._rows[part] = self._select_train() if part == "train" else self._select_held_out(part)
        if stage == "validate" and not self._rows["val"]:
            raise UserError("nothing to validate on; set data.val or data.val_fraction")
        if stage == "test" and not self._rows["test"]:
            raise UserError("nothing to test on; set data.test")

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; after resuming, from the checkpoint's place."""
        # The few batches of `overfit_batches` must be the same in every epoch.
        shuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        batches = self._batch_sampler("train", ResumableBatchSampler, shuffle=shuffle, shares=self._shares)
        batches.place = self._place_in_run
        # Loader processes ask for the first batches before the trainer sets the epoch.
        batches.resume(*self._resume)
        return self._loader("train", batches)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation examples in their own order."""
        return self._loader("val", self._batch_sampler("val", BatchSampler, shuffle=False)) if self._rows["val"] else []

    def test_dataloader(self) -> DataLoader:
        """The test examples in their own order."""
        return self._loader("test", self._batch_sampler("test", BatchSampler, shuffle=False))

    def state_dict(self) -> dict[str, Any]:
        """Return the run's place, its epoch and the batches of it that are done, and what gives the batches."""
        epoch, batches = self._place_in_run()
        return {"epoch": epoch, "batches": batches, "made_from": self._made_from if "train" in self._rows else {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the place of a checkpoint.

        Raises:
            UserError: The batches are not those of the checkpoint's run, so its place means nothing here.
        """
        saved = state_dict.get("made_from")
        if saved and "train" in self._rows:
            now = self._made_from
            for name in dict.fromkeys([*saved, *now]):
                if saved.get(name) != now.get(name):
                    raise UserError(
                        f"data.{name}: found {now.get(name)}, expected {saved.get(name)}, with which the run of the "
                        "checkpoint was begun; give that value, or start a new run in another folder"
                    )
        self._resume = (state_dict["epoch"], state_dict["batches"])
        # Lightning looks for a state in the loader and does not know of this one.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    @property
    def _made_from(self) -> dict[str, Any]:
        """All that decides which batches an epoch has, by name. The rows come last, as a hash of their ids."""
        rows, weights = self._rows["train"], ", ".join(str(weight) for _, weight in self._shares)
        return {
            "tokens_per_batch": self.tokens_per_batch,
            "batch_size": self.batch_size if self.tokens_per_batch is None else None,
            **{name: getattr(self, name) for name in ("group_by_length", "max_length", "seed", "val_fraction")},
            "train": f"{len(rows)} examples with hash {rows.fingerprint[:16]} and weight {weights}",
        }

    def _place_in_run(self) -> tuple[int, int]:
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        processed: int = loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return divmod(processed, int(loop.max_batches))

    def _open(self, part: str) -> list[_Opened]:
        """Open the stores of a part; those of `train` if validation examples are held out of it."""
        if part == "val" and self.val is None:
            return self._open("train") if self.val_fraction else []
        if part not in self._stores:
            self._stores[part] = [
                _Opened(setting, source, open_store(source, kind, self.tokenizer, self.cache_folder, setting))
                for setting, source, kind in self._sources(part)
            ]
        return self._stores[part]

    def _sources(self, part: str) -> list[tuple[str, Source, type[Example]]]:
        """The sources of a part, each with the setting that names it and the kind of its examples."""
        sources = as_sources({"train": self.train, "val": self.val, "test": self.test}[part] or [])
        general = as_sources(self.general or []) if part == "train" else []
        # Those of `train` come first: in DPO their numbers are those of the reference's values.
        return [
            *((part, source, self.kind) for source in sources),
            *(("general", source, SFTExample) for source in general),
        ]

    def _select_train(self) -> TokenRows:
        """Select the rows of `train` that are neither held out nor too long."""
        selected, tags, self._shares = [], [], []
        for opened in self._open("train"):
            numbers = np.flatnonzero(~opened.store.held_out(self.val_fraction, self.seed))
            kept = self._drop_too_long(opened.setting, [(opened.store, numbers)])
            selected += kept
            tags.append(opened.tag)
            self._shares.append((len(kept[0][1]), opened.source.weight))
        settings = [opened.setting for opened in self._open("train")]
        for setting in dict.fromkeys(["train", *settings]):
            shares = [share for share, name in zip(self._shares, settings, strict=True) if name == setting]
            count = sum(rows for rows, _ in shares)
            if not count:
                raise UserError(f"data.{setting}: found no example to train on, expected at least one")
            if not any(visits(*share) for share in shares):
                raise UserError(
                    f"data.{setting}: found {count} examples of weight {shares[0][1]}, of which an epoch visits none; "
                    "expected a larger weight"
                )
        return TokenRows(selected, tags)

    def _select_held_out(self, part: str) -> TokenRows:
        """Select the rows of `val` or `test` that are not too long."""
        stores, tags = ([getattr(one, name) for one in self._open(part)] for name in ("store", "tag"))
        if part == "val" and self.val is None:
            held_out = [(store, np.flatnonzero(store.held_out(self.val_fraction, self.seed))) for store in stores]
            # What is held out of several sources is one set of examples: it may be empty for one of them.
            return TokenRows(self._drop_too_long(part, held_out), tags)
        everything = [(store, np.arange(len(store))) for store in stores]
        return TokenRows([kept for one in everything for kept in self._drop_too_long(part, [one])], tags)

    def _drop_too_long(
        self, part: str, rows: list[tuple[TokenStore, np.ndarray]]
    ) -> list[tuple[TokenStore, np.ndarray]]:
        """Drop the rows that are longer than `max_length`, and log how many there are."""
        if not rows:
            return []
        lengths = [store.lengths[numbers] for store, numbers in rows]
        fits = [some <= self.max_length for some in lengths]
        found, kept = sum(map(len, lengths)), sum(int(some.sum()) for some in fits)
        if found and not kept:
            every, context = np.concatenate(lengths), self.tokenizer.context
            advice = "shorten them, or take a model with a longer context"
            if self.max_length < context:
                advice = f"raise it: the model takes {context}"
            raise UserError(
                f"data.max_length: found {self.max_length}{'' if self._max_length else ' (the context of the model)'}, "
                f"expected more: all {found} examples of data.{part} are longer, of {every.min()} to {every.max()} "
                f"tokens; {advice}"
            )
        tokens = sum(int(some[fit].sum()) for some, fit in zip(lengths, fits, strict=True))
        skipped = f", {found - kept} skipped as longer than {self.max_length} tokens" if found > kept else ""
        rank_zero_info(f"{part}: {kept} examples, {tokens} tokens{skipped}")
        return [(store, numbers[fit]) for (store, numbers), fit in zip(rows, fits, strict=True)]

    def _batch_sampler(self, part: str, sampler: type[_Sampler], **settings: Any) -> _Sampler:
        rows = self._rows[part]
        rank, world_size = rank_and_world_size(self.trainer)
        return sampler(
            rows.lengths,
            self.batch_size,
            tokens_per_batch=self.tokens_per_batch,
            prompts=rows.prompts,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            group_by_length=self.group_by_length,
            **settings,
        )

    def _loader(self, part: str, batches: BatchSampler) -> DataLoader:
        rows = self._rows[part]
        if self.prepare_rows is not None and self._prepared.get(part) != self.prepare_rows:
            self.prepare_rows(part, rows)
            self._prepared[part] = self.prepare_rows
        return DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=partial(_collate_or_placeholder, self.collate, rows),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def _collate_or_placeholder(
    collate: Callable[[Any, tuple[str, ...]], Batch], rows: TokenRows, chosen: Sequence[Row]
) -> Batch:
    """Return chosen rows as a batch; a placeholder if there are none.

    A placeholder names no examples and counts nothing. It holds a row only so that the rank takes part in each forward
    and backward pass, as a sharded model requires.
    """
    return collate(chosen, rows.tags) if chosen else replace(collate([rows[0]], rows.tags), ids=(), tokens=0)


class SFTDataModule(TrainingDataModule):
    """Prompts with one completion, in judgelit's own, TRL's, ShareGPT's or Alpaca's form."""

    kind = SFTExample
    collate = staticmethod(flatten_completions)


class DPODataModule(TrainingDataModule):
    """Prompts with a chosen and a rejected completion, in judgelit's own, TRL's or ShareGPT's form.

    General examples, with one completion, may be mixed in.
    """

    kind = PreferenceExample
    collate = staticmethod(flatten_preferences)
