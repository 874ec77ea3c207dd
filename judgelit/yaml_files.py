"""YAML files: read as a mapping of settings, or refused in one line that says where the mistake is."""

import codecs
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from judgelit.errors import UserError, first_line

_MOST_VALUES = 1_000_000
"""Most values of a file, once each alias stands for a copy of what it names."""
_CHARACTERS = 100
"""A text counts as a value for each of this many characters."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = {
    list: "a list",
    str: "a text",
    type(None): "nothing",
    bool: "a truth value",
    int: "a number",
    float: "a number",
}


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file that holds settings by name.

    Raises:
        UserError: The file cannot be read, is not UTF-8 or not YAML, gives a key twice, contains itself, or holds
            something else than a mapping.
    """
    text = read_text(path)
    try:
        check_yaml(text)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        what = " ".join(filter(None, [error.context, error.problem]))
        raise UserError(f"{path}{line}: not valid YAML: {what}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # PyYAML raises all of these for values such as `!!int abc` or `2024-99-99`.
        raise UserError(f"{path}: not valid YAML: {first_line(error)}") from error
    if not isinstance(content, dict):
        found = _KINDS.get(type(content), type(content).__name__)
        raise UserError(f"{path}: found {found}, expected settings by name, such as `seed: 1`")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: found the key {key!r}, expected a name")
    return content


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = "UTF-16" if data.startswith(_UTF_16) else f"the byte 0x{data[error.start]:02x}"
        raise UserError(f"{path}:{line}: found {found}, expected UTF-8; save the file as UTF-8") from error


def check_yaml(text: str) -> None:
    """Check what PyYAML accepts and no reader of settings does.

    Raises:
        MarkedYAMLError: A key is given twice, or an anchor contains itself.
        YAMLError: The text is no YAML, is nested too deeply, or its aliases stand for too many values.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _count(root, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES} values")
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """The number of values in a node, aliases written out; `counts` has those of other nodes, None while counting."""
    known = counts.get(id(node), 0)
    if known is None:
        raise yaml.MarkedYAMLError(problem="an anchor contains itself", problem_mark=node.start_mark)
    if known:
        return known
    counts[id(node)] = None
    keys: set[Hashable] = set()
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys and key.value != "<<":
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                    )
                keys.add(key.value)
    own = len(node.value) // _CHARACTERS if isinstance(node, yaml.ScalarNode) else 0
    count = 1 + own + sum(_count(inner, counts) for inner in _inside(node))
    counts[id(node)] = count
    return count


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
