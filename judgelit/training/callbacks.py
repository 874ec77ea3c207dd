"""Callbacks that `judgelit fit` adds by itself: the saved configuration, log lines, throughput, the last checkpoint."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, ThroughputMonitor
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info

from judgelit.likelihood.flops import peak_flops, step_flops
from judgelit.training.dpo import DPOModule
from judgelit.training.schedule import total_steps

_MEASURED = 10
"""Micro-batches over which throughput is measured."""


class SaveConfig(SaveConfigCallback):
    """Saves the resolved configuration as `config.yaml` in the run's folder."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing yet: a run that is refused must not change what the folder says of the run before."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save when training begins; the other commands do not change the folder of the run that they read."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / "config.yaml", skip_unset=False, overwrite=True)


class LogShortRuns(Callback):
    """Logs every step of a run that is shorter than `trainer.log_every_n_steps`, which would log none."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the interval with the length of the run."""
        steps, interval = total_steps(trainer), trainer.log_every_n_steps  # type: ignore[attr-defined]
        if steps is not None and interval > steps:
            rank_zero_info(
                f"trainer.log_every_n_steps: found {interval} for a run of {steps} steps; logging every step"
            )
            trainer.log_every_n_steps = 1  # type: ignore[attr-defined]


class LogLines(Callback):
    """Prints a line of progress every few seconds; used where no terminal shows a progress bar."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._last = 0.0
        self._began = 0.0
        self._first_step = 0
        self._norm: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._began = self._last = time.monotonic()
        self._first_step, self._norm = trainer.global_step, None

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the norm of the gradient before clipping, if a line is due soon.

        The norm of sharded gradients needs all ranks, which do not print at the same time; it is left out.
        """
        if not trainer.is_global_zero or pl_module.sharding is not None:
            return
        if time.monotonic() - self._last >= self.seconds / 2:
            gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if the last one is old enough: step, epoch, loss, learning rate, gradient's norm and times."""
        now = time.monotonic()
        if now - self._last < self.seconds or not trainer.is_global_zero:
            return
        self._last = now
        print(", ".join(self._line(trainer, now - self._began)), flush=True)

    def _line(self, trainer: L.Trainer, seconds: float) -> Iterator[str]:
        step, total = trainer.global_step, total_steps(trainer)
        yield f"step {step}" if total is None else f"step {step}/{total}"
        yield f"epoch {trainer.current_epoch}"
        if (loss := trainer.callback_metrics.get("train/loss")) is not None:
            yield f"loss {float(loss):.4f}"
        yield f"learning rate {trainer.optimizers[0].param_groups[0]['lr']:.2e}"
        if self._norm is not None:
            yield f"gradient norm {self._norm:.3g}"
        yield f"{seconds:.0f} s"
        if (done := step - self._first_step) and total is not None:
            yield f"about {timedelta(seconds=round(seconds / done * (total - step)))} left"


class ProgressOnTerminal(RichProgressBar):
    """Lightning's progress bar, which says `Epoch 0/-2` where the number of epochs is not limited."""

    def _get_train_description(self, current_epoch: int) -> str:
        described: str = super()._get_train_description(current_epoch)
        return described.replace("/-2", "") if self.trainer.max_epochs == -1 else described


class ModelLine(Callback):
    """Prints the size of the model in one line, in place of Lightning's summary, whose operations it does not know."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it. Weights in 4 bits are counted one by one."""
        weights = list(pl_module.model.parameters())  # type: ignore[union-attr]
        sizes = [getattr(getattr(weight, "quant_state", None), "shape", weight.shape).numel() for weight in weights]
        trained = sum(size for size, weight in zip(sizes, weights, strict=True) if weight.requires_grad)
        if trainer.is_global_zero:
            trained_too = f"{trained / 1e6:,.2f} million of them trained"
            print(f"model: {sum(sizes) / 1e6:,.2f} million weights, {trained_too}", flush=True)


class Throughput(ThroughputMonitor):
    """Logs examples, tokens and operations a second, and the share of the device's peak if that is known.

    `items` are tokens of the examples, each counted with its own prompt, whether or not prompts are shared and rows
    padded. A continued run continues the totals.
    """

    def __init__(self) -> None:
        # A placeholder counts as one token: Lightning's totals must rise with each batch.
        super().__init__(
            batch_size_fn=lambda batch: max(1, len(batch.ids)),
            length_fn=lambda batch: max(1, batch.tokens),
            window_size=_MEASURED,
        )
        self._totals: dict[str, int] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Find the device's peak in 16 bits if the model computes in them; Lightning's table has other figures."""
        super().setup(trainer, pl_module, stage)
        device, backbone = trainer.strategy.root_device, pl_module.backbone
        halves = "16" in str(trainer.precision) or backbone.dtype != "float32" or backbone.quantization is not None
        if halves and device.type == "cuda":
            known = peak_flops(torch.cuda.get_device_name(device))
            self.available_flops = known or self.available_flops
            for one in self._throughputs.values():
                one.available_flops = self.available_flops

    def state_dict(self) -> dict[str, int]:
        """Totals at the end of the last optimizer step."""
        return self._totals

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from such totals."""
        self._totals = state_dict

    def _start(self, trainer: L.Trainer) -> None:
        super()._start(trainer)
        if trainer.state.stage == RunningStage.TRAINING:
            for name, value in self._totals.items():
                getattr(self, f"_{name}")[RunningStage.TRAINING] = value

    def _update(self, trainer: L.Trainer, pl_module: Any, batch: Any, iter_num: int) -> None:
        # Lightning reads the number of operations from the module.
        reference = isinstance(pl_module, DPOModule) and pl_module.reference_kind != "precomputed"
        pl_module.flops_per_batch = step_flops(pl_module.model, batch, pl_module.backbone.uses_lora, reference)
        super()._update(trainer, pl_module, batch, iter_num)

    def _compute(self, trainer: L.Trainer, iter_num: int | None = None) -> None:
        # Lightning would send these to the loggers as a row of their own, beside the row of the step.
        if trainer.state.stage == RunningStage.TRAINING:
            found = self._throughputs[RunningStage.TRAINING].compute()
            totals = {"batches": self._batches, "samples": self._samples, "lengths": self._lengths}
            self._totals = {name: of_stage[RunningStage.TRAINING] for name, of_stage in totals.items()}
            trainer.lightning_module.log_dict({f"train/{name}": float(value) for name, value in found.items()})


class Padding(Callback):
    """Logs `train/padding`: the share of a step's positions, over all ranks, that hold padding."""

    def __init__(self) -> None:
        self._padding = 0
        self._positions = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count a micro-batch, and log the share if the optimizer has stepped."""
        shared = pl_module.policy.layout(batch).rows == "shared_prefix"
        self._padding += 0 if shared else batch.padded_tokens - batch.unpadded_tokens
        self._positions += len(batch.input_ids) if shared else batch.padded_tokens
        if trainer.fit_loop._should_accumulate():
            return
        counts = torch.tensor([self._padding, self._positions], device=pl_module.device)
        padding, positions = trainer.strategy.reduce(counts, reduce_op="sum")
        pl_module.log("train/padding", padding / positions)
        self._padding = self._positions = 0


class LastStep(Callback):
    """Saves `last.ckpt` at the last step; Lightning saves it at the last multiple of `every_n_train_steps`."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save once more, while the trainer still knows its position."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last is True and callback.last_model_path:
                trainer.save_checkpoint(callback.last_model_path, weights_only=False)
