"""LightningDataModules: sources of records in, batches of ids out."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from judgelit.data.judge_data import JudgeData, JudgeDataModule, place_among_ranks
from judgelit.data.layout import (
    Batch,
    TokenizedCompletion,
    TokenizedPreference,
    flatten_completions,
    flatten_preferences,
)
from judgelit.data.order import EpochBatches, RunBatches
from judgelit.data.records import PreferenceExample, SFTExample
from judgelit.data.sources import Sources, as_sources, split_by_group
from judgelit.data.tokenization import ChatTokenizer
from judgelit.errors import UserError
from judgelit.progress import track

Example = SFTExample | PreferenceExample
Row = TokenizedCompletion | TokenizedPreference


class TrainingDataModule(JudgeDataModule, ABC):
    """Examples to train on; a subclass says of which kind, and how they become ids and batches."""

    kind: ClassVar[type[Example]]

    @staticmethod
    @abstractmethod
    def tokenize(example: Any, name: str, tokenizer: ChatTokenizer) -> Row:
        """An example of `kind` as ids; `name` stands for its id if it has none."""

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
        group_by_length: bool = True,
        judge: JudgeData | None = None,
        max_length: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        chat_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            tokenizer: Hub name, folder or `nano`; the command line takes it from the model.
            train: What to train on.
            val: What to validate on; none: `val_fraction` of `train`.
            val_fraction: Share of the questions of `train` that is held out for validation, both orders together.
            test: What `judgelit test` computes the loss on.
            batch_size: Examples of a micro-batch on one device.
            group_by_length: Put examples of similar length into one micro-batch, for less padding. Where length tells
                kinds of judgment apart, batches then hold one kind; random ones may train better.
            judge: Pairs to judge during and after training.
            max_length: Longest prompt and completion together, in tokens; the model's context if not given.
            seed: Seed of the order of examples and of the split.
            num_workers: Processes that prepare batches.
            chat_template: A Jinja file in place of the tokenizer's own chat template.
            trust_remote_code: Run Python code that comes with the tokenizer; the command line takes it from the model.
        """
        super().__init__(tokenizer, judge, max_length, chat_template, trust_remote_code)
        if batch_size < 1:
            raise UserError(f"data.batch_size: found {batch_size}, expected 1 or more")
        if num_workers < 0:
            raise UserError(f"data.num_workers: found {num_workers}, expected 0 or more")
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction: found {val_fraction}, expected 0 <= val_fraction < 1")
        if val is not None and val_fraction:
            raise UserError("data.val and data.val_fraction are both set; expected one of them")
        self.train, self.val, self.test = train, val, test
        self.val_fraction = val_fraction
        self.batch_size = batch_size
        self.group_by_length = group_by_length
        self.seed = seed
        self.num_workers = num_workers
        self._rows: dict[str, list[Row]] = {}
        self._shares: list[tuple[int, float]] = []
        self._resume = (0, 0)

    def setup(self, stage: str) -> None:
        """Read and tokenize what the command needs."""
        wanted = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}.get(stage, [])
        for part in wanted:
            if part not in self._rows:
                self._rows[part] = self._prepare(part)
        if stage == "validate" and not self._rows["val"]:
            raise UserError("nothing to validate on; set data.val or data.val_fraction")
        if stage == "test" and not self._rows["test"]:
            raise UserError("nothing to test on; set data.test")

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches, continued where a checkpoint left off."""
        loader = self._loader("train", RunBatches, shuffle=True, shares=self._shares)
        batches = loader.batch_sampler
        assert isinstance(batches, RunBatches)
        batches.place = self._place_in_run
        # With workers the first batches are drawn before the trainer names an epoch.
        batches.resume(*self._resume)
        return loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The held-out examples in their own order."""
        return self._loader("val") if self._rows["val"] else []

    def test_dataloader(self) -> DataLoader:
        """The test examples in their own order."""
        return self._loader("test")

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

    def _prepare(self, part: str) -> list[Row]:
        examples = []
        if part == "val" and self.val is None:
            if not self.val_fraction:
                return []
            for source in as_sources(self.train):
                examples += split_by_group(source.read(self.kind), self.val_fraction, self.seed)[1]
            return self._tokenize(examples, part)
        sources = as_sources({"train": self.train, "val": self.val, "test": self.test}[part] or [])
        rows: list[Row] = []
        for source in sources:
            examples = source.read(self.kind)
            if part == "train" and self.val_fraction:
                examples = split_by_group(examples, self.val_fraction, self.seed)[0]
            fitting = self._tokenize(examples, part)
            rows += fitting
            if part == "train":
                self._shares.append((len(fitting), source.weight))
        if part == "train" and not rows:
            raise UserError("data.train: found no example to train on, expected at least one")
        return rows

    def _tokenize(self, examples: Sequence[Example], part: str) -> list[Row]:
        rows, longest, refused = [], 0, 0
        for index, example in enumerate(track(examples, f"tokenizing {part}", total=len(examples))):
            row = self.tokenize(example, f"{part}[{index}]", self.tokenizer)
            longest = max(longest, len(row))
            if len(row) <= self.max_length:
                rows.append(row)
            else:
                refused += 1
        if examples and not rows:
            raise UserError(
                f"{part}: all {refused} examples are longer than the {self.max_length} tokens that the model takes "
                f"(the longest has {longest})"
            )
        tokens = sum(len(row) for row in rows)
        skipped = f", {refused} skipped as longer than {self.max_length} tokens" if refused else ""
        rank_zero_info(f"{part}: {len(rows)} examples, {tokens} tokens{skipped}")
        return rows

    def _loader(
        self,
        part: str,
        order: type[EpochBatches] = EpochBatches,
        shuffle: bool = False,
        shares: Sequence[tuple[int, float]] | None = None,
    ) -> DataLoader:
        rows = self._rows[part]
        rank, world = place_among_ranks(self.trainer)
        batches = order(
            [len(row) for row in rows],
            self.batch_size,
            shares=shares,
            seed=self.seed,
            rank=rank,
            world_size=world,
            shuffle=shuffle,
            group_by_length=self.group_by_length,
        )
        return DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def tokenize_completion(example: SFTExample, name: str, tokenizer: ChatTokenizer) -> TokenizedCompletion:
    """An SFT example as ids."""
    prompt = tokenizer.prompt_ids(example.messages)
    return TokenizedCompletion(example.pair_id or name, prompt, tokenizer.completion_ids(example.completion))


def tokenize_preference(example: PreferenceExample, name: str, tokenizer: ChatTokenizer) -> TokenizedPreference:
    """A preference example as ids."""
    return TokenizedPreference(
        str(example.meta.get("pair_id") or name),
        tokenizer.prompt_ids(example.messages),
        tokenizer.completion_ids(example.chosen),
        tokenizer.completion_ids(example.rejected),
    )


class SFTDataModule(TrainingDataModule):
    """Prompts and completions for the warm-up, in judgelit's own, TRL's, ShareGPT's or Alpaca's form."""

    kind = SFTExample
    tokenize = staticmethod(tokenize_completion)
    collate = staticmethod(flatten_completions)


class DPODataModule(TrainingDataModule):
    """Prompts with a chosen and a rejected completion, in judgelit's own, TRL's or ShareGPT's form."""

    kind = PreferenceExample
    tokenize = staticmethod(tokenize_preference)
    collate = staticmethod(flatten_preferences)
