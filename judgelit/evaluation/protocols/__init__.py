"""Benchmarks by name. To add one, write a file that defines a `Benchmark`; README.md says how."""

import difflib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.protocols.auto_j import AUTO_J
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.protocols.evalbiasbench import EVALBIASBENCH
from judgelit.evaluation.protocols.judgebench import JUDGEBENCH
from judgelit.evaluation.protocols.llmbar import LLMBAR
from judgelit.evaluation.protocols.mt_bench_human import MT_BENCH_HUMAN
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.protocols.pandalm import PANDALM
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
    "llmbar": LLMBAR,
    "pandalm": PANDALM,
    "auto-j": AUTO_J,
    "evalbiasbench": EVALBIASBENCH,
    "mt-bench-human": MT_BENCH_HUMAN,
}


def find_benchmark(name: str) -> Benchmark[Any]:
    """The benchmark of this name, or the one that a file of the user defines, as `FILE.py:NAME`.

    Raises:
        UserError: There is none.
    """
    file, _, attribute = name.rpartition(":")
    if file.endswith(".py"):
        return _of_file(file, attribute)
    if name not in BENCHMARKS:
        nearest = difflib.get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0)[0]
        raise UserError(
            f"benchmark: found {name!r}, which does not exist; the nearest known one is {nearest!r}; "
            "`judgelit evaluate --list` shows all"
        )
    return BENCHMARKS[name]


def runs_code(benchmark: str) -> bool:
    """Whether `find_benchmark` runs a Python file for this name."""
    return benchmark.rpartition(":")[0].endswith(".py")


def name_of_set(benchmark: str) -> str:
    """The name of a benchmark's set of items in results and files: of `FILE.py:NAME`, the name in small letters."""
    file, _, attribute = benchmark.rpartition(":")
    return attribute.lower() if file.endswith(".py") else benchmark


@cache
def _of_file(file: str, attribute: str) -> Benchmark[Any]:
    """The benchmark that a Python file defines. The user has named the file, so its code is run."""
    path = Path(file)
    if not path.is_file():
        raise UserError(f"benchmark: found {file}:{attribute}, but no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # The file can raise any Python exception.
        raise UserError(f"benchmark: {file} cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Benchmark):
        named = [name for name, value in vars(module).items() if isinstance(value, Benchmark)]
        raise UserError(
            f"benchmark: found no Benchmark {attribute!r} in {file}, expected one of {', '.join(named) or 'none there'}"
        )
    return found
