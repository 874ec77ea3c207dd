"""Ranks without a batch in the last turn: every example counts once for any number of ranks, in every metric."""

import json
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from judgelit.records.files import write_records
from judgelit.records.records import PreferenceExample, SFTExample

SCRIPT = Path(__file__).with_name("validation_ranks.py")


def write_examples(path: Path, kind: str) -> str:
    """Ten examples of uneven length: three batches of four."""
    draw = random.Random(0)
    examples: list[SFTExample | PreferenceExample] = []
    for number in range(10):
        prompt = ({"role": "user", "content": f"question {number}" + "?" * draw.randint(0, 30)},)
        right, wrong = ("".join(draw.choices("abc ", k=draw.randint(2, 25))) + end for end in "!.")
        if kind == "sft":
            examples.append(SFTExample(prompt, right, f"e{number}"))
        else:
            examples.append(PreferenceExample(prompt, right, wrong, {"pair_id": f"e{number}"}))
    write_records(path, examples)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy", "ranks"), [("sft", "ddp", 2), ("dpo", "fsdp", 4)])
def test_every_example_counts_once(kind: str, strategy: str, ranks: int, llama: str, tmp_path: Path) -> None:
    file = write_examples(tmp_path / "examples.jsonl", kind)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    arguments = [kind, strategy, str(tmp_path / "ranks"), llama, file, str(tmp_path / "found.json")]
    done = subprocess.run(
        [*launch, str(SCRIPT), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    one = runpy.run_path(str(SCRIPT))["run"](kind, "auto", 1, str(tmp_path / "one"), llama, file)
    assert found["steps"] == one["steps"] == 2
    assert found["tokens"] == one["tokens"]
    assert {"val/loss", "test/loss"} <= found["before"].keys()
    assert found["before"] == pytest.approx(one["before"], rel=1e-5, abs=1e-6)
    # Training counts each example once too, so the weights and what is logged at the end are equal.
    assert found["after"] == pytest.approx(one["after"], rel=1e-4, abs=1e-6)
