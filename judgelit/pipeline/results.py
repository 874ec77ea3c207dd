"""Results of a run: metrics of each stage, gains between stages, and what each stage cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judgelit import __version__
from judgelit.atomic import write_json
from judgelit.evaluation.intervals import Estimate, as_json
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.tables import print_general, print_table
from judgelit.records.records import Judgment, PreferencePair

GAINS = (("base", "sft"), ("sft", "dpo"))
"""Pairs of judges, before and after a training."""


class Results:
    """The content of `results.json`; it grows as stages end.

    Args:
        path: The file.
        seed: Seed of the run.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.cost: dict[str, dict[str, float]] = {}
        """Seconds, tokens and peak memory in bytes, by stage."""
        self._metrics: dict[str, dict[str, dict[str, Estimate]]] = {}
        self._general: dict[str, dict[str, Estimate]] = {}
        self._judged: dict[tuple[str, str], tuple[Sequence[PreferencePair], Sequence[Judgment]]] = {}

    def add(self, judge: str, set_name: str, pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> None:
        """Compute the metrics of a judge (`base`, `sft` or `dpo`) on a set of pairs."""
        self._judged[judge, set_name] = (pairs, judgments)
        self._metrics.setdefault(judge, {})[set_name] = PAIRS.estimates(pairs, judgments)

    def add_general(self, judge: str, measured: dict[str, Estimate]) -> None:
        """Add the general ability of a judge."""
        self._general[judge] = measured

    def write(self) -> None:
        """Write the file with all that is known so far."""
        content = {
            "judgelit": __version__,
            "seed": self.seed,
            "stages": {judge: as_json(sets) for judge, sets in self._metrics.items()},
            **({"general": as_json(self._general)} if self._general else {}),
            "gains": [gain for before, after in GAINS for gain in self._gains(before, after)],
            "cost": self.cost,
        }
        write_json(self.path, content)

    def print(self) -> None:
        """Print a table of the metrics, and what DPO gained."""
        print_table(self._metrics, PAIRS.shown)
        for gain in self._gains("sft", "dpo"):
            if gain["metric"] in ("accuracy", "consistent_accuracy"):
                print(
                    f"DPO over SFT, {gain['set']}, {gain['metric']}: {100 * gain['value']:+.1f} points "
                    f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
                )
        if self._general:
            print_general(self._general, self._metrics)
        print("intervals are 95% bootstrap intervals over questions; both orders of each pair are judged")

    def _gains(self, before: str, after: str) -> list[dict[str, Any]]:
        """Paired gains of every metric on every set; none until both judges are measured."""
        found = []
        for name in self._metrics.get(after, {}):
            if (before, name) in self._judged:
                pairs, judgments = self._judged[after, name]
                found += [
                    {"from": before, "to": after, "set": name, "metric": metric, **gain.to_dict()}
                    for metric, gain in PAIRS.gains(pairs, self._judged[before, name][1], judgments).items()
                ]
        return found
