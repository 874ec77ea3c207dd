"""Compare the peak memory that `judgelit plan` predicts with that of real training on the CPU.

    python benchmarks/plan_memory.py --model DIR --data-sft FILE --data-dpo FILE [--batch 2] [--first 0] [--only NAME]

Each setting runs in a new process. It trains with `judgelit fit` for two steps on one batch of the data, in float32
unless the setting's name has another dtype. If gradients accumulate, it trains for four steps on two batches. The
measured figure is the peak of resident memory from the first step on, minus the resident memory before the model was
built (libraries, tokenizer, data). Each process is forked from one that has trained a small model, so all libraries are
loaded. No checkpoint is saved, because on a CPU saving holds a second copy of the weights. glibc returns released
blocks of 64 KB and more to the system (MALLOC_MMAP_THRESHOLD_), so the figure is the memory of tensors; with `--malloc
default` it also includes the allocator's unused blocks. The last line is the claim: the largest relative error of the
plan.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import side_by_side

CHECKPOINTS = ["--model.backbone.activation_checkpointing=true"]
KEEPS = ["--model.backbone.activation_checkpointing=false"]
LORA = ["--model.backbone.lora.r=16", "--model.backbone.lora.alpha=32"]
NF4 = [*LORA, "--model.backbone.quantization=nf4"]
BF16 = ["--model.backbone.dtype=bfloat16"]
SETTINGS: dict[str, list[str]] = {
    "sft full, checkpointing": CHECKPOINTS,
    "sft full": KEEPS,
    "sft full, accumulating": [*KEEPS, "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=4"],
    "sft lora, checkpointing": [*LORA, *CHECKPOINTS],
    "sft lora": [*LORA, *KEEPS],
    "sft lora bfloat16, checkpointing": [*LORA, *BF16, *CHECKPOINTS],
    "sft qlora, checkpointing": [*NF4, *CHECKPOINTS],
    "sft qlora": [*NF4, *KEEPS],
    "dpo adapter, checkpointing": [*LORA, "--model.reference=adapter", *CHECKPOINTS],
    "dpo adapter": [*LORA, "--model.reference=adapter", *KEEPS],
    "dpo frozen, checkpointing": ["--model.reference=frozen", *CHECKPOINTS],
    "dpo precomputed, checkpointing": ["--model.reference=precomputed", *CHECKPOINTS],
    "dpo precomputed": ["--model.reference=precomputed", *KEEPS],
}
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": str(1 << 16)}
ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--data-sft", required=True, help="file of SFT examples")
    parser.add_argument("--data-dpo", required=True, help="file of preference examples")
    parser.add_argument("--batch", type=int, default=2, help="examples of the batch")
    parser.add_argument("--first", type=int, default=0, help="index of the first example in the data")
    parser.add_argument("--malloc", choices=["exact", "default"], default="exact", help="how glibc keeps freed blocks")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings; default: all")
    args = parser.parse_args()
    wanted = ALONE | (EXACT if args.malloc == "exact" else {})
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        # glibc and CUDA read these variables when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    warm_up()
    pairs = {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            arguments = fit_arguments(name, args, Path(folder))
            pairs[name] = [in_new_process(planned, arguments), in_new_process(measured, arguments)]
        print(f"{name}: planned {pairs[name][0] / 1e6:.0f} MB, measured {pairs[name][1] / 1e6:.0f} MB", flush=True)
    worst = max(abs(plan / found - 1) for plan, found in pairs.values())
    claim = {
        "claim": "judgelit plan: largest relative error of the peak memory",
        "ratio": round(worst, 4),
        "goal": 0.1,
        "smaller_is_better": True,
        "pairs": list(pairs.values()),
        "settings": list(pairs),
        "environment": side_by_side.environment(),
    }
    print(json.dumps(claim))


def fit_arguments(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """The arguments of `judgelit fit`; each epoch is the same single step."""
    kind = name[:3]
    lines = Path(args.data_sft if kind == "sft" else args.data_dpo).read_text(encoding="utf-8").splitlines()
    data = folder / "data.jsonl"
    # With two batches a step, the larger one is the second in some epoch.
    count = args.batch * (2 if name.endswith("accumulating") else 1)
    data.write_text("\n".join(lines[args.first : args.first + count]) + "\n", encoding="utf-8")
    return [
        f"--model={kind.upper()}Module",
        f"--data={kind.upper()}DataModule",
        f"--model.backbone.name_or_path={args.model}",
        f"--data.train={data}",
        f"--data.batch_size={args.batch}",
        f"--data.cache={folder / 'cache'}",
        f"--trainer.default_root_dir={folder / 'run'}",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=false",
        *SETTINGS[name],
    ]


def planned(arguments: list[str]) -> int:
    """The peak planned by `judgelit plan`, in bytes, with libraries and fragmentation."""
    from judgelit.planning.savings import needed_bytes

    return needed_bytes(*estimated(arguments))


def planned_tensors(arguments: list[str]) -> int:
    """The planned peak of tensors alone, in bytes."""
    return estimated(arguments)[1].peak


def estimated(arguments: list[str]) -> tuple[Any, Any]:
    """The planned run and its memory."""
    from judgelit.planning.estimate import estimate
    from judgelit.planning.plan import ConfigurationOnly, planned_run
    from judgelit.planning.workload import read_workload

    configured = ConfigurationOnly(["fit", *arguments])
    run = planned_run(configured.model, configured.trainer, 1)
    work = read_workload(configured.datamodule, run)
    return run, estimate(run, work.collate(work.largest))


def in_new_process(function: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call a function in a forked process and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as processes:
        return processes.submit(function, arguments).result()


def measured(arguments: list[str]) -> int:
    """The measured memory of training in bytes: peak of the steps minus the memory before the model was built."""
    import lightning as L

    from judgelit.runs.peak_memory import peak_memory, reset_peak_memory
    from judgelit.training.cli import TrainingCLI

    class Meter(L.Callback):
        before = 0
        found = 0

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            # The data has been read; the model has not been built.
            reset_peak_memory()
            Meter.before = peak_memory()

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            reset_peak_memory()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            Meter.found = peak_memory() - self.before

    class Measured(TrainingCLI):
        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.insert(0, Meter())
            return trainer

        def after_fit(self) -> None:
            """Write no model."""

    Measured(["fit", *arguments])
    return Meter.found


def warm_up() -> None:
    """Train the built-in model for one step, so that the libraries finish their lazy loading."""
    import bitsandbytes  # noqa: F401
    import torch

    from judgelit.batches.flat_batch import TokenizedCompletion, flatten_completions
    from judgelit.likelihood.layouts import Layout
    from judgelit.likelihood.logprobs import completion_logprobs
    from judgelit.models.backbone import Backbone
    from judgelit.models.lora import LoRA
    from judgelit.training.cli import TrainingCLI  # noqa: F401

    model = Backbone("nano", lora=LoRA()).build()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    batch = flatten_completions([TokenizedCompletion("", list(range(64)), list(range(64)))])
    completion_logprobs(model, batch, Layout("shared_prefix")).sums.sum().backward()
    optimizer.step()


if __name__ == "__main__":
    main()
