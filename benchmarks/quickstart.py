"""Run the quickstart at several seeds, each with the command that a user would type.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--output runs/benchmark-quickstart]

Claim: SFT reaches 70% accuracy on held-out pairs. DPO then raises consistent accuracy on them, with a 95% interval that
excludes 0, and does not lower it on the harder set. The last line is one JSON object: `ratio` is the smallest gain in
consistent accuracy over the seeds, each pair is [after DPO, after SFT].
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from side_by_side import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-quickstart"))
    args = parser.parse_args()

    print("| seed | seconds | set | SFT accuracy | SFT right in both | DPO accuracy | DPO right in both | gain |")
    print("|---|---|---|---|---|---|---|---|")
    pairs, smallest = [], 1.0
    for seed in args.seeds:
        folder = args.output / f"seed-{seed}"
        command = ["run", "--config", "quickstart/run", "--seed", str(seed), "--output", str(folder)]
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "judgelit.cli", *command], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for name in ("in_distribution", "harder"):
            sft, dpo = (results["stages"][stage][name] for stage in ("sft", "dpo"))
            gain = next(
                gain
                for gain in results["gains"]
                if (gain["from"], gain["set"], gain["metric"]) == ("sft", name, "consistent_accuracy")
            )
            cells = [percent(by[metric]) for by in (sft, dpo) for metric in ("accuracy", "consistent_accuracy")]
            print(f"| {seed} | {seconds:.0f} | {name} | {' | '.join(cells)} | {percent(gain)} |", flush=True)
            if name == "in_distribution":
                pairs.append([dpo["consistent_accuracy"]["value"], sft["consistent_accuracy"]["value"]])
                smallest = min(smallest, gain["value"])
    print(
        json.dumps(
            {
                "claim": "quickstart: gain in consistent accuracy from SFT to DPO, smallest over seeds",
                "ratio": smallest,
                "goal": 0.10,
                "smaller_is_better": False,
                "pairs": pairs,
                "environment": {
                    **environment(),
                    "seeds": args.seeds,
                },
            }
        )
    )


def percent(found: dict[str, float]) -> str:
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


if __name__ == "__main__":
    main()
