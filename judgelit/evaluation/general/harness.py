"""lm-evaluation-harness on a loaded model. Its package `lm_eval` is optional."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from judgelit.atomic import write_json
from judgelit.errors import UserError, first_line
from judgelit.evaluation.intervals import Estimate
from judgelit.generation.generate import evaluating
from judgelit.generation.local import LocalEngine

_NORMAL = 1.959964
"""Standard errors on each side of a 95% interval of a normal distribution."""


def check_harness(tasks: Sequence[str]) -> None:
    """Load the tasks and their data sets, before the time of loading a model is spent.

    Raises:
        UserError: The package is not installed, there is no such task, or its data set cannot be had.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "general.harness: found no package lm_eval, expected the extra harness: pip install 'judgelit[harness]'"
        )
    with _quiet():
        _load(tasks)


def run_harness(engine: LocalEngine, tasks: Sequence[str], limit: int | None, path: Path) -> dict[str, Estimate]:
    """Run tasks that `check_harness` has checked, with the model's chat template, and write their results to a file.

    The file is written after each task, so that the same call after a kill runs only those that are missing.

    Args:
        engine: The model, with its adapter if it has one.
        tasks: Names of tasks or groups, or YAML files of tasks.
        limit: Rows of each task; None for all.
        path: The JSON file. Results of another model, limit or version of the harness in it are replaced.

    Returns:
        `<task>/<metric>`, with the filter's name behind a comma where there is one. The interval is 1.96 of the
        harness's standard errors on each side; it is undefined for metrics without one.

    Raises:
        UserError: A task cannot be run.
    """
    made_from = {"engine": engine.identity, "limit": limit, "lm_eval": version("lm_eval"), "chat_template": True}
    results: dict[str, Any] = _read_results(path, made_from)
    for task in tasks:
        if _key(task) not in results:
            print(f"harness: {task} begins", flush=True)
            results[_key(task)] = _run(engine, task, limit)
            write_json(path, {"made_from": made_from, "tasks": results})
    return {name: found for task in tasks for name, found in harness_estimates(results[_key(task)]).items()}


def harness_estimates(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """The metrics of the harness's results as estimates.

    Args:
        results: What `lm_eval.simple_evaluate` returns: `results` by task, and `n-samples`.
    """
    found = {}
    for task, metrics in results["results"].items():
        n = results.get("n-samples", {}).get(task, {}).get("effective", metrics.get("sample_len", 0))
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{kind}")
            half = _NORMAL * error if isinstance(error, int | float) else float("nan")
            name = f"{task}/{metric}" + ("" if kind == "none" else f",{kind}")
            found[name] = Estimate(float(value), float(value - half), float(value + half), int(n))
    return found


def _load(tasks: Sequence[str]) -> None:
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = _index(TaskManager)
    for task in tasks:
        if _is_file(task) and not Path(task).is_file():
            raise UserError(f"general.harness: found no file {task}, expected the name of a task or its YAML file")
        if not _is_file(task) and not manager.match_tasks([task]):
            raise UserError(
                f"general.harness: found {task!r}, expected a task of lm_eval; `lm_eval ls tasks` lists them"
            )
        try:
            get_task_dict([_name(task)], manager)
        except Exception as error:
            # Loading a task runs its own code and that of many file formats, which raise many kinds of exception.
            raise UserError(f"general.harness: {task}: cannot be loaded: {_said(error)}") from error


@cache
def _index(manager: Any) -> Any:
    """The harness's index of tasks: thousands of files, so it is made once."""
    return manager()


def _run(engine: LocalEngine, task: str, limit: int | None) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with _quiet(), evaluating(engine.model):
        # Instead of its own guess, which some tokenizers answer with a huge number.
        length = engine.tokenizer.context
        whole: Any = engine.model
        model = HFLM(whole, tokenizer=engine.tokenizer.hf, batch_size=engine.batch_size, max_length=length)
        try:
            found: Any = simple_evaluate(
                model,
                tasks=[_name(task)],
                task_manager=_index(TaskManager),
                limit=limit,
                apply_chat_template=True,
                log_samples=False,
            )
        except (ImportError, OSError, LookupError) as error:
            if isinstance(error, KeyError | IndexError):
                raise
            # Some tasks need further packages or files of the net only when they run; NLTK then raises LookupError.
            raise UserError(f"general.harness: {task}: cannot run: {_said(error)}") from error
    kept = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
    return json.loads(json.dumps({name: found[name] for name in kept if name in found}, default=str))


def _name(task: str) -> str:
    """The task as the harness takes it: a name, or the whole path of a file."""
    return str(Path(task).absolute()) if _is_file(task) else task


def _is_file(task: str) -> bool:
    return Path(task).suffix in (".yaml", ".yml")


def _key(task: str) -> str:
    """The name of a task's results: that of the task; a file that has changed is another task."""
    return task if not _is_file(task) else f"{task} {hashlib.sha256(Path(task).read_bytes()).hexdigest()[:16]}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]


def _read_results(path: Path, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The results of tasks that a file has, if it is of the same model and settings."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["tasks"]) if content["made_from"] == made_from else {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: found no results of the harness ({first_line(error)}); move it away") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's own log lines below errors off the terminal."""
    names = ("lm_eval", "lm-eval")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
