"""Backbone: the model that is trained, its settings and how it is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info

from judgelit.batches.tokenizer_files import ADAPTER_CONFIG, NANO, base_of_adapter, holds_adapter, model_folder
from judgelit.errors import UserError, first_line
from judgelit.models import flat_attention, quantization
from judgelit.models.lora import (
    LoRA,
    adapter_folder,
    add_adapter,
    edits_base_weights,
    replaces_base_weights,
    start_from_adapter,
    trains_base_weights,
)
from judgelit.models.shard_loading import FileWeights, FirstRankWeights, build_without_weights, copy_weights
from judgelit.models.sharding import Sharding

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    CausalLM = PreTrainedModel | PeftModel


DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Backbone:
    """A causal language model and how it is fine-tuned."""

    name_or_path: str
    """Model to train: a name on the Hugging Face hub, a folder in its format, or `nano`, a small built-in model that
    starts from random weights."""
    dtype: DType = "auto"
    """Dtype of the model's weights. The low-rank weights of an adapter are always float32. `auto`: on a GPU, the base
    of an adapter has the dtype in which it was saved; otherwise float32. It becomes the chosen dtype at once. An
    adapter that also trains weights of the model itself (PEFT's `modules_to_save`, `bias`) needs a model in float32,
    and `auto` is float32 for it."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel. `sdpa` suits most models. `eager` is slower and works for all. `flash_attention_2` needs a CUDA
    GPU and the package flash-attn."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: keep the weights of linear layers in 4 bits and train an adapter on them (QLoRA). Needs `lora` or
    `adapter`."""
    lora: LoRA | None = None
    """New LoRA adapter to train. Without `lora` and `adapter`, all weights of the model are trained."""
    adapter: str | None = None
    """Folder of a LoRA adapter to continue from. Its own settings replace `lora`."""
    activation_checkpointing: bool = True
    """Recompute activations in the backward pass: much less memory, up to a third more time."""
    trust_remote_code: bool = False
    """Run Python code that the model's files bring. Set it only for a model whose authors you trust."""

    def __post_init__(self) -> None:
        if self.dtype == "auto":
            on_gpu = torch.cuda.is_available()
            chosen = choose_dtype(self.name_or_path, self.uses_lora, on_gpu, self.trust_remote_code, self.adapter)
            object.__setattr__(self, "dtype", chosen)

    @property
    def uses_lora(self) -> bool:
        """Whether an adapter is trained and the model's own weights are frozen."""
        return self.lora is not None or self.adapter is not None

    def is_in_4bit(self) -> bool:
        """Whether linear layers have 4-bit weights, by `quantization` or because the model's files hold such."""
        return self.quantization is not None or bool((self._stored_quantization() or {}).get("load_in_4bit"))

    def refuse_untrainable(self) -> None:
        """Check that quantised weights have an adapter to train, and that an adapter trains no weights in 16 bits.

        Raises:
            UserError: Quantised weights have none, or it trains weights of a model in 16 bits.
        """
        if self.quantization is not None and not self.uses_lora:
            raise UserError(
                f"quantization {self.quantization!r}: found neither lora nor adapter, expected one of them, since "
                "4-bit weights cannot be trained; add lora (model.backbone.lora.r: 16), or leave quantization out"
            )
        if not self.uses_lora and self._stored_quantization() is not None:
            raise UserError(
                f"model {self.name_or_path!r}: found quantised weights and neither lora nor adapter, expected one of "
                "them, since quantised weights cannot be trained; add lora (model.backbone.lora.r: 16), or take a "
                "model that is not quantised"
            )
        if self.dtype != "float32" and self.adapter is not None and trains_base_weights(self.adapter):
            raise UserError(
                f"model.backbone.dtype: found {self.dtype!r} with the adapter {self.adapter!r}, which trains weights "
                "of the model itself (modules_to_save or bias), expected 'float32', since 16 bits would round small "
                "updates away; set it to float32, and trainer.precision to bf16-mixed to compute in 16 bits"
            )

    def build(
        self,
        sharding: Sharding | None = None,
        before_sharding: "Callable[[CausalLM], None] | None" = None,
        copy_from: "CausalLM | None" = None,
        for_training: bool = True,
    ) -> "CausalLM":
        """Build the model with its adapter, ready to train and in training mode.

        Args:
            sharding: Devices to shard the model over; all their processes must call this. None: one whole model.
            before_sharding: Called with the model before it is sharded, to change its modules.
            copy_from: A model that this backbone built with the same sharding. The new model gets its present weights.
            for_training: Refuse a model that cannot be trained.

        Raises:
            UserError: The model or adapter cannot be loaded, LoRA's targets match no layer, or it cannot be sharded.
        """
        if for_training:
            self.refuse_untrainable()
        by_shards = sharding is not None and not self._must_load_whole()
        model = build_without_weights(self._from_config) if by_shards else self._load()
        weights = self._find_weights(model) if by_shards and copy_from is None else None
        self._set_attention(model)
        self._set_activation_checkpointing(model)
        # Loading leaves a model in eval mode, where activation checkpointing is off, and Lightning keeps modes.
        trained = self._with_adapter(model).train()
        if before_sharding is not None:
            before_sharding(trained)
        if sharding is not None:
            sharding.shard(model)
        if weights is not None:
            weights.load_into(model)
        if copy_from is not None:
            copy_weights(copy_from, trained)
        return trained

    def build_unquantized(self) -> "CausalLM":
        """Build the model with its adapter and with 4-bit weights converted to `dtype`, to merge the adapter into."""
        model = self._load()
        if quantization.is_4bit(model):
            quantization.dequantize(model)
        return self._with_adapter(model)

    def outline(self) -> "CausalLM":
        """Build the model with its adapter on the meta device, where tensors have shapes but no values."""
        from peft import PeftConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        with self._loading_errors(), torch.device("meta"):
            folder = model_folder(self.name_or_path)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
            _check_sizes(config)
            model = AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, self.dtype), trust_remote_code=self.trust_remote_code
            )
        with torch.device("meta"):
            if self.adapter is None:
                return self._with_adapter(model)
            with self._loading_errors():
                settings = PeftConfig.from_pretrained(adapter_folder(self.adapter))
            # PEFT would warn if the settings name the model by another path than ours.
            settings.base_model_name_or_path = None
            settings.inference_mode = False
            return get_peft_model(model, settings)

    def _must_load_whole(self) -> bool:
        """Whether each process must load the whole model before it keeps its part.

        4-bit weights are made from whole ones, and PEFT loads an adapter's copies of the model's own weights into
        whole ones. Some adapters edit the model's weights when they are loaded.
        """
        if self.quantization is not None or self._stored_quantization() is not None:
            return True
        return self.adapter is not None and (replaces_base_weights(self.adapter) or edits_base_weights(self.adapter))

    def _find_weights(self, model: "PreTrainedModel") -> FileWeights | FirstRankWeights:
        """Find where a model that was built without weights gets them once it is sharded."""
        if self.name_or_path != NANO:
            with self._loading_errors():
                files = FileWeights.find(model, model_folder(self.name_or_path))
            if files is not None:
                return files
            rank_zero_info(
                f"model {self.name_or_path!r}: the first rank loads the whole model and sends each rank its part, "
                "because the model's files do not match its weights one to one"
            )
        return FirstRankWeights(model, self._load)

    def _from_config(self) -> "PreTrainedModel":
        """Build the model with random weights."""
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        with self._loading_errors():
            folder, remote = model_folder(self.name_or_path), self.trust_remote_code
            config = AutoConfig.from_pretrained(folder, trust_remote_code=remote)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=remote, **self._load_options())
            with suppress(OSError):
                model.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    def _load_options(self) -> dict[str, Any]:
        if self.attention == "flash_attention_2" and not torch.cuda.is_available():
            raise UserError("attention 'flash_attention_2' needs a CUDA GPU and found none; use 'sdpa'")
        return {"dtype": getattr(torch, self.dtype), "attn_implementation": self.attention}

    def _load(self) -> "PreTrainedModel":
        """Load the whole model, in 4 bits if asked."""
        from transformers import AutoModelForCausalLM

        if self.name_or_path == NANO:
            if self.quantization is not None:
                raise UserError(
                    f"quantization {self.quantization!r}: found the built-in model, which starts from random "
                    "weights; expected a trained one"
                )
            return self._from_config()
        options = self._load_options()
        if self.quantization is not None and self._stored_quantization() is None:
            options["quantization_config"] = quantization.nf4(options["dtype"])
        with self._loading_errors():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.name_or_path,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **options,
            )
        model, report = loaded
        if missing := sorted(report["missing_keys"]):
            # transformers would give these random values.
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

    def _stored_quantization(self) -> dict[str, Any] | None:
        """The settings with which the model's files were quantised; None if they hold ordinary weights."""
        from transformers import AutoConfig

        if self.name_or_path == NANO:
            return None
        with self._loading_errors():
            config = AutoConfig.from_pretrained(self.name_or_path, trust_remote_code=self.trust_remote_code)
        return getattr(config, "quantization_config", None)

    def _set_attention(self, model: "PreTrainedModel") -> None:
        if self.attention == "sdpa" and model._supports_attention_backend:
            model.set_attn_implementation(flat_attention.NAME)

    def _set_activation_checkpointing(self, model: Any) -> None:
        if not self.activation_checkpointing:
            return
        if not model.supports_gradient_checkpointing:
            rank_zero_info(f"activation_checkpointing: {type(model).__name__} has none, so activations are kept")
            return
        # Newer versions of transformers have the first name and warn about the second.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})

    def _with_adapter(self, model: "PreTrainedModel") -> "CausalLM":
        if self.adapter is not None:
            return start_from_adapter(model, self.adapter, self.name_or_path)
        return model if self.lora is None else add_adapter(model, self.lora, self.name_or_path)

    @contextmanager
    def _loading_errors(self) -> Iterator[None]:
        """Raise errors of the libraries that load a model as one-line UserErrors."""
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
        except ZeroDivisionError as error:
            raise UserError(f"model {self.name_or_path!r}: its config.json has a size of 0") from error
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


def _check_sizes(config: Any) -> None:
    """Raise ValueError if a model's configuration has no layers or tensors without elements."""
    text = config.get_text_config()
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        size = getattr(text, name, 1)
        if isinstance(size, int) and size < 1:
            raise ValueError(f"config.json: {name}: found {size}, expected 1 or more")


def choose_dtype(
    name_or_path: str, uses_lora: bool, on_gpu: bool, trust_remote_code: bool = False, adapter: str | None = None
) -> DType:
    """The dtype of a model that is to be trained: on a GPU the saved one if it is frozen, otherwise float32.

    Weights that are trained are float32, since 16 bits would round small updates away. A CPU is slow in 16 bits.

    Args:
        name_or_path: The model.
        uses_lora: Whether an adapter is trained, new or not.
        on_gpu: Whether it is trained on a GPU.
        trust_remote_code: Whether the model's own Python code may run.
        adapter: Folder of the adapter that training continues from, if there is one.
    """
    if not (uses_lora and on_gpu) or (adapter is not None and holds_adapter(adapter) and trains_base_weights(adapter)):
        return "float32"
    found = saved_dtype(name_or_path, trust_remote_code)
    return cast(DType, found) if found in get_args(DType) else "float32"


def saved_dtype(name_or_path: str, trust_remote_code: bool = False) -> str:
    """The dtype that a model's configuration names, such as `bfloat16`; `None` if it names none.

    Raises:
        UserError: The configuration cannot be loaded.
    """
    from transformers import AutoConfig

    with Backbone(name_or_path, "float32")._loading_errors():
        config = AutoConfig.from_pretrained(model_folder(name_or_path), trust_remote_code=trust_remote_code)
    return str(config.get_text_config().dtype or config.dtype).removeprefix("torch.")


def trained_folder(folder: str, dtype: DType = "float32") -> Backbone:
    """Return the backbone that a folder (or hub name) holds: a whole model, or a LoRA adapter with its base model.

    If the adapter was trained on a base in 4 bits, the base is loaded in 4 bits again.

    Raises:
        UserError: The adapter's settings do not name its base model.
    """
    if not holds_adapter(folder):
        return Backbone(folder, dtype)
    if not (base := base_of_adapter(Path(folder))):
        at = Path(folder) / ADAPTER_CONFIG
        raise UserError(f"{at}: field 'base_model_name_or_path': found nothing, expected the base model")
    return Backbone(base, dtype, quantization=quantization.read_note(Path(folder)), adapter=folder)
