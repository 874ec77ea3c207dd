"""The file beside the output of a shard, which says what was run; and the check that the shards fit together."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from judgelit.atomic import write_text
from judgelit.errors import UserError
from judgelit.generation.journal_file import Journal
from judgelit.generation.requests import Key
from judgelit.records.shards import Shard
from judgelit.yaml_files import read_mapping

_SUFFIX = ".shard.yaml"
_OF_THE_MACHINE = {"pairs", "source", "device", "batch_size", "endpoint", "requests"}
"""Settings that may differ between shards. None changes the answer to a prompt that another shard may need: the journal
knows an answer by its engine, prompt and sampling."""


@dataclass(frozen=True)
class ShardFile:
    """What was run for a shard that has ended."""

    path: Path
    command: str
    """warmup or enhancement."""
    shard: Shard
    settings: Mapping[str, Any]
    """The other arguments of the command, without output and shard."""
    answers: int
    """Number of answers in the journal when the shard ended."""

    @property
    def output(self) -> Path:
        """The data file of the shard."""
        return self.path.with_name(self.path.name.removesuffix(_SUFFIX))

    @property
    def journal(self) -> Path:
        """The journal of the shard; there is none if no model was asked."""
        return journal_path(self.output)

    @property
    def runs_remote_code(self) -> bool:
        """Whether the command was allowed to run code that comes with a model."""
        return any(value for name, value in _flat(self.settings).items() if name.endswith("trust_remote_code"))

    def write(self) -> None:
        """Write the file. An endpoint's key is not written, wherever in the settings it stands."""
        keys = [Key.read(value) for name, value in _flat(self.settings).items() if name.endswith("key_variable")]
        content: dict[str, Any] = {"command": self.command, "shard": str(self.shard), "answers": self.answers}
        content["settings"] = _masked(self.settings, keys)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(self.path, f"# A shard; `judgelit synthesize merge` reads this file.\n{text}")

    @classmethod
    def read(cls, path: Path) -> "ShardFile":
        """The content of a file.

        Raises:
            UserError: It is not the file of a shard.
        """
        content = read_mapping(path)
        try:
            command, shard, answers = content["command"], Shard.parse(content["shard"]), content["answers"]
            settings = dict(content["settings"])
            if not isinstance(command, str) or not isinstance(answers, int):
                raise TypeError
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise UserError(
                f"{path}: found no description of a shard, expected the file that `judgelit synthesize` has written"
            ) from error
        return cls(path, command, shard, settings, answers)


def journal_path(output: Path) -> Path:
    """The file beside an output that keeps a model's answers."""
    return output.with_name(output.name + ".journal.sqlite")


def shard_path(output: Path) -> Path:
    """The file beside the output of a shard that says what was run."""
    return output.with_name(output.name + _SUFFIX)


def find_shards(outputs: str) -> list[ShardFile]:
    """All shards of one command, by their number.

    Args:
        outputs: Glob pattern of the shards' outputs.

    Raises:
        UserError: A shard is missing, has not ended, is there twice or is incomplete; or two are of different commands.
    """
    paths = [Path(path) for path in sorted(glob.glob(str(Path(outputs).expanduser()) + _SUFFIX))]  # noqa: PTH207
    if not paths:
        raise UserError(
            f"shards: found no file {outputs}{_SUFFIX}, expected those beside the outputs of `judgelit synthesize` "
            "with --shard; give a pattern of the outputs, such as 'out-*.jsonl'"
        )
    shards = sorted((ShardFile.read(path) for path in paths), key=lambda one: one.shard.number)
    first = shards[0]
    for one in shards[1:]:
        if (difference := _difference(first, one)) is not None:
            raise UserError(f"{one.path}: {difference} as in {first.path.name}; run all shards with the same settings")
    numbers = [one.shard.number for one in shards]
    for number in range(1, first.shard.count + 1):
        if numbers.count(number) != 1:
            found, advice = f"{numbers.count(number)} of them", "move away all but one"
            if number not in numbers:
                found, advice = "none that has ended", "run its command; after a kill it continues"
            raise UserError(
                f"shards: {outputs}: shard {number}/{first.shard.count}: found {found}, expected one; {advice}"
            )
    for one in shards:
        count = len(Journal(one.journal)) if one.journal.is_file() else 0
        if count < one.answers:
            raise UserError(
                f"{one.journal}: shard {one.shard} is incomplete: found {count} answers, expected {one.answers}; put "
                "the whole journal back, or run the shard's command again"
            )
    return shards


def _difference(one: ShardFile, other: ShardFile) -> str | None:
    """The first setting in which two shards must not differ and do."""
    flat = [
        {"command": file.command, "number of shards": file.shard.count, **dict(_flat(file.settings))}
        for file in (one, other)
    ]
    for name in [*flat[0], *flat[1]]:
        expected, found = (values.get(name) for values in flat)
        if found != expected and not _OF_THE_MACHINE & set(name.split(".")):
            return f"{name}: found {found!r}, expected {expected!r}"
    return None


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and bool(value)
        flat |= _flat(value, f"{above}{name}.") if inner else {above + name: value}
    return flat


def _masked(value: Any, keys: Sequence[Key]) -> Any:
    """The value with *** in place of the keys in its texts."""
    if isinstance(value, Mapping):
        return {name: _masked(inner, keys) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, keys) for inner in value]
    if isinstance(value, str):
        for key in keys:
            value = key.mask(value)
    return value
