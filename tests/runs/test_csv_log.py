"""The CSV log of a run that is stopped and continued."""

import csv
import math
from pathlib import Path

import torch

from judgelit.runs.csv_log import RunLog


def written(log: RunLog) -> list[dict[str, str]]:
    with log.path.open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def fill(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last):
        log.log_metrics({"train/loss": torch.tensor(math.pi / (step + 1))}, step)
        if step % 2:
            log.log_metrics({"val/loss": 1 / (step + 1)}, step)
        log.save()


def test_a_continued_log_equals_that_of_a_run_without_a_stop(tmp_path: Path) -> None:
    whole = RunLog(tmp_path / "whole")
    fill(whole, 0, 6)
    fill(stopped := RunLog(tmp_path / "stopped"), 0, 5)
    assert whole.rows == 9 and stopped.rows == 7
    with stopped.path.open("a", encoding="utf-8") as file:
        file.write("9,0.1")  # a row that a kill cut off
    continued = RunLog(tmp_path / "stopped")
    continued.rewind(4)
    assert continued.rows == 4
    # The row of step 3 was pending when the checkpoint was saved.
    continued.log_metrics({"train/loss": torch.tensor(math.pi / 4).item()}, 3)
    continued.log_metrics({"val/loss": 1 / 4}, 3)
    fill(continued, 4, 6)
    expected = written(whole)
    assert written(continued) == [*expected[:4], expected[4], expected[5], *expected[6:]]
    assert written(continued)[3] == {"step": "2", "train/loss": repr(torch.tensor(math.pi / 3).item())}


def test_a_log_rewound_to_nothing_keeps_no_column(tmp_path: Path) -> None:
    fill(RunLog(tmp_path), 0, 4)
    log = RunLog(tmp_path)
    log.rewind(0)
    assert log.path.read_text(encoding="utf-8") == ""
    log.log_metrics({"train/loss": 1.0}, 0)
    log.save()
    assert log.path.read_text(encoding="utf-8").split() == ["step,train/loss", "0,1.0"]


def test_a_missing_log_is_rewound_to_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.rewind(100)
    assert log.rows == 0 and not log.path.exists()
