"""Command-line parsers whose complaints are one line and name the nearest thing that exists."""

import difflib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli

from judgelit.errors import UserError

_UNKNOWN = (
    r"unrecognized arguments: (?:--)?([\w.]+)",
    r"[Kk]ey '([\w.]+)' is not expected",
    r"No action for key '([\w.]+)'",
    r"Key \"([\w.]+)\" is required.*not included",
)


class OneLineErrors(ArgumentParser):
    """Raises UserError instead of printing usage and leaving."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn what the parser found wrong into one line."""
        raise UserError(explain(message, self)) from ex


def explain(message: str, parser: Any) -> str:
    """`message` on one line; for an unknown key with the nearest known one."""
    # jsonargparse reports every alternative of a union; the first complaint that names a key says most.
    for pattern in _UNKNOWN:
        found = re.search(pattern, message)
        if found:
            key = found.group(1)
            place = re.search(r'Parser key "([\w.]+)"', message)
            inside = f" in {place.group(1)}" if place and place.group(1) != key else ""
            return f"unknown key {key!r}{inside}; {_nearest(key, parser)}"
    lines = [line.strip(" -") for line in message.splitlines()]
    return " ".join(line.rstrip(".") + ";" if line.endswith(".") else line for line in lines if line)[:600]


def _nearest(key: str, parser: Any) -> str:
    last = key.rsplit(".", 1)[-1]
    names = _known_names(parser)
    close = difflib.get_close_matches(last, names, n=1, cutoff=0.5)
    return f"the nearest known one is {close[0]!r}" if close else "see --help for those that exist"


def _known_names(parser: Any) -> set[str]:
    names = {part for action in parser._actions for part in str(action.dest).split(".")}
    for name, module in list(sys.modules.items()):
        if name.startswith("judgelit."):
            for thing in vars(module).values():
                if inspect.isclass(thing) and thing.__module__.startswith("judgelit."):
                    names |= set(inspect.signature(thing.__init__).parameters) - {"self", "args", "kwargs"}
    return names


def call(function: Callable[..., Any] | dict[str, Callable[..., Any]], argv: list[str], prog: str) -> None:
    """Call a function (or one of several subcommands) with arguments from the command line and `--config` files."""
    auto_cli(function, args=argv, as_positional=False, prog=prog, parser_class=OneLineErrors)
