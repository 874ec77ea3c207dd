"""The command `judgelit run`."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import yaml

from judgelit.errors import UserError
from judgelit.generation.requests import Key
from judgelit.parsing import OneLineErrors, raise_user_errors
from judgelit.pipeline.recipe import Recipe
from judgelit.pipeline.run import DECIDES, Run
from judgelit.pipeline.run_settings import deciding_settings
from judgelit.runs.folder import claim_folder, locked
from judgelit.yaml_files import read_text


def main(argv: list[str]) -> None:
    """Run `judgelit run`.

    Raises:
        UserError: A setting is wrong, or the folder holds another run.
    """
    parser = OneLineErrors(prog="judgelit run", description=Recipe.__doc__)
    parser.add_argument("--config", action="config", help="A YAML file, or the name of a shipped configuration.")
    parser.add_class_arguments(Recipe)
    parsed = parser.parse_args(argv)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"WORLD_SIZE: found {os.environ['WORLD_SIZE']}, as set by a launcher such as torchrun, expected 1; start "
            "`judgelit run` without a launcher, and set trainer.devices in the sft and dpo files"
        )
    with raise_user_errors():
        settings = parser.instantiate(parsed)
    recipe = Recipe(**{item.name: settings[item.name] for item in fields(Recipe)})
    # The run's config.yaml names the copies of both files beside it, so that the folder alone is enough to run again.
    resolved = {**yaml.safe_load(parser.dump(parsed, skip_unset=False)), "sft": "sft.yaml", "dpo": "dpo.yaml"}
    files = {
        "config.yaml": yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True),
        "sft.yaml": read_text(recipe.sft.absolute),
        "dpo.yaml": read_text(recipe.dpo.absolute),
    }
    _refuse_keys(resolved, files)
    run = Run(recipe)
    with locked(run.folder):
        decides = {name: run.path(stage) for name, stage in DECIDES.items()}
        claim_folder(run.folder, files, decides, deciding_settings)
        run.go()


def _refuse_keys(settings: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Refuse settings that hold the key of an endpoint, before they are written.

    Raises:
        UserError: One of the files holds a key, or a variable for a key is not set.
    """
    for variable in set(_key_variables(settings)):
        key = Key.read(variable)
        for name, text in files.items():
            if key.mask(text) != text:
                raise UserError(
                    f"{name}: found the key of an endpoint in it, expected the key in the environment alone; take it "
                    "out of the settings (a server that judgelit starts can read it from the environment too)"
                )


def _key_variables(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _key_variables(value)
        elif name == "key_variable" and isinstance(value, str):
            yield value
