"""Throughput and memory of the endpoint engine against a server with a fixed latency.

    python benchmarks/endpoint.py [--prompts 1000] [--concurrency 64] [--latency 0.2] [--many 10] [--runs 3]

The server is a process of its own (`endpoint_stub.py`). The ideal time is ceil(prompts / concurrency) * latency. Each
run asks new prompts of 2,000 characters and writes every answer to a journal, as the commands do. Then `--many` times
as many prompts are asked without a journal; the prompts are made when they are asked for, so the growth of peak memory
is the engine's.

Claims: the time is less than 1.3 times the ideal; peak memory does not depend on the number of prompts. The last line
is one JSON object: `ratio` is the median of measured / ideal seconds, each pair is [measured, ideal] of a run.
`cpu_ms` is the processor time of this process for a request, which needs a core of its own.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from side_by_side import environment


class Prompts(Sequence[Any]):
    """Conversations that are made when they are asked for."""

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self.name = name

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        text = f"Question {self.name}.{index}: which of these two answers is better? ".ljust(2000, "x")
        return [{"role": "user", "content": text}]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that the server takes for an answer")
    parser.add_argument("--many", type=int, default=10, help="times as many prompts to measure memory with")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    from judgelit.generation.engine import EngineSpec, load_engine
    from judgelit.generation.journal import JournaledEngine
    from judgelit.generation.requests import Requests
    from judgelit.generation.sampling import Sampling

    stub = Path(__file__).with_name("endpoint_stub.py")
    server = subprocess.Popen(
        [sys.executable, str(stub), "--latency", str(args.latency)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        engine = load_engine(EngineSpec("stub", endpoint=url, requests=Requests(concurrency=args.concurrency)))
        sampling = Sampling(max_new_tokens=256)
        ideal = math.ceil(args.prompts / args.concurrency) * args.latency
        pairs = []
        with TemporaryDirectory() as folder:
            for run in range(args.runs):
                journaled = JournaledEngine(engine, Path(folder) / f"{run}.sqlite")
                began = time.perf_counter()
                answered = sum(1 for _ in journaled.answer(Prompts(args.prompts, str(run)), sampling))
                pairs.append([time.perf_counter() - began, ideal])
                assert answered == args.prompts
                print(f"run {run}: {pairs[-1][0]:.2f} s, ideal {ideal:.2f} s", flush=True)
        before = peak_mib()
        began, cpu = time.perf_counter(), time.process_time()
        many = args.many * args.prompts
        assert sum(1 for _ in engine.answer(Prompts(many, "many"), sampling)) == many
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(f"{many} prompts: {seconds:.2f} s, peak memory {before:.0f} MiB before, {peak_mib():.0f} MiB after")
    finally:
        server.terminate()
        server.wait()
    found = {
        "claim": f"{args.prompts} prompts, latency {args.latency} s, concurrency {args.concurrency}: seconds / ideal",
        "ratio": statistics.median(measured / best for measured, best in pairs),
        "goal": 1.3,
        "smaller_is_better": True,
        "pairs": pairs,
        "peak_mib": [before, peak_mib()],
        "cpu_ms": 1000 * cpu / many,
        "environment": environment(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
