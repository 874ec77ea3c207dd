"""The measures of `gpu.py`: tokens a second, share of the card's peak, TRL beside it, time outside of kernels."""

import statistics
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, ClassVar

import side_by_side
from gpu_models import make_data, make_model

STEPS = 5
"""Measured steps, after WARMUP others."""
WARMUP = 3
PROMPT, COMPLETION = 1500, 500
LONGEST = 8
"""Kernels to name, those that take most of the time."""


class Timed:
    """Trains a module for a few steps and keeps seconds, tokens and operations of each."""

    def __init__(self, bench: Any, module: Any, data: Any) -> None:
        import lightning as L

        self.bench = bench
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.flops: list[int] = []
        timed = self

        class Clock(L.Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                timed.synchronize()
                self.began = time.perf_counter()

            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                timed.synchronize()
                timed.seconds.append(time.perf_counter() - self.began)
                timed.tokens.append(batch.tokens)
                timed.flops.append(operations(module, batch))

        trainer = L.Trainer(
            **trainer_settings(bench, WARMUP + STEPS),
            callbacks=[Clock()],
        )
        trainer.fit(module, data)

    def synchronize(self) -> None:
        import torch

        if not self.bench.dry:
            torch.cuda.synchronize()

    def figures(self) -> dict[str, Any]:
        """Medians over the measured steps. `mfu` counts necessary operations only, without recomputed activations."""
        import torch

        from judgelit.likelihood.flops import peak_flops

        measured = range(WARMUP, len(self.seconds))
        tokens = statistics.median(self.tokens[step] / self.seconds[step] for step in measured)
        found: dict[str, Any] = {
            "tokens_per_second": round(tokens),
            "seconds_per_step": round(statistics.median(self.seconds[step] for step in measured), 4),
            "first_step_seconds": round(self.seconds[0], 2),
        }
        if not self.bench.dry:
            rate = statistics.median(self.flops[step] / self.seconds[step] for step in measured)
            peak = peak_flops(torch.cuda.get_device_name(0))
            found["tflops"] = round(rate / 1e12, 1)
            found["mfu"] = None if peak is None else round(rate / peak, 3)
            found["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return found


def trainer_settings(bench: Any, count: int) -> dict[str, Any]:
    """Settings of Lightning's Trainer for `count` steps."""
    return {
        "accelerator": bench.accelerator,
        "devices": 1,
        "max_steps": count,
        "precision": "bf16-mixed",
        "gradient_clip_val": 1.0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }


def operations(module: Any, batch: Any) -> int:
    """Necessary operations of a step."""
    from judgelit.likelihood.flops import step_flops

    reference = getattr(module, "reference_kind", "precomputed") != "precomputed"
    return step_flops(module.model, batch, module.backbone.uses_lora, reference)


def build(bench: Any, kind: str, shape: str, lora: bool, batch_size: int) -> tuple[Any, Any]:
    """The module and the data of a measure: weights in float32 if all are trained, else in bfloat16."""
    import torch

    import judgelit
    from judgelit.models.backbone import Backbone
    from judgelit.models.lora import LoRA

    model = make_model(bench.folder, shape, bench.device)
    lengths = (60, 20) if bench.dry else (PROMPT, COMPLETION)
    data = make_data(bench.folder, kind, batch_size * (WARMUP + STEPS), *lengths)
    backbone = Backbone(model, "bfloat16" if lora else "float32", lora=LoRA(r=16) if lora else None)
    module_class, data_class = (
        (judgelit.SFTModule, judgelit.SFTDataModule) if kind == "sft" else (judgelit.DPOModule, judgelit.DPODataModule)
    )
    module = module_class(backbone, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0))
    cache = str(bench.folder / "cache")
    return module, data_class(model, data, batch_size=batch_size, val_fraction=0.0, cache=cache)


def speed(bench: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Tokens a second and share of the card's peak at several sizes."""
    import gc

    import torch

    cases = [("tiny", False, 2)] if bench.dry else [("0.5b", False, 8), ("1.5b", False, 8), ("7b", True, 8)]
    for shape, lora, size in cases:
        size = size if kind == "sft" or bench.dry else size // 2
        case = f"{shape} {'LoRA' if lora else 'full'}, {size} {'rows' if kind == 'sft' else 'pairs'} a step"
        module, data = build(bench, kind, shape, lora, size)
        if not bench.dry:
            torch.cuda.reset_peak_memory_stats()
        yield {"case": case, "ok": None, **Timed(bench, module, data).figures()}
        del module, data
        gc.collect()
        if not bench.dry:
            torch.cuda.empty_cache()


def speed_sft(bench: Any) -> Iterator[dict[str, Any]]:
    """SFT."""
    yield from speed(bench, "sft")


def speed_dpo(bench: Any) -> Iterator[dict[str, Any]]:
    """DPO."""
    yield from speed(bench, "dpo")


def kernels(bench: Any) -> Iterator[dict[str, Any]]:
    """Seconds until FlexAttention's kernel is compiled and tried; the longest kernels of a DPO step, and the rest."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    if not bench.dry:
        from judgelit.models.flat_attention import kernel_for
        from judgelit.models.flex_attention import Heads

        device = torch.device("cuda", torch.cuda.current_device())
        for dtype in (torch.bfloat16, torch.float32):
            began = time.perf_counter()
            found = kernel_for(Heads(14, 2, 64, 64, dtype, device))
            seconds = round(time.perf_counter() - began, 1)
            yield {"case": f"compile, {dtype}", "ok": found is not None, "seconds": seconds}
    module, data = build(bench, "dpo", "tiny" if bench.dry else "0.5b", False, 2 if bench.dry else 4)
    import lightning as L

    class Profiled(L.Callback):
        seconds = kernel_seconds = 0.0
        longest: ClassVar[dict[str, float]] = {}

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == WARMUP:
                activities = [ProfilerActivity.CPU, *([] if bench.dry else [ProfilerActivity.CUDA])]
                self.profiler = profile(activities=activities)
                self.profiler.start()
                self.began = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == WARMUP + 2:
                if not bench.dry:
                    torch.cuda.synchronize()
                Profiled.seconds = time.perf_counter() - self.began
                self.profiler.stop()
                # An operation of the CPU has the time of the kernels that it starts, which have it themselves too.
                kernels = [one for one in self.profiler.key_averages() if one.device_type == DeviceType.CUDA]
                Profiled.kernel_seconds = sum(one.self_device_time_total for one in kernels) / 1e6
                kernels.sort(key=lambda one: -one.self_device_time_total)
                for one in kernels[:LONGEST]:
                    share = one.self_device_time_total / 1e6 / Profiled.kernel_seconds
                    Profiled.longest[one.key[:60]] = round(share, 3)

    trainer = L.Trainer(**trainer_settings(bench, WARMUP + 3), callbacks=[Profiled()])
    trainer.fit(module, data)
    row: dict[str, Any] = {"case": "DPO step", "ok": None, "seconds_of_3_steps": round(Profiled.seconds, 3)}
    if not bench.dry:
        row["share_outside_of_kernels"] = round(1 - Profiled.kernel_seconds / Profiled.seconds, 3)
        row["share_of_kernels"] = Profiled.longest
    yield row


def trl_sft(bench: Any) -> Iterator[dict[str, Any]]:
    """An SFT step beside TRL's."""
    yield from beside_trl(bench, "sft")


def trl_dpo(bench: Any) -> Iterator[dict[str, Any]]:
    """A DPO step beside TRL's."""
    yield from beside_trl(bench, "dpo")


def beside_trl(bench: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Steps of both programs, alternately, on the same rows: the 0.5B shape in full, bf16-mixed.

    TRL has Liger's kernels and, for SFT, rows without padding, where the packages that it needs for these are there.
    """
    if find_spec("trl") is None:
        yield {"case": kind, "ok": None, "note": "not run: TRL is not installed"}
        return
    make_model(bench.folder, "tiny" if bench.dry else "0.5b", bench.device)
    times, peaks = [], []
    for mine, other in side_by_side.paired_steps(2 if bench.dry else STEPS, 1 if bench.dry else WARMUP):
        times.append([round(mine["seconds"], 4), round(other["seconds"], 4)])
        peaks.append([mine["gpu_bytes"], other["gpu_bytes"]])
    yield {
        "case": f"{kind}, ours / theirs",
        "ok": None,
        "speedup": round(statistics.median(other / mine for mine, other in times), 2),
        "memory": None if bench.dry else round(statistics.median(mine / other for mine, other in peaks), 2),
        "liger": find_spec("liger_kernel") is not None,
        "seconds": times,
    }


def trl_worker(args: Any, turns: side_by_side.Turns) -> None:
    """One of the two programs of `beside_trl`."""
    from gpu import Bench

    bench = Bench(args.folder, args.dry_run)
    kind = args.check.removeprefix("trl_")
    size = 2 if bench.dry else 8 if kind == "sft" else 4
    module, data = build(bench, kind, "tiny" if bench.dry else "0.5b", False, size)
    if args.role == "ours":
        side_by_side.fit_ours(turns, module, data, **trainer_settings(bench, WARMUP + STEPS))
        return
    import dpo_step
    import sft_step
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    data.setup("fit")
    rows = [data.rows("train")[index] for index in range(len(data.rows("train")))]
    settings = {
        "learning_rate": 1e-6,
        "bf16": True,
        "use_cpu": bench.dry,
        "use_liger_kernel": not bench.dry and find_spec("liger_kernel") is not None,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
    }
    args.model, args.batch = str(bench.folder / ("model-tiny" if bench.dry else "model-0.5b")), size
    if kind == "sft":
        # Without padding, TRL tells rows apart by positions, for which it needs FlashAttention.
        if not bench.dry and find_spec("flash_attn") is not None:
            settings["padding_free"] = True
            settings["model_init_kwargs"]["attn_implementation"] = "flash_attention_2"  # type: ignore[index]
        side_by_side.fit_theirs(turns, SFTTrainer, SFTConfig, settings, args, sft_step.trl_rows([rows]))
    else:
        side_by_side.fit_theirs(turns, DPOTrainer, DPOConfig, settings, args, dpo_step.trl_rows([rows]))
