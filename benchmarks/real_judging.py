"""Measure judges on real labelled pairs with `judgelit evaluate`: LLMBar, its processed sets, EvalBiasBench, PandaLM.

    python benchmarks/real_judging.py --models MODEL ... --llmbar DIR ... --evalbiasbench FILE --pandalm FILE
        [--limit 40] [--max-new-tokens 128] [--folder DIR]

MODEL is a folder of Hugging Face weights, such as SmolLM2-135M-Instruct. DIR holds folders with a `dataset.json` each:
the folders `Dataset/LLMBar` and `Dataset/Processed` of princeton-nlp/LLMBar. Each such folder is a set of its own, so
that a limit takes pairs of each. The script judges every pair in both orders, greedily, prints the tables of the
command and one table of all, and writes nothing else. With `--folder`, the results stay there, and after a kill the
same command continues.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHOWN = {
    "accuracy": "accuracy",
    "consistent_accuracy": "right in both orders",
    "consistency": "consistent",
    "share_a": "says A",
    "no_verdict": "no verdict",
    "cut_by_length": "cut",
}
"""Metrics that all sets have, and their headings. Pairs labelled tie are left out of the first two."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="judges: folders or hub names")
    parser.add_argument("--llmbar", nargs="+", type=Path, default=[], help="folders with folders of a dataset.json")
    parser.add_argument("--evalbiasbench", type=Path, help="biasbench.json")
    parser.add_argument("--pandalm", type=Path, help="testset-v1.json")
    parser.add_argument("--limit", type=int, help="judge the first pairs of each set, this many; default: all")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="keep the results here; default: a temporary folder")
    args = parser.parse_args()

    sets: dict[str, dict[str, str]] = {}
    folders = sorted(file.parent for folder in args.llmbar for file in folder.rglob("dataset.json"))
    if args.llmbar and not folders:
        raise SystemExit(f"{args.llmbar[0]}: found no dataset.json in it or in folders of it")
    if folders:
        sets["llmbar"] = {file_name(one.name): str(one / "dataset.json") for one in folders}
    for name, file in (("evalbiasbench", args.evalbiasbench), ("pandalm", args.pandalm)):
        if file is not None:
            sets[name] = {name: str(file)}
    if not sets:
        raise SystemExit("give at least one of --llmbar, --evalbiasbench and --pandalm")

    started = time.perf_counter()
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models:
            for benchmark, files in sets.items():
                output = (args.folder or Path(scratch)) / f"{file_name(model)}-{benchmark}"
                results = evaluate(model, benchmark, files, output, args.limit, args.max_new_tokens)
                rows += [row(model, one, results["sets"][one]) for one in files]
    print(f"\n| judge | set | pairs | {' | '.join(SHOWN.values())} |")
    print("|" + "---|" * (3 + len(SHOWN)))
    print("\n".join(rows))
    packages = ", ".join(f"{name} {version(name)}" for name in ("judgelit", "torch", "transformers"))
    print(
        f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}; greedy, "
        f"at most {args.max_new_tokens} new tokens, limit {args.limit}; {time.perf_counter() - started:.0f} s"
    )


def file_name(text: str) -> str:
    """The text with only characters that belong in a file's name."""
    return re.sub(r"[^\w-]+", "-", text).strip("-")


def evaluate(
    model: str, benchmark: str, files: dict[str, str], output: Path, limit: int | None, max_new_tokens: int
) -> dict[str, Any]:
    """Run `judgelit evaluate` on the sets of a benchmark and read its results."""
    command = [sys.executable, "-m", "judgelit.cli", "evaluate", "--model", model, "--benchmark", benchmark]
    command += ["--sets", json.dumps(files), "--max_new_tokens", str(max_new_tokens), "--output", str(output)]
    command += [] if limit is None else ["--limit", str(limit)]
    subprocess.run(command, check=True)
    return dict(json.loads((output / "results.json").read_text(encoding="utf-8")))


def row(model: str, name: str, found: dict[str, Any]) -> str:
    """A row of the table: shares in percent, accuracy with its 95% interval."""
    pairs = found["consistency"]["n"]
    cells = [percent(found[key], interval=key == "accuracy") for key in SHOWN]
    return f"| {Path(model).name} | {name} | {pairs} | {' | '.join(cells)} |"


def percent(one: dict[str, Any], interval: bool) -> str:
    """A share in percent, with its interval if asked."""
    if one["value"] is None:
        return "unknown"
    value = f"{100 * one['value']:.1f}"
    return (
        f"{value} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]" if interval and one["low"] is not None else value
    )


if __name__ == "__main__":
    main()
