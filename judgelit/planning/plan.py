"""`judgelit plan`: what a training configuration needs of memory and time, before a GPU is rented for it."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

from judgelit.errors import UserError
from judgelit.planning.estimate import Memory, Run, estimate, head_bytes
from judgelit.planning.savings import changes, needed
from judgelit.planning.workload import Assumed, Workload, read_workload
from judgelit.training.cli import TrainingCLI
from judgelit.training.finetuning import PRECISIONS
from judgelit.training.fsdp import refuse_unknown
from judgelit.training.global_batch import GlobalBatch

PEAK_TFLOPS = {"B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165, "3090": 71}
"""Dense bfloat16 matrix operations a second, in 10^12, as the makers give them."""
_FLOAT32_TFLOPS = 67
"""An H100's in float32, without TF32."""
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Length:
    """How much a run computes."""

    steps: int
    examples: float
    """Examples seen, epochs and all."""
    tokens: float
    flops: float

    def hours(self, gpus: int, tflops: float, mfu: float) -> float:
        """Hours at a share `mfu` of the peak of `gpus` GPUs."""
        return self.flops / (gpus * tflops * 1e12 * mfu) / 3600


def main(argv: list[str]) -> None:
    """`judgelit plan --config F [--gpus N --gpu-memory 24GB] [--mfu 0.4] [any option of judgelit fit]`."""
    options, rest = _parser().parse_known_args(argv)
    settings = describe(rest)
    trainer = settings.trainer
    gpus = options.gpus or _planned_gpus(trainer)
    run = run_of(settings.model, trainer, gpus)
    assumed = None
    if options.prompt_tokens is not None:
        assumed = Assumed(options.prompt_tokens, options.completion_tokens, options.examples)
    work = read_workload(settings.datamodule, run, assumed)
    memory = estimate(run, work.collate(work.rows))
    room = None if options.gpu_memory is None else parse_memory(options.gpu_memory)
    tflops = options.gpu_tflops or (PEAK_TFLOPS["H100"] if run.half else _FLOAT32_TFLOPS)
    length = length_of(work, trainer, gpus)
    print("\n".join(table(run, work, memory, length, tflops, options.mfu)))
    if room is not None:
        print("\n".join(verdict(run, work, memory, room)))


class _OneLine(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _OneLine(
        prog="judgelit plan",
        allow_abbrev=False,
        description="Memory and time of a training run, from its configuration: no weight is read, no GPU needed. "
        "Every option of `judgelit fit` may follow.",
    )
    parser.add_argument("--gpus", type=_positive(int), help="GPUs of the run; by default as trainer.devices has it")
    parser.add_argument("--gpu-memory", help="memory of one, such as 24GB or 80GiB: says whether the run fits")
    parser.add_argument("--mfu", type=_positive(float), default=0.4, help="share of the GPUs' peak that it reaches")
    parser.add_argument(
        "--gpu-tflops",
        type=_tflops,
        help=f"10^12 operations a second of one GPU, or its name ({', '.join(PEAK_TFLOPS)}); by default an H100's",
    )
    parser.add_argument("--prompt-tokens", type=_positive(int), help="tokens of a prompt, in place of reading the data")
    parser.add_argument("--completion-tokens", type=_positive(int), default=512, help="tokens of a completion, then")
    parser.add_argument("--examples", type=_positive(int), default=1000, help="examples of an epoch, then")
    return parser


def describe(arguments: Sequence[str]) -> Any:
    """The parsed configuration of `judgelit fit`: its `model`, its `datamodule`, and `trainer` as plain settings."""

    class Described(TrainingCLI):
        def instantiate_trainer(self, **kwargs: Any) -> Any:
            # A trainer looks for the GPUs that are yet to be rented.
            return self._get(self.config_init, "trainer")

        def _run_subcommand(self, subcommand: str) -> None:
            pass

        def _set_seed(self) -> None:
            pass

    return Described(["fit", *arguments])


def run_of(module: Any, trainer: Any, gpus: int) -> Run:
    """What of a configuration its memory depends on."""
    strategy = trainer["strategy"]
    refuse_unknown(strategy)
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if not getattr(strategy, "sync_every_micro_batch", True):
        raise UserError(
            "strategy.sync_every_micro_batch: found false, expected true: gradients of the whole model on every GPU "
            "are not planned for"
        )
    precision = str(trainer["precision"] or "32-true")
    precision = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    return Run(
        backbone=module.backbone,
        optimizer=module.optimizer,
        reference=getattr(module, "reference_kind", None),
        layout=module.layout,
        precision=precision,
        accumulates=_window(trainer, gpus) > 1,
        gpus=gpus,
        gpus_per_copy=getattr(strategy, "devices_per_copy", None),
        sharded=any(part in name.lower() for part in ("fsdp", "modelparallel", "model_parallel")),
        on_cpu=str(trainer["accelerator"]) == "cpu",
    )


def length_of(work: Workload, trainer: Any, gpus: int) -> Length:
    """Steps, tokens and operations of a run of `trainer` on `gpus` ranks."""
    window = _window(trainer, gpus)
    batches = -(-work.batches // gpus)
    limit = trainer["limit_train_batches"]
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    in_epoch = max(1, -(-batches // window))
    most = trainer["max_steps"] if trainer["max_steps"] is not None else -1
    # Lightning's own default for a run without end is a thousand epochs.
    epochs = trainer["max_epochs"] if trainer["max_epochs"] is not None else (1000 if most == -1 else -1)
    steps = in_epoch * epochs if epochs != -1 else most
    steps = min(steps, most) if most != -1 else steps
    if steps == -1:
        raise UserError("trainer.max_epochs and trainer.max_steps are both -1, so the run has no end; set one of them")
    share = steps / in_epoch * min(1.0, batches * gpus / work.batches)
    extra = work.reference_flops
    return Length(steps, work.examples * share, work.tokens * share, work.flops * share + extra)


def _window(trainer: Any, gpus: int) -> int:
    """Micro-batches that a rank accumulates."""
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, GlobalBatch):
            return callback.on(gpus)
    window: int = trainer["accumulate_grad_batches"] or 1
    return window


def table(run: Run, work: Workload, memory: Memory, length: Length, tflops: float, mfu: float) -> list[str]:
    """The lines of the plan."""
    backbone, largest = run.backbone, work.collate(work.rows)
    kind = f"{'DPO' if run.reference else 'SFT'}, " + (
        "full" if not backbone.uses_lora else "QLoRA" if backbone.quantization else "LoRA"
    )
    among = f"sharded over {run.gpus} GPUs" if run.sharded and run.gpus > 1 else f"on each of {run.gpus} GPUs"
    where = "in the process" if run.on_cpu else among if run.gpus > 1 else "on one GPU"
    other = replace(run, backbone=replace(backbone, activation_checkpointing=not backbone.activation_checkpointing))
    kept = {backbone.activation_checkpointing: memory.kept, not backbone.activation_checkpointing: -1}
    kept[not backbone.activation_checkpointing] = estimate(other, largest).kept
    logits = head_bytes(run, len(largest.targets))
    reference = "none" if run.kind is None else run.kind
    rows = [
        ("parameters", f"{memory.parameters:,}, of which {memory.trained:,} are trained"),
        (
            "largest micro-batch",
            f"{len(work.rows)} examples, {largest.tokens:,} tokens, {len(largest.input_ids):,} with each prompt once",
        ),
        ("", f"memory {where}"),
        ("weights", f"{_gb(memory.weights)}  {backbone.quantization or backbone.dtype}"),
        ("reference", f"{_gb(memory.reference)}  {reference}"),
        ("optimizer state", _gb(memory.optimizer)),
        ("gradients", _gb(memory.gradients)),
        ("gathered weights", _gb(memory.gathered)) if memory.gathered else ("", ""),
        ("at work", f"{_gb(memory.working)}  activations, logits and attention's workspace at the worst moment"),
        ("  kept activations", f"{_gb(kept[True])}  with activation checkpointing, {_gb(kept[False])} without"),
        ("  logits", f"{_gb(logits)}  in chunks, while the head computes"),
        ("  optimizer at work", f"{_gb(memory.stepping)}  at another moment"),
        ("peak", f"{_gb(needed(run, memory))}" + ("" if run.on_cpu else "  with what is set aside for CUDA")),
        ("", "time"),
        ("steps", f"{length.steps:,}"),
        ("examples", f"{length.examples:,.0f}, {length.tokens:,.0f} tokens, each prompt with each of its completions"),
        ("operations", f"{length.flops:.3g}"),
        ("hours", f"{length.hours(run.gpus, tflops, mfu):.3g}  at {mfu:.0%} of {run.gpus} x {tflops:g} TFLOPS"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{kind}: {backbone.name_or_path}", *work.notes]
    return lines + [f"{name:<{width}}  {value}".rstrip() if name else value for name, value in rows if name or value]


def verdict(run: Run, work: Workload, memory: Memory, room: int) -> list[str]:
    """Whether the run fits `room` bytes; if not, what to change first, each change on top of those before."""
    peak = needed(run, memory)
    if peak <= room:
        return [f"fits {_gb(room)}: {_gb(room - peak)} to spare"]
    lines = [f"does not fit {_gb(room)}: {_gb(peak - room)} too much; change first"]
    for change in changes(run, work, peak, room):
        lines.append(f"  {change.setting}: saves {_gb(change.saves)}, needs {_gb(change.needs)}")
        peak = change.needs
    return lines if peak <= room else [*lines, f"  and no setting saves the last {_gb(peak - room)}"]


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def parse_memory(text: str) -> int:
    """Bytes of `24GB` (10^9), `80GiB` (2^30) and the like; a bare number is GB.

    Raises:
        UserError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]i?)?B?)\s*", text, re.IGNORECASE)
    unit = None if found is None else (found[2] or "G").capitalize()
    size = 0.0 if found is None or unit is None else float(found[1]) * _UNITS[unit]
    if not size:
        raise UserError(f"--gpu-memory: found {text!r}, expected a size such as 24GB or 80GiB")
    return int(size)


def _planned_gpus(trainer: Any) -> int:
    """Ranks that the trainer's settings name; 1 where they leave it to what is there."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    if isinstance(devices, str):
        listed = [part for part in devices.split(",") if part.strip()]
        devices = int(devices) if devices.isdigit() else len(listed) if len(listed) > 1 else 1
    count = len(devices) if isinstance(devices, list) else devices
    return max(1, count) * nodes


def _tflops(text: str) -> float:
    """A number of 10^12 operations a second, or a GPU's name."""
    if text.upper() in PEAK_TFLOPS:
        return float(PEAK_TFLOPS[text.upper()])
    return _positive(float)(text)


def _positive(kind: Callable[[str], T]) -> Callable[[str], T]:
    def read(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            value = kind("0")
        if not value > kind("0"):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
        return value

    return read
