"""Stored log-probabilities of the reference: never stale, computed once, also after a kill."""

import logging
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from judgelit.batches.flat_batch import PreferenceBatch, TokenizedPreference
from judgelit.training import precomputed
from judgelit.training.precomputed import Ranks, StoredLogProbs, stored_logprobs

ALONE = Ranks()
KEY = {"weights": "w1", "template": "t1", "data": "d1"}


class Pairs:
    """Rows in random order, with several pairs for each prompt."""

    def __init__(self, count: int = 40) -> None:
        draw = random.Random(count)
        prompts = [[draw.randrange(50) for _ in range(draw.randint(1, 90))] for _ in range(count // 2)]
        picks = [draw.randrange(len(prompts)) for _ in range(count)]
        self.rows = [
            TokenizedPreference(f"p{number}", prompts[pick], [number, 1], [number, 2, 3])
            for number, pick in enumerate(picks)
        ]
        self.lengths = np.array([len(row) for row in self.rows])
        self.prompt_keys = np.array(picks)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TokenizedPreference:
        return self.rows[index]


class Score:
    """Scorer that gives each completion token 100 * length of the prompt + token id, and keeps the batches' ids."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.fails_after = fails_after
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, batch: PreferenceBatch) -> Tensor:
        if len(self.asked) == self.fails_after:
            raise KeyboardInterrupt
        self.asked.append(batch.ids)
        owns = [own for own in batch.segments if own.prompt is not None]
        above = torch.tensor([batch.segments[own.prompt or 0].length for own in owns])
        return 100.0 * above[batch.rows] + batch.targets

    @property
    def rows(self) -> list[str]:
        return [name for batch in self.asked for name in batch]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "_TOKENS", 250)


def wanted(pairs: Pairs) -> list[list[float]]:
    return [[100.0 * len(row.prompt) + token for token in (*row.chosen, *row.rejected)] for row in pairs.rows]


def values(stored: StoredLogProbs) -> list[list[float]]:
    return [list(stored[index]) for index in range(len(stored))]


def store(folder: Path, pairs: Pairs, score: Any, key: dict[str, str] = KEY, ranks: Ranks = ALONE) -> StoredLogProbs:
    return stored_logprobs(folder, key, pairs, score, "train", ranks)


def test_each_row_gets_its_values_and_is_scored_once(tmp_path: Path) -> None:
    pairs, score = Pairs(), Score()
    stored = store(tmp_path, pairs, score)
    assert values(stored) == wanted(pairs)
    assert sorted(score.rows) == sorted(row.id for row in pairs.rows)
    assert len(score.asked) > 3


def test_pairs_of_a_prompt_are_scored_together(tmp_path: Path) -> None:
    pairs, score = Pairs(), Score()
    store(tmp_path, pairs, score)
    prompt_of = dict(zip((row.id for row in pairs.rows), pairs.prompt_keys.tolist(), strict=True))
    # The pairs of a prompt follow each other; only the end of a batch can separate them.
    order = [prompt_of[name] for name in score.rows]
    runs = [prompt for prompt, before in zip(order, [None, *order], strict=False) if prompt != before]
    assert len(runs) == len(set(runs))


def test_a_second_start_uses_the_stored_values(tmp_path: Path) -> None:
    pairs = Pairs()
    store(tmp_path, pairs, Score())
    assert values(store(tmp_path, pairs, Score(fails_after=0))) == wanted(pairs)


@pytest.mark.parametrize("killed_after", [1, 2, 5])
def test_a_killed_pass_continues_without_repeating_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    monkeypatch.setattr(precomputed, "_SAVE_EVERY", -1.0)
    pairs, first, second = Pairs(), Score(killed_after), Score()
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, pairs, first)
    # A kill during writing leaves a file with a temporary name.
    next(tmp_path.glob("*/part-*")).with_name("half.tmp").write_bytes(b"PAR1")
    assert values(store(tmp_path, pairs, second)) == wanted(pairs)
    assert first.rows and not set(first.rows) & set(second.rows)


@pytest.mark.parametrize("part", sorted(KEY))
def test_a_changed_key_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str) -> None:
    pairs, score = Pairs(), Score()
    store(tmp_path, pairs, Score())
    with caplog.at_level(logging.INFO):
        store(tmp_path, pairs, score, {**KEY, part: "other"})
    assert len(score.rows) == len(pairs)
    assert f"train are computed anew: {part} changed ({KEY[part]} -> other)" in caplog.text
    assert caplog.text.count("changed") == 1
    # The values of the first key are still stored.
    assert values(store(tmp_path, pairs, Score(fails_after=0))) == wanted(pairs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_pass_and_score_equally_many_batches(tmp_path: Path, world_size: int) -> None:
    pairs = Pairs()
    scores = [Score() for _ in range(world_size)]
    together = threading.Barrier(world_size, timeout=60)
    found: list[StoredLogProbs | None] = [None] * world_size

    def work(rank: int) -> None:
        found[rank] = store(
            tmp_path, pairs, scores[rank], ranks=Ranks(rank, world_size, lambda: together.wait() and None)
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one is not None and values(one) == wanted(pairs) for one in found)
    assert len({len(score.asked) for score in scores}) == 1
    names = [name for score in scores for name in set(score.rows)]
    # All rows are scored; only batches that fill the last round are scored twice.
    assert set(names) == {row.id for row in pairs.rows}
    assert (
        sum(len(score.asked) for score in scores) - len({batch for score in scores for batch in score.asked})
        < world_size
    )


def test_a_row_that_is_stored_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Pairs(6)
    monkeypatch.setattr(precomputed, "_done", lambda store: set())
    store(tmp_path, pairs, Score())
    assert values(store(tmp_path, pairs, Score())) == wanted(pairs)


def test_values_are_stored_exactly(tmp_path: Path) -> None:
    pairs = Pairs(4)
    drawn: dict[str, Sequence[float]] = {}

    def score(batch: PreferenceBatch) -> Tensor:
        made = torch.randn(len(batch.targets), generator=torch.Generator().manual_seed(1)) * 1e-3
        for row, (chosen, rejected) in enumerate(zip(batch.chosen, batch.rejected, strict=True)):
            drawn[batch.ids[row]] = [*made[batch.rows == chosen].tolist(), *made[batch.rows == rejected].tolist()]
        return made

    stored = store(tmp_path, pairs, score)
    assert values(stored) == [drawn[row.id] for row in pairs.rows]
