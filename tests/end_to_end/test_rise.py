"""The shipped RISE configurations on a tiny model of the same architecture."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from judgelit.shipped_configs import find
from tests.whole_blocks import widened

from .processes import JUDGELIT, finish, fit, start

pytestmark = pytest.mark.slow


def first_row(run: Path) -> dict[str, float]:
    with (run / "csv/version_0/metrics.csv").open(newline="", encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["train/loss"])
    return {name: float(value) for name, value in row.items() if value}


@pytest.fixture
def folder(tmp_path: Path, model_folders: dict[str, str]) -> Path:
    """A folder with a tiny model of Qwen2.5's architecture and with examples."""
    widened(model_folders["qwen2"], tmp_path / "base")
    rows: list[dict[str, Any]] = [
        {"prompt": f"is {n} odd?", "completion": f"{n} is it. [[A]]", "chosen": "yes [[A]]", "rejected": "no [[B]]"}
        for n in range(60)
    ]
    for file, fields in (("sft.jsonl", ("prompt", "completion")), ("dpo.jsonl", ("prompt", "chosen", "rejected"))):
        (tmp_path / file).write_text("".join(json.dumps({name: row[name] for name in fields}) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(("size", "devices"), [("7b", 1), ("32b", 2)])
def test_warmup_and_enhancement(folder: Path, size: str, devices: int) -> None:
    for stage in ("warmup", "enhancement"):
        asked = yaml.safe_load(Path(find(f"rise/{size}/{stage}")).read_text())["model"]["init_args"]["backbone"]
        assert asked["name_or_path"] == f"Qwen/Qwen2.5-{size.upper()}"
    short = ["--trainer.accelerator=cpu", f"--trainer.devices={devices}", "--trainer.max_steps=2"]
    short += ["--data.max_length=1024", "--model.backbone.name_or_path=base"]
    fit(folder, f"rise/{size}/warmup", *short, "--data.train=sft.jsonl")
    said = fit(folder, f"rise/{size}/enhancement", *short, "--data.train=dpo.jsonl")
    assert f"model written to runs/rise-{size}-enhancement/model" in said
    row = first_row(folder / f"runs/rise-{size}-enhancement")
    # Before the first step the policy equals the reference: the adapter that it starts from.
    assert row["train/rewards/margin"] == row["train/kl"] == 0
    assert row["train/loss"] == pytest.approx(math.log(2) + 1.5 * row["train/nll"], rel=1e-5)
    merge = ["--merge", "--dtype", "float32"]
    finish(start(*JUDGELIT, "export", f"runs/rise-{size}-enhancement", "--to", "judge", *merge, folder=folder))
    assert isinstance(AutoModelForCausalLM.from_pretrained(str(folder / "judge")), Qwen2ForCausalLM)
