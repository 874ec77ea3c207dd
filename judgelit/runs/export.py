"""`judgelit export`: the trained model of a run as a Hugging Face folder."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from judgelit.atomic import atomic_folder, remove, remove_parts
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.batches.tokenizer_files import NANO
from judgelit.errors import UserError
from judgelit.judging.kept_templates import KeptTemplates, keep_templates
from judgelit.judging.prompts import Templates
from judgelit.models import quantization
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import whole_weights
from judgelit.parsing import OneLineErrors
from judgelit.runs.folder import holds_something
from judgelit.runs.model_card import model_card
from judgelit.runs.trained_run import Scores, TrainedRun, check_weights, evaluated_scores, find_run

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

DType = Literal["float32", "bfloat16", "float16"]


def export_run(
    run: TrainedRun,
    to: Path,
    merge: bool = False,
    dtype: DType | None = None,
    tokenizer: ChatTokenizer | None = None,
    scores: Scores | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder that transformers, PEFT and vLLM load.

    Weights are memory-mapped from the checkpoint. So memory holds the exported model at most, and the base model's
    weights are read only for a merge.

    Args:
        run: The checkpoint.
        to: The folder. It appears when it is complete.
        merge: Merge an adapter into its base; a 4-bit base is dequantised first. No effect on a run that has trained
            all weights.
        dtype: Dtype of the exported weights; None keeps that of the trained ones.
        tokenizer: The exported tokenizer; None takes the one that the run was trained with.
        scores: Scores for the model card; None takes those in the run's folder.
        trust_remote_code: Run the Python code that comes with the run's model.

    Raises:
        UserError: The folder is not empty, the run's model comes with code that is not trusted, or the checkpoint is
            broken or does not fit the run's configuration.
    """
    backbone = run.backbone
    if backbone.uses_lora and backbone.name_or_path == NANO:
        raise UserError(
            f"{run.folder} has trained an adapter on the built-in model, whose random weights are in no file; expected "
            "a base model that is saved in files"
        )
    if backbone.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"{run.folder} was trained with Python code that comes with its model; to run that code, add "
            "--trust_remote_code"
        )
    with new_folder(to) as folder:
        content = run.load()
        model: Any = backbone.outline()
        weights = check_weights(run, model, content)
        if backbone.uses_lora and merge:
            model = backbone.build_unquantized()
            model.load_state_dict(weights, strict=False)
            model = merge_adapter(model, getattr(torch, dtype or backbone.dtype))
        else:
            model.load_state_dict(weights, strict=not backbone.uses_lora, assign=True)
            if not backbone.uses_lora:
                model.tie_weights()
            if dtype is not None:
                model.to(getattr(torch, dtype))
        _write_model(model, tokenizer or run.tokenizer(), folder, None, run.templates)
        if backbone.quantization is not None and not merge:
            quantization.write_note(folder)
        (folder / "README.md").write_text(model_card(run, content, merged=merge, scores=scores), encoding="utf-8")


def merge_adapter(model: Any, dtype: torch.dtype) -> Any:
    """The base of a PEFT model with the adapter added to its weights, which are rounded to `dtype` once."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    plain = [module for module in model.modules() if module not in layers]
    uses = Counter(id(module.weight) for module in plain if isinstance(getattr(module, "weight", None), nn.Parameter))
    for layer in layers:
        base: Any = layer.get_base_layer()
        if uses[id(getattr(base, "weight", None))] > 1:
            # Embeddings and head share this weight; an adapter of one must not change the other.
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        base.to(torch.float32)
        layer.merge()
        base.to(dtype)
    with warnings.catch_warnings():
        # PEFT warns that the layers are merged already, and that the head is no longer tied.
        warnings.simplefilter("ignore")
        return model.merge_and_unload().to(dtype)


def save_model(
    model: "CausalLM",
    tokenizer: ChatTokenizer,
    folder: Path,
    templates: Templates | KeptTemplates | None = None,
    card: str | None = None,
) -> None:
    """Write a model as a Hugging Face folder, atomically; of a LoRA model only the adapter.

    All ranks must call it for a sharded model; the first rank writes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: The folder. An earlier model there is replaced.
        templates: The judge prompts that it is asked with, if they are known.
        card: The model card; None keeps the one that PEFT writes.
    """
    weights = whole_weights(model)
    if weights is not None and not weights:
        return
    remove_parts(folder)
    with atomic_folder(folder) as part:
        _write_model(model, tokenizer, part, weights, templates)
        if card is not None:
            (part / "README.md").write_text(card, encoding="utf-8")
        remove(folder)


def _write_model(
    model: "CausalLM",
    tokenizer: ChatTokenizer,
    folder: Path,
    weights: dict[str, Tensor] | None,
    templates: Templates | KeptTemplates | None,
) -> None:
    """Write weights (safetensors), tokenizer, chat and judge templates and generation config; note a 4-bit base.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: An empty folder.
        weights: All weights of a sharded model; None for the model's own.
        templates: Judge prompts to keep.
    """
    from transformers import GenerationConfig

    more: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    generation = GenerationConfig(
        # A judge is evaluated greedily. Servers would apply the base's settings, which are for chats.
        do_sample=False,
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    if hasattr(model, "peft_config"):
        # A DPO policy also holds the adapter of the reference, which was not trained.
        model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False, **more)
        generation.save_pretrained(folder)
        if quantization.is_4bit(without_adapter(model)):
            quantization.write_note(folder)
    else:
        model.generation_config = generation
        model.save_pretrained(str(folder), **more)
    tokenizer.hf.save_pretrained(folder)
    if templates is not None:
        try:
            keep_templates(templates.load(), folder)
        except UserError as error:
            # A folder of the user's templates may be gone by now; the model must not be lost for that.
            print(f"judge templates are not kept in {folder}: {error}")


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Make a folder to write into that appears at `to` when the block ends, and not at all if it raises.

    Args:
        to: The folder. A link stays, and the folder that it names is written.

    Raises:
        UserError: There is something at `to` already, or the folder cannot be made.
    """
    to = to.absolute()
    if holds_something(to):
        raise UserError(f"{to} exists already, expected a new or an empty folder; choose another one with --to")
    written = Path(os.path.realpath(to))
    if written.is_mount():
        # A folder is moved to `to` in the end, and nothing can take the place of a mount point.
        raise UserError(f"{to}: found a mount point, expected a folder; choose one below it with --to")
    with ExitStack() as stack:
        try:
            remove_parts(written)
            part = stack.enter_context(atomic_folder(written))
        except OSError as error:
            raise UserError(f"{to} cannot be made: {error.strerror or error}; choose another one with --to") from error
        yield part


def main(argv: list[str]) -> None:
    """Run `judgelit export`."""
    parser = OneLineErrors(
        prog="judgelit export",
        description="Write the trained model of a run as a Hugging Face folder: weights, tokenizer, chat template, "
        "generation config and a model card with recipe and scores.",
    )
    parser.add_argument("run", help="The folder of `judgelit fit` or `judgelit run`, or a checkpoint in it.")
    parser.add_argument("--to", required=True, help="The folder to write.")
    parser.add_argument(
        "--merge", action="store_true", help="Merge a LoRA adapter into its base model. Otherwise it is written alone."
    )
    parser.add_argument("--dtype", type=DType | None, help="Dtype of the weights; by default that of the trained ones.")
    parser.add_argument(
        "--scores",
        help="Folder that `judgelit evaluate` has written: its scores stand in the model card. By default those in the "
        "run's own folder do.",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="Run the Python code that comes with the run's model."
    )
    args = parser.parse_args(argv)
    run = find_run(args.run)
    scores = None if args.scores is None else evaluated_scores(Path(args.scores))
    export_run(run, Path(args.to), args.merge, args.dtype, scores=scores, trust_remote_code=args.trust_remote_code)
    is_adapter = run.backbone.uses_lora and not args.merge
    if args.merge and not run.backbone.uses_lora:
        print("there is no adapter to merge: the run has trained all weights")
    print(f"{'adapter' if is_adapter else 'model'} of {run.checkpoint} written to {args.to}")
