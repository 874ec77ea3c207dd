"""Stored log-probabilities of the reference: never stale, computed once, also after a kill."""

import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from judgelit.batches.flat_batch import PreferenceBatch, TokenizedPreference
from judgelit.errors import UserError
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


def store_together(folders: Sequence[Path], pairs: Pairs, scores: Sequence[Score], nodes: int) -> list[StoredLogProbs]:
    """Compute on one thread a rank, with a folder for each rank."""
    count = len(folders)
    together = threading.Barrier(count, timeout=60)
    slots: list[Any] = [None] * count

    def gatherer(rank: int) -> Any:
        def gather(value: Any) -> list[Any]:
            slots[rank] = value
            together.wait()
            gathered = list(slots)
            together.wait()
            return gathered

        return gather

    def work(rank: int) -> StoredLogProbs:
        size = count // nodes
        ranks = Ranks(rank, count, rank % size, size, gatherer(rank))
        return store(folders[rank], pairs, scores[rank], ranks=ranks)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_pass_and_score_equally_many_batches(tmp_path: Path, world_size: int) -> None:
    pairs = Pairs()
    scores = [Score() for _ in range(world_size)]
    found = store_together([tmp_path] * world_size, pairs, scores, nodes=1)
    assert all(values(one) == wanted(pairs) for one in found)
    assert len({len(score.asked) for score in scores}) == 1
    names = [name for score in scores for name in set(score.rows)]
    # All rows are scored; only batches that fill the last round are scored twice.
    assert set(names) == {row.id for row in pairs.rows}
    assert (
        sum(len(score.asked) for score in scores) - len({batch for score in scores for batch in score.asked})
        < world_size
    )


@pytest.mark.parametrize("started", [False, True])
def test_nodes_without_a_shared_folder_each_hold_all_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, started: bool
) -> None:
    pairs, scores = Pairs(), [Score() for _ in range(4)]
    folders = [tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "b"]
    if started:
        store(folders[0], pairs, Score())  # one node has all values already, the other has none
    with caplog.at_level(logging.INFO):
        found = store_together(folders, pairs, scores, nodes=2)
    assert "is not shared by the nodes" in caplog.text
    assert all(values(one) == wanted(pairs) for one in found)
    # A sharded model needs all ranks in each forward pass.
    assert len({len(score.asked) for score in scores}) == 1
    assert {*scores[2].rows, *scores[3].rows} == {row.id for row in pairs.rows}
    # Both nodes now have everything.
    idle = [Score(fails_after=0) for _ in range(4)]
    assert all(values(one) == wanted(pairs) for one in store_together(folders, pairs, idle, nodes=2))


def test_a_start_with_all_values_writes_nothing(tmp_path: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    pairs = Pairs()
    store(tmp_path, pairs, Score())
    before = state()
    store(tmp_path, pairs, Score(fails_after=0))
    assert state() == before, "so the disk may be read-only"


def zero(path: Path) -> None:
    """Set some bytes in the middle of a file to 0, as a disk does that has lost a block."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Lose the end of a file."""
    path.write_bytes(path.read_bytes()[:-300])


def empty(path: Path) -> None:
    """Lose the content of a file."""
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [zero, cut, empty])
def test_damaged_values_are_made_anew_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    monkeypatch.setattr(precomputed, "_SAVE_EVERY", -1.0)
    pairs, first = Pairs(), Score()
    store(tmp_path, pairs, first)
    (joined,) = tmp_path.glob("*/values.arrow")
    damage(joined)
    with caplog.at_level(logging.INFO):
        assert values(store(tmp_path, pairs, Score(fails_after=0))) == wanted(pairs)
    assert "of train in" in caplog.text and "are damaged: made anew" in caplog.text
    # If a part is damaged too, its rows alone are scored again.
    damage(joined)
    damage(next(tmp_path.glob("*/part-*")))
    second = Score()
    assert values(store(tmp_path, pairs, second)) == wanted(pairs)
    assert len(second.asked) == 1 < len(first.asked)


def test_a_damaged_key_of_another_store_does_not_matter(tmp_path: Path) -> None:
    pairs = Pairs(4)
    store(tmp_path, pairs, Score())
    next(tmp_path.glob("*/key.json")).write_bytes(b"\xff{")
    assert values(store(tmp_path, pairs, Score(), {**KEY, "data": "other"})) == wanted(pairs)


@pytest.mark.parametrize("room", [0, 200, 600])
def test_a_full_disk_is_one_line_and_the_next_start_continues(tmp_path: Path, full_disk: Any, room: int) -> None:
    pairs = Pairs()
    with full_disk(room), pytest.raises(UserError, match=r"cannot be written: File too large; .* data\.cache"):
        store(tmp_path, pairs, Score())
    assert values(store(tmp_path, pairs, Score())) == wanted(pairs)


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; .* data\.cache"):
        store(tmp_path / "file", Pairs(), Score())


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


def test_a_row_that_two_runs_have_computed_counts_once(tmp_path: Path) -> None:
    pairs = Pairs(6)
    store(tmp_path, pairs, Score())
    (part,) = tmp_path.glob("*/part-*.arrow")
    part.with_name("part-of-another-run.arrow").write_bytes(part.read_bytes())
    next(tmp_path.glob("*/values.arrow")).unlink()
    assert values(store(tmp_path, pairs, Score(fails_after=0))) == wanted(pairs)
