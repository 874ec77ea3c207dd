"""Measure data at scale: memory of the first start, time of the second start, time that training waits for data.

    python benchmarks/data_scale.py --pairs 1000000 --model DIR [--tokenizer nano] [--folder DIR]

The script writes --pairs preference examples as JSONL, the same on every machine. It then measures, each in a new
process:

- first start: read and tokenise the examples, up to the first batch. Memory is that of the process and its workers
  together, sampled ten times a second: `Pss`, which counts a shared page once, and the sum of `RssAnon`.
- second start: from the start of the process to the first batch, with the peak resident memory (`VmHWM`).
- training: DPO steps of 4 pairs with --model, and with `nano`, whose steps are short: the share of time that a step
  waits for its batch, from the third step on.

Each figure is a claim; the last line is the claim about memory. Processor seconds are printed too, for machines with
other jobs. Linux only.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import side_by_side

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", default="nano")
    parser.add_argument("--model", help="folder of a causal language model to train; default: only nano")
    parser.add_argument("--folder", type=Path, help="folder that keeps data and cache; default: a temporary folder")
    parser.add_argument("--steps", type=int, default=10, help="measured steps; with nano ten times as many")
    parser.add_argument("--workers", type=int, default=1, help="loader processes in training")
    parser.add_argument("--role", choices=["parent", "start", "train"], default="parent", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role != "parent":
        (start if args.role == "start" else train)(args)
        return
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
        measure_all(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        measure_all(args)


def measure_all(args: argparse.Namespace) -> None:
    """Measure each part and print the claims."""
    from judgelit.records.files import write_records

    file = data_file(args)
    if not file.exists():
        write_records(file, examples(args.pairs))
    print(f"{args.pairs} pairs, {file.stat().st_size / GIB:.2f} GiB of JSONL", flush=True)
    first = run_part(args, "start", watched=True)
    print(f"first start {first}", flush=True)
    second = run_part(args, "start")
    print(f"second start {second}", flush=True)
    claims = [(f"second start with {args.pairs} pairs, seconds / 10 s", 1.0, [second["seconds"], 10.0])]
    for model in filter(None, (args.model, "nano")):
        found = run_part(args, "train", model=model)
        print(f"training {model}: {found}", flush=True)
        text = f"share of a DPO step of 4 pairs that waits for its batch, {Path(model).name}"
        claims.append((text, 0.02, [found["waiting"], found["seconds"]]))
    text = f"resident memory of tokenising {args.pairs} pairs, all processes, bytes / 1 GiB"
    claims.append((text, 1.0, [first["pss"], GIB]))
    for text, goal, pair in claims:
        side_by_side.print_claim(text, goal, [pair], smaller_is_better=True)


def data_file(args: argparse.Namespace) -> Path:
    """File of the examples."""
    return args.folder / f"pairs-{args.pairs}.jsonl"


def examples(count: int) -> Iterator[Any]:
    """Yield a right and a wrong judgment of a sum for each prompt; every fourth prompt has a second pair."""
    from judgelit.records.records import PreferenceExample

    for number in range(count):
        draw = random.Random(number - 1 if number % 5 == 4 else number)
        terms = [draw.randrange(10, 90) for _ in range(draw.randrange(4, 8))]
        answer, slip = sum(terms), draw.choice([-10, -1, 1, 10])
        question = "+".join(map(str, terms))
        better = draw.choice("AB")
        shown = (answer, answer + slip) if better == "A" else (answer + slip, answer)
        prompt = f"Work it out.\n{question}=?\nA: {shown[0]}\nB: {shown[1]}\nWhich is right?"
        worked = " ".join(f"{sum(terms[:n])}+{terms[n]}={sum(terms[: n + 1])}" for n in range(1, len(terms)))
        if number % 5 == 4:
            worked = worked.replace(" ", ", ")
        wrong = "B" if better == "A" else "A"
        yield PreferenceExample(
            ({"role": "user", "content": prompt},), f"{worked} [[{better}]]", f"[[{wrong}]]", {"pair_id": f"p{number}"}
        )


def run_part(args: argparse.Namespace, role: str, model: str | None = None, watched: bool = False) -> dict[str, Any]:
    """Run one part in a new process. Return its report, its time and, if `watched`, its peak memory."""
    command = [sys.executable, __file__, "--role", role, "--folder", str(args.folder), "--pairs", str(args.pairs)]
    command += ["--tokenizer", args.tokenizer, "--steps", str(args.steps), "--workers", str(args.workers)]
    command += ["--model", model] if model else []
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = {"pss": 0, "anonymous": 0, "processes": 0}
    while watched and process.poll() is None:
        for name, value in memory(process.pid).items():
            peaks[name] = max(peaks[name], value)
        time.sleep(0.1)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{role} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    return {**found, **(peaks if watched else {}), **json.loads(output.splitlines()[-1])}


def memory(process: int) -> dict[str, int]:
    """Memory of a process and its descendants in bytes: sums of `Pss` and `RssAnon`."""
    found = {"pss": 0, "anonymous": 0, "processes": 0}
    waiting = [process]
    while waiting:
        number = waiting.pop()
        try:
            found["pss"] += field(f"/proc/{number}/smaps_rollup", "Pss")
            found["anonymous"] += field(f"/proc/{number}/status", "RssAnon")
            for task in Path(f"/proc/{number}/task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, StopIteration):
            continue  # the process has just ended
        found["processes"] += 1
    return found


def field(path: str, name: str) -> int:
    """A field of a /proc file in bytes."""
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def data(args: argparse.Namespace, tokenizer: str, workers: int = 0) -> Any:
    """Data module of the examples."""
    from judgelit.batches.datamodules import DPODataModule

    return DPODataModule(
        tokenizer, str(data_file(args)), batch_size=4, num_workers=workers, cache=str(args.folder / "cache")
    )


def start(args: argparse.Namespace) -> None:
    """Prepare the data and load the first batch; print the batch's size and the memory."""
    module = data(args, args.tokenizer)
    module.prepare_data()
    module.setup("fit")
    loader = module.train_dataloader()
    batch = next(iter(loader))
    status = "/proc/self/status"
    found = {"rows": len(module.rows("train")), "batches": len(loader), "tokens_of_first": batch.tokens}
    print(json.dumps({**found, "high": field(status, "VmHWM"), "own_anonymous": field(status, "RssAnon")}))


def train(args: argparse.Namespace) -> None:
    """Train with DPO; print the waiting time and the total time."""
    import lightning as L
    import torch
    from lightning.pytorch.profilers import SimpleProfiler

    from judgelit.models.backbone import Backbone
    from judgelit.training.dpo import DPOModule

    class Silent(SimpleProfiler):
        def describe(self) -> None:
            pass

    profiler = Silent()
    steps = args.steps * (10 if args.model == "nano" else 1)
    module = DPOModule(Backbone(args.model), optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, fused=True))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps + 2,
        profiler=profiler,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Use the model's tokenizer: another tokenizer may have ids that the model does not know.
    trainer.fit(module, data(args, args.model, args.workers))
    durations = profiler.recorded_durations
    waiting = sum(durations["[_TrainingEpochLoop].train_dataloader_next"][2:])
    working = sum(durations["run_training_batch"][2:])
    print(json.dumps({"waiting": waiting, "seconds": waiting + working, "steps": steps}))


if __name__ == "__main__":
    main()
