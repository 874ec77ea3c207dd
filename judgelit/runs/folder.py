"""The folder that a run leaves: whose it is, and how files get into it whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from judgelit.atomic import write_text
from judgelit.errors import UserError

_ANOTHER = "choose another folder with --output"


def refuse_used_folder(root: Path, remedy: str) -> None:
    """Refuse a folder in which another run has left something to lose; `remedy` says what the user can do."""
    for left in ("checkpoints", "model", "results.json"):
        if (root / left).exists():
            raise UserError(f"{root} holds another run ({left} is there); {remedy}")


def claim_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Make `folder` this run's, or find that it is already.

    Raises:
        UserError: Another run is in it.
    """
    if not (folder / "config.yaml").exists():
        refuse_used_folder(folder, _ANOTHER)
    for name, text in files.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            key = _first_difference(yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(text))
            raise UserError(f"{folder} holds another run ({name}: {key}); {_ANOTHER}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)


def _first_difference(old: Any, new: Any, key: str = "") -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return _first_difference(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
    return f"{key or 'it'} is {old!r} there and {new!r} here"
