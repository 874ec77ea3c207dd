"""What SFT and DPO share: building the model, the optimizer, validation, generation and checkpoints."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from judgelit.batches.flat_batch import Batch
from judgelit.errors import UserError
from judgelit.generation.generate import generate
from judgelit.generation.sampling import Sampling
from judgelit.likelihood.layouts import LayoutChoice
from judgelit.likelihood.logprobs import Scorer
from judgelit.models.backbone import Backbone
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import Sharding
from judgelit.training.global_mean import GlobalMean
from judgelit.training.losses import LossTerms
from judgelit.training.optimizers import call_setting
from judgelit.training.schedule import fit_to_run, scheduler_config, total_steps

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Lightning's precisions that leave the weights in their own dtype."""

_TRAINED_BESIDE_AVERAGE = "current_model_state"


class FineTuningModule(L.LightningModule):
    """A backbone with its optimizer. Subclasses have the training step, which returns `self.global_mean(terms, batch)`.

    policy: scores batches with the model; there once the model is built.
    tokens_seen: tokens of the examples that all ranks have trained on, each counted with its own prompt.
    """

    policy: Scorer

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
        """How the model is sharded; set by the strategy."""
        # A checkpoint of a LoRA run holds the adapter alone; the other weights come from the backbone's files.
        self.strict_loading = not backbone.uses_lora
        self.tokens_seen = 0
        self.global_mean = GlobalMean(self)
        self._validation = nn.ModuleDict()
        self._lockstep = ExitStack()

    def setup(self, stage: str) -> None:
        """Reject precisions that make Lightning cast the whole module."""
        if self.trainer.precision not in PRECISIONS:
            raise UserError(
                f"trainer.precision: found {self.trainer.precision!r}, expected one of {', '.join(PRECISIONS)}; "
                "weights in half precision are model.backbone.dtype"
            )

    def configure_model(self) -> None:
        """Build the model, once."""
        if self.model is None:
            self.model = self.backbone.build(self.sharding, self.before_sharding)
            self.policy = Scorer(self.model, self.layout, self._on_all_ranks)

    def _on_all_ranks(self, here: bool) -> bool:
        """Whether all ranks say yes."""
        return here if self._trainer is None else self.trainer.strategy.reduce_boolean_decision(here)

    def before_sharding(self, model: "CausalLM") -> None:
        """Hook: modify the built model before it is sharded."""

    def configure_optimizers(self) -> Any:
        """Make the optimizer over trainable weights: matrices decay, norms and biases do not."""
        trainable = [weight for weight in self.parameters() if weight.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in trainable if weight.ndim >= 2]},
            {"params": [weight for weight in trainable if weight.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        trivial = [{**group, "params": [nn.Parameter(torch.zeros([1] * group["params"][0].ndim))]} for group in groups]
        optimizer = call_setting("optimizer", self.optimizer, groups, lambda: trivial)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = call_setting("lr_scheduler", self.lr_scheduler, optimizer, lambda: self.optimizer(trivial))
        return {"optimizer": optimizer, "lr_scheduler": scheduler_config(scheduler)}

    def on_train_start(self) -> None:
        """Tell the schedule the length of the run, which depends on the position of a checkpoint."""
        # An earlier fit of this module may have stopped in the middle of a global batch.
        self.global_mean.clear()
        for config in self.trainer.lr_scheduler_configs:
            fit_to_run(config.scheduler, total_steps(self.trainer))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Free the last step's gradients before the forward pass; Lightning would free them after it."""
        if not self.global_mean.begun:
            self.zero_grad()

    def on_after_backward(self) -> None:
        """Turn summed gradients into those of the mean when the global batch is complete, and log the means."""
        if self.trainer.fit_loop._should_accumulate():
            return
        means, tokens = self.global_mean.divide()
        for name, value in means.items():
            # NaN is logged too: Lightning would log the value of an earlier step for a name that is left out.
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        self.tokens_seen += tokens

    def on_validation_epoch_start(self) -> None:
        """Begin with new metrics: those of `trainer.validate` are inference tensors, which `trainer.fit` cannot use."""
        self._validation = nn.ModuleDict()

    def on_test_epoch_start(self) -> None:
        """Begin with new metrics."""
        self._validation = nn.ModuleDict()

    def log_terms(self, terms: LossTerms, batch: Batch) -> None:
        """Log the means of a batch's terms over the whole validation (or test) set.

        Each example counts once for any number of ranks: a placeholder adds nothing.
        """
        part = "test" if self.trainer.testing else "val"
        terms = terms.counted(batch)
        for name, values in {"loss": terms.loss, **terms.logged}.items():
            # A module's name must not have dots. Tags may have dots, but no commas.
            key = name.replace(".", ",")
            if key not in self._validation:
                # NaN must stay NaN: by default it would be left out of the mean. The strategy "disable" leaves it in,
                # but takes all weights as 1 (torchmetrics #3434).
                self._validation[key] = MeanMetric(nan_strategy=math.nan).to(self.device)
            metric: Any = self._validation[key]
            metric.update(values.detach().sum() / max(len(values), 1), weight=len(values))
            # Lightning looks the attribute up only once, before the later metrics are made.
            self.log(
                f"{part}/{name}", metric, on_epoch=True, prog_bar=name == "loss", metric_attribute=f"_validation.{key}"
            )

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log what validation logs, as `test/...`."""
        self.validation_step(batch, batch_idx)

    def on_predict_start(self) -> None:
        """Allow ranks to have different numbers of prompts."""
        self._lockstep.enter_context(in_lockstep(without_adapter(self.model)))  # type: ignore[arg-type]

    def on_predict_end(self) -> None:
        """Wait for the other ranks."""
        self._lockstep.close()

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[list[int]]:
        """Generate one greedy judgment of each prompt, as ids."""
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
        """Save only what is trained: the adapter of a LoRA run, all weights otherwise."""
        checkpoint["tokens_seen"] = self.tokens_seen
        # Lightning's WeightAveraging saves the averaged weights as `state_dict`, and the trained ones beside them.
        for key in {"state_dict", _TRAINED_BESIDE_AVERAGE} & checkpoint.keys():
            checkpoint[key] = self.kept_in_checkpoint(checkpoint[key])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or adapter; loading that is not strict would accept parts of it."""
        self.tokens_seen = checkpoint.get("tokens_seen", 0)
        if "callbacks" not in checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            raise UserError(
                "the checkpoint holds weights alone, so no run can continue from it; start a new run from a folder "
                "that `judgelit export` makes of it"
            )
        # The strategy of a sharded run has compared and loaded the weights before.
        if self.model is not None and "state_dict" in checkpoint:
            expected = {
                name: tuple(weight.shape) for name, weight in self.kept_in_checkpoint(self.state_dict()).items()
            }
            found = {name: tuple(weight.shape) for name, weight in checkpoint["state_dict"].items()}
            self.refuse_other_weights(expected, found)
            if _TRAINED_BESIDE_AVERAGE in checkpoint:
                # WeightAveraging loads whole states.
                for key in ("state_dict", _TRAINED_BESIDE_AVERAGE):
                    checkpoint[key] = {**self.state_dict(), **checkpoint[key]}

    def kept_in_checkpoint(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of a state that a checkpoint holds: the adapter of a LoRA run, everything otherwise."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return {name: value for name, value in state.items() if not self.backbone.uses_lora or name in trained}

    @staticmethod
    def refuse_other_weights(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError where a checkpoint's weights have other names or shapes than the run's."""
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"the checkpoint is of another model: {name} has shape {found.get(name, 'none')} in it, expected "
                    f"{expected.get(name, 'none')}; continue with the settings of its own run, or start a new one in "
                    "another folder"
                )
