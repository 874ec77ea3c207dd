"""Which model is trained, and how it is built: name, dtype, attention, quantisation, adapter."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info

from judgelit.batches.tokenizer import NANO, model_folder
from judgelit.errors import UserError, first_line
from judgelit.models import flat_attention, quantization
from judgelit.models.lora import (
    LoRA,
    adapter_folder,
    add_adapter,
    brings_more,
    start_from_adapter,
    without_adapter,
)
from judgelit.models.shard_loading import FileWeights, FirstRankWeights, TwinWeights, build_without_weights, unfilled
from judgelit.models.sharding import Sharding, Weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    CausalLM = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Backbone:
    """A causal language model and how it is fine-tuned."""

    name_or_path: str
    """Hub name, a Hugging Face folder, or `nano`: the built-in small model, from scratch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The weights' dtype."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 needs a CUDA GPU and its package."""
    quantization: Literal["nf4"] | None = None
    """Keep the weights of linear layers in 4 bits while an adapter is trained on them (QLoRA)."""
    lora: LoRA | None = None
    """Train an adapter instead of the whole model."""
    adapter: str | None = None
    """Folder of a LoRA adapter to start from; its own settings then take the place of `lora`."""
    activation_checkpointing: bool = True
    """Recompute activations in the backward pass: much less memory for up to a third more time."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @property
    def uses_lora(self) -> bool:
        """Whether an adapter is trained and the model's own weights stay as they are."""
        return self.lora is not None or self.adapter is not None

    def refuse_untrainable(self) -> None:
        """Refuse 4-bit weights without an adapter to train."""
        if self.quantization is not None and not self.uses_lora:
            raise UserError(
                f"quantization {self.quantization!r}: found neither lora nor adapter, expected one of them, since "
                "4-bit weights cannot be trained; add lora (model.backbone.lora.r: 16), or leave quantization out"
            )

    def build(
        self,
        sharding: Sharding | None = None,
        prepare: "Callable[[CausalLM], None] | None" = None,
        twin: "CausalLM | None" = None,
        for_training: bool = True,
    ) -> "CausalLM":
        """The model with its adapter, ready to train and in training mode.

        Args:
            sharding: Over which devices its weights are sharded; each process then only reads its own part of them.
            prepare: Called with the model before it is sharded, for whatever changes what modules it has.
            twin: A model of this backbone, sharded alike, whose weights as they are now the new one gets.
            for_training: Refuse a model that cannot be trained.

        Raises:
            UserError: The model or adapter cannot be loaded, LoRA's targets match no layer, or it cannot be sharded.
        """
        if for_training:
            self.refuse_untrainable()
        weights: Weights | None = None
        if sharding is None or self._is_quantized() or self._brings_more():
            # 4-bit weights are made of whole ones, and an adapter's files are loaded into whole ones, so each process
            # loads them all and then keeps its part.
            model = self._load()
        else:
            model, weights = self._hollow(sharding, twin)
        whole = self._complete(model)
        if prepare is not None:
            prepare(whole)
        if sharding is not None:
            sharding.shard(model, weights)
        return whole

    def _complete(self, model: "PreTrainedModel") -> "CausalLM":
        """The model with attention, activation checkpointing and adapter as they are to be."""
        if self.attention == "sdpa" and model._supports_attention_backend:
            model.set_attn_implementation(flat_attention.NAME)
        if self.activation_checkpointing:
            _checkpoint_activations(model)
        # Loading leaves a model in eval mode, where activation checkpointing does nothing, and Lightning keeps modes.
        return self._with_adapter(model).train()

    def build_unquantized(self) -> "CausalLM":
        """The model with its adapter, 4-bit weights put back into `dtype`: what an adapter can be merged into."""
        model = self._load()
        if quantization.is_4bit(model):
            quantization.dequantize(model)
        return self._with_adapter(model)

    def outline(self) -> "CausalLM":
        """The model with its adapter but without weights: all tensors are on the meta device, none are read."""
        from peft import PeftConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        with self._refusing(), torch.device("meta"):
            folder = model_folder(self.name_or_path)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, self.dtype), trust_remote_code=self.trust_remote_code
            )
            if self.adapter is None:
                return self._with_adapter(model)
            settings = PeftConfig.from_pretrained(adapter_folder(self.adapter))
            # PEFT would warn that the model's name is not the one in the settings, where it is another path to it.
            settings.base_model_name_or_path = None
            settings.inference_mode = False
            return get_peft_model(model, settings)

    def _hollow(self, sharding: Sharding, twin: "CausalLM | None") -> tuple["PreTrainedModel", Weights]:
        """The model without its weights, and where they come from."""
        with self._refusing():
            model = build_without_weights(self._from_scratch)
        if twin is not None:
            for buffer, other in zip(model.buffers(), without_adapter(twin).buffers(), strict=True):
                buffer.copy_(other)
            return model, TwinWeights(without_adapter(twin))
        if self.name_or_path != NANO:
            if (read := FileWeights.of(model, model_folder(self.name_or_path))) is not None:
                return model, read
            rank_zero_info(
                f"model {self.name_or_path!r}: the first rank loads it as a whole for all, since its files do not hold "
                "its weights one to one"
            )
        sent = FirstRankWeights(model, self._load, sharding.device)
        if empty := unfilled(model):
            raise UserError(f"model {self.name_or_path!r} cannot be sharded: nothing is known of its {empty[0]}")
        return model, sent

    def _from_scratch(self) -> "PreTrainedModel":
        """The model with random weights."""
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        folder, remote = model_folder(self.name_or_path), self.trust_remote_code
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote, **self._options)
        with suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    def _is_quantized(self) -> bool:
        """Whether the model's weights are, or are to be, in other than plain numbers."""
        return self.quantization is not None or (self.name_or_path != NANO and self._comes_quantized())

    def _brings_more(self) -> bool:
        return self.adapter is not None and brings_more(self.adapter)

    @property
    def _options(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "attn_implementation": self.attention}

    def _load(self) -> "PreTrainedModel":
        from transformers import AutoModelForCausalLM

        options = dict(self._options)
        if self.attention == "flash_attention_2" and not torch.cuda.is_available():
            raise UserError("attention 'flash_attention_2' needs a CUDA GPU and found none; use 'sdpa'")
        with self._refusing():
            folder = model_folder(self.name_or_path)
            if self.name_or_path == NANO:
                if self.quantization is not None:
                    raise UserError(
                        f"quantization {self.quantization!r}: found the built-in model, which starts from random "
                        "weights; expected a trained one"
                    )
                return self._from_scratch()
            if self.quantization is not None and not self._comes_quantized():
                options["quantization_config"] = quantization.nf4(options["dtype"])
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **options,
            )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            # transformers would train these from random numbers.
            raise UserError(
                f"model {self.name_or_path!r}: its files lack {len(missing)} weights of {type(model).__name__}, among "
                f"them {missing[0]}"
            )
        if quantization.is_4bit(model):
            quantization.prepare_4bit_layers(model, options["dtype"])
        elif self.quantization is not None:
            raise UserError(
                f"quantization {self.quantization!r}: the files of {self.name_or_path!r} hold weights that are "
                "quantised otherwise; leave quantization out"
            )
        if getattr(model, "is_quantized", False):
            model.requires_grad_(False)
        return model

    def _comes_quantized(self) -> bool:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.name_or_path, trust_remote_code=self.trust_remote_code)
        return getattr(config, "quantization_config", None) is not None

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Say in one line why the model cannot be loaded."""
        from huggingface_hub.errors import StrictDataclassError
        from safetensors import SafetensorError

        folder = model_folder(self.name_or_path)
        local = Path(folder)
        if local.is_dir() and not (local / "config.json").is_file():
            raise UserError(
                f"model {self.name_or_path!r}: found no config.json in that folder, expected a model's folder"
            )
        if not local.exists() and folder.startswith(("./", "../", "/", "~")):
            raise UserError(f"model {self.name_or_path!r}: no such folder")
        try:
            yield
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
            if not local.exists() and isinstance(error, OSError) and "gated" not in str(error):
                raise UserError(
                    f"model {self.name_or_path!r}: no such folder, and the hub could not be reached or has no such "
                    "model"
                ) from error
            if "attention implementation" in str(error) and self.attention != "eager":
                raise UserError(
                    f"model {self.name_or_path!r}: has no attention {self.attention!r}; set attention to 'eager'"
                ) from error
            raise UserError(f"model {self.name_or_path!r}: cannot be loaded: {first_line(error)}") from error

    def _with_adapter(self, model: "PreTrainedModel") -> "CausalLM":
        if self.adapter is not None:
            return start_from_adapter(model, self.adapter, self.name_or_path)
        return model if self.lora is None else add_adapter(model, self.lora, self.name_or_path)


def _checkpoint_activations(model: Any) -> None:
    if not model.supports_gradient_checkpointing:
        rank_zero_info(f"activation_checkpointing: {type(model).__name__} has none, so activations are kept")
        return
    # transformers has renamed it, and warns of the old name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def trained_folder(folder: str, dtype: Literal["float32", "bfloat16", "float16"] = "float32") -> Backbone:
    """The backbone that a folder (or hub name) holds: a whole model, or a LoRA adapter on the base that it names.

    A base that was in 4 bits while the adapter was trained is so again: on any other the adapter is another judge.
    """
    settings = Path(folder) / "adapter_config.json"
    if not settings.is_file():
        return Backbone(folder, dtype)
    base = json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{settings}: field 'base_model_name_or_path': found nothing, expected the base model")
    return Backbone(base, dtype, quantization=quantization.noted(Path(folder)), adapter=folder)
