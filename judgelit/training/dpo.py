"""The enhancement: direct preference optimisation against a frozen reference."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from judgelit.batches.datamodules import DPODataModule
from judgelit.batches.flat_batch import PreferenceBatch
from judgelit.batches.token_store import TokenRows
from judgelit.errors import UserError
from judgelit.likelihood.layouts import LayoutChoice
from judgelit.likelihood.logprobs import compute_dtype
from judgelit.models.backbone import Backbone
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.losses import PreferenceLoss, dpo_loss
from judgelit.training.precomputed import precompute
from judgelit.training.reference import (
    Reference,
    ReferenceKind,
    build_reference,
    copy_starting_adapter,
    needs_starting_adapter,
)

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

_START_TOLERANCE = 1e-3
"""Largest difference, in nats, of a completion's log-probability under policy and reference before the first step."""
_ROUNDINGS = 8
"""Largest difference of a token's log-probability between batches of other rows, in units of rounding."""


class DPOModule(FineTuningModule):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290) with a length-normalised NLL term (Pang et al. 2024).

    The loss, `dpo_loss`, is averaged over the pairs of the global batch, accumulation and ranks included. A general
    example counts like a pair.
    """

    reference: Reference
    """The frozen reference; there once the model is built, except to predict. It is no submodule: it is never optimized
    or saved."""

    def __init__(
        self,
        backbone: Backbone,
        loss: PreferenceLoss = PreferenceLoss(),  # noqa: B008 (frozen, so sharing the default is safe)
        reference: ReferenceKind = "auto",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        layout: LayoutChoice = "auto",
    ) -> None:
        """Describe the training; the models are built when it begins.

        Args:
            backbone: The policy and how it is fine-tuned.
            loss: The preference loss and its weights.
            reference: `adapter` (for LoRA: the same weights with the starting adapter, or with none), `frozen` (a
                second model), `precomputed` (one pass before training; its values are stored beside the tokenised data
                and used again while the model and its settings, tokenizer, template, layout and data stay the same),
                or `auto`: adapter for LoRA, otherwise frozen.
            optimizer: An optimizer by class_path.
            lr_scheduler: A learning-rate scheduler by class_path. It steps with the optimizer.
            layout: `shared_prefix` computes each prompt once for all its completions, in one row without padding;
                `concatenated` pads a row [prompt | completion] for each; `auto` is the first where the model can take
                it.
        """
        super().__init__(backbone, optimizer, lr_scheduler, layout)
        self.loss = loss
        self.reference_kind = reference
        self._start_unchecked = True

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch as `GlobalMean` wants it."""
        reference = self.reference.logprobs(batch)
        policy = self.policy.logprobs(batch)
        terms = dpo_loss(policy, reference, batch, self.loss)
        return self.global_mean(terms, batch)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Log all that training logs, over the whole validation set."""
        reference = self.reference.logprobs(batch)
        policy = self.policy.logprobs(batch)
        self.log_terms(dpo_loss(policy, reference, batch, self.loss), batch)

    def configure_model(self) -> None:
        """Build the policy and, unless only judgments are generated, the reference."""
        if self._is_predicting():
            super().configure_model()
            return
        if not hasattr(self, "reference"):
            if self.model is not None:
                # It has predicted, perhaps with the weights of a checkpoint, which are not the start of the policy.
                self.model = None
                del self.policy
            super().configure_model()
            self.reference = build_reference(self.reference_kind, self.backbone, self.policy, self.sharding)
        if self.reference_kind == "precomputed":
            data = getattr(self.trainer, "datamodule", None)
            if not isinstance(data, DPODataModule):
                raise UserError("reference 'precomputed' keeps its values beside the data; expected a DPODataModule")
            data.prepare_rows = self._precompute

    def _is_predicting(self) -> bool:
        return self._trainer is not None and self.trainer.state.fn == TrainerFn.PREDICTING

    def before_sharding(self, model: "CausalLM") -> None:
        """Turn dropout off, since policy and reference must agree at the start; keep a copy of the starting adapter."""
        disable_dropout(model)
        if needs_starting_adapter(self.reference_kind, self.backbone):
            copy_starting_adapter(model)  # type: ignore[arg-type]

    def on_fit_start(self) -> None:
        """Move the reference to the policy's device: Lightning moves the module only after `configure_model`."""
        self._start_unchecked = True
        self.reference.to(self.device)

    def on_validation_start(self) -> None:
        """Move the reference to the policy's device."""
        self.reference.to(self.device)

    def on_test_start(self) -> None:
        """Move the reference to the policy's device."""
        self.reference.to(self.device)

    def on_train_batch_start(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Check on the first micro-batch of a new run with pairs that the reference is the policy's start."""
        super().on_train_batch_start(batch, batch_idx)
        # A sharded model needs all ranks in a forward pass, so they check together, once one of them has pairs.
        if self._start_unchecked and self.trainer.global_step == 0 and not self._on_all_ranks(not batch.pairs):
            self._start_unchecked = False
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                self._check_start(batch)

    def _check_start(self, batch: PreferenceBatch) -> None:
        reference = self.reference.logprobs(batch)
        policy = self.policy.logprobs(batch)
        # Precomputed values come from batches of other rows, which differ by rounding; half precision shows it.
        precomputed = self.reference_kind == "precomputed"
        rounding = _ROUNDINGS * torch.finfo(compute_dtype(self.policy.model)).eps if precomputed else 0.0
        gaps = (policy.sums - reference.sums).abs() - rounding * policy.lengths
        worst = gaps[torch.cat([batch.chosen, batch.rejected])].max().item() if batch.pairs else 0.0
        if worst > _START_TOLERANCE:
            raise UserError(
                f"policy and reference differ by up to {worst:.3g} nats before the first step, expected 0: the "
                "reference must be the policy's own start"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the reference, so that the run cannot be continued against another one."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = self.reference.fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue against another reference."""
        super().on_load_checkpoint(checkpoint)
        if self._is_predicting():
            return
        found = self.reference.fingerprint()
        if checkpoint.get("reference", found) != found:
            raise UserError(
                "the run of this checkpoint began from other weights than model.backbone gives now, so its reference "
                "would change; continue it with the backbone it began with"
            )

    def _precompute(self, part: str, rows: TokenRows) -> None:
        rows.reference = precompute(self, part, rows.pairs)


def disable_dropout(model: nn.Module) -> None:
    """Set all dropout rates of a model to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Models that call the function, not the layer, keep its rate in `attention_dropout`, `dropout`, ...
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
