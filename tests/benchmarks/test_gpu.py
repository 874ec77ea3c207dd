"""The benchmark of GPUs, run to its end on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parents[2] / "benchmarks/gpu.py"
# Not the quickstart and the killed run, which other tests run on a CPU, nor what runs the same code as another check.
CHECKS = ["attention", "steps", "references", "generation", "qlora_24gb", "plan", "kernels", "speed_dpo", "trl_dpo"]


@pytest.mark.slow
def test_a_dry_run_ends_with_no_failed_check(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    command = [sys.executable, str(GPU), "--dry-run", "--minutes", "60", "--out", str(out), "--only", *CHECKS]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert not [row for row in rows if row["ok"] is False]
    judged = {row["check"] for row in rows if row["ok"]}
    assert judged >= {"attention", "steps", "references", "generation", "qlora_24gb"}
    # The table has each result.
    assert ended.stdout.count("\n| ") == len(rows) + 1


def test_a_crash_and_the_time_limit_cost_no_other_result(tmp_path: Path) -> None:
    # Without a GPU, a check that is no dry run crashes; so does nothing else.
    script = (
        f"import sys; sys.path.insert(0, {str(GPU.parent)!r}); import gpu, gpu_checks, json; from pathlib import Path\n"
        f"one, *_ = gpu.results('references', Path({str(tmp_path)!r}), False, 60)\n"
        f"two = list(gpu.results('generation', Path({str(tmp_path)!r}), True, 10))\n"
        f"three = list(gpu.results('generation', Path({str(tmp_path)!r}), True, 5))\n"
        "print(json.dumps([one, two[-1], three]))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    crash, late, left_out = json.loads(ended.stdout)
    assert crash["case"] == "crash" and crash["ok"] is False and crash["last_lines"]
    assert late["case"] in ("time limit", "whole check")
    assert left_out == [{"case": "", "ok": None, "note": "not run: no time left"}]
