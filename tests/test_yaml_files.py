"""YAML files of users: what is not a plain mapping of settings is refused in one line, and at once."""

from pathlib import Path

import pytest

from judgelit.errors import UserError
from judgelit.parsing import OneLineErrors
from judgelit.yaml_files import read_mapping

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{depth}: &a{depth} [{','.join([f'*a{depth - 1}'] * 10)}]\n" for depth in range(1, 10)
)
LONG_BOMB = f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 9_999)}]\n"
REFUSED = {
    "UTF-16": ("seed: 1\n".encode("utf-16"), ":1: found UTF-16, expected UTF-8"),
    "Latin-1": ("seed: 1\n# café\n".encode("latin-1"), ":2: found the byte 0xe9, expected UTF-8"),
    "binary": (bytes(range(256)), "expected UTF-8"),
    "NUL": (b"seed: 1\n\0", "not valid YAML"),
    "list": (b"- a\n", "found a list, expected settings by name"),
    "text": (b"hello", "found a text"),
    "empty": (b"", "found nothing"),
    "a key that is a number": (b"1: 2\n", "found the key 1"),
    "recursion in a mapping": (b"a: &a\n  b: *a\n", ":1: not valid YAML: an anchor contains itself"),
    "recursion in a list": (b"b: 1\na: &a [*a]\n", ":2: not valid YAML: an anchor contains itself"),
    "many aliases": (BOMB.encode(), "more than 1000000 values"),
    "aliases of a long text": (LONG_BOMB.encode(), "more than 1000000 values"),
    "depth": (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    "a key twice": (b"a: 1\nb: 1\na: 2\n", ":3: not valid YAML: the key 'a' is given twice"),
    "a Python object": (b"a: !!python/object/apply:os.system [ls]\n", ":1: not valid YAML"),
    "a number that is none": (b"a: !!int abc\n", "not valid YAML"),
    "a date that is none": (b"a: 2024-99-99\n", "not valid YAML"),
    "a tab": (b"a:\n\tb: 1\n", ":2: not valid YAML"),
    "two documents": (b"a: 1\n---\nb: 1\n", ":2: not valid YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_mapping_of_settings_is_refused(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_mapping(path)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    parser = OneLineErrors()
    parser.add_argument("--config", action="config")
    parser.add_argument("--a", type=dict)
    with pytest.raises(UserError) as refusal:
        parser.parse_args(["--config", str(path)])
    assert said in str(refusal.value)


def test_aliases_merges_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    assert read_mapping(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": [{"x": 1, "y": 2}] * 2}


def test_a_value_on_the_command_line_that_contains_itself_is_refused() -> None:
    parser = OneLineErrors()
    parser.add_argument("--a", type=dict)
    with pytest.raises(UserError, match="a: found"):
        parser.parse_args(["--a", "&x {b: *x}"])
