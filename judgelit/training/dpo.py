"""Direct preference optimisation with its frozen reference."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from judgelit.batches.datamodules import DPODataModule
from judgelit.batches.flat_batch import PreferenceBatch, flatten_preferences
from judgelit.batches.token_store import TokenRows
from judgelit.errors import UserError
from judgelit.likelihood.layouts import LayoutChoice
from judgelit.likelihood.logprobs import completion_logprobs, compute_dtype
from judgelit.models.backbone import Backbone
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.losses import PreferenceLoss, length_normalised_nll
from judgelit.training.precomputed import Ranks, stored_logprobs
from judgelit.training.reference import (
    Reference,
    ReferenceKind,
    SameModel,
    build_reference,
    load_starting_adapter,
    needs_starting_adapter,
    starting_fingerprint,
)

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

_START_TOLERANCE = 1e-3
"""Nats by which a completion's log-probability may differ between policy and reference before the first step."""
_ROUNDINGS = 8
"""By how many units of rounding a token's log-probability may differ between batches of other rows."""


class DPOModule(FineTuningModule):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290) with a length-normalised NLL term (Pang et al. 2024).

    loss = preference_loss(log-ratios of policy to reference) + nll_weight * (-log pi(chosen) / |chosen|),
    averaged over the pairs of the whole optimizer step, accumulation and ranks included.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: PreferenceLoss = PreferenceLoss(),  # noqa: B008 (frozen, so sharing the default is safe)
        reference: ReferenceKind = "auto",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        layout: LayoutChoice = "auto",
    ) -> None:
        """Describe the run; nothing is built yet.

        Args:
            backbone: The policy and how it is fine-tuned.
            loss: Which preference loss, and its weights.
            reference: `adapter` (LoRA: the same weights with the starting adapter, or none), `frozen` (a second
                model), `precomputed` (one pass before training, stored beside the tokenised data and used again as long
                as weights, tokenizer, template, layout and data stay the same), or `auto`: adapter for LoRA, frozen
                otherwise.
            optimizer: Any optimizer, by class_path.
            lr_scheduler: Any scheduler, by class_path, stepped once an optimizer step.
            layout: `shared_prefix` computes each prompt once for all its completions, in one row without padding;
                `concatenated` pads a row [prompt | completion] for each; `auto`: the first wherever the model can take
                it.
        """
        super().__init__(backbone, optimizer, lr_scheduler, layout)
        self.loss = loss
        self.reference_kind = reference
        self._forward_passes += reference != "precomputed"
        self.reference: Reference | None = None
        self._start_checked = False

    def configure_model(self) -> None:
        """Build policy and reference."""
        if self.model is None:
            super().configure_model()
            assert self.model is not None
            self.reference = build_reference(self.reference_kind, self.backbone, self.model, self.sharding)
        if self.reference_kind == "precomputed":
            data = getattr(self.trainer, "datamodule", None)
            if not isinstance(data, DPODataModule):
                raise UserError("reference 'precomputed' keeps its values beside the data; expected a DPODataModule")
            data.prepare_rows = self._precompute

    def prepare(self, model: "CausalLM") -> None:
        """Switch dropout off, for policy and reference must agree at the start; keep the adapter it starts from."""
        _disable_dropout(model)
        if needs_starting_adapter(self.reference_kind, self.backbone):
            load_starting_adapter(model, self.backbone.adapter)  # type: ignore[arg-type]

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The summed loss of a micro-batch of pairs."""
        sums = self._sums(batch)
        return self.accumulate(sums.pop("loss"), batch.pairs, batch, **sums)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Log all that training logs, over the whole validation set."""
        self.log_validation(batch.pairs, **self._sums(batch))

    def on_fit_start(self) -> None:
        """Bring the reference to the policy's device."""
        self._place_reference()

    def on_validation_start(self) -> None:
        """Bring the reference to the policy's device."""
        self._place_reference()

    def on_test_start(self) -> None:
        """Bring the reference to the policy's device."""
        self._place_reference()

    def on_train_start(self) -> None:
        """Check the start of a new run; a continued one, whose step is known only now, has left it behind."""
        self._start_checked = self.trainer.global_step > 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which reference the run has, so that it cannot be continued against another."""
        super().on_save_checkpoint(checkpoint)
        assert self.reference is not None
        checkpoint["reference"] = self.reference.fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue against another reference."""
        super().on_load_checkpoint(checkpoint)
        assert self.reference is not None
        found = self.reference.fingerprint()
        if checkpoint.get("reference", found) != found:
            raise UserError(
                "the run of this checkpoint began from other weights than model.backbone gives now, so its reference "
                "would change; continue it with the backbone it began with"
            )

    def _place_reference(self) -> None:
        # Lightning moves the module only after `setup` and `configure_model`, and the reference is no part of it.
        assert self.reference is not None
        self.reference.to(self.device)

    def _precompute(self, part: str, rows: TokenRows) -> None:
        """Put the log-probabilities of the starting weights beside the rows of a part of the data."""
        if not len(rows):
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert self.reference is not None
        first: Any = rows[0]
        scoring = self.scoring(flatten_preferences([first]).to(self.device))
        key = {
            "model": self.backbone.name_or_path,
            "weights": self.reference.fingerprint(),
            "tokenizer and template": data.tokenizer.fingerprint,
            "layout": scoring.layout,
            "precision": str(self.trainer.precision),
            "data": rows.fingerprint,
        }
        start: Reference | None = None

        @torch.no_grad()
        def score(batch: PreferenceBatch) -> Tensor:
            nonlocal start
            start = start or self._start()
            with self.trainer.precision_plugin.forward_context():
                return start.logprobs(batch.to(self.device), scoring).tokens

        ranks = Ranks(self.trainer.global_rank, self.trainer.world_size, self.trainer.strategy.barrier)
        rows.reference = stored_logprobs(data.cache_folder / "reference" / part, key, rows, score, part, ranks)

    def _start(self) -> Reference:
        """The policy, or once it has been trained, its start loaded anew."""
        assert self.model is not None and self.reference is not None
        if self.backbone.uses_lora and self.backbone.adapter is None:
            return build_reference("adapter", self.backbone, self.model)
        if starting_fingerprint(self.backbone, self.model) == self.reference.fingerprint():
            return SameModel(self.model)
        again: Any = self.backbone.build(self.sharding, _disable_dropout)
        if starting_fingerprint(self.backbone, again) != self.reference.fingerprint():
            raise UserError(
                "reference 'precomputed': some values are not stored, and the weights that the run began with are "
                "gone; begin anew, or use reference 'frozen'"
            )
        return SameModel(again.to(self.device))

    def _sums(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """The loss and all logged quantities, each summed over the pairs of `batch`."""
        assert self.model is not None and self.reference is not None
        scoring = self.scoring(batch)
        reference = self.reference.logprobs(batch, scoring)
        policy = completion_logprobs(self.model, batch, scoring)
        ratios = policy.sums - reference.sums
        if self.trainer.training and not self._start_checked:
            self._check_start(ratios, policy.lengths)
        chosen, rejected = ratios[batch.chosen], ratios[batch.rejected]
        lengths = policy.lengths
        nll = length_normalised_nll(policy.sums[batch.chosen], lengths[batch.chosen])
        loss = self.loss(chosen, rejected, lengths[batch.chosen], lengths[batch.rejected])
        loss = loss + self.loss.nll_weight * nll
        # Schulman's k3 estimate of KL(pi || pi_ref), never negative, on the data's tokens rather than the policy's own.
        gap = (reference.tokens - policy.tokens).detach()
        token_kl = torch.zeros_like(ratios).index_add(0, policy.rows, gap.exp() - 1 - gap) / lengths
        beta = self.loss.beta
        return {
            "loss": loss.sum(),
            "nll": nll.sum(),
            "rewards/chosen": beta * chosen.sum(),
            "rewards/rejected": beta * rejected.sum(),
            "rewards/margin": beta * (chosen - rejected).sum(),
            "rewards/accuracy": (chosen > rejected).sum().float(),
            "log_ratio": (chosen - rejected).sum(),
            "kl": (token_kl[batch.chosen] + token_kl[batch.rejected]).sum() / 2,
            "logps/chosen": policy.sums[batch.chosen].sum(),
            "logps/rejected": policy.sums[batch.rejected].sum(),
        }

    def _check_start(self, ratios: Tensor, lengths: Tensor) -> None:
        self._start_checked = True
        slack = 0.0
        if self.reference_kind == "precomputed":
            # The same weights give the same only in a batch of the same rows; half precision shows it.
            assert self.model is not None
            slack = _ROUNDINGS * torch.finfo(compute_dtype(self.model)).eps
        worst = (ratios.detach().abs() - slack * lengths).max().item()
        if worst > _START_TOLERANCE:
            raise UserError(
                f"policy and reference differ by up to {worst:.3g} nats before the first step, expected 0: the "
                "reference must be the policy's own start"
            )


def _disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Models that call the function rather than the layer keep its rate in `attention_dropout`, `dropout`, ...
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
