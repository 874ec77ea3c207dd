"""Settings to change in a run that does not fit, the cheapest first, and the memory that each change saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from judgelit.batches.tokenizer_files import NANO
from judgelit.models.lora import LoRA
from judgelit.planning.estimate import Memory, PlannedRun, estimate
from judgelit.planning.optimizer_memory import make_optimizer, uses_8_bits
from judgelit.planning.workload import Workload

_GPU_LIBRARIES = 1 << 30
"""Bytes reserved on a GPU for CUDA, cuBLAS and NCCL."""
_CPU_LIBRARIES = 50 << 20
"""Bytes of a training step on a CPU that are not tensors, measured with `benchmarks/plan_memory.py`."""
_CPU_LIBRARIES_16_BIT = 26 << 20
"""Further bytes if layers compute in 16 bits: kernels and buffers of oneDNN, which are never released."""
_FRAGMENTATION = 0.05
"""Fraction of the peak reserved for fragmentation in the caching allocator."""
_WORTH_NAMING = 0.99
"""A change is not named if more than this fraction of the peak remains."""
_MOST_GPUS = 1024


@dataclass(frozen=True)
class Change:
    """A setting to change; the bytes that the change saves and the bytes that the run then needs."""

    setting: str
    saves: int
    needs: int


def needed_bytes(run: PlannedRun, memory: Memory) -> int:
    """Bytes that a device must have: the peak and the memory of libraries, on a GPU also fragmentation."""
    if run.on_cpu:
        return memory.peak + _CPU_LIBRARIES + run.half * _CPU_LIBRARIES_16_BIT
    return round(memory.peak * (1 + _FRAGMENTATION)) + _GPU_LIBRARIES


def changes(run: PlannedRun, work: Workload, peak: int, room: int) -> Iterator[Change]:
    """Changes that save memory, each on top of those before, until the run fits into `room` bytes."""
    examples = work.largest
    for step in (_checkpoint, _add_lora, _quantize, _halve_batch, _precompute_reference, _shard):
        while (change := step(run, examples)) is not None:
            setting, changed, fewer = change
            found = needed_bytes(changed, estimate(changed, work.collate(fewer)))
            if found > _WORTH_NAMING * peak:
                break
            yield Change(setting, peak - found, found)
            run, examples, peak = changed, fewer, found
            if peak <= room:
                return


_Step = tuple[str, PlannedRun, tuple[Any, ...]] | None


def _checkpoint(run: PlannedRun, examples: tuple[Any, ...]) -> _Step:
    if run.backbone.activation_checkpointing:
        return None
    backbone = replace(run.backbone, activation_checkpointing=True)
    return "--model.backbone.activation_checkpointing=true", replace(run, backbone=backbone), examples


def _add_lora(run: PlannedRun, examples: tuple[Any, ...]) -> _Step:
    if run.backbone.uses_lora:
        return None
    # The reference of a LoRA policy is the policy without its adapter.
    reference = "adapter" if run.kind == "frozen" else run.reference
    adapted = replace(run, backbone=replace(run.backbone, lora=LoRA()), reference=reference)
    return "--model.backbone.lora.r=16", adapted, examples


def _quantize(run: PlannedRun, examples: tuple[Any, ...]) -> _Step:
    if run.backbone.quantization is not None or run.backbone.name_or_path == NANO:
        return None
    return (
        "--model.backbone.quantization=nf4",
        replace(run, backbone=replace(run.backbone, quantization="nf4")),
        examples,
    )


def _halve_batch(run: PlannedRun, examples: tuple[Any, ...]) -> _Step:
    if len(examples) == 1:
        return None
    fewer = examples[: len(examples) // 2]
    return f"--data.batch_size={len(fewer)} (or tokens_per_batch in proportion)", run, fewer


def _precompute_reference(run: PlannedRun, examples: tuple[Any, ...]) -> _Step:
    if run.kind in (None, "precomputed"):
        return None
    return "--model.reference=precomputed", replace(run, reference="precomputed"), examples


def _shard(run: PlannedRun, examples: tuple[Any, ...]) -> _Step:
    if run.on_cpu or run.gpus >= _MOST_GPUS:
        return None
    gpus = run.gpus if run.gpus > 1 and not run.sharded else 2 * run.gpus
    setting = f"--trainer.strategy.class_path=judgelit.FSDP2 over {gpus} GPUs"
    shared = replace(run, gpus=gpus, sharded=True)
    if uses_8_bits(make_optimizer(nn.Parameter(torch.zeros(1)), run.optimizer)):
        return f"{setting}, with torch.optim.AdamW", replace(shared, optimizer=torch.optim.AdamW), examples
    return setting, shared, examples
