"""The frozen reference of DPO: the policy as it was when training began."""

import copy
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from judgelit.batches.flat_batch import PreferenceBatch
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout
from judgelit.likelihood.logprobs import LogProbs, Scorer, completion_logprobs
from judgelit.models.backbone import Backbone
from judgelit.models.fingerprint import fingerprint
from judgelit.models.lora import copy_adapter, refusal_to_copy, ties_weights, without_adapter
from judgelit.models.sharding import Sharding, reshard

if TYPE_CHECKING:
    from peft import PeftModel

    from judgelit.models.backbone import CausalLM

ReferenceKind = Literal["auto", "adapter", "frozen", "precomputed"]
_ADAPTER = "reference"
"""The name of the frozen copy of the starting adapter."""


class Reference(Protocol):
    """Scores batches as the policy would have at the start of training."""

    def logprobs(self, batch: PreferenceBatch) -> LogProbs:
        """Log-probabilities of `batch` under the starting weights, without gradient."""
        ...

    def fingerprint(self) -> str:
        """A hash of the reference's weights, equal in a run and its continuation."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the reference to the policy's device."""
        ...


class AdapterReference:
    """The policy's own weights with the adapter that training started from, or with none; there is no second model.

    A policy that starts from a warm judge's adapter needs a frozen copy of that adapter: without any adapter the model
    is the base, not the warm judge.
    """

    def __init__(self, policy: Scorer, has_adapter: bool) -> None:
        """Describe it.

        Args:
            policy: The policy, a PEFT model.
            has_adapter: Whether training starts from an adapter, and not from a new one.
        """
        self.policy = policy
        self.model: PeftModel = policy.model  # type: ignore[assignment]
        self.has_adapter = has_adapter
        if self.has_adapter and _ADAPTER not in self.model.peft_config:
            copy_starting_adapter(self.model)

    @torch.no_grad()
    def logprobs(self, batch: PreferenceBatch) -> LogProbs:
        """Log-probabilities of `batch` under the starting adapter."""
        layout = self.policy.layout(batch)
        if not self.has_adapter:
            with self.model.disable_adapter():
                return self._score(batch, layout)
        self.model.set_adapter(_ADAPTER, inference_mode=True)
        try:
            return self._score(batch, layout)
        finally:
            self.model.set_adapter("default")

    def _score(self, batch: PreferenceBatch, layout: Layout) -> LogProbs:
        try:
            return completion_logprobs(self.model, batch, layout)
        finally:
            # Adapters outside of the layers are still gathered here. When the policy's adapter is switched on
            # again, its shards must be marked as trained, not the gathered weights.
            reshard(self.model)

    def fingerprint(self) -> str:
        """A hash of all weights except the trained adapter's."""
        return fingerprint(self.model, skip=".default.")

    def to(self, device: torch.device) -> None:
        """Do nothing: the weights are the policy's."""


class FrozenReference:
    """A second model: a copy of the policy from before its first step, in eval mode and without gradient.

    It is no submodule of the LightningModule, so neither the optimizer nor a checkpoint contains it.
    """

    def __init__(self, policy: Scorer, copied: "CausalLM | None" = None) -> None:
        """Freeze a copy of the policy.

        Args:
            policy: The policy, whose layout the copy takes.
            copied: The copy, if Python cannot copy the model.
        """
        self.policy = policy
        model = copy.deepcopy(policy.model) if copied is None else copied
        self.model: torch.nn.Module = model.eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(self, batch: PreferenceBatch) -> LogProbs:
        """Log-probabilities of `batch` under the copy."""
        return completion_logprobs(self.model, batch, self.policy.layout(batch))

    def fingerprint(self) -> str:
        """A hash of the copy's weights."""
        return fingerprint(self.model)

    def to(self, device: torch.device) -> None:
        """Move the copy."""
        self.model.to(device)


class PrecomputedReference:
    """Takes log-probabilities from the batch, where the data module puts the values of `precomputed.py`."""

    def __init__(self, weights: str) -> None:
        """Describe it; `weights` is the fingerprint of the policy at its start."""
        self.weights = weights

    def logprobs(self, batch: PreferenceBatch) -> LogProbs:
        """The values that come with the batch."""
        assert batch.reference is not None
        return LogProbs.of(batch.reference, batch)

    def fingerprint(self) -> str:
        """A hash of the weights that gave the values."""
        return self.weights

    def to(self, device: torch.device) -> None:
        """Do nothing: the values come with the batch."""


def copy_starting_adapter(model: "PeftModel") -> None:
    """Add a frozen copy of the adapter that the policy starts from; call it before the model is sharded."""
    copy_adapter(model, _ADAPTER)


def needs_starting_adapter(kind: ReferenceKind, backbone: Backbone) -> bool:
    """Whether the reference is an adapter of the policy's own model."""
    return backbone.adapter is not None and _resolve(kind, backbone) == "adapter"


def _resolve(kind: ReferenceKind, backbone: Backbone) -> ReferenceKind:
    """The kind of reference that `auto` stands for.

    Raises:
        UserError: The kind is `adapter`, and there is no adapter or the model cannot hold it twice.
    """
    if kind not in ("auto", "adapter"):
        return kind
    refusal = None if backbone.adapter is None else refusal_to_copy(backbone.adapter)
    if kind == "auto":
        return "adapter" if backbone.uses_lora and refusal is None else "frozen"
    if not backbone.uses_lora:
        raise UserError("reference 'adapter' needs a LoRA policy; set model.backbone.lora, or use reference 'frozen'")
    if refusal is not None:
        raise UserError(
            f"reference 'adapter': found the adapter {backbone.adapter!r}, which {refusal}, expected one that a model "
            "can hold twice; use reference 'frozen'"
        )
    return kind


def build_reference(
    kind: ReferenceKind, backbone: Backbone, policy: Scorer, sharding: Sharding | None = None
) -> Reference:
    """Build the reference for a policy that has just been built, sharded like it.

    Raises:
        UserError: The kind is `adapter`, and there is no adapter or the model cannot hold it twice.
    """
    kind = _resolve(kind, backbone)
    if kind == "precomputed":
        return PrecomputedReference(starting_fingerprint(backbone, policy.model))
    if kind == "frozen":
        # Python cannot copy shards, nor adapters that are tied to each other.
        if sharding is None and (backbone.adapter is None or not ties_weights(backbone.adapter)):
            return FrozenReference(policy)
        copied = backbone.build(sharding, copy_from=policy.model)  # type: ignore[arg-type]
        if sharding is not None:
            # The root's gathered weights would stay: only a backward pass frees them by default.
            without_adapter(copied).set_reshard_after_forward(True, recurse=False)
        return FrozenReference(policy, copied)
    return AdapterReference(policy, has_adapter=backbone.adapter is not None)


def starting_fingerprint(backbone: Backbone, model: torch.nn.Module) -> str:
    """A hash of what a policy computes at its start. A new adapter, which changes nothing yet, does not count."""
    return fingerprint(model, skip="lora_" if backbone.uses_lora and backbone.adapter is None else None)
