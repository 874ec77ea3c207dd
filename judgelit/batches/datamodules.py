"""LightningDataModules: sources of records in, batches of ids out."""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from judgelit.batches.encoding import Example, example_id, example_ids
from judgelit.batches.flat_batch import (
    Batch,
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.batches.judge_datamodule import JudgeData, JudgeDataModule, place_among_ranks
from judgelit.batches.sampler import BatchSampler, ResumableBatchSampler, visits
from judgelit.batches.token_cache import open_store
from judgelit.batches.token_store import Row, TokenRows, TokenStore
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.records.sources import Source, Sources, as_sources, group_score, held_out_rows

_PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
"""The parts of the data that a command needs."""


B = TypeVar("B", bound=BatchSampler)


class TrainingDataModule(JudgeDataModule, ABC):
    """Examples to train on; a subclass says of which kind, and how they become batches."""

    kind: ClassVar[type[Example]]
    row: ClassVar[type[Row]]
    prepare_rows: Callable[[str, TokenRows], None] | None = None
    """Called with the name of a part of the data and its rows, before they are first loaded."""

    @staticmethod
    @abstractmethod
    def collate(rows: Any) -> Batch:
        """Rows as a batch."""

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
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            tokenizer: Hub name, folder or `nano`; the command line takes it from the model.
            train: What to train on.
            val: What to validate on; none: `val_fraction` of `train`.
            val_fraction: Share of the questions of `train` that is held out for validation, both orders together.
            test: What `judgelit test` computes the loss on.
            batch_size: Examples of a micro-batch on one device. Those of one prompt come together where they fit.
            tokens_per_batch: Tokens of a micro-batch, in place of `batch_size`: as many examples as fit, a prompt that
                several share counted once; a longer example comes by itself.
            group_by_length: Put examples of similar length into one micro-batch, for less padding. Where length tells
                kinds of judgment apart, batches then hold one kind; random ones may train better.
            judge: Pairs to judge during and after training.
            max_length: Longest prompt and completion together, in tokens; the model's context if not given.
            seed: Seed of the order of examples and of the split.
            num_workers: Processes that prepare batches.
            chat_template: A Jinja file in place of the tokenizer's own chat template.
            trust_remote_code: Run Python code that comes with the tokenizer; the command line takes it from the model.
            cache: Folder of tokenised examples, reused while data, tokenizer and template stay the same; by default in
                the Hugging Face datasets cache.
        """
        super().__init__(tokenizer, judge, max_length, chat_template, trust_remote_code)
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
        self.train, self.val, self.test = train, val, test
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.group_by_length = group_by_length
        self.seed = seed
        self.num_workers = num_workers
        self.cache = cache
        self._stores: dict[str, list[tuple[Source, TokenStore]]] = {}
        self._rows: dict[str, TokenRows] = {}
        self._sides: dict[str, np.ndarray] = {}
        self._shares: list[tuple[int, float]] = []
        self._prepared: dict[str, Callable[[str, TokenRows], None]] = {}
        self._resume = (0, 0)

    @property
    def cache_folder(self) -> Path:
        """Where tokenised examples are kept."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        # As in `datasets.config`, which takes long to import.
        home = os.environ.get("HF_HOME", os.environ.get("XDG_CACHE_HOME", "~/.cache") + "/huggingface")
        return Path(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets"), "judgelit").expanduser()

    def rows(self, part: str) -> TokenRows:
        """The examples of `train`, `val` or `test`, once they are set up."""
        return self._rows[part]

    def prepare_data(self) -> None:
        """Tokenise what the command needs, once a node, unless it has been done before."""
        command = None if self.trainer is None else self.trainer.state.fn
        for part in ("train", "val", "test") if command is None else _PARTS.get(command, ()):
            self._open(part)

    def setup(self, stage: str) -> None:
        """Open what the command needs."""
        for part in _PARTS.get(stage, ()):
            if part not in self._rows:
                self._rows[part] = self._select(part)
        if stage == "validate" and not self._rows["val"]:
            raise UserError("nothing to validate on; set data.val or data.val_fraction")
        if stage == "test" and not self._rows["test"]:
            raise UserError("nothing to test on; set data.test")

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, continued where a checkpoint left off."""
        batches = self._ordered("train", ResumableBatchSampler, shuffle=True, shares=self._shares)
        batches.place = self._place_in_run
        # With workers the first batches are drawn before the trainer names an epoch.
        batches.resume(*self._resume)
        return self._loader("train", batches)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The held-out examples in their own order."""
        return self._loader("val", self._ordered("val", BatchSampler, shuffle=False)) if self._rows["val"] else []

    def test_dataloader(self) -> DataLoader:
        """The test examples in their own order."""
        return self._loader("test", self._ordered("test", BatchSampler, shuffle=False))

    def state_dict(self) -> dict[str, int]:
        """How far the run is in its epoch; the order itself follows from the seed."""
        epoch, batches = self._place_in_run()
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from such a state."""
        self._resume = (state_dict["epoch"], state_dict["batches"])
        # Lightning looks for state in the loader and does not know of this one.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")

    def _place_in_run(self) -> tuple[int, int]:
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        processed: int = loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return divmod(processed, int(loop.max_batches))

    def _open(self, part: str) -> list[tuple[Source, TokenStore]]:
        if part == "val" and self.val is None:
            return self._open("train") if self.val_fraction else []
        if part not in self._stores:
            sources = as_sources({"train": self.train, "val": self.val, "test": self.test}[part] or [])
            self._stores[part] = [
                (source, open_store(source, self.kind, self.tokenizer, self.cache_folder, part)) for source in sources
            ]
        return self._stores[part]

    def _select(self, part: str) -> TokenRows:
        """The rows of a part that are on its side of the split and not too long."""
        of_train = part == "val" and self.val is None
        chosen = []
        for _, store in self._open(part):
            held_out = self._held_out(store) if of_train or part == "train" else np.ones(len(store), dtype=bool)
            chosen.append((store, np.flatnonzero(held_out != (part == "train"))))
        # What is held out of several sources is one set of examples.
        fitting = self._fitting(part, chosen) if of_train else [x for one in chosen for x in self._fitting(part, [one])]
        rows = TokenRows(fitting, self.row)
        if part == "train":
            if not rows:
                raise UserError("data.train: found no example to train on, expected at least one")
            weights = [source.weight for source, _ in self._open(part)]
            self._shares = [(len(numbers), weight) for (_, numbers), weight in zip(fitting, weights, strict=True)]
            if not any(visits(*share) for share in self._shares):
                raise UserError(
                    f"data.train: found {len(rows)} examples of weight {weights[0]}, of which an epoch visits none; "
                    "expected a larger weight"
                )
        return rows

    def _held_out(self, store: TokenStore) -> np.ndarray:
        if not self.val_fraction:
            return np.zeros(len(store), dtype=bool)
        if store.key not in self._sides:
            scores = store.by_group(lambda group: group_score(group, self.seed))
            self._sides[store.key] = held_out_rows(scores, self.val_fraction)
        return self._sides[store.key]

    def _fitting(self, part: str, chosen: list[tuple[TokenStore, np.ndarray]]) -> list[tuple[TokenStore, np.ndarray]]:
        """Those of the chosen rows that are not too long; says how many there are."""
        if not chosen:
            return []
        lengths = [store.lengths[rows] for store, rows in chosen]
        fits = [some <= self.max_length for some in lengths]
        found, kept = sum(map(len, lengths)), sum(int(some.sum()) for some in fits)
        if found and not kept:
            longest = max(int(some.max(initial=0)) for some in lengths)
            raise UserError(
                f"{part}: all {found} examples are longer than the {self.max_length} tokens that the model takes "
                f"(the longest has {longest})"
            )
        tokens = sum(int(some[fit].sum()) for some, fit in zip(lengths, fits, strict=True))
        skipped = f", {found - kept} skipped as longer than {self.max_length} tokens" if found > kept else ""
        rank_zero_info(f"{part}: {kept} examples, {tokens} tokens{skipped}")
        return [(store, rows[fit]) for (store, rows), fit in zip(chosen, fits, strict=True)]

    def _ordered(self, part: str, order: type[B], **more: Any) -> B:
        rows = self._rows[part]
        rank, world = place_among_ranks(self.trainer)
        return order(
            rows.lengths,
            self.batch_size,
            tokens_per_batch=self.tokens_per_batch,
            prompts=rows.prompts,
            seed=self.seed,
            rank=rank,
            world_size=world,
            group_by_length=self.group_by_length,
            **more,
        )

    def _loader(self, part: str, batches: BatchSampler) -> DataLoader:
        rows = self._rows[part]
        if self.prepare_rows is not None and self._prepared.get(part) != self.prepare_rows:
            self.prepare_rows(part, rows)
            self._prepared[part] = self.prepare_rows
        return DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def tokenize_completion(example: SFTExample, name: str, tokenizer: ChatTokenizer) -> TokenizedCompletion:
    """An SFT example as ids; `name` stands for its id if it has none."""
    return TokenizedCompletion(example_id(example) or name, *example_ids(example, SFTExample, tokenizer))


def tokenize_preference(example: PreferenceExample, name: str, tokenizer: ChatTokenizer) -> TokenizedPreference:
    """A preference example as ids; `name` stands for its id if it has none."""
    return TokenizedPreference(example_id(example) or name, *example_ids(example, PreferenceExample, tokenizer))


class SFTDataModule(TrainingDataModule):
    """Prompts and completions for the warm-up, in judgelit's own, TRL's, ShareGPT's or Alpaca's form."""

    kind = SFTExample
    row = TokenizedCompletion
    collate = staticmethod(flatten_completions)


class DPODataModule(TrainingDataModule):
    """Prompts with a chosen and a rejected completion, in judgelit's own, TRL's or ShareGPT's form."""

    kind = PreferenceExample
    row = TokenizedPreference
    collate = staticmethod(flatten_preferences)
