"""Command-line parsers whose complaints are one line and name the nearest thing that exists."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings

from judgelit.errors import UserError

# The text below a dataclass's field is its help on the command line.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

_UNKNOWN = (
    r"unrecognized arguments: (?:--)?([\w.]+)",
    r"does not accept option '([\w.]+)'",
    r"Option '([\w.]+)' is not accepted",
    r"[Kk]ey '([\w.]+)' is not expected",
)


_EXPECTED = r"Expected a (?:typing\.)?(?:Literal\[([^\]]*)\]|<class '(int|float|bool|str)'>)"
_WRONG = (
    r'Parser key "[\w.]+":\s+Expected a path but \S+ either not accessible or invalid',
    r"Problem with given class_path [^\n]*(?:\n[^\n]+)?",
    r"Import path [^\n]*",
)


class OneLineErrors(ArgumentParser):
    """Raises UserError instead of printing usage and leaving; takes no abbreviated keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A key with its end missing is a mistake too.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Turn what the parser found wrong into one line."""
        raise UserError(explain(message, self)) from ex


@contextmanager
def raise_user_errors() -> Iterator[None]:
    """Bring to light a UserError that jsonargparse has wrapped while it built objects from a configuration."""
    try:
        yield
    except ValueError as error:
        inner: BaseException | None = error
        while inner is not None and not isinstance(inner, UserError):
            inner = inner.__cause__ or inner.__context__
        if inner is None:
            # Of each alternative of a union jsonargparse keeps the text alone, in a list of all that it tried.
            tried = [
                line.strip().removeprefix("- ") for line in str(error).splitlines() if line.lstrip().startswith("- ")
            ]
            said = [line for line in tried if not line.startswith(("Expected a ", "Does not validate "))]
            if not said:
                raise
            raise UserError(said[-1]) from None
        raise inner from None


def explain(message: str, parser: Any) -> str:
    """`message` on one line; for an unknown key with the nearest known one."""
    # Of nested complaints, one about each alternative of each union, the innermost is about what the user wrote.
    if found := re.findall(
        r"unknown key '[^']+'; [^\n;]+|(?<=- )[\w.]+: found .*, expected [^\n]+|(?<=- )missing --.*", message
    ):
        return found[-1].strip()
    for pattern in _UNKNOWN:
        if found := re.findall(pattern, message):
            return f"unknown key {found[-1]!r}; {_nearest(found[-1], _known_names(parser))}"
    if (value := _wrong_value(" ".join(message.split()))) is not None:
        return value
    if required := re.fullmatch(r"the following arguments are required: (.*)", message.strip()):
        return "missing " + ", ".join(f"--{name.removeprefix('fit.')}" for name in required[1].split(", "))
    for pattern in _WRONG:
        if wrong := re.search(pattern, message):
            return " ".join(wrong.group(0).split()).rstrip(".")
    lines = [line.strip(" -") for line in message.splitlines()]
    line = " ".join(line.rstrip(".") + ";" if line.endswith(".") else line for line in lines if line)
    return line.rstrip(";")[:600]


def _wrong_value(message: str) -> str | None:
    """What was found and expected, where a setting of a plain kind has a value of none of its kinds."""
    if direct := re.search(rf'Parser key "([\w.]+)": {_EXPECTED}\.? Got value: (\S*)', message):
        key, choices, kind, value = direct.groups()
        kinds = [(choices, kind)]
    elif nested := re.search(r"NestedArg\(key='([\w.]+)', val=(.*?)\)(?: |$)", message):
        key, value = nested[1], nested[2].strip("'")
        kinds = re.findall(_EXPECTED, message)
    elif plain := re.fullmatch(
        r'Parser key "([\w.]+)": Does not validate (?:(?!Parser key).)*Given value: (.*)', message
    ):
        key, value = plain.groups()
        kinds = re.findall(_EXPECTED, message)
    else:
        return None
    named = list(dict.fromkeys(one.strip("'") for choices, kind in kinds for one in (choices or kind).split(", ")))
    simple = "Namespace(" not in value and not any(what in message for what in ("class_path", "Import path"))
    return f"{key}: found {value!r}, expected {_either(named)}" if named and simple else None


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _nearest(key: str, known: set[str]) -> str:
    parts = key.split(".")
    wrong = next((part for part in parts if part not in known), parts[-1])
    close = difflib.get_close_matches(wrong, known - set(parts), n=1, cutoff=0.5)
    return f"the nearest known one is {close[0]!r}" if close else "see --help for those that exist"


def _known_names(parser: Any) -> set[str]:
    parsers = [parser, *getattr(parser._subcommands_action, "_name_parser_map", {}).values()]
    names = {part for one in parsers for action in one._actions for part in str(action.dest).split(".")}
    names |= {"class_path", "init_args"}
    for module in [module for name, module in sys.modules.items() if name.startswith("judgelit.")]:
        for thing in vars(module).values():
            if inspect.isclass(thing) and thing.__module__.startswith("judgelit."):
                names |= set(inspect.signature(thing.__init__).parameters) - {"self", "args", "kwargs"}
    return names


def call(function: Any, argv: list[str], prog: str) -> None:
    """Call a function with arguments from the command line and `--config` files; a dict of them has subcommands."""
    with raise_user_errors():
        auto_cli(function, args=argv, as_positional=False, prog=prog, parser_class=OneLineErrors)
