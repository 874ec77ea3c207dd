"""Lines of progress where no terminal shows a bar."""

import json
import re
from pathlib import Path

import pytest

from judgelit.cli import main
from judgelit.training.callbacks import LogLines

GOOD = {"messages": [{"role": "user", "content": "1+1=?"}], "completion": "2"}


def test_a_line_says_step_rate_norm_and_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LogLines.__init__, "__defaults__", (0.0,))
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD) + "\n")
    without = ["--data.val=null", "--data.judge=null", "--trainer.callbacks=null", "--model.lr_scheduler=null"]
    fit = ["fit", "--config=quickstart/sft", "--data.train=data.jsonl", "--trainer.max_steps=3", *without]
    main(fit)
    said = capsys.readouterr().out
    number = r"[0-9.e+-]+"
    pattern = rf"step 2/3, epoch \d, loss {number}, learning rate 3.00e-03, gradient norm {number}, "
    assert re.search(pattern + r"\d+ s, about 0:00:\d\d left", said), said
    assert "model: 0.37 million weights, 0.37 million of them trained" in said
