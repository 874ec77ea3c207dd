"""Finding and loading the model that an `EngineSpec` names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.batches.tokenizer_files import NANO, tokenizer_folder
from judgelit.console import printable
from judgelit.errors import UserError
from judgelit.judging.kept_templates import KeptTemplates, kept_with
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import Backbone, DType, saved_dtype, trained_folder
from judgelit.runs.trained_run import TrainedRun, check_weights, find_run

if TYPE_CHECKING:
    from judgelit.generation.engine import EngineSpec
    from judgelit.models.backbone import CausalLM


@dataclass(frozen=True)
class NamedModel:
    """A model that can be loaded."""

    backbone: Backbone
    """The model, with its adapter if it has one."""
    run: TrainedRun | None
    """The run whose checkpoint holds the trained weights; none if the backbone's own files hold them."""

    @classmethod
    def find(cls, spec: "EngineSpec", device: torch.device) -> "NamedModel":
        """The model that `spec.model` names; no weights are read yet.

        Args:
            spec: The model and its settings.
            device: Where it will run. The default dtype depends on it.

        Raises:
            UserError: There is no such run, or it cannot be loaded with these settings.
        """
        run = find_run(spec.model) if _is_run(Path(spec.model)) else None
        backbone = trained_folder(spec.model) if run is None else _backbone_of(run, spec)
        backbone = replace(
            backbone,
            attention=spec.attention,
            quantization=spec.quantization or backbone.quantization,
            activation_checkpointing=False,
            trust_remote_code=spec.trust_remote_code,
        )
        dtype: DType = spec.dtype or ("float32" if device.type == "cpu" else "auto")
        if dtype != "auto":
            return cls(replace(backbone, dtype=dtype), run)
        # Training has read the weights in the run's dtype and has saved them in it.
        return cls(backbone if run is not None else replace(backbone, dtype=_saved_dtype(backbone)), run)

    def load_tokenizer(
        self, chat_template: str | None, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> ChatTokenizer:
        """The model's own tokenizer: the run's or the adapter's, where there is one; else the base model's.

        Args:
            chat_template: A Jinja file in place of the tokenizer's own chat template.
            chat_template_kwargs: Defaults of the chat template's variables.
        """
        if self.run is not None:
            return self.run.tokenizer(chat_template, chat_template_kwargs)
        model = self.backbone
        name = tokenizer_folder(model.name_or_path, model.adapter)
        return ChatTokenizer.load(
            name, chat_template, model.trust_remote_code, chat_template_kwargs, base=model.name_or_path
        )

    def load_weights(self) -> "CausalLM":
        """The model with its weights, on the CPU.

        Raises:
            UserError: The files or the checkpoint cannot be loaded.
        """
        with torch.random.fork_rng(enabled=self.backbone.name_or_path == NANO):
            if self.backbone.name_or_path == NANO:
                # No file holds its weights, and a command that continues must find the same ones.
                torch.manual_seed(0)
            model = self.backbone.build(for_training=False)
        if self.run is not None:
            trained = check_weights(self.run, model, self.run.load())
            model.load_state_dict(trained, strict=not self.backbone.uses_lora)
        return model


def templates_of(given: Templates, spec: "EngineSpec") -> Templates | KeptTemplates:
    """The judge prompts to ask a model with: the given ones, else those that its folder or run keeps.

    A line says which ones are used if none are given, also if the model keeps none and `rise` is asked with.

    Args:
        given: The user's choice; neither names nor a folder mean none.
        spec: The model. A server's model has the judge prompts of the folder that its name gives, if there is one.
    """
    model = spec.model
    if given.names is not None or given.folder is not None:
        return given
    found: Templates | KeptTemplates | None = kept_with(model, given.seed)
    if found is None and spec.endpoint is None and _is_run(Path(model)):
        found = find_run(model).templates
    if found is None:
        print(f"judge prompts: {', '.join(given.load())} ({model} keeps none); choose others with --templates.names")
        return given
    names = ", ".join(map(printable, found.load()))
    print(f"judge prompts: those kept with {model} ({names}); choose others with --templates.names")
    return found


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UserError: This machine does not have it.
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu", *(["cuda", *gpus] if gpus else []), *(["mps"] if torch.backends.mps.is_available() else [])]
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if name not in devices:
        raise UserError(f"device: found {name!r}, expected one that this machine has: auto, {', '.join(devices)}")
    return torch.device(name)


def _is_run(path: Path) -> bool:
    """Whether a path names a run or a checkpoint in it, and not a Hugging Face folder."""
    is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    return path.suffix == ".ckpt" or path.is_file() or ((path / "config.yaml").is_file() and not is_model)


def _backbone_of(run: TrainedRun, spec: "EngineSpec") -> Backbone:
    """The model that a run has trained.

    Raises:
        UserError: Its weights cannot be had with the settings of `spec`.
    """
    backbone = run.backbone
    if backbone.uses_lora and backbone.name_or_path == NANO:
        raise UserError(
            f"{run.folder} has trained an adapter on the built-in model, whose random weights no file holds; expected "
            "a base model that was loaded from files"
        )
    if spec.quantization is not None and not backbone.uses_lora:
        raise UserError(
            f"quantization {spec.quantization!r}: found a run that has trained the whole model, expected an adapter or "
            "a Hugging Face folder; write one with `judgelit export` first"
        )
    if backbone.trust_remote_code and not spec.trust_remote_code:
        raise UserError(
            f"{run.folder} was trained with Python code that comes with its model; to run that code, set "
            "trust_remote_code to true"
        )
    return backbone


def _saved_dtype(backbone: Backbone) -> DType:
    """The dtype in which the files of a model (of an adapter: its base) were saved."""
    if backbone.name_or_path == NANO:
        return backbone.dtype
    name = backbone.name_or_path
    found = saved_dtype(name, backbone.trust_remote_code)
    if found not in ("float32", "bfloat16", "float16"):
        raise UserError(
            f"dtype 'auto': found the dtype {found} in the configuration of {name!r}, expected float32, bfloat16 or "
            "float16; choose one of them with --dtype"
        )
    return cast(DType, found)
