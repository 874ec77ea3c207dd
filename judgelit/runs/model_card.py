"""Model card: the README.md of an exported judge, with its base, its training and its scores.

A configuration may hold passwords. So the card shows only numbers and a few settings whose names are listed here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from judgelit import __version__
from judgelit.batches.tokenizer_files import adapter_settings
from judgelit.errors import UserError
from judgelit.runs.trained_run import Scores, TrainedRun
from judgelit.yaml_files import read_mapping

_VERSIONS = ("torch", "lightning", "transformers", "peft", "bitsandbytes")
_SOURCE_SETTINGS = ("path", "split", "name")
"""Settings of a data source that are shown although they are strings."""


def model_card(run: TrainedRun, content: Mapping[str, Any], merged: bool, scores: Scores | None = None) -> str:
    """The model card of a checkpoint, in Markdown with the hub's metadata on top.

    Args:
        run: The run of the checkpoint.
        content: The checkpoint.
        merged: Whether an adapter was merged into its base.
        scores: Scores in place of those that the run's own folder holds.
    """
    backbone = run.backbone
    adapter = backbone.uses_lora and not merged
    base = _origin(backbone.name_or_path)
    hub_name = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else None
    metadata = {
        **({"base_model": hub_name} if hub_name else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llm-as-a-judge", "judgelit", run.method.lower(), *(["lora"] if backbone.uses_lora else [])],
    }
    what = "A LoRA adapter" if adapter else "A model"
    if adapter and backbone.quantization:
        what += f" for its base quantised to {backbone.quantization}, as judgelit loads it,"
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {run.method} judge on {_shown(base)}",
        f"{what} that reads a question and two answers, reasons, and ends with `[[A]]` or `[[B]]`. "
        "Trained with judgelit: `judgelit evaluate --model FOLDER --pairs PAIRS` measures it, `judgelit judge` labels "
        "pairs with it.",
        "## Training",
        _table(("", ""), _recipe(run, content)),
        "## Scores",
        _scores_table(run.scores(content["global_step"]) if scores is None else scores),
        "## Versions",
        ", ".join(f"{name} {number}" for name, number in [("judgelit", __version__), *_versions()]) + ", at export",
    ]
    return "\n\n".join(parts) + "\n"


def _recipe(run: TrainedRun, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the training table: a name and a value each."""
    backbone, model, data = run.backbone, run.of_model, run.of_data
    trainer = run.settings.get("trainer") or {}
    yield "base model", _shown(_origin(backbone.name_or_path))
    yield "weights", backbone.dtype + (f", the base in {backbone.quantization}" if backbone.quantization else "")
    if backbone.uses_lora:
        settings = _lora_settings(run)
        targets = settings["target_modules"] or []
        layers = targets if isinstance(targets, str) else ", ".join(sorted({name.rsplit(".")[-1] for name in targets}))
        yield "LoRA", f"{_numbers(settings)}, on {layers}"
    yield "data", ", ".join(_sources(data.get("train")))
    if general := data.get("general"):
        yield "general data", ", ".join(_sources(general))
    if run.recipe_folder is not None:
        recipe = read_mapping(run.recipe_folder / "config.yaml")
        yield "made from pairs of", ", ".join(_sources(recipe.get("train")))
    loss = dict(model.get("loss") or {})
    if not general:
        loss.pop("general_weight", None)
    yield "method", run.method + (f", {loss.get('kind', '')} loss, {_numbers(loss)}" if loss else "")
    for name in ("optimizer", "lr_scheduler"):
        if spec := model.get(name):
            yield name.replace("_", " "), _called(spec)
    yield "trained for", f"{content['global_step']} optimizer steps, {content.get('tokens_seen', 0)} tokens"
    yield "precision", str(trainer.get("precision") or "32-true")
    size = "batch_size" if data.get("tokens_per_batch") is None else "tokens_per_batch"
    batch = {name: data.get(name) for name in (size, "max_length")}
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    for callback in callbacks:
        if callback["class_path"].endswith(".GlobalBatch"):
            # It sets the micro-batches of a step for any number of devices, so accumulation says nothing.
            batch |= callback["init_args"]
            break
    else:
        batch["accumulate_grad_batches"] = trainer.get("accumulate_grad_batches")
    yield "batch", _numbers({**batch, "devices": trainer.get("devices")})
    yield "gradient clipping", str(trainer.get("gradient_clip_val"))
    yield "seed", str(run.settings.get("seed_everything"))


def _lora_settings(run: TrainedRun) -> dict[str, Any]:
    """Settings of the LoRA adapter: the run's, or those of the adapter that it started from."""
    backbone = run.backbone
    if backbone.adapter is None:
        assert backbone.lora is not None
        return vars(backbone.lora)
    saved = adapter_settings(Path(backbone.adapter))
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "target_modules": "target_modules"}
    return {name: saved.get(there) for name, there in names.items()}


def _origin(name_or_path: str) -> str:
    """The base model: if `name_or_path` is the model of an earlier run, the base of that run."""
    seen = set[Path]()
    while (folder := Path(name_or_path)).is_dir() and folder.resolve() not in seen:
        seen.add(folder.resolve())
        try:
            before = read_mapping(folder.parent / "config.yaml")["model"]["init_args"]["backbone"]["name_or_path"]
        except (UserError, TypeError, KeyError):
            break
        name_or_path = str(before)
    return name_or_path


def _sources(sources: Any) -> Iterator[str]:
    """A description of each data source."""
    for source in sources if isinstance(sources, list) else [sources]:
        if isinstance(source, str):
            yield _shown(source)
        elif isinstance(source, Mapping):
            settings = source.get("init_args") or source
            if inner := settings.get("sources"):
                yield from _sources(inner)
                continue
            named = [_shown(settings[name]) for name in _SOURCE_SETTINGS if isinstance(settings.get(name), str)]
            made = _sources(settings["tasks"]) if isinstance(settings.get("tasks"), Mapping) else ()
            kind = str(source.get("class_path", "")).rsplit(".", 1)[-1]
            yield " ".join(filter(None, [kind, *named, *made, _numbers(settings)]))


def _called(spec: Mapping[str, Any]) -> str:
    return " ".join(filter(None, [spec["class_path"].rsplit(".", 1)[-1], _numbers(spec.get("init_args") or {})]))


def _numbers(settings: Mapping[str, Any]) -> str:
    """Settings that are numbers or lists of numbers."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return ", ".join(
        f"{name} {value}"
        for name, value in settings.items()
        if is_number(value) or (isinstance(value, list | tuple) and value and all(map(is_number, value)))
    )


def _shown(name: str) -> str:
    """A name that holds no secret: a hub name, the last part of a path, an address without user and query."""
    if "://" in name:
        return re.sub(r"://[^/@]*@", "://", name.split("?")[0].split("#")[0])
    return Path(name).name if Path(name).exists() or name.startswith(("/", ".", "~")) else name


def _scores_table(scores: Scores) -> str:
    if not scores:
        return "These weights were not evaluated before this card was written."
    metrics = list(dict.fromkeys(metric for by_metric in scores.values() for metric in by_metric))
    rows = (
        (name, *(_figure(metric, by_metric.get(metric, {})) for metric in metrics))
        for name, by_metric in scores.items()
    )
    return (
        "In percent, over both orders of each pair, with 95% bootstrap intervals over questions where known.\n\n"
        + _table(("set", *metrics), rows)
    )


def _figure(metric: str, found: Mapping[str, float | None]) -> str:
    value, low, high = (found.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "-"
    interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{interval}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _versions() -> Iterator[tuple[str, str]]:
    return ((name, version(name)) for name in _VERSIONS)
