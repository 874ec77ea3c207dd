"""What a run has left: a checkpoint, the configuration that it came from, and what was measured of it."""

import csv
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError, first_line
from judgelit.models.backbone import Backbone
from judgelit.parsing import OneLineErrors, raise_user_errors

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

_LAST = Path("checkpoints") / "last.ckpt"
_PREFIX = "model."
"""A LightningModule of judgelit keeps its model under this name."""

Scores = dict[str, dict[str, dict[str, float | None]]]
"""{set: {metric: {"value": ..., "low": ..., "high": ...}}}; a figure without interval has a value alone."""


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of `judgelit fit` in its run's folder."""

    folder: Path
    """Where the run's config.yaml is."""
    checkpoint: Path
    """The file, or of a sharded run the folder."""
    settings: Mapping[str, Any]
    """The resolved configuration."""

    @property
    def backbone(self) -> Backbone:
        """The model that the run has trained.

        Raises:
            UserError: The configuration describes none.
        """
        parser = OneLineErrors()
        parser.add_argument("--backbone", type=Backbone)
        with raise_user_errors():
            return parser.instantiate(parser.parse_object({"backbone": self.of_model["backbone"]})).backbone

    @property
    def method(self) -> str:
        """`SFT`, `DPO` or whatever else the module is called for."""
        return self.settings["model"]["class_path"].rsplit(".", 1)[-1].removesuffix("Module")

    @property
    def of_model(self) -> Mapping[str, Any]:
        """The settings of the module."""
        return self.settings["model"]["init_args"]

    @property
    def of_data(self) -> Mapping[str, Any]:
        """The settings of the data module."""
        return (self.settings.get("data") or {}).get("init_args") or {}

    @property
    def recipe_folder(self) -> Path | None:
        """The folder of the `judgelit run` that this run is a stage of, if it is one."""
        above = self.folder.resolve().parent
        return above.parent if above.name == "stages" and (above.parent / "config.yaml").is_file() else None

    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer that the run has read its data with.

        Raises:
            UserError: It cannot be loaded.
        """
        backbone = self.backbone
        return ChatTokenizer.load(
            backbone.name_or_path, self.of_data.get("chat_template"), trust_remote_code=backbone.trust_remote_code
        )

    def load(self) -> dict[str, Any]:
        """The checkpoint, its tensors mapped from the file rather than read; of a sharded one its weights alone.

        Raises:
            UserError: It is no whole checkpoint.
        """
        if self.checkpoint.is_dir():
            from judgelit.runs.sharded_checkpoints import load_meta, weights_in

            return {**load_meta(self.checkpoint), "state_dict": weights_in(self.checkpoint)}
        try:
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            content["state_dict"]
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.checkpoint}: found no whole checkpoint ({first_line(error)[:120]}), expected one that "
                "`judgelit fit` has saved; export another one, or train on from that"
            ) from error
        return content

    def scores(self, step: int) -> Scores:
        """What was measured of the judge after `step` optimizer steps, nothing if it was not."""
        recipe = self.recipe_folder
        if recipe is None:
            return _logged_scores(self.folder / "csv", step)
        path = recipe / "results.json"
        # The recipe measures what each training has ended with.
        if not path.is_file() or not (self.folder / "done.json").is_file() or self.checkpoint.name != _LAST.name:
            return {}
        return json.loads(path.read_text(encoding="utf-8"))["stages"].get(self.folder.name.rsplit("-", 1)[-1], {})


def find_run(path: str | Path) -> TrainedRun:
    """The run that `path` names: its folder, by which its last checkpoint is meant, or a checkpoint in it.

    Of a run of the whole recipe it is the last training that has saved.

    Raises:
        UserError: There is no run, or it has not saved.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path}: no such run; expected the folder of `judgelit fit` or `judgelit run`, or a checkpoint"
        )
    if path.is_file() or path.suffix == ".ckpt":
        folder = next((above for above in path.absolute().parents if (above / "config.yaml").is_file()), None)
        if folder is None:
            raise UserError(f"{path}: found no config.yaml above it, expected a checkpoint in the folder of its run")
        return TrainedRun(folder, path, _settings(folder))
    if (path / "config.yaml").is_file() and (path / "stages").is_dir():
        trained = sorted(stage for stage in (path / "stages").iterdir() if (stage / _LAST).exists())
        if not trained:
            raise UserError(f"{path}: found no stage with {_LAST}; the run has to go on until a training has saved")
        path = trained[-1]
    settings = _settings(path)
    if not (path / _LAST).exists():
        others = sorted((path / "checkpoints").glob("*.ckpt"))
        advice = f"name another checkpoint, such as {others[0]}" if others else "train it first, with `judgelit fit`"
        raise UserError(f"{path}: found no {_LAST}, so the run has not saved its last step; {advice}")
    return TrainedRun(path, path / _LAST, settings)


def check_weights(run: TrainedRun, outline: "CausalLM", content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The trained weights of a checkpoint, by their names in the model.

    Args:
        run: Where the checkpoint is from.
        outline: The model that the run's configuration describes.
        content: The checkpoint.

    Raises:
        UserError: The checkpoint is of another model.
    """
    if run.backbone.uses_lora:
        wanted = {name: weight for name, weight in outline.named_parameters() if weight.requires_grad}
    else:
        wanted = outline.state_dict()
    saved = content["state_dict"]
    found = {name.removeprefix(_PREFIX): tuple(weight.shape) for name, weight in saved.items()}
    expected = {name: tuple(weight.shape) for name, weight in wanted.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{run.checkpoint} is of another model than {run.folder / 'config.yaml'} describes: {name} has shape "
                f"{found.get(name, 'none')} in it, expected {expected.get(name, 'none')}"
            )
    return {name.removeprefix(_PREFIX): weight for name, weight in saved.items()}


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    expected = "expected the folder of `judgelit fit` or `judgelit run`, or a checkpoint in it"
    if not path.is_file():
        raise UserError(f"{folder}: found no config.yaml, {expected}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["model"]["init_args"]["backbone"]["name_or_path"]
        settings["model"]["class_path"]
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: found no configuration of a training, {expected}") from error
    return settings


def _logged_scores(folder: Path, step: int) -> Scores:
    """Metrics that `JudgeEvaluation` has logged at `step`."""
    scores: Scores = {}
    for path in sorted(folder.glob("*/metrics.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get("step") == str(step)]
        for name, value in ((name, value) for row in rows for name, value in row.items() if value):
            kind, *middle = name.split("/")
            if kind == "judge" and len(middle) > 1:
                scores.setdefault("/".join(middle[:-1]), {})[middle[-1]] = {"value": float(value)}
    return scores
