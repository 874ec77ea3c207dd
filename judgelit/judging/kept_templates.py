"""The folder of a trained judge keeps the templates of its prompts, so that it is asked with them later."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from judgelit.judging.template import Template, read_folder

KEPT = "judge_templates"
"""Folder of the templates in a judge's folder."""


@dataclass(frozen=True)
class KeptTemplates:
    """The templates in a judge's folder; used like `Templates`."""

    folder: str
    """The folder of the judge."""
    seed: int = 0
    """Seed of the draw."""

    def load(self) -> dict[str, Template]:
        """The templates by id."""
        return read_folder(Path(self.folder) / KEPT)


def kept_with(model: str | None, seed: int = 0) -> KeptTemplates | None:
    """The templates in a model's folder; None if it is no folder or keeps none."""
    return KeptTemplates(model, seed) if model is not None and (Path(model) / KEPT).is_dir() else None


def keep_templates(templates: Mapping[str, Template], folder: Path) -> None:
    """Write templates into a judge's folder."""
    (folder / KEPT).mkdir()
    for name, template in templates.items():
        text = f"---\n{yaml.safe_dump(template.front_matter, allow_unicode=True, sort_keys=False)}---\n{template.body}"
        (folder / KEPT / f"{name}.jinja").write_text(text, encoding="utf-8", newline="")
