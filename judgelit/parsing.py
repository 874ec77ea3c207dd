"""Command-line parsers that report each mistake as one line: the key, what was found, what was expected.

jsonargparse checks a class from a configuration with a parser for that class, which is of the same type as the parser
around it. So the parser that finds a mistake knows the key, the value and the expected type; it describes the mistake,
and each parser around it adds its part of the key. jsonargparse tries every type of a union and keeps only the texts of
the errors; `_mistakes` and `_failures` keep the objects.
"""

import argparse
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import (
    ArgumentParser,
    Namespace,
    Path,
    add_instantiator,
    get_loader,
    set_loader,
    set_parsing_settings,
)

from judgelit.errors import UserError, first_line
from judgelit.yaml_files import check_yaml, read_mapping

# The text below a dataclass's field is its help on the command line.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

_REQUIRED = "the following arguments are required: "
"""How argparse and jsonargparse begin their list of missing keys."""
_MAX_CHARACTERS = 600
"""Longest line for a message of argparse or jsonargparse."""
_MAX_NAMED = 8
"""Up to so many known keys are listed if none is near the unknown one."""


@dataclass(frozen=True)
class Mistake:
    """An unknown key, a wrong value of one key, or keys that are missing."""

    kind: Literal["unknown", "missing", "wrong"]
    keys: tuple[str, ...]
    advice: str = ""

    def inside(self, outer: str) -> "Mistake":
        """The same mistake with the key of the surrounding value in front."""
        return replace(self, keys=tuple(f"{outer}.{key}" for key in self.keys))


_mistakes: list[Mistake] = []
"""Mistakes inside the value that is being checked."""
_failures: list[tuple[type, Exception]] = []
"""Classes whose constructor failed, with the exception."""


class OneLineErrors(ArgumentParser):
    """A parser that raises UserError instead of printing its usage, and accepts no abbreviated keys."""

    notes: Mapping[str, str] = {}
    """Text below the help of each command with this key, by key."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A key with its end missing is a mistake too.
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._current: tuple[argparse.Action, Any] | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the mistake as one line; the parser of a nested class records it for the parser around it."""
        mistake = _mistake_of(ex)
        if mistake is None and message.startswith(_REQUIRED):
            mistake = Mistake("missing", tuple(message.removeprefix(_REQUIRED).split(", ")))
        if self.exit_on_error:
            raise UserError(self._line(mistake) if mistake else _on_one_line(message)) from ex
        if mistake is not None:
            _mistakes.append(mistake)
        super().error(message, ex)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help, with the notes about keys of this command below it."""
        keys = {action.dest for action in self._actions}
        return "\n".join(
            [super().format_help(*args, **kwargs), *(f"{note}\n" for key, note in self.notes.items() if key in keys)]
        )

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a configuration file, once it is found to be a YAML mapping."""
        read_mapping(str(path))
        return super().parse_path(path, *args, **kwargs)

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Check a whole configuration; an unknown key is reported with the nearest one of this parser."""
        try:
            super().validate(namespace, *args, **kwargs)
        except KeyError as error:
            if _mistake_of(error) is None and (mistake := self._first_unknown(namespace)) is not None:
                _set_mistake(error, mistake)
            raise

    def _check_value_key(self, action: argparse.Action, value: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        before = len(_mistakes)
        _read_yaml_alone(action, value)
        try:
            return super()._check_value_key(action, value, key, *args, **kwargs)
        except (TypeError, ValueError, KeyError) as error:
            self._blame(error, _mistakes[before:], action, value, key)
            raise
        finally:
            del _mistakes[before:]

    def _parse_known_args_internal(self, args: Any = None, namespace: Any = None, **kwargs: Any) -> Any:
        if not self.exit_on_error and args:
            # jsonargparse passes the null of a value in a nested class on as `None`, which it then does not read.
            args = [f"{one.removesuffix('None')}null" if one.endswith("=None") else one for one in args]
        args = args and self._as_written_out([self._with_underscores(one) for one in args])
        # A value may contain a value of its own class, which the same parser then checks.
        before, outer, self._current = len(_mistakes), self._current, None
        try:
            namespace, unknown = super()._parse_known_args_internal(args, namespace, **kwargs)
        except (TypeError, ValueError, KeyError) as error:
            if self._current is not None:
                action, value = self._current
                self._blame(error, _mistakes[before:], action, value, action.dest)
            raise
        finally:
            self._current = outer
            del _mistakes[before:]
        if unknown:
            unexpected = argparse.ArgumentError(None, f"found {unknown[0]!r}, expected an option such as --key=value")
            if unknown[0].startswith("--"):
                _set_mistake(unexpected, self._unknown(unknown[0].removeprefix("--").partition("=")[0]))
            raise unexpected
        return namespace, unknown

    def _with_underscores(self, argument: Any) -> Any:
        """`--both-orders=x` as `--both_orders=x`: keys are Python's names, and people type them in both ways.

        The keys of a mapping are the user's, such as the names of sets, and stay. Of a class within an option's value
        only the parameter is a key here; the class's own parser gets what follows it.
        """
        if not isinstance(argument, str) or not argument.startswith("--"):
            return argument
        key, equals, value = argument.removeprefix("--").partition("=")
        parts = key.split(".")
        plain = [part.replace("-", "_") for part in parts]
        for known in range(len(parts), 0, -1):
            action = self._option_string_actions.get("--" + ".".join(plain[:known]).removesuffix("+"))
            if action is None:
                continue
            if not _takes_mapping(action):
                known += 2 if plain[known : known + 1] == ["init_args"] else 1
            return f"--{'.'.join([*plain[:known], *parts[known:]])}{equals}{value}"
        return argument

    def _as_written_out(self, args: Sequence[Any]) -> list[Any]:
        """The arguments, with `=true` after each switch that has no value."""
        found = list(args)
        for place, one in enumerate(found):
            is_last = place + 1 == len(found) or str(found[place + 1]).startswith("--")
            if is_last and getattr(self._option_string_actions.get(one), "_typehint", None) is bool:
                found[place] = f"{one}=true"
        return found

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse calls this for each option, just before it calls the option's action.
        values = super()._get_values(action, arg_strings)
        _read_yaml_alone(action, values)
        self._current = action, values
        return values

    def _blame(self, error: Exception, inner: list[Mistake], action: argparse.Action, value: Any, key: str) -> None:
        """Attach the mistake to an error: the last one inside the value, or else the value itself."""
        if inner:
            mistake = _most_telling(inner)
            _set_mistake(error, mistake if _is_command(action) else mistake.inside(key))
        elif _mistake_of(error) is None and (kind := getattr(action, "_typehint", None)) is not None:
            _set_mistake(error, Mistake("wrong", (key,), _wrong_value(value, kind, error)))

    def _line(self, mistake: Mistake) -> str:
        positional = [action.dest for action in self._actions if not action.option_strings]
        keys = [key.partition(".")[2] if key.split(".")[0] in self._commands else key for key in mistake.keys]
        if mistake.kind == "missing":
            return "missing " + ", ".join(key if key in positional else f"--{key}" for key in keys)
        (key,) = keys
        return f"unknown key {key!r}; {mistake.advice}" if mistake.kind == "unknown" else f"{key}: {mistake.advice}"

    def _unknown(self, key: str) -> Mistake:
        # `--help` explains a command, `--x.help` the classes that `x` accepts.
        known = [action.dest for action in self._actions if action.dest.split(".")[-1] != "help"]
        return Mistake("unknown", (key,), _nearest(key, known))

    def _first_unknown(self, namespace: Namespace, outer: str = "") -> Mistake | None:
        """The first key of a configuration that is neither known nor the beginning of a known one."""
        typed = {action.dest: hasattr(action, "_typehint") for action in self._actions}
        for name, value in namespace.items(branches=True, nested=False):
            key, mistake = outer + name, None
            if typed.get(key) or name.startswith("__"):
                continue
            if key in self._commands:
                mistake = self._commands[key]._first_unknown(value)
            elif any(dest.startswith(f"{key}.") for dest in typed):
                mistake = self._first_unknown(value, f"{key}.") if isinstance(value, Namespace) else None
            elif key not in typed:
                mistake = self._unknown(key)
            if mistake is not None:
                return mistake
        return None

    @property
    def _commands(self) -> Mapping[str, Any]:
        """Parsers of the subcommands by name."""
        for action in self._actions:
            if _is_command(action) and isinstance(action.choices, Mapping):
                return action.choices
        return {}


@contextmanager
def raise_user_errors() -> Iterator[None]:
    """Raise errors of classes that jsonargparse builds from a configuration as UserErrors of one line.

    jsonargparse replaces a UserError by a ValueError if the class is one of several types that the key accepts.
    """
    before = len(_failures)
    try:
        yield
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        # jsonargparse quotes every reason; any other ValueError is a bug.
        quoted = [one for one in _failures[before:] if str(one[1]).split("\n")[0] in str(error)]
        if not quoted:
            raise
        failed, reason = quoted[-1]
        if isinstance(reason, UserError):
            raise reason from None
        raise UserError(f"{failed.__name__}: {first_line(reason)}") from reason
    except ImportError as error:
        # A class of another library, such as a logger, whose package is not installed. Ours have theirs.
        names = [failed for failed, reason in _failures[before:] if reason is error]
        if not names or names[0].__module__.startswith("judgelit."):
            raise
        raise UserError(f"{names[0].__name__}: {first_line(error)}") from error
    finally:
        del _failures[before:]


def _build(class_type: type, *args: Any, **kwargs: Any) -> Any:
    try:
        return class_type(*args, **kwargs)
    except Exception as error:
        _failures.append((class_type, error))
        raise


add_instantiator(_build, object)


def _load_yaml(text: str) -> Any:
    """Load a value or a file within a configuration. jsonargparse would enter a value that contains itself for ever."""
    if "&" in text and "*" in text:
        check_yaml(text)
    try:
        return _jsonargparse_yaml(text)
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        # PyYAML raises these for values such as `!!int abc`.
        raise yaml.YAMLError(first_line(error)) from error


_jsonargparse_yaml = get_loader("yaml")
set_loader("yaml", _load_yaml, exceptions=(yaml.YAMLError,))


def _is_command(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _takes_mapping(action: argparse.Action) -> bool:
    """Whether the value of an option may be a mapping with the user's own keys."""
    kinds = _alternatives(getattr(action, "_typehint", None))
    return any((get_origin(kind) or kind) in (dict, Mapping) for kind in kinds)


def _most_telling(mistakes: list[Mistake]) -> Mistake:
    """The last mistake, or one of the same key that says more.

    A key may take objects of several classes. One of them knows the key and refuses the value; the others do not know
    the key.
    """
    last = mistakes[-1]
    same = [one for one in mistakes if one.keys == last.keys]
    return max(reversed(same), key=lambda one: 2 * (one.kind == "wrong") + one.advice.startswith("the nearest"))


def _set_mistake(error: Exception, mistake: Mistake) -> None:
    error.mistake = mistake  # type: ignore[attr-defined]


def _mistake_of(error: BaseException | None) -> Mistake | None:
    """The mistake that is attached to an error or to one that caused it."""
    while error is not None:
        if (mistake := getattr(error, "mistake", None)) is not None:
            return mistake
        error = error.__cause__
    return None


def _nearest(key: str, known: list[str]) -> str:
    """Advice for an unknown key: the nearest known one at the place where the key goes wrong."""
    parts = key.split(".")
    for depth, part in enumerate(parts):
        above = "".join(f"{one}." for one in parts[:depth])
        here = {one.removeprefix(above).split(".")[0] for one in known if one.startswith(above)}
        if part not in here:
            break
    if close := difflib.get_close_matches(part, here, n=1):
        return f"the nearest known one is {close[0]!r}"
    if elsewhere := [one for one in known if one.endswith(f".{parts[-1]}")]:
        return f"the nearest known one is {elsewhere[0]!r}"
    if 0 < len(here) <= _MAX_NAMED:
        return f"expected {_either(sorted(here))}"
    return "see --help for those that exist"


def _wrong_value(value: Any, kind: Any, error: Exception) -> str:
    """What was found and expected; for a class also the nearest known one, or why it cannot be imported."""
    kinds = list(_alternatives(kind))
    line = f"found {_shortened(repr(value))}, expected {_either(list(dict.fromkeys(map(_name, kinds))))}"
    # jsonargparse has its own subclasses of float and int, and nobody chooses one of them.
    classes = [kind for kind in kinds if isinstance(kind, type) and kind not in (bool, int, float, str)]
    known = [one.__name__ for kind in classes for one in _subclasses(kind)]
    if isinstance(value, str) and (close := difflib.get_close_matches(value, known, n=1)):
        return f"{line}; the nearest known one is {close[0]!r}"
    if isinstance(value, str) and value.isidentifier() and 0 < len(known) <= _MAX_NAMED:
        return f"{line}, such as {_either(sorted(set(known)))}"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{line}: {first_line(cause)}" if isinstance(cause, ImportError | AttributeError) else line


def _alternatives(kind: Any) -> Iterator[Any]:
    """The values of a literal or the types of a union, None left out."""
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _alternatives(one)
    elif get_origin(kind) is Literal:
        yield from get_args(kind)
    elif kind is not NoneType:
        yield kind


def _name(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Callable and inner:
        return f"a class or function that returns {_either([_name(one) for one in _alternatives(inner[-1])])}"
    if origin is list:
        return f"a list of {_name(inner[0])}"
    if not isinstance(kind, type) or inner:
        return str(kind).replace("typing.", "")
    return "an existing file" if issubclass(kind, Path) else kind.__name__


def _subclasses(kind: type) -> set[type]:
    below: set[type] = set(type.__subclasses__(kind))
    return below.union(*map(_subclasses, below))


def _read_yaml_alone(action: argparse.Action, value: Any) -> None:
    """Let jsonargparse read the file that a value names only if it is a YAML file, which holds settings.

    It would read any other file too, such as all data of `--pairs pairs.jsonl`, and take its text for the value.
    """
    if hasattr(action, "_enable_path"):
        may_read = vars(action).setdefault("may_read", action._enable_path)
        action._enable_path = may_read and isinstance(value, str) and value.endswith((".yaml", ".yml"))


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _on_one_line(message: str) -> str:
    lines = [line.strip(" -") for line in message.splitlines()]
    line = " ".join(line.rstrip(".") + ";" if line.endswith(".") else line for line in lines if line)
    return line.rstrip(";")[:_MAX_CHARACTERS]
