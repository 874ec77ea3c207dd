"""The command `judgelit run`."""

import os
from dataclasses import fields

import yaml

from judgelit.errors import UserError
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
    run = Run(recipe)
    with locked(run.folder):
        decides = {name: run.path(stage) for name, stage in DECIDES.items()}
        claim_folder(run.folder, files, decides, deciding_settings)
        run.go()
