"""Functions as commands: their parameters are the options of the command line and of `--config` files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, auto_cli, auto_parser

from judgelit.parsing import OneLineErrors, raise_user_errors


def call(function: Any, argv: list[str], prog: str, notes: Mapping[str, str] | None = None) -> None:
    """Call a function with arguments from the command line and `--config` files; a dict of them has subcommands.

    Args:
        function: The function, or functions by the name of their subcommand.
        argv: Arguments.
        prog: Name of the command, for its help.
        notes: Text below the help of each command with this key, by key.
    """
    parser = type("Parser", (OneLineErrors,), {"notes": notes or {}})
    with raise_user_errors():
        auto_cli(function, args=argv, as_positional=False, prog=prog, parser_class=parser)


@dataclass(frozen=True)
class Command:
    """A subcommand with its arguments, read but not yet run."""

    name: str
    function: Callable[..., Any]
    config: Namespace
    parser: ArgumentParser

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments as plain values, defaults included; a configuration file may hold them."""
        found: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.name]
        return {name: value for name, value in found.items() if name != "config"}

    def arguments(self) -> dict[str, Any]:
        """The arguments of the function, with objects for classes.

        Raises:
            UserError: An object cannot be made.
        """
        with raise_user_errors():
            made = dict(vars(self.parser.instantiate(self.config)[self.name]))
        return {name: value for name, value in made.items() if name != "config"}

    def run(self) -> None:
        """Call the function."""
        with raise_user_errors():
            self.function(**self.arguments())


def read_command(
    functions: Mapping[str, Callable[..., Any]], argv: list[str], prog: str, notes: Mapping[str, str] | None = None
) -> Command:
    """Read a subcommand and its arguments from the command line and `--config` files, without running it.

    Args:
        functions: Functions by the name of their subcommand.
        argv: Arguments.
        prog: Name of the command, for its help.
        notes: Text below the help of each command with this key, by key.

    Raises:
        UserError: An argument is wrong.
    """
    parser_class = type("Parser", (OneLineErrors,), {"notes": notes or {}})
    with raise_user_errors():
        parser = auto_parser(dict(functions), as_positional=False, prog=prog, parser_class=parser_class)
        config = parser.parse_args(argv)
    return Command(config.subcommand, functions[config.subcommand], config, parser)


def make_command(functions: Mapping[str, Callable[..., Any]], name: str, settings: dict[str, Any]) -> Command:
    """The subcommand with the settings that `Command.settings` has given.

    Raises:
        UserError: There is no such subcommand, or a setting is wrong.
    """
    with raise_user_errors():
        parser = auto_parser(dict(functions), as_positional=False, parser_class=OneLineErrors)
        config = parser.parse_object({"subcommand": name, name: settings})
    return Command(name, functions[name], config, parser)
