"""The folder of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from judgelit.atomic import write_text
from judgelit.errors import UserError
from judgelit.yaml_files import read_mapping, read_text

_ADVICE = "choose another folder with --output"


def refuse_used_folder(root: Path, advice: str) -> None:
    """Refuse a folder that holds the checkpoints, model or results of another run.

    Args:
        root: The folder.
        advice: What the user can do; the end of the error.

    Raises:
        UserError: It does.
    """
    for name in ("checkpoints", "model", "results.json"):
        if (root / name).exists():
            raise UserError(f"{root} holds another run ({name} is there); {advice}")


def holds_something(path: Path) -> bool:
    """Whether there is something at `path`, other than an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def claim_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write a run's configuration into its folder, or find that the same configuration is there.

    Args:
        folder: The folder. It is made if there is none.
        files: Texts of the configuration by file name; one of the names is `config.yaml`.

    Raises:
        UserError: The folder holds another run.
    """
    if not (folder / "config.yaml").exists():
        refuse_used_folder(folder, _ADVICE)
        for name in ("stages", "export"):
            if holds_something(folder / name):
                raise UserError(f"{folder / name}: found files that are not of this run, expected none; {_ADVICE}")
    for name, text in files.items():
        path = folder / name
        if path.exists() and read_text(path) != text:
            difference = _first_difference(read_mapping(path), yaml.safe_load(text))
            raise UserError(f"{folder} holds another run ({name}: {difference}); {_ADVICE}")
    for name, text in files.items():
        write_text(folder / name, text)


def _first_difference(old: Any, new: Any, key: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return _first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    return f"{key or 'the text'}: found {old!r} there and {new!r} here"
