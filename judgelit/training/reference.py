"""The frozen reference of DPO: what the policy was when training began."""

import copy
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from judgelit.batches.flat_batch import Batch, PreferenceBatch
from judgelit.errors import UserError
from judgelit.likelihood.logprobs import LogProbs, Scoring, completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import Sharding, reshard

if TYPE_CHECKING:
    from peft import PeftModel

    from judgelit.models.backbone import CausalLM

ReferenceKind = Literal["auto", "adapter", "frozen", "precomputed"]
_NAME = "reference"


class Reference(Protocol):
    """What answers for the policy as it was at the start."""

    def logprobs(self, batch: Batch, scoring: Scoring) -> LogProbs:
        """Log-probabilities of `batch` under the starting weights, without gradient."""
        ...

    def fingerprint(self) -> str:
        """A hash of the reference's weights, equal between a run and its continuation."""
        ...

    def to(self, device: torch.device) -> None:
        """Follow the policy to its device."""
        ...


class AdapterReference:
    """The policy's own weights with the adapter it started from, or with none: no second model.

    Disabling the adapter would give the base model; a policy that starts from a warm judge's adapter needs that
    adapter, so a frozen copy of it stands beside the trained one.
    """

    def __init__(self, model: "PeftModel", starting_adapter: str | None) -> None:
        self.model = model
        self.has_adapter = starting_adapter is not None
        if starting_adapter is not None and _NAME not in model.peft_config:
            load_starting_adapter(model, starting_adapter)

    @torch.no_grad()
    def logprobs(self, batch: Batch, scoring: Scoring) -> LogProbs:
        """Log-probabilities of `batch` under the starting adapter."""
        if not self.has_adapter:
            with self.model.disable_adapter():
                return self._answer(batch, scoring)
        self.model.set_adapter(_NAME, inference_mode=True)
        try:
            return self._answer(batch, scoring)
        finally:
            self.model.set_adapter("default")

    def _answer(self, batch: Batch, scoring: Scoring) -> LogProbs:
        try:
            return completion_logprobs(self.model, batch, scoring)
        finally:
            # Adapters outside of the layers stay gathered, and marking them as trained again must reach the shards.
            reshard(self.model)

    def fingerprint(self) -> str:
        """A hash of all weights but the trained adapter's."""
        return fingerprint(self.model, skip=".default.")

    def to(self, device: torch.device) -> None:
        """Nothing to do: the weights are the policy's."""


class PrecomputedReference:
    """Takes log-probabilities from the batch, where the data module puts what `precomputed.py` has computed before."""

    def __init__(self, weights: str) -> None:
        """Describe it; `weights` is the fingerprint of the policy at its start."""
        self.weights = weights

    def logprobs(self, batch: Batch, scoring: Scoring) -> LogProbs:
        """What the batch brings along."""
        assert isinstance(batch, PreferenceBatch) and batch.reference is not None
        return LogProbs.of(batch.reference, batch)

    def fingerprint(self) -> str:
        """A hash of the weights that the reference had."""
        return self.weights

    def to(self, device: torch.device) -> None:
        """Nothing to do: the values come with the batch."""


class SameModel:
    """A model as it is: the policy itself, for as long as it has not been trained."""

    def __init__(self, model: "CausalLM") -> None:
        self.model = model

    @torch.no_grad()
    def logprobs(self, batch: Batch, scoring: Scoring) -> LogProbs:
        """Log-probabilities of `batch` under the model."""
        return completion_logprobs(self.model, batch, scoring)

    def fingerprint(self) -> str:
        """A hash of the model's weights."""
        return fingerprint(self.model)

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)  # type: ignore[arg-type]


class FrozenReference(SameModel):
    """A second model: a copy of the policy taken before its first step, in eval mode and without gradient.

    It is no submodule of the LightningModule, so neither the optimizer nor a checkpoint ever sees it.
    """

    def __init__(self, model: "CausalLM", copied: "CausalLM | None" = None) -> None:
        """Freeze a copy of `model`; `copied` is one already, where copying needs more than Python's own means."""
        super().__init__((copy.deepcopy(model) if copied is None else copied).eval().requires_grad_(False))


def load_starting_adapter(model: "PeftModel", starting_adapter: str) -> None:
    """Add a frozen copy of the adapter that the policy starts from; before the model is sharded, if it is."""
    model.load_adapter(starting_adapter, adapter_name=_NAME, is_trainable=False)
    # Loading leaves the model in eval mode and may leave the new adapter's parameters marked trainable.
    model.train()
    model.set_adapter("default")


def needs_starting_adapter(kind: ReferenceKind, backbone: Backbone) -> bool:
    """Whether the reference is an adapter of the policy's own model."""
    return kind in ("auto", "adapter") and backbone.adapter is not None


def build_reference(
    kind: ReferenceKind, backbone: Backbone, model: "CausalLM", sharding: Sharding | None = None
) -> Reference:
    """The reference for a policy that has just been built, sharded like it.

    Raises:
        UserError: `adapter` was asked for a policy without LoRA.
    """
    if kind == "precomputed":
        return PrecomputedReference(starting_fingerprint(backbone, model))
    if kind == "auto":
        kind = "adapter" if backbone.uses_lora else "frozen"
    if kind == "frozen":
        if sharding is None:
            return FrozenReference(model)
        copied = backbone.build(sharding, copy_from=model)
        # Without a backward pass nothing else would free what is gathered of the root.
        without_adapter(copied).set_reshard_after_forward(True, recurse=False)
        return FrozenReference(model, copied)
    if not backbone.uses_lora:
        raise UserError("reference 'adapter' needs a LoRA policy; set model.backbone.lora, or use reference 'frozen'")
    return AdapterReference(model, backbone.adapter)  # type: ignore[arg-type]


def starting_fingerprint(backbone: Backbone, model: "CausalLM") -> str:
    """A hash of what a policy computes at its start; a new adapter, which does nothing yet, does not count."""
    return fingerprint(model, skip="lora_" if backbone.uses_lora and backbone.adapter is None else None)
