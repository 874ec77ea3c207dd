"""Benchmarks by name. To add one, write a file that defines a `Benchmark` and add a line to `BENCHMARKS`."""

import difflib
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.protocols.judgebench import JUDGEBENCH
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.protocols.reasoningjudgebench import REASONINGJUDGEBENCH
from judgelit.evaluation.protocols.rewardbench import REWARDBENCH
from judgelit.evaluation.protocols.rewardbench2 import REWARDBENCH2
from judgelit.evaluation.protocols.rewardbench2_ratings import REWARDBENCH2_RATINGS
from judgelit.evaluation.protocols.rm_bench import RM_BENCH
from judgelit.evaluation.protocols.rmb import RMB_BEST_OF_N, RMB_PAIRWISE

BENCHMARKS: dict[str, Benchmark[Any]] = {
    "pairs": PAIRS,
    "rewardbench": REWARDBENCH,
    "rewardbench2": REWARDBENCH2,
    "rewardbench2-ratings": REWARDBENCH2_RATINGS,
    "judgebench": JUDGEBENCH,
    "rm-bench": RM_BENCH,
    "reasoningjudgebench": REASONINGJUDGEBENCH,
    "rmb-pairwise": RMB_PAIRWISE,
    "rmb-bestofn": RMB_BEST_OF_N,
}


def find_benchmark(name: str) -> Benchmark[Any]:
    """The benchmark of this name.

    Raises:
        UserError: There is none.
    """
    if name not in BENCHMARKS:
        nearest = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0)[0]
        raise UserError(
            f"benchmark: found {name!r}, which does not exist; the nearest known one is {nearest!r}; "
            "`judgelit evaluate --list` shows all"
        )
    return BENCHMARKS[name]
