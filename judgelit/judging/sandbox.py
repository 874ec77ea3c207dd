"""A Jinja2 sandbox that also bounds the size and time of what a template makes."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 20_000
"""Turns of loops and calls in one rendering."""
MAX_CHARACTERS = 4_000_000
"""Characters or list items that one operation or all printed values may have, beyond eight times those of the input."""
MAX_SECONDS = 5.0
"""Time of one rendering."""
_MOST_IN_ALL = 16
"""What all operations of one rendering may make together, in multiples of what one of them may."""
_MAX_BITS = 100_000
"""Bits of an integer."""


class LimitError(Exception):
    """A template makes too much text or takes too long."""


@dataclass
class _Budget:
    """What a rendering may still use."""

    characters: int = MAX_CHARACTERS
    steps: int = MAX_STEPS
    printed: int = 0
    made: int = 0
    until: float = field(default_factory=lambda: time.monotonic() + MAX_SECONDS)

    def step(self, printed: int = 0) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise LimitError(f"found more than {MAX_STEPS} turns of loops and calls; shorten the loops")
        if time.monotonic() > self.until:
            raise LimitError(f"takes more than {MAX_SECONDS:g} seconds; shorten the loops")
        self.print(printed)

    def print(self, characters: int) -> None:
        self.printed += characters
        self.check(self.printed)

    def check(self, size: int) -> None:
        if size > self.characters:
            raise LimitError(f"makes a text or list of more than {self.characters} items; make it shorter")

    def make(self, size: int) -> None:
        """Count what an operation makes, since a list can keep it all."""
        self.check(size)
        self.made += size
        if self.made > _MOST_IN_ALL * self.characters:
            raise LimitError(f"makes texts and lists of more than {_MOST_IN_ALL * self.characters} items in all")


_BUDGET: ContextVar[_Budget] = ContextVar("budget")


def _budget() -> _Budget:
    """The budget of this rendering; while a template is compiled, a new one."""
    return _BUDGET.get(None) or _Budget()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates stay below the limits of this module, or raise LimitError."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        """Make the environment; templates keep their line breaks except those after a block."""
        super().__init__(
            undefined=jinja2.StrictUndefined,
            autoescape=False,
            keep_trailing_newline=False,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_printed,
        )
        del self.globals["lipsum"]
        for name in _ONE_BY_ONE & self.filters.keys():
            self.filters[name] = _over_counted(self.filters[name], name)
        for name in _GROWTH.keys() & self.filters.keys():
            self.filters[name] = _checked(self.filters[name], name)
        self.filters["_counted"] = _counted
        self.filters["_checked"] = _checked_size

    def compiled(self, body: str) -> jinja2.Template:
        """The template with text `body`."""
        tree = self.parse(body)
        # The nodes are listed first, since each gets a parent.
        for loop in list(tree.find_all(nodes.For)):
            data = sum(len(text.data) for text in loop.find_all(nodes.TemplateData))
            loop.iter = _filtered(loop.iter, "_counted", nodes.Const(data, lineno=loop.lineno))
        for assignment in list(tree.find_all(nodes.Assign)):
            assignment.node = _filtered(assignment.node, "_checked")
        return self.from_string(tree)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` if the result is not too large."""
        budget = _budget()
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise LimitError(f"makes an integer of more than {_MAX_BITS} bits; make it smaller")
        elif operator == "*":
            counts = [side for side in (left, right) if isinstance(side, int)]
            lengths = [len(side) for side in (left, right) if hasattr(side, "__len__")]
            if counts and lengths:
                budget.make(counts[0] * lengths[0])
        elif operator == "+":
            budget.make(sum(len(side) for side in (left, right) if hasattr(side, "__len__")))
        elif operator == "%" and isinstance(left, str):
            budget.make(_of_format(left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, macro or method of a value."""
        _budget().step()
        for value in (*args, *kwargs.values()):
            _checked_size(value)
        receiver, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(receiver, str | bytes) and name in _GROWTH:
            _budget().make(_GROWTH[name](receiver, *args, *kwargs.values()))
        return super().call(context, called, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` of the sandbox, with a check of the size."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _budget().make(_of_format(value.__self__, *args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read this attribute."""
        return attr not in ("to_bytes", "format_map", "translate") and super().is_safe_attribute(obj, attr, value)


def render(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """The text of the template.

    Raises:
        LimitError: It makes too much text or takes too long.
    """
    size = sum(len(str(value)) for value in values.values())
    token = _BUDGET.set(_Budget(characters=MAX_CHARACTERS + 8 * size))
    try:
        return template.render(values)
    finally:
        _BUDGET.reset(token)


def _filtered(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _printed(value: Any) -> Any:
    """Count a printed value."""
    if isinstance(value, str):
        _budget().print(len(value))
        return value
    text = str(value)
    _budget().print(len(text))
    return text


def _counted(values: Iterable[Any], data: int) -> Iterator[Any]:
    """Count the turns of a loop, each of which prints `data` characters of the template."""
    budget = _budget()
    for value in values:
        budget.step(data)
        yield value


def _checked_size(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _budget().check(len(value))
    return value


def _own_values(args: tuple[Any, ...]) -> list[Any]:
    """The arguments of a filter without Jinja2's context, which some filters take first."""
    return [arg for arg in args if not isinstance(arg, Context | jinja2.Environment | nodes.EvalContext)]


def _over_counted(function: Any, name: str) -> Any:
    """The filter `function`, each value that it reads counted as a turn of a loop."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        first, *others = _own_values(args)
        start = kwargs.get("start", others[1] if len(others) > 1 else 0)
        if name == "sum" and not isinstance(start, int | float):
            raise LimitError("adds up something else than numbers; use join")
        if isinstance(first, Iterable) and not isinstance(first, jinja2.Undefined):
            first = _counted(first, 0)
        return function(*args[: len(args) - len(others) - 1], first, *others, **kwargs)

    return wraps(function)(counted)


def _checked(function: Any, name: str) -> Any:
    """The filter `function` with a check of its size."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        values = _own_values(args)
        if name == "join":
            values[0] = list(values[0])
            args = (*args[: len(args) - len(values)], *values)
        _budget().make(_GROWTH[name](*values, *kwargs.values()))
        return function(*args, **kwargs)

    return wraps(function)(checked)


def _largest(_: Any, *args: Any) -> int:
    return max((arg for arg in args if isinstance(arg, int)), default=0)


def _amount(arg: Any) -> int:
    return arg if isinstance(arg, int) else len(arg) if hasattr(arg, "__len__") else 0


def _for_each(separator: str, value: Any, *args: Any) -> int:
    """Size if each separator of the value gets as much text as the largest argument says."""
    text: Any = value if isinstance(value, bytes) else str(value)
    mark: Any = separator.encode() if isinstance(text, bytes) else separator
    return len(text) + (text.count(mark) + 1) * max(map(_amount, args), default=0)


def _of_replace(value: Any, *args: Any) -> int:
    text: Any = value if isinstance(value, bytes) else str(value)
    old, new = [*args, "", ""][:2]
    return len(text) + text.count(old if isinstance(text, bytes) else str(old)) * _amount(new)


def _of_join(first: Any, *args: Any) -> int:
    """Size of a join, as the filter (values, separator) or as the method (separator, values)."""
    values, separator = (
        (args[0], first) if isinstance(first, str | bytes) and args else (first, args[0] if args else "")
    )
    sizes = (
        [len(value) if isinstance(value, str | bytes) else 20 for value in values] if hasattr(values, "__len__") else []
    )
    return sum(sizes) + len(sizes) * _amount(separator)


def _of_format(text: Any, *args: Any) -> int:
    """Size of a formatted text. A width may stand in the text or, as `*` or `{}`, among the values."""
    spec = text.decode("latin-1") if isinstance(text, bytes) else str(text)
    flat = [
        part
        for arg in args
        for part in (arg.values() if isinstance(arg, Mapping) else arg if isinstance(arg, tuple) else [arg])
    ]
    widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", spec))
    dynamic = "*" in spec or re.search(r"\{[^{}]*\{", spec)
    given = sum(abs(part) for part in flat if isinstance(part, int)) if dynamic else 0
    fields = spec.count("{") + spec.count("%")
    return len(spec) + widths + given + fields * max((len(part) for part in flat if isinstance(part, str)), default=20)


_ONE_BY_ONE = frozenset(
    "batch groupby join list map max min reject rejectattr select selectattr slice sort sum unique".split()  # noqa: SIM905
)
"""Filters that read a list one value at a time."""
_GROWTH: dict[str, Any] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "batch", "slice", "round"), _largest),
    **{"indent": partial(_for_each, "\n"), "expandtabs": partial(_for_each, "\t"), "tojson": partial(_for_each, ",")},
    "replace": _of_replace,
    "join": _of_join,
    "format": _of_format,
    "wordwrap": lambda value, *args: (
        len(str(value)) * (1 + max((len(arg) for arg in args if isinstance(arg, str)), default=1))
    ),
}
"""Filters and methods whose result can be much larger than what they get, with an upper bound of its size."""
