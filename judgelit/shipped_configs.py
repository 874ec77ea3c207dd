"""The shipped configurations: where they are, what each is for, and a copy to change."""

import difflib
from pathlib import Path

from judgelit.errors import UserError


def configs_folder() -> Path:
    """The folder of shipped configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped() -> dict[str, Path]:
    """Every shipped configuration by its short name, such as `quickstart/run`."""
    root = configs_folder()
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}


def find(name: str) -> str:
    """The path of a configuration given by path or by short name (`quickstart/run`, with or without `.yaml`).

    Raises:
        UserError: There is neither such a file nor such a shipped configuration.
    """
    if Path(name).is_file():
        return name
    short = name.removeprefix("configs/").removesuffix(".yaml")
    known = shipped()
    if short in known:
        return str(known[short])
    close = difflib.get_close_matches(short, known, n=1, cutoff=0.3)
    hint = f"; the nearest shipped one is {close[0]}" if close else ""
    raise UserError(f"config {name!r}: no such file, and no shipped configuration of that name{hint}")


def main(argv: list[str]) -> None:
    """`judgelit configs list`, `judgelit configs copy NAME [TO]`."""
    import argparse

    parser = argparse.ArgumentParser(prog="judgelit configs", description="List or copy the shipped configurations.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="every shipped configuration and what it is for")
    copy = commands.add_parser("copy", help="copy one into the current folder, to change it")
    copy.add_argument("name", help="short name, such as quickstart/run")
    copy.add_argument("to", nargs="?", help="file or folder to write it to; by default its own file name here")
    args = parser.parse_args(argv)
    if args.command == "list":
        width = max(map(len, shipped()))
        for name, path in shipped().items():
            print(f"{name:<{width}}  {_first_comment(path)}")
        return
    copy_config(Path(find(args.name)), Path(args.to or "."))


def copy_config(source: Path, target: Path) -> None:
    """Copy a configuration, and beside it those that it names.

    Raises:
        UserError: A file of that name is there already.
    """
    import yaml

    if target.is_dir():
        target /= source.name
    named = yaml.safe_load(source.read_text(encoding="utf-8")).values()
    beside = [source.parent / value for value in named if isinstance(value, str) and value.endswith(".yaml")]
    copies = {target: source, **{target.parent / path.name: path for path in beside}}
    for path in copies:
        if path.exists():
            raise UserError(f"{path} exists already; give another place as second argument")
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, original in copies.items():
        path.write_text(original.read_text(encoding="utf-8"), encoding="utf-8")
        print(f"{path} written")
    print(f"run it with --config {target}")


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()
