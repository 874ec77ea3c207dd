"""A benchmark as a torchmetrics metric, whose state is the judgments of all ranks."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from judgelit.evaluation.intervals import Estimate
from judgelit.evaluation.protocols import find_benchmark
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.records.unicode import dump_json


class BenchmarkMetric(Metric):
    """Computes a benchmark's metrics from the judgments of all ranks.

    Each rank gives its own judgments to `update`. `compute` returns the same estimates on every rank. A judgment that
    two ranks have made, because a sampler has padded an epoch, counts once.

    The state is the judgments as lines of JSON, in bytes. So ranks exchange no pickles, and a rank may have none.

        metric = BenchmarkMetric("pairs", pairs).to(device)
        metric.update(judgments)
        self.log_dict({name: estimate.value for name, estimate in metric.compute().items()})
    """

    full_state_update = False
    lines: list[Tensor]

    def __init__(self, benchmark: str, items: Sequence[PreferencePair] | Sequence[AnswerSet]) -> None:
        """Choose the benchmark and what is judged.

        Args:
            benchmark: The benchmark's name.
            items: What all ranks judge together, the same on every rank.

        Raises:
            UserError: There is no benchmark of this name.
        """
        super().__init__(dist_sync_fn=_gather_bytes)
        self.benchmark = find_benchmark(benchmark)
        self.items = list(items)
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, judgments: Sequence[Judgment]) -> None:
        """Add judgments of this rank."""
        text = "".join(dump_json(judgment.to_dict()) + "\n" for judgment in judgments)
        self.lines.append(torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy()).to(self.device))

    def compute(self) -> dict[str, Estimate]:
        """Each metric of the benchmark with its interval; NaN where it is undefined.

        All ranks must call it.
        """
        return self.benchmark.estimates(self.items, self._judgments())

    def _judgments(self) -> list[Judgment]:
        # Ranks are synchronised: `lines` is one tensor then, and a list before.
        parts: Any = [self.lines] if isinstance(self.lines, Tensor) else self.lines
        text = b"".join(part.cpu().numpy().tobytes() for part in parts).decode()
        rows = [json.loads(line) for line in text.split("\n") if line]
        found = [Judgment.from_dict(row, f"judgment {number}") for number, row in enumerate(rows)]
        return list({(one.pair_id, one.order, one.template, one.sample): one for one in found}.values())


def _gather_bytes(lines: Tensor, group: Any = None) -> list[Tensor]:
    """The bytes of each rank. torchmetrics gives a float tensor for a rank without any."""
    return gather_all_tensors(lines.to(torch.uint8), group)
