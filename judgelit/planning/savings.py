"""What to change in a run that does not fit, in the order in which it costs least, and what each change saves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from judgelit.batches.tokenizer import NANO
from judgelit.models.lora import LoRA
from judgelit.planning.estimate import Memory, Run, estimate
from judgelit.planning.optimizer_memory import optimizer_over, uses_8_bits
from judgelit.planning.workload import Workload

_CONTEXT = 1 << 30
"""Bytes set aside on a GPU for CUDA, cuBLAS and NCCL."""
_HOST = 50 << 20
"""Bytes that a training step takes on a CPU beside tensors, as measured by `benchmarks/plan_memory.py`."""
_HOST_HALF = 26 << 20
"""More of them where layers compute in 16 bits: oneDNN's kernels and buffers, which stay."""
_FRAGMENTS = 0.05
"""Share of the peak set aside for the caching allocator's gaps."""
_WORTH = 0.99
"""A change that leaves more than this of the peak is not worth naming."""
_MOST_GPUS = 1024


@dataclass(frozen=True)
class Change:
    """A setting to change, what memory it saves, and what is needed then."""

    setting: str
    saves: int
    needs: int


def needed(run: Run, memory: Memory) -> int:
    """Bytes that a device must have: the peak, and what libraries take beside tensors, on a GPU gaps too."""
    if run.on_cpu:
        return memory.peak + _HOST + run.half * _HOST_HALF
    return round(memory.peak * (1 + _FRAGMENTS)) + _CONTEXT


def changes(run: Run, work: Workload, peak: int, room: int) -> Iterator[Change]:
    """Changes that save memory, one after the other until the run fits."""
    rows = work.rows
    for step in (_checkpoint, _adapt, _quantize, _halve, _precompute, _share_out):
        while (change := step(run, rows)) is not None:
            setting, changed, fewer = change
            found = needed(changed, estimate(changed, work.collate(fewer)))
            if found > _WORTH * peak:
                break
            yield Change(setting, peak - found, found)
            run, rows, peak = changed, fewer, found
            if peak <= room:
                return


_Step = tuple[str, Run, tuple[Any, ...]] | None


def _checkpoint(run: Run, rows: tuple[Any, ...]) -> _Step:
    if run.backbone.activation_checkpointing:
        return None
    backbone = replace(run.backbone, activation_checkpointing=True)
    return "--model.backbone.activation_checkpointing=true", replace(run, backbone=backbone), rows


def _adapt(run: Run, rows: tuple[Any, ...]) -> _Step:
    if run.backbone.uses_lora:
        return None
    # An adapter's reference is the same weights without it.
    reference = "adapter" if run.kind == "frozen" else run.reference
    adapted = replace(run, backbone=replace(run.backbone, lora=LoRA()), reference=reference)
    return "--model.backbone.lora.r=16", adapted, rows


def _quantize(run: Run, rows: tuple[Any, ...]) -> _Step:
    if run.backbone.quantization is not None or run.backbone.name_or_path == NANO:
        return None
    return "--model.backbone.quantization=nf4", replace(run, backbone=replace(run.backbone, quantization="nf4")), rows


def _halve(run: Run, rows: tuple[Any, ...]) -> _Step:
    if len(rows) == 1:
        return None
    fewer = rows[: len(rows) // 2]
    return f"--data.batch_size={len(fewer)} (or tokens_per_batch in proportion)", run, fewer


def _precompute(run: Run, rows: tuple[Any, ...]) -> _Step:
    if run.kind in (None, "precomputed"):
        return None
    return "--model.reference=precomputed", replace(run, reference="precomputed"), rows


def _share_out(run: Run, rows: tuple[Any, ...]) -> _Step:
    if run.on_cpu or run.gpus >= _MOST_GPUS:
        return None
    gpus = run.gpus if run.gpus > 1 and not run.sharded else 2 * run.gpus
    setting = f"--trainer.strategy.class_path=judgelit.training.fsdp.FSDP2 over {gpus} GPUs"
    shared = replace(run, gpus=gpus, sharded=True)
    if uses_8_bits(optimizer_over(nn.Parameter(torch.zeros(1)), run.optimizer)):
        return f"{setting}, with torch.optim.AdamW", replace(shared, optimizer=torch.optim.AdamW), rows
    return setting, shared, rows
