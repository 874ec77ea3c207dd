"""What SFT and DPO share: the backbone's life in Lightning, and a loss that no split of the batch can change."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from judgelit.atomic import write_json
from judgelit.batches.flat_batch import Batch
from judgelit.errors import UserError, first_line
from judgelit.generation.generate import generate
from judgelit.generation.sampling import Sampling
from judgelit.likelihood.flops import forward_flops
from judgelit.likelihood.layouts import LayoutChoice, choose_layout
from judgelit.likelihood.logprobs import Scoring
from judgelit.models.backbone import Backbone
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import Sharding
from judgelit.training.schedule import WarmupCosine

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Of Lightning's precisions, those that leave weights in their own dtype."""


class FineTuningModule(L.LightningModule):
    """A backbone with its optimizer; the step itself is in the subclasses.

    A subclass gives `accumulate` the *sum* of its loss over a micro-batch and how many things it summed over (tokens
    or pairs). Before the optimizer steps, gradients are divided by the count of the whole window, over accumulated
    micro-batches and ranks alike, so that one global batch gives one loss however it is split.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        layout: LayoutChoice,
    ) -> None:
        super().__init__()
        self.layout: LayoutChoice = layout
        self.backbone = backbone
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.model: CausalLM | None = None
        self.sharding: Sharding | None = None
        """How the strategy wants the model to be sharded."""
        # A LoRA run's checkpoint holds the adapter alone; the rest comes from the backbone's own files.
        self.strict_loading = not backbone.uses_lora
        self.tokens_seen = 0
        """Tokens of the examples of all ranks, each with its own prompt."""
        self.flops_per_batch = 0
        """Operations that the last micro-batch needed; Lightning's ThroughputMonitor asks for them."""
        # A backward pass costs a forward one for the gradients of activations, and one for those of trained weights.
        self._forward_passes = 2 if backbone.uses_lora else 3
        self._scoring: Scoring | None = None
        self._window: dict[str, Tensor] = {}
        self._window_batches: list[tuple[Tensor, Sequence[str]]] = []
        self._validation = nn.ModuleDict()
        self._lockstep = ExitStack()

    def setup(self, stage: str) -> None:
        """Refuse what Lightning would make of weights and batches in one piece."""
        if self.trainer.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision: found {self.trainer.precision!r}, expected one of {', '.join(PRECISIONS)}; "
                "weights in half precision are model.backbone.dtype"
            )

    def configure_model(self) -> None:
        """Build the model once, on whichever process and for whichever command needs it."""
        if self.model is None:
            self.model = self.backbone.build(self.sharding, self.prepare)

    def prepare(self, model: "CausalLM") -> None:
        """Make of a model that has just been built what training needs, before it is sharded."""

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable weights, matrices with weight decay, the rest (norms, biases) without."""
        trainable = [weight for weight in self.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in trainable if weight.ndim >= 2]},
            {"params": [weight for weight in trainable if weight.ndim < 2], "weight_decay": 0.0},
        ]
        try:
            optimizer = self.optimizer([group for group in groups if group["params"]])
        except (ValueError, TypeError) as error:
            raise UserError(f"optimizer: {first_line(error)}") from error
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, WarmupCosine):
            scheduler.set_total_steps(int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def scoring(self, batch: Batch) -> Scoring:
        """How log-probabilities are computed, found out on the first batch."""
        assert self.model is not None
        if self._scoring is None:
            agree = self.trainer.strategy.reduce_boolean_decision
            self._scoring = choose_layout(self.model, self.layout, batch, agree)
        return self._scoring

    def accumulate(self, loss_sum: Tensor, count: int, batch: Batch, **sums: Tensor) -> Tensor:
        """Enter a micro-batch into the window and return what `training_step` returns.

        Args:
            loss_sum: Scalar float32, the loss summed over the micro-batch.
            count: What the sum ran over: completion tokens or pairs.
            batch: The micro-batch, whose ids are saved if the window's loss is not finite.
            sums: Further scalars, summed over the micro-batch, whose means over the window are logged.
        """
        self._window_batches.append((loss_sum.detach(), batch.ids))
        assert self.model is not None
        self.flops_per_batch = self._forward_passes * forward_flops(self.model, batch)
        shared = self.scoring(batch).layout == "shared_prefix"
        places = len(batch.input_ids) if shared else batch.padded_tokens
        counts = {
            "count": count,
            "tokens": batch.tokens,
            "places": places,
            "padding": 0 if shared else places - batch.completed_tokens,
        }
        sums |= {"loss": loss_sum, **{name: loss_sum.new_tensor(value) for name, value in counts.items()}}
        for name, value in sums.items():
            self._window[name] = self._window.get(name, loss_sum.new_zeros(())) + value.detach().float()
        # Lightning divides by the number of micro-batches and DDP and FSDP average over ranks: undo both here.
        return loss_sum * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Free the last step's gradients, which Lightning keeps until the next forward pass is over."""
        if not self._window:
            self.zero_grad()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step on the gradient of the window's mean, which is also what callbacks and clipping see."""

        def closure() -> Any:
            loss = optimizer_closure()
            self._close_window(optimizer)
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log what validation logs, as `test/...`."""
        self.validation_step(batch, batch_idx)

    def log_validation(self, count: int, **sums: Tensor) -> None:
        """Log means over the whole validation (or test) set of quantities summed over one batch."""
        part = "test" if self.trainer.testing else "val"
        for name, value in sums.items():
            if name not in self._validation:
                self._validation[name] = MeanMetric().to(self.device)
            metric: Any = self._validation[name]
            metric.update(value / count, weight=count)
            # Lightning looks the attribute up only once, before the later metrics are made.
            self.log(
                f"{part}/{name}", metric, on_epoch=True, prog_bar=name == "loss", metric_attribute=f"_validation.{name}"
            )

    def on_predict_start(self) -> None:
        """Let ranks have different numbers of prompts."""
        self._lockstep.enter_context(in_lockstep(without_adapter(self.model)))  # type: ignore[arg-type]

    def on_predict_end(self) -> None:
        """Wait for the others."""
        self._lockstep.close()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[list[int]]:
        """The ids of one greedy judgment of each prompt."""
        assert self.model is not None
        answers = generate(
            self.model,
            batch.input_ids,
            batch.attention_mask,
            Sampling(batch.max_new_tokens, stop_at_verdict=batch.ends is not None),
            stop_ids=batch.stop_ids,
            pad_id=batch.pad_id,
            ends=batch.ends,
        )
        return [ids for (ids,) in answers]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained: the adapter of a LoRA run, everything else of a full one."""
        checkpoint["tokens_seen"] = self.tokens_seen
        checkpoint["state_dict"] = self.kept_in_checkpoint(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or adapter, which lenient loading would half accept."""
        self.tokens_seen = checkpoint.get("tokens_seen", 0)
        if "callbacks" not in checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            raise UserError(
                "the checkpoint holds weights alone, from which no run goes on; begin a new one from them: `judgelit "
                "export` makes a folder of them"
            )
        # Of a sharded run, weights are compared and loaded before by the strategy.
        if self.model is not None and "state_dict" in checkpoint:
            expected = {
                name: tuple(weight.shape) for name, weight in self.kept_in_checkpoint(self.state_dict()).items()
            }
            found = {name: tuple(weight.shape) for name, weight in checkpoint["state_dict"].items()}
            self.refuse_other_weights(expected, found)

    def kept_in_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint holds of a state: the adapter of a LoRA run, everything of a full one."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {name: value for name, value in state.items() if not self.backbone.uses_lora or name in trained}

    @staticmethod
    def refuse_other_weights(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a checkpoint whose weights have other names or shapes than the run's."""
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"the checkpoint is of another model: {name} has shape {found.get(name, 'none')} in it, expected "
                    f"{expected.get(name, 'none')}; go on with the settings of its own run, or begin a new one in "
                    "another folder"
                )

    def _close_window(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn the window's sums into means: of the gradient, and of what is logged."""
        names = sorted(self._window)
        totals = self.trainer.strategy.reduce(torch.stack([self._window[name] for name in names]), reduce_op="sum")
        window = dict(zip(names, totals, strict=True))
        if not torch.isfinite(window["loss"]):
            self._stop_on(window["loss"])
        count, tokens, places = window.pop("count"), int(window.pop("tokens")), window.pop("places")
        self.log("train/padding", window.pop("padding") / places)
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.div_(count)
        for name, value in window.items():
            self.log(f"train/{name}", value / count, prog_bar=name == "loss")
        self.tokens_seen += tokens
        self._window, self._window_batches = {}, []

    def _stop_on(self, total: Tensor) -> None:
        """Stop before the weights are touched, on all ranks at once, and say which examples it was."""
        finite = [bool(torch.isfinite(loss)) for loss, _ in self._window_batches]
        advice = "try a lower learning rate, gradient clipping or dtype float32"
        if all(finite):
            raise UserError(f"loss is {total.item()} at step {self.trainer.global_step} on another process; {advice}")
        first = finite.index(False)
        loss, ids = self._window_batches[first]
        path = Path(self.trainer.default_root_dir) / f"not-finite-loss-rank{self.global_rank}.json"
        report = {
            "step": self.trainer.global_step,
            "loss": str(loss.item()),
            "ids": list(ids),
            "earlier": [one for _, batch in self._window_batches[:first] for one in batch],
        }
        write_json(path, report)
        raise UserError(
            f"loss is {loss.item()} at step {self.trainer.global_step}; the batch's ids are in {path}; {advice}"
        )
