"""Memory that a training run needs on each GPU, computed from its configuration; no weight is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from judgelit.batches.flat_batch import Batch
from judgelit.errors import UserError
from judgelit.likelihood.layouts import Layout, LayoutChoice, cannot_share
from judgelit.likelihood.logprobs import Scorer, head_logprobs, logit_transform
from judgelit.models import flat_attention, quantization
from judgelit.models.backbone import Backbone
from judgelit.models.lora import without_adapter
from judgelit.planning.memory_trace import ROW_KERNEL, LiveBytes, StepBytes, meta_batch, trace_step
from judgelit.planning.optimizer_memory import measure_optimizer
from judgelit.training.reference import AdapterReference, FrozenReference, ReferenceKind

_CAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The dtype in which layers compute, by mixed precision."""
_GATHERED_LAYERS = 2
"""Sharded layers that are whole at one time: the one that computes and the next one, which is being gathered."""


@dataclass(frozen=True)
class PlannedRun:
    """The settings of a training run that its memory depends on."""

    backbone: Backbone
    optimizer: OptimizerCallable
    reference: ReferenceKind | None = None
    """The kind of DPO's reference; None for SFT."""
    layout: LayoutChoice = "auto"
    precision: str = "32-true"
    """Lightning's `precision`."""
    accumulates: bool = False
    """Whether an optimizer step takes several micro-batches."""
    gpus: int = 1
    sharded: bool = False
    """Whether weights, gradients and optimizer state are sharded over the GPUs (FSDP2); if not, each GPU has all."""
    gpus_per_copy: int | None = None
    """GPUs over which one copy is sharded, if there are several copies."""
    on_cpu: bool = False
    """Whether the run trains on a CPU."""
    assumes_adapter: bool = False
    """Whether the adapter to start from is not there yet, and `backbone.lora` describes it."""

    @property
    def kind(self) -> Literal["adapter", "frozen", "precomputed"] | None:
        """The reference's kind; `auto` is resolved."""
        if self.reference == "auto":
            return "adapter" if self.backbone.uses_lora else "frozen"
        return self.reference

    @property
    def half(self) -> bool:
        """Whether layers compute in 16 bits."""
        return self.backbone.dtype != "float32" or self.precision in _CAST

    @property
    def share(self) -> float:
        """The fraction of sharded tensors that one GPU holds."""
        return 1 / (self.gpus_per_copy or self.gpus) if self.sharded else 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, or of the process on a CPU; `parameters` and `trained` are numbers of weights.

    gradients: of all trained weights, with the copies that replicas exchange.
    kept: activations that the forward pass saves for the backward pass.
    working: peak of activations, logits and temporary tensors in a micro-batch.
    gathered: sharded weights that are whole while layers compute.
    stepping: temporary tensors of the optimizer's step.
    peak: largest sum of all at one time.
    """

    parameters: int
    trained: int
    weights: int
    reference: int
    optimizer: int
    gradients: int
    kept: int
    working: int
    gathered: int
    stepping: int
    peak: int


def estimate(run: PlannedRun, batch: Batch) -> Memory:
    """Memory that a run needs for a micro-batch, which should be its largest.

    Raises:
        UserError: The model's configuration cannot be read, or two settings exclude each other.
    """
    model = meta_model(run)
    scoring = scoring_of(run, model)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizers = {
        dtype: measure_optimizer(run.optimizer, dtype, on_cpu=run.on_cpu, sharded=run.sharded)
        for dtype in {weight.dtype for weight in trained}
    }
    optimizer = sum(optimizers[weight.dtype].state_bytes(weight) for weight in trained) * run.share
    moments = [optimizers[weight.dtype].temporary * weight.numel() * run.share for weight in trained]
    stepping = sum(moments) if any(one.all_at_once for one in optimizers.values()) else max(moments, default=0.0)
    weights = _model_bytes(model, run.share)
    gradients = sum(map(_bytes, trained)) * run.share
    # Sharded weights are gathered in the dtype of the computation. Others are cast each time they are used.
    cast = _CAST.get(run.precision)
    computing = model if cast is None or not run.sharded else meta_model(run).to(cast)
    step = _trace(run, computing, batch, scoring, None if run.sharded else cast)
    reference = 0.0
    if run.kind == "frozen":
        reference = weights
    elif run.kind == "adapter" and (run.backbone.adapter is not None or run.assumes_adapter):
        reference = sum(map(_bytes, trained)) * run.share
    gathered = _gathered_bytes(computing, model) if run.sharded and run.gpus > 1 else 0
    # DDP sums gradients in buckets, which are a second copy of them.
    buckets = gradients if run.gpus > 1 and not run.sharded else 0.0
    constant = weights + reference + optimizer + buckets
    peak = constant + max(step.peak + gathered, gradients + stepping)
    return Memory(
        parameters=sum(map(_elements, model.parameters())),
        trained=sum(weight.numel() for weight in trained),
        weights=round(weights),
        reference=round(reference),
        optimizer=round(optimizer),
        gradients=round(gradients + buckets),
        kept=step.kept,
        working=step.peak - step.gradients_at_peak,
        gathered=gathered,
        stepping=round(stepping),
        peak=round(peak),
    )


def meta_model(run: PlannedRun) -> Any:
    """The model on the meta device in training mode, with 4-bit weights, adapter and activation checkpointing."""
    from peft import get_peft_model

    backbone = run.backbone
    backbone.refuse_untrainable()
    base: Any = replace(backbone, lora=None, adapter=None).outline()
    if backbone.quantization is not None:
        _quantize(base, getattr(torch, backbone.dtype))
    if backbone.attention == "sdpa" and base._supports_attention_backend:
        base.set_attn_implementation(flat_attention.NAME)
    elif backbone.attention == "eager":
        base.set_attn_implementation("eager")
    if backbone.activation_checkpointing and base.supports_gradient_checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    model: Any = base
    if backbone.uses_lora:
        # As in training, the adapter comes last: PEFT chooses its layers by the type of the model's layers.
        outlined: Any = backbone.outline()
        model = get_peft_model(base, outlined.peft_config["default"])
    return model.train()


def scoring_of(run: PlannedRun, model: Any) -> Layout:
    """How log-probabilities are computed, decided from the model's configuration."""
    why_not = cannot_share(without_adapter(model))
    if run.layout == "shared_prefix" and why_not is not None:
        raise UserError(f"layout 'shared_prefix': this model does not support it: {why_not}; use 'auto'")
    return Layout("concatenated" if why_not is not None or run.layout == "concatenated" else "shared_prefix")


def head_peak_bytes(run: PlannedRun, scored: int) -> int:
    """Peak bytes of logits and their gradients while the LM head scores `scored` tokens; weights are not counted."""
    inner = without_adapter(meta_model(run))
    head = inner.get_output_embeddings().requires_grad_(False)
    hidden = torch.empty(scored, inner.config.get_text_config().hidden_size, dtype=head.weight.dtype, device="meta")
    hidden.requires_grad_()
    targets = torch.empty(scored, dtype=torch.long, device="meta")
    with LiveBytes() as live:
        head_logprobs(hidden, targets, head, logit_transform(inner.config)).sum().backward()
    return round(live.peak)


def _trace(run: PlannedRun, model: Any, batch: Batch, scoring: Layout, cast: torch.dtype | None) -> StepBytes:
    in_layers = {id(weight) for layer in _layers(model) for weight in layer.parameters()}
    # If weights are gathered in half precision, a rank still keeps its part of the gradients in float32.
    widened = 2 if run.sharded and run.precision in _CAST else 1
    name = without_adapter(model).config.get_text_config()._attn_implementation
    policy = Scorer(model, scoring)
    reference: Any = None
    if run.kind == "frozen":
        reference = FrozenReference(policy)
    elif run.kind == "adapter":
        if not run.backbone.uses_lora:
            raise UserError(
                "reference 'adapter' needs a LoRA policy; set model.backbone.lora, or use reference 'frozen'"
            )
        reference = AdapterReference(policy, has_adapter=False)
    if not run.on_cpu and scoring.rows == "shared_prefix" and name == flat_attention.NAME:
        without_adapter(model).set_attn_implementation(ROW_KERNEL)
    return trace_step(
        policy,
        reference,
        meta_batch(batch, scoring, name),
        cast=cast,
        accumulates=run.accumulates,
        # Gradients of weights outside of the layers are sharded only after the backward pass.
        share=lambda weight: widened * run.share if id(weight) in in_layers else 1.0,
    )


def _quantize(model: Any, dtype: torch.dtype) -> None:
    """Replace the linear layers of a meta model by 4-bit ones, as transformers does when it loads weights."""
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    settings = quantization.nf4(dtype)
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    model.requires_grad_(False)
    for name, layer in linear:
        if layer is model.get_output_embeddings():
            continue
        with _restored_tables():
            codes, state = quantize_4bit(
                layer.weight.data,
                compress_statistics=settings.bnb_4bit_use_double_quant,
                quant_type=settings.bnb_4bit_quant_type,
                quant_storage=settings.bnb_4bit_quant_storage,
            )
        with torch.device("meta"):
            small = Linear4bit(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                compute_dtype=dtype,
                quant_storage=dtype,
                quant_type=settings.bnb_4bit_quant_type,
            )
        small.weight = Params4bit(codes, False, state, quant_type="nf4", quant_storage=dtype, bnb_quantized=True)
        small.bias = layer.bias
        model.set_submodule(name, small)
    quantization.prepare_4bit_layers(model, dtype)
    model.is_loaded_in_4bit = True


@contextmanager
def _restored_tables() -> Iterator[None]:
    """Restore bitsandbytes' cache of tables, so that no later model is quantised by one on the meta device."""
    from bitsandbytes.functional import name2qmap

    known = dict(name2qmap)
    try:
        yield
    finally:
        name2qmap.clear()
        name2qmap.update(known)


def _model_bytes(model: nn.Module, share: float) -> float:
    """Bytes of weights, of which a rank holds `share`, and of 4-bit scales and buffers, which every rank holds."""
    weights = list(model.parameters())
    whole = chain(chain.from_iterable(map(_scales, weights)), model.buffers())
    return sum(map(_bytes, weights)) * share + sum(map(_bytes, whole))


def _scales(weight: Tensor) -> list[Tensor]:
    state: Any = getattr(weight, "quant_state", None)
    return [] if state is None else [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _elements(weight: Tensor) -> int:
    state: Any = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else state.shape.numel()


def _layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _gathered_bytes(model: nn.Module, kept: nn.Module) -> int:
    """Peak bytes of gathered weights and of whole gradients that wait to be sharded.

    Layers are gathered in turn; weights outside of layers stay gathered until the backward pass ends.

    Args:
        model: The model in the dtype in which weights are gathered.
        kept: The model in the dtype in which weights are stored and gradients are summed.
    """
    layers = _layers(model)
    in_layers = [sum(map(_bytes, layer.parameters())) for layer in layers]
    trained = [sum(_bytes(one) for one in layer.parameters() if one.requires_grad) for layer in layers]
    rest = sum(map(_bytes, model.parameters())) - sum(in_layers)
    # FSDP2 copies the gradients of a layer into one tensor before it reduces them.
    copied = (sum(_bytes(one) for one in layer.parameters() if one.requires_grad) for layer in _layers(kept))
    return rest + _GATHERED_LAYERS * max(in_layers, default=0) + max(trained, default=0) + max(copied, default=0)
