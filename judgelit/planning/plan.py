"""`judgelit plan`: memory and time that a training configuration needs, computed without a GPU."""

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

from judgelit.batches.tokenizer_files import holds_adapter
from judgelit.errors import UserError
from judgelit.likelihood.flops import PEAK_TFLOPS
from judgelit.models.lora import LoRA
from judgelit.planning.estimate import Memory, PlannedRun, estimate, head_peak_bytes
from judgelit.planning.savings import changes, needed_bytes
from judgelit.planning.workload import AssumedLengths, Workload, read_workload
from judgelit.training.cli import TrainingCLI
from judgelit.training.finetuning import PRECISIONS
from judgelit.training.fsdp import refuse_unknown
from judgelit.training.global_batch import GlobalBatch

_FLOAT32_TFLOPS = 67
"""Float32 operations a second of an H100 without TF32, in 10^12."""
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
T = TypeVar("T", int, float)


@dataclass(frozen=True)
class Length:
    """Steps, examples, tokens and operations of a run."""

    steps: int
    examples: float
    """Examples seen in all epochs together."""
    tokens: float
    flops: float

    def hours(self, gpus: int, tflops: float, mfu: float) -> float:
        """Hours on `gpus` GPUs that reach the fraction `mfu` of `tflops`, their peak in 10^12 operations a second."""
        return self.flops / (gpus * tflops * 1e12 * mfu) / 3600


def main(argv: list[str]) -> None:
    """`judgelit plan --config F [--gpus N --gpu-memory 24GB] [--mfu 0.4] [any option of judgelit fit]`."""
    options, rest = _parser().parse_known_args(argv)
    assumed = None
    if options.prompt_tokens is not None:
        assumed = AssumedLengths(options.prompt_tokens, options.completion_tokens, options.examples)
        # A configuration must name a training file, which is then not read.
        rest = [*rest, "--data.train=not-read.jsonl"]
    try:
        configured = ConfigurationOnly(["fit", *rest])
    except UserError as error:
        if str(error).startswith("missing") and "data.train" in str(error):
            raise UserError(f"{error}; or give --prompt-tokens and --completion-tokens to plan without data") from error
        raise
    trainer: Any = configured.trainer
    _refuse_senseless(trainer)
    gpus = options.gpus or _planned_gpus(trainer)
    run = planned_run(configured.model, trainer, gpus)
    work = read_workload(configured.datamodule, run, assumed)
    memory = estimate(run, work.collate(work.largest))
    room = None if options.gpu_memory is None else parse_memory(options.gpu_memory)
    tflops = options.gpu_tflops or (PEAK_TFLOPS["H100"] if run.half else _FLOAT32_TFLOPS)
    length = run_length(work, trainer, gpus)
    print("\n".join(plan_lines(run, work, memory, length, tflops, options.mfu)))
    if room is not None:
        print("\n".join(fit_lines(run, work, memory, room)))


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Options(
        prog="judgelit plan",
        allow_abbrev=False,
        description="Memory and time of a training run, computed from its configuration. Reads no weights and needs no "
        "GPU. Accepts every option of `judgelit fit` too.",
    )
    parser.add_argument("--gpus", type=_positive(int), help="number of GPUs; the default is trainer.devices")
    parser.add_argument("--gpu-memory", help="memory of one GPU, such as 24GB or 80GiB; tells whether the run fits")
    parser.add_argument(
        "--mfu",
        type=_positive(float, most=1.0),
        default=0.4,
        help="fraction of the GPUs' peak that training reaches (model FLOPs utilisation)",
    )
    parser.add_argument(
        "--gpu-tflops",
        type=_tflops,
        help=f"peak of one GPU in 10^12 operations a second, or its name ({', '.join(PEAK_TFLOPS)}); default: H100",
    )
    parser.add_argument("--prompt-tokens", type=_positive(int), help="tokens of a prompt; the data is then not read")
    parser.add_argument(
        "--completion-tokens", type=_positive(int), default=512, help="tokens of a completion, with --prompt-tokens"
    )
    parser.add_argument(
        "--examples", type=_positive(int), default=1000, help="examples of an epoch, with --prompt-tokens"
    )
    return parser


class ConfigurationOnly(TrainingCLI):
    """`judgelit fit` up to the objects of its configuration; `trainer` holds the Trainer's settings only."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Return the settings, because a Trainer would look for the planned GPUs on this machine."""
        return self._get(self.config_init, "trainer")

    def _on_gpu(self) -> bool:
        return str(self._get(self.config, "trainer")["accelerator"]) != "cpu"

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def _set_seed(self) -> None:
        pass


def planned_run(module: Any, trainer: Any, gpus: int) -> PlannedRun:
    """The settings of a configuration that memory depends on."""
    strategy = trainer["strategy"]
    refuse_unknown(strategy)
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if not getattr(strategy, "sync_every_micro_batch", True):
        raise UserError(
            "strategy.sync_every_micro_batch: found false, expected true; the plan does not "
            "cover whole gradients on every GPU"
        )
    precision = str(trainer["precision"] or "32-true")
    precision = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
    if precision not in PRECISIONS:
        raise UserError(f"trainer.precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    backbone, assumes_adapter = module.backbone, False
    if backbone.adapter is not None and not holds_adapter(backbone.adapter):
        backbone = replace(backbone, adapter=None, lora=backbone.lora or LoRA())
        assumes_adapter = True
    backbone.refuse_untrainable()
    if backbone.is_in_4bit():
        backbone = replace(backbone, quantization="nf4")
    return PlannedRun(
        backbone=backbone,
        assumes_adapter=assumes_adapter,
        optimizer=module.optimizer,
        reference=getattr(module, "reference_kind", None),
        layout=module.layout,
        precision=precision,
        accumulates=micro_batches_per_step(trainer, gpus) > 1,
        gpus=gpus,
        gpus_per_copy=getattr(strategy, "devices_per_copy", None),
        sharded=any(part in name.lower() for part in ("fsdp", "modelparallel", "model_parallel")),
        on_cpu=str(trainer["accelerator"]) == "cpu",
    )


def run_length(work: Workload, trainer: Any, gpus: int) -> Length:
    """Steps, examples, tokens and operations of a run on `gpus` ranks."""
    per_step = micro_batches_per_step(trainer, gpus)
    batches = -(-work.batches // gpus)
    limit = trainer["limit_train_batches"]
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    in_epoch = max(1, -(-batches // per_step))
    most = trainer["max_steps"] if trainer["max_steps"] is not None else -1
    # Lightning trains 1000 epochs if neither max_steps nor max_epochs is set.
    epochs = trainer["max_epochs"] if trainer["max_epochs"] is not None else (1000 if most == -1 else -1)
    steps = in_epoch * epochs if epochs != -1 else most
    steps = min(steps, most) if most != -1 else steps
    if steps == -1:
        raise UserError("trainer.max_epochs and trainer.max_steps are both -1, so the run has no end; set one")
    share = steps / in_epoch * min(1.0, batches * gpus / work.batches)
    extra = work.reference_flops
    return Length(steps, work.examples * share, work.tokens * share, work.flops * share + extra)


def micro_batches_per_step(trainer: Any, gpus: int) -> int:
    """Micro-batches that a rank accumulates."""
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, GlobalBatch):
            return callback.on(gpus)
    count: int = trainer["accumulate_grad_batches"] or 1
    return count


def plan_lines(run: PlannedRun, work: Workload, memory: Memory, length: Length, tflops: float, mfu: float) -> list[str]:
    """The lines that `judgelit plan` prints."""
    backbone, largest = run.backbone, work.collate(work.largest)
    kind = f"{'DPO' if run.reference else 'SFT'}, " + (
        "full" if not backbone.uses_lora else "QLoRA" if backbone.quantization else "LoRA"
    )
    among = f"sharded over {run.gpus} GPUs" if run.sharded and run.gpus > 1 else f"on each of {run.gpus} GPUs"
    where = "in the process" if run.on_cpu else among if run.gpus > 1 else "on one GPU"
    other = replace(run, backbone=replace(backbone, activation_checkpointing=not backbone.activation_checkpointing))
    kept = {backbone.activation_checkpointing: memory.kept, not backbone.activation_checkpointing: -1}
    kept[not backbone.activation_checkpointing] = estimate(other, largest).kept
    logits = head_peak_bytes(run, len(largest.targets))
    reference = "none" if run.kind is None else run.kind
    rows = [
        ("parameters", f"{memory.parameters:,}, of which {memory.trained:,} are trained"),
        (
            "largest micro-batch",
            f"{len(work.largest)} examples, {largest.tokens:,} tokens, {len(largest.input_ids):,} with prompts once",
        ),
        ("", f"memory {where}"),
        ("weights", f"{_gb(memory.weights)}  {backbone.quantization or backbone.dtype}"),
        ("reference", f"{_gb(memory.reference)}  {reference}"),
        ("optimizer state", _gb(memory.optimizer)),
        ("gradients", _gb(memory.gradients)),
        ("gathered weights", _gb(memory.gathered)) if memory.gathered else ("", ""),
        ("activations", f"{_gb(memory.working)}  largest sum of activations, logits and temporary tensors"),
        ("  for backward pass", f"{_gb(kept[True])}  with activation checkpointing, {_gb(kept[False])} without"),
        ("  logits", f"{_gb(logits)}  in chunks, while the LM head computes"),
        ("optimizer step", f"{_gb(memory.stepping)}  after the activations are released"),
        ("peak", f"{_gb(needed_bytes(run, memory))}" + ("" if run.on_cpu else "  with the memory reserved for CUDA")),
        ("", "time"),
        ("steps", f"{length.steps:,}"),
        (
            "examples",
            f"{length.examples:,.0f}, {length.tokens:,.0f} tokens; a prompt counts once for each of its completions",
        ),
        ("operations", f"{length.flops:.3g}"),
        ("hours", f"{length.hours(run.gpus, tflops, mfu):.3g}  at {mfu:.0%} of {run.gpus} x {tflops:g} TFLOPS"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{kind}: {backbone.name_or_path}", *work.notes]
    if run.assumes_adapter and backbone.lora is not None:
        lines.append(
            f"adapter: not there yet; assumed LoRA of rank {backbone.lora.r}, change it with model.backbone.lora"
        )
    return lines + [f"{name:<{width}}  {value}".rstrip() if name else value for name, value in rows if name or value]


def fit_lines(run: PlannedRun, work: Workload, memory: Memory, room: int) -> list[str]:
    """Lines that tell whether the run fits into `room` bytes; if not, which settings to change, one after the other."""
    peak = needed_bytes(run, memory)
    if peak <= room:
        return [f"fits {_gb(room)}: {_gb(room - peak)} to spare"]
    lines = [f"does not fit {_gb(room)}: {_gb(peak - room)} too much; change in this order"]
    for change in changes(run, work, peak, room):
        lines.append(f"  {change.setting}: saves {_gb(change.saves)}, needs {_gb(change.needs)}")
        peak = change.needs
    return lines if peak <= room else [*lines, f"  and no setting saves the last {_gb(peak - room)}"]


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def parse_memory(text: str) -> int:
    """The number of bytes in a size such as `24GB` (10^9) or `80GiB` (2^30); a number without unit is GB.

    Raises:
        UserError: The text is not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT]i?)?B?)\s*", text, re.IGNORECASE)
    unit = None if found is None else (found[2] or "G").capitalize()
    size = 0.0 if found is None or unit is None else float(found[1]) * _UNITS[unit]
    if not size:
        raise UserError(f"--gpu-memory: found {text!r}, expected a size such as 24GB or 80GiB")
    return int(size)


def _refuse_senseless(trainer: Any) -> None:
    """Refuse numbers that Lightning's Trainer, which a plan does not build, would refuse or train nothing with."""
    for name in ("max_steps", "max_epochs"):
        if trainer[name] is not None and trainer[name] < -1:
            raise UserError(f"trainer.{name}: found {trainer[name]}, expected 0 or more, or -1 for no limit")
    devices = trainer["devices"]
    if devices == [] or re.fullmatch(r"0|-(?!1$)\d+", str(devices)):
        raise UserError(f"trainer.devices: found {devices}, expected 1 or more, -1 for all, or a list")
    for name in ("num_nodes", "accumulate_grad_batches"):
        if trainer[name] < 1:
            raise UserError(f"trainer.{name}: found {trainer[name]}, expected 1 or more")
    limit = trainer["limit_train_batches"]
    if limit is not None and not limit > 0:
        raise UserError(f"trainer.limit_train_batches: found {limit}, expected a number above 0")


def _planned_gpus(trainer: Any) -> int:
    """Number of ranks in the trainer's settings; 1 if they depend on the machine."""
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    if isinstance(devices, str):
        listed = [part for part in devices.split(",") if part.strip()]
        devices = int(devices) if devices.isdigit() else len(listed) if len(listed) > 1 else 1
    count = len(devices) if isinstance(devices, list) else devices
    return max(1, count) * nodes


def _tflops(text: str) -> float:
    """Read a number of 10^12 operations a second, or the name of a GPU."""
    if text.upper() in PEAK_TFLOPS:
        return float(PEAK_TFLOPS[text.upper()])
    return _positive(float)(text)


def _positive(kind: Callable[[str], T], most: float | None = None) -> Callable[[str], T]:
    """A reader of finite numbers above 0, and up to `most` if it is given."""

    def read(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            value = kind("0")
        if not 0 < value < math.inf or (most is not None and value > most):
            limit = "" if most is None else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0{limit}")
        return value

    return read
