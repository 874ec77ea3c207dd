"""`judgelit configs`: find, list and copy the shipped configurations."""

import difflib
import os
from pathlib import Path
from typing import NoReturn

from judgelit.atomic import write_text
from judgelit.errors import UserError


def configs_folder() -> Path:
    """The folder of the shipped configurations: in the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped() -> dict[str, Path]:
    """Paths of the shipped configurations by short name, such as `quickstart/run`."""
    root = configs_folder()
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}


def find(name: str) -> str:
    """The path of a configuration that is given by its path or short name (`quickstart/run` or `quickstart/run.yaml`).

    Raises:
        UserError: No file and no shipped configuration has this name.
    """
    if Path(name).is_file():
        return name
    short = name.removeprefix("configs/").removesuffix(".yaml")
    known = shipped()
    if short in known:
        return str(known[short])
    close = difflib.get_close_matches(short, known, n=1, cutoff=0.3)
    hint = f"the nearest shipped one is {close[0]}" if close else "see judgelit configs list"
    raise UserError(f"config {name!r}: found no such file and no shipped configuration of this name; {hint}")


def main(argv: list[str]) -> None:
    """`judgelit configs list`, `judgelit configs copy NAME [TO]`."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{self.prog.removeprefix('judgelit ')}: {message}; see {self.prog} --help")

    parser = Parser(prog="judgelit configs", description="List or copy the shipped configurations.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="list the shipped configurations with their purpose")
    copy = commands.add_parser("copy", help="copy one, to change it")
    copy.add_argument("name", help="short name, such as quickstart/run")
    copy.add_argument("to", nargs="?", help="file or folder to write; default: the current folder")
    args = parser.parse_args(argv)
    if args.command == "list":
        width = max(map(len, shipped()))
        for name, path in shipped().items():
            print(f"{name:<{width}}  {_first_comment(path)}")
        return
    copy_config(args.name, args.to or ".")


def copy_config(name: str, to: str) -> None:
    """Copy a shipped configuration and the configurations that it names into one folder.

    The copy names the copies beside it.

    Args:
        name: Short name or path of a shipped configuration.
        to: The file to write, or a folder.

    Raises:
        UserError: No shipped configuration has this name, or a file cannot be written. Then none is written.
    """
    import yaml

    source, target = Path(find(name)), Path(to)
    if source not in shipped().values():
        raise UserError(f"name: found {name!r}, a file of yours, expected a shipped configuration; copy files with cp")
    if target.is_dir() or to.endswith("/"):
        target /= source.name
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(f"to: found {to!r}, expected a name that ends with .yaml, or a folder (with / at its end)")
    text = source.read_text(encoding="utf-8")
    named = [value for value in yaml.safe_load(text).values() if isinstance(value, str) and value.endswith(".yaml")]
    copies = {}
    for other in named:
        beside = target.parent / Path(other).name
        if beside == target:
            raise UserError(f"to: found {target.name!r}, the name of another file that is copied; choose another one")
        copies[beside] = (source.parent / other).read_text(encoding="utf-8")
        text = text.replace(other, beside.name)
    copies = {target: text, **copies}
    for path in copies:
        if os.path.lexists(path):
            raise UserError(f"{path} exists already; give another file or folder as second argument")
    try:
        for path, content in copies.items():
            write_text(path, content)
    except OSError:
        for path in copies:
            path.unlink(missing_ok=True)
        raise
    for path in copies:
        print(f"{path} written")
    print(f"run it with --config {target}")


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()
