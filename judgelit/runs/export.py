"""`judgelit export`: what a run has trained as a Hugging Face folder."""

import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from judgelit.batches.tokenizer import NANO, ChatTokenizer
from judgelit.errors import UserError
from judgelit.models import quantization
from judgelit.models.lora import without_adapter
from judgelit.models.sharding import whole_weights
from judgelit.parsing import OneLineErrors
from judgelit.runs.model_card import model_card
from judgelit.runs.trained_run import TrainedRun, check_weights, find_run

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

DType = Literal["float32", "bfloat16", "float16"]


def export_run(
    run: TrainedRun, to: Path, merge: bool = False, dtype: DType | None = None, tokenizer: ChatTokenizer | None = None
) -> None:
    """Write the model of a checkpoint as a Hugging Face folder that plain transformers, PEFT and vLLM load.

    Weights are mapped from the checkpoint, so that no more than the model itself is in memory: of a whole model or of
    an adapter not even its base is read.

    Args:
        run: The checkpoint.
        to: The folder, which appears once it is whole.
        merge: Merge an adapter into its base, a 4-bit one being put back into its dtype first; a run that has trained
            the whole model has nothing to merge.
        dtype: The dtype of the weights written; that of the trained ones if not given.
        tokenizer: The tokenizer to go with it; the run's own if none is given.

    Raises:
        UserError: The folder is not empty, or the checkpoint is broken or of another model than its run describes.
    """
    backbone = run.backbone
    if backbone.uses_lora and backbone.name_or_path == NANO:
        raise UserError(
            f"{run.folder} has trained an adapter on the built-in model, whose random weights no file holds; expected "
            "a base of files"
        )
    with written_whole(to) as folder:
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
        save_model(model, tokenizer or run.tokenizer(), folder)
        if backbone.quantization is not None and not merge:
            quantization.write_note(folder)
        (folder / "README.md").write_text(model_card(run, content, merged=merge), encoding="utf-8")


def merge_adapter(model: Any, dtype: torch.dtype) -> Any:
    """The base of a PEFT model with the adapter added to its weights, which are rounded to `dtype` once."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    plain = [module for module in model.modules() if module not in layers]
    uses = Counter(id(module.weight) for module in plain if isinstance(getattr(module, "weight", None), nn.Parameter))
    for layer in layers:
        base: Any = layer.get_base_layer()
        if uses[id(getattr(base, "weight", None))] > 1:
            # Added to a head, an adapter must not come into the embeddings that share its weights; nor the reverse.
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        base.to(torch.float32)
        layer.merge()
        base.to(dtype)
    with warnings.catch_warnings():
        # It finds each layer merged already, and a head that is no longer tied, and says so.
        warnings.simplefilter("ignore")
        return model.merge_and_unload().to(dtype)


def save_model(model: "CausalLM", tokenizer: ChatTokenizer, folder: Path) -> None:
    """Write weights (safetensors), tokenizer, chat template and generation config; of a LoRA model only the adapter.

    Beside an adapter on a 4-bit base a note says so. Of a sharded model the first rank writes; all ranks must call it.
    """
    from transformers import GenerationConfig

    gathered = whole_weights(model)
    if gathered is not None and not gathered:
        return
    more: dict[str, Any] = {} if gathered is None else {"state_dict": gathered}
    generation = GenerationConfig(
        # A judge is measured greedily. The base's own settings are for chats, and servers take them up unasked.
        do_sample=False,
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    if hasattr(model, "peft_config"):
        # A DPO policy also holds the reference's adapter, which is not what was trained.
        model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False, **more)
        generation.save_pretrained(folder)
        if quantization.is_4bit(without_adapter(model)):
            quantization.write_note(folder)
    else:
        model.generation_config = generation
        model.save_pretrained(str(folder), **more)
    tokenizer.hf.save_pretrained(folder)


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` at the end, so that a kill leaves none that is half done.

    Raises:
        UserError: There is something in `folder` already.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already, expected a new or an empty folder; choose another one with --to")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}; choose another one with --to") from error
    try:
        yield part
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def main(argv: list[str]) -> None:
    """Run `judgelit export`."""
    parser = OneLineErrors(
        prog="judgelit export",
        description="Write what a run has trained as a Hugging Face folder: weights, tokenizer, chat template, "
        "generation config and a model card with recipe and scores.",
    )
    parser.add_argument("run", help="The folder of `judgelit fit` or `judgelit run`, or a checkpoint in it.")
    parser.add_argument("--to", required=True, help="The folder to write.")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="Merge a LoRA adapter into its base model, rather than write the adapter alone.",
    )
    parser.add_argument(
        "--dtype", type=DType | None, help="The dtype of the weights written; that of the trained ones if not given."
    )
    args = parser.parse_args(argv)
    run = find_run(args.run)
    export_run(run, Path(args.to), args.merge, args.dtype)
    adapter = run.backbone.uses_lora and not args.merge
    if args.merge and not run.backbone.uses_lora:
        print("the run has trained the whole model: there is no adapter to merge")
    print(f"{'adapter' if adapter else 'model'} of {run.checkpoint} written to {args.to}")
