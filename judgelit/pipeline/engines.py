"""The engine of a judge of a run: its weights on this machine, or a server that the run starts for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Engine, EngineSpec, load_engine
from judgelit.generation.serving import served
from judgelit.models.backbone import Backbone
from judgelit.pipeline.recipe import Recipe
from judgelit.runs.export import export_run
from judgelit.runs.trained_run import find_run

MERGED = "merged"
"""Folder, in that of a fit, of the whole model for a server; the fit itself has trained an adapter."""


@contextmanager
def judge_engine(recipe: Recipe, backbone: Backbone, tokenizer: ChatTokenizer, log: Path) -> Iterator[Engine]:
    """An engine for a judge of the run, inside the `with` block.

    Args:
        recipe: The run's settings.
        backbone: The judge.
        tokenizer: The run's tokenizer.
        log: File for the output of a server.

    Raises:
        UserError: The judge cannot be loaded, or its server does not answer.
    """
    serving = recipe.serving
    if serving is None:
        spec = EngineSpec(
            backbone.adapter or backbone.name_or_path,
            backbone.dtype,
            quantization=backbone.quantization,
            attention=backbone.attention,
            batch_size=recipe.batch_size,
            trust_remote_code=backbone.trust_remote_code,
            device=recipe.device or "auto",
        )
        yield load_engine(spec, tokenizer)
        return
    model = backbone.name_or_path if backbone.adapter is None else str(merged(Path(backbone.adapter), tokenizer))
    with served(serving, model, log):
        # The server's tokenizer is the judge's, so prompts can be counted exactly.
        requests = replace(serving.requests, tokenizer=serving.requests.tokenizer or model)
        yield load_engine(EngineSpec(serving.name, endpoint=serving.endpoint, requests=requests))


def merged(adapter: Path, tokenizer: ChatTokenizer) -> Path:
    """The folder of the whole model that a fit of this run has trained as an adapter; it is made once.

    Raises:
        UserError: The adapter is not of this run: it is the one to start from.
    """
    fit = adapter.parent
    if not (fit / "fit.json").exists():
        raise UserError(
            f"serving: found the adapter {adapter} to start from, expected a whole model for the server; merge it "
            "with `judgelit export --merge`, and give that folder as --model"
        )
    folder = fit / MERGED
    if not folder.exists():
        run = find_run(fit)  # of the recipe, whose user has decided on the code of its model
        export_run(run, folder, merge=True, tokenizer=tokenizer, trust_remote_code=run.backbone.trust_remote_code)
    return folder
