"""Token rows to batches: padding, masks from lengths, and the order in which an epoch visits its rows."""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import Sampler


@dataclass(frozen=True)
class TokenizedCompletion:
    """A prompt and one completion as ids; `id` names the record in messages about it."""

    id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class TokenizedPreference:
    """A prompt and its two completions as ids."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Batch:
    """Rows of equal length, completed on the right.

    input_ids: [B, T] int64.
    attention_mask: [B, T] int64, 1 on real tokens.
    completion_mask: [B, T] bool, true on the completion and its end-of-turn token.
    ids: the B records' names.
    tokens: real tokens, padding not counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    ids: list[str]
    tokens: int

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device; Lightning calls this for every batch."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            completion_mask=self.completion_mask.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """2P rows for P pairs: the first P are the chosen, the last P the rejected, in the same order."""

    @property
    def pairs(self) -> int:
        return len(self.ids) // 2


def pad_completions(rows: Sequence[TokenizedCompletion], pad_id: int) -> Batch:
    """Rows [prompt | completion | padding].

    With prompts [1, 2] and [3] and completions [7, 8] and [9], `input_ids` is [[1, 2, 7, 8], [3, 9, pad, pad]] and
    `completion_mask` is true at 7, 8 and 9. Masks come from lengths, so a pad id that is also a real token is harmless.
    """
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
    completion_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row.prompt + row.completion, dtype=torch.long)
        attention_mask[index, : len(row)] = 1
        completion_mask[index, len(row.prompt) : len(row)] = True
    return Batch(input_ids, attention_mask, completion_mask, [row.id for row in rows], sum(len(row) for row in rows))


def pad_preferences(rows: Sequence[TokenizedPreference], pad_id: int) -> PreferenceBatch:
    """The concatenated layout: all chosen rows, then all rejected rows, each [prompt | completion | padding]."""
    flat = [TokenizedCompletion(row.id, row.prompt, row.chosen) for row in rows]
    flat += [TokenizedCompletion(row.id, row.prompt, row.rejected) for row in rows]
    batch = pad_completions(flat, pad_id)
    return PreferenceBatch(batch.input_ids, batch.attention_mask, batch.completion_mask, batch.ids, batch.tokens)


def pad_prompts(prompts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts completed on the left, where generation wants them: `input_ids` and `attention_mask`, [B, T] int64."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for index, prompt in enumerate(prompts):
        input_ids[index, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        attention_mask[index, width - len(prompt) :] = 1
    return input_ids, attention_mask


class EpochBatches(Sampler[list[int]]):
    """Batches of row numbers: shuffled, of similar length, different every epoch, the same for equal seeds.

    The order is a pure function of (seed, epoch), so a run that stopped after `k` batches continues with batch `k`
    whatever the number of workers. Every rank sees the same number of batches: the global order is dealt out in turn,
    completed with batches from the beginning of the epoch's order.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch on one rank.
        shares: (rows, weight) of each source, in the order of the rows. An epoch visits each row of a source `weight`
            times; of a fraction, a random part of the source of that size, another one every epoch.
        seed: Seed of the order.
        rank: This process among `world_size`.
        world_size: Number of processes.
        shuffle: Whether to shuffle; without, rows come in their own order, once each.
        group_by_length: Whether a shuffled batch holds rows of similar length.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        shares: Sequence[tuple[int, float]] | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        group_by_length: bool = True,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.shares = shares or [(len(lengths), 1.0)]
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.group_by_length = group_by_length
        self.epoch = 0
        self._resume = (0, 0)
        # Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Begin with `epoch`, of which the first `batches` batches of this rank are done."""
        self.epoch = epoch
        self._resume = (epoch, batches)

    def __len__(self) -> int:
        rows = sum(count * int(weight) + round(count * (weight % 1)) for count, weight in self.shares)
        return math.ceil(math.ceil(rows / self.batch_size) / self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self._resume
        mine = self._order()[self.rank :: self.world_size]
        yield from mine[done if epoch == self.epoch else 0 :]

    def _order(self) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{self.epoch}")
        rows = self._visits(rng)
        # Sorting within large pools of a shuffled order keeps padding low and batches random.
        grouped = self.shuffle and self.group_by_length
        pool = 64 * self.batch_size * self.world_size if grouped else self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(rows), pool):
            part = rows[start : start + pool]
            if grouped:
                part.sort(key=lambda row: self.lengths[row])
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        if self.shuffle:
            rng.shuffle(batches)
        return list(itertools.islice(itertools.cycle(batches), len(self) * self.world_size))

    def _visits(self, rng: random.Random) -> list[int]:
        rows: list[int] = []
        first = 0
        for count, weight in self.shares:
            source = range(first, first + count)
            rows += [*source] * int(weight) + sorted(rng.sample(source, round(count * (weight % 1))))
            first += count
        if self.shuffle:
            rng.shuffle(rows)
        return rows


class RunBatches(EpochBatches):
    """EpochBatches that follow a trainer through epochs of any length, wherever it began.

    Lightning's own number of an epoch will not do: on resuming it may pass over one that is done already, and it counts
    one that `max_steps` cut short as a whole one. The batches that it has trained on are what counts.
    """

    place: Callable[[], tuple[int, int]]
    """Tells which epoch the trainer is in, and how many batches of it are done."""

    def set_epoch(self, epoch: int) -> None:
        """Go on where the trainer is; Lightning calls this at the start of every epoch."""
        self.resume(*self.place())
