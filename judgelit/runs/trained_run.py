"""A trained run: a checkpoint, the run's configuration, and the scores of the trained judge."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.batches.tokenizer_files import tokenizer_folder
from judgelit.errors import UserError, first_line
from judgelit.judging.kept_templates import KeptTemplates, kept_with
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import Backbone
from judgelit.parsing import OneLineErrors, raise_user_errors
from judgelit.runs.checkpoints import UNREADABLE, damage_in, usable_instead
from judgelit.runs.csv_log import read_log
from judgelit.yaml_files import read_mapping

if TYPE_CHECKING:
    from judgelit.models.backbone import CausalLM

_LAST = Path("checkpoints") / "last.ckpt"
_PREFIX = "model."
"""Start of the weights' names in a checkpoint: the modules of judgelit keep their model under `model`."""

_PARTS = ("value", "low", "high")
"""Numbers of a metric."""
Scores = dict[str, dict[str, dict[str, float | None]]]
"""{set: {metric: {"value": ..., "low": ..., "high": ...}}}; without an interval, `value` alone."""


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of `judgelit fit` with its run."""

    folder: Path
    """The folder of the run, with its config.yaml."""
    checkpoint: Path
    """The checkpoint: a file, or a folder if it is sharded."""
    settings: Mapping[str, Any]
    """The run's resolved configuration."""

    @classmethod
    def last_of(cls, folder: Path) -> "TrainedRun":
        """The last checkpoint of the `judgelit fit` that has written its config.yaml to a folder."""
        return cls(folder, folder / _LAST, _settings(folder))

    @property
    def backbone(self) -> Backbone:
        """The description of the model that the run has trained.

        Raises:
            UserError: The configuration does not describe one.
        """
        parser = OneLineErrors()
        parser.add_argument("--backbone", type=Backbone)
        with raise_user_errors():
            return parser.instantiate(parser.parse_object({"backbone": self.of_model["backbone"]})).backbone

    @property
    def method(self) -> str:
        """Name of the module without `Module`: `SFT` or `DPO`."""
        return self.settings["model"]["class_path"].rsplit(".", 1)[-1].removesuffix("Module")

    @property
    def of_model(self) -> Mapping[str, Any]:
        """The module's settings."""
        return self.settings["model"]["init_args"]

    @property
    def of_data(self) -> Mapping[str, Any]:
        """The data module's settings."""
        return (self.settings.get("data") or {}).get("init_args") or {}

    @property
    def recipe_folder(self) -> Path | None:
        """The folder of the `judgelit run` of which this run is a stage; None if it is not a stage."""
        above = self.folder.resolve().parent
        return above.parent if above.name == "stages" and (above.parent / "config.yaml").is_file() else None

    @property
    def templates(self) -> Templates | KeptTemplates | None:
        """The judge prompts of the run: those of its recipe or of its judged pairs, else those kept with its base.

        None if there are none of these.
        """
        if self.recipe_folder is not None:
            named = read_mapping(self.recipe_folder / "config.yaml").get("templates")
        else:
            named = (self.of_data.get("judge") or {}).get("templates")
        if named is not None:
            return Templates(named.get("names"), named.get("folder"), named.get("seed") or 0)
        base = self.of_model["backbone"]
        return next((found for key in ("adapter", "name_or_path") if (found := kept_with(base.get(key)))), None)

    def tokenizer(
        self, chat_template: str | None = None, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> ChatTokenizer:
        """The tokenizer that the run was trained with.

        Args:
            chat_template: A Jinja file in place of the run's chat template.
            chat_template_kwargs: Defaults of the chat template's variables, in addition to the run's.

        Raises:
            UserError: It cannot be loaded.
        """
        backbone, values = self.backbone, chat_template_kwargs or {}
        if chat_template is None:
            chat_template = self.of_data.get("chat_template")
            values = {**(self.of_data.get("chat_template_kwargs") or {}), **values}
        return ChatTokenizer.load(
            tokenizer_folder(backbone.name_or_path, backbone.adapter),
            chat_template,
            backbone.trust_remote_code,
            values,
            base=backbone.name_or_path,
        )

    def load(self) -> dict[str, Any]:
        """The checkpoint, with tensors memory-mapped from the file. Of a sharded one, the weights alone are read.

        Raises:
            UserError: The checkpoint is incomplete, or the file is none.
        """
        if self.checkpoint.is_dir():
            from judgelit.runs.sharded_checkpoints import load_meta, weights_in

            return {**load_meta(self.checkpoint), "state_dict": weights_in(self.checkpoint)}
        try:
            if damage := damage_in(self.checkpoint):
                raise OSError(damage)
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
            content["state_dict"]
        except UNREADABLE as error:
            raise UserError(
                f"{self.checkpoint}: found no complete checkpoint ({first_line(error)[:120]}), expected one that "
                "`judgelit fit` has saved; name another one, or continue the run from another one"
                f"{usable_instead(self.checkpoint)}"
            ) from error
        return content

    def _evaluated_scores(self) -> Scores:
        """Scores in folders of the run to which `judgelit evaluate` has written those of this very checkpoint."""
        scores: Scores = {}
        for path in sorted(self.folder.glob("*/results.json")):
            measured = Path(str(_results(path).get("model"))).resolve()
            last = [self.folder, self.folder / "model"] if self.checkpoint.name == _LAST.name else []
            if measured in [one.resolve() for one in (self.checkpoint, *last)]:
                scores |= evaluated_scores(path.parent)
        return scores

    def scores(self, step: int) -> Scores:
        """Scores of the judge after `step` optimizer steps; empty if it was not evaluated then."""
        recipe = self.recipe_folder
        if recipe is None:
            return {**_logged_scores(self.folder / "csv", step), **self._evaluated_scores()}
        path = recipe / "results.json"
        # `judgelit run` evaluates the last checkpoint of each training.
        if not path.is_file() or not (self.folder / "done.json").is_file() or self.checkpoint.name != _LAST.name:
            return {}
        return _checked_scores(path, _results(path).get("stages", {}).get(self.folder.name.rsplit("-", 1)[-1], {}))


def evaluated_scores(folder: Path) -> Scores:
    """Scores that `judgelit evaluate` has written to a folder.

    Raises:
        UserError: There are none.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: found no results.json, expected a folder that `judgelit evaluate` has written")
    return _checked_scores(path, _results(path).get("sets"))


def _results(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: found no results as JSON ({first_line(error)}); move it away") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: found no results, expected an object with named fields; move it away")
    return found


def _checked_scores(path: Path, scores: Any) -> Scores:
    """The scores, if they are numbers of metrics of sets."""
    try:
        numbers = [metric.get(part) for of in scores.values() for metric in of.values() for part in _PARTS]
    except AttributeError:
        numbers = ["none"]
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise UserError(f"{path}: found no metrics of named sets, expected results of judgelit; move it away")
    return scores


def find_run(path: str | Path) -> TrainedRun:
    """Find a run and its checkpoint.

    Args:
        path: A checkpoint; or the folder of `judgelit fit`, for its last checkpoint; or the folder of `judgelit run`,
            for the last training that has saved one.

    Raises:
        UserError: There is no run, or it has saved no checkpoint.
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
            raise UserError(f"{path}: found no stage with {_LAST}; continue the run until a training has saved one")
        path = trained[-1]
    settings = _settings(path)
    if not (path / _LAST).exists():
        others = sorted((path / "checkpoints").glob("*.ckpt"))
        advice = f"name another checkpoint, such as {others[0]}" if others else "train it first, with `judgelit fit`"
        raise UserError(f"{path}: found no {_LAST}, so the run has not saved its last step; {advice}")
    return TrainedRun(path, path / _LAST, settings)


def check_weights(run: TrainedRun, outline: "CausalLM", content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The trained weights of a checkpoint by their names in the model, once their shapes are checked.

    Args:
        run: The run of the checkpoint.
        outline: The model that the run's configuration describes, without weights.
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
        settings = read_mapping(path)
        backbone, kind = settings["model"]["init_args"]["backbone"], settings["model"]["class_path"]
        if not isinstance(backbone["name_or_path"], str) or not isinstance(kind, str):
            raise TypeError
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: found no configuration of a training, {expected}") from error
    return settings


def _logged_scores(folder: Path, step: int) -> Scores:
    """Metrics that the callback `JudgeEvaluation` has logged at `step`."""
    scores: Scores = {}
    for path in sorted(folder.glob("*/metrics.csv")):
        rows = [row for row in read_log(path) if row.get("step") == str(step)]
        for name, value in ((name, value) for row in rows for name, value in row.items() if value):
            kind, *middle = name.split("/")
            if kind == "judge" and len(middle) > 1:
                try:
                    scores.setdefault("/".join(middle[:-1]), {})[middle[-1]] = {"value": float(value)}
                except ValueError as error:
                    raise UserError(f"{path}: {name}: found {value[:40]!r}, expected a number; move it away") from error
    return scores
