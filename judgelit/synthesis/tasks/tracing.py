"""The output of a short Python program. The wrong answer takes one wrong branch, or one round too many or too few."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from judgelit.synthesis.tasks.problem import Problem, agrees, counted, differs
from judgelit.synthesis.tasks.words import WORDS, coined

_State = tuple[Any, ...]
_ROUNDS = {1: 3, 2: 4, 3: 6, 4: 8, 5: 10}
_HOLDS = {True: "holds", False: "fails"}
"""Words of equal length, so that the length of an answer does not reveal a wrong branch."""
_ASKS = ("What does this Python program print?", "What is the output of this Python code?")
_ENDINGS = ("{}", "It prints {}", "The output is {}", "Output: {}")


@dataclass(frozen=True)
class _Program:
    """A loop that changes the variables `names` by one of two branches in each round.

    `step(state, item, branch)` is the next state. `branch` is the value of `test`, or its negation in a mistake.
    """

    code: str
    names: tuple[str, ...]
    start: _State
    condition: str
    test: Callable[[_State, Any], bool]
    step: Callable[[_State, Any, bool], _State]
    shown: Callable[[_State], str]
    items: list[Any] | None = None
    """Items of a `for` loop. None for a `while` loop, which runs while `goes_on` is true."""
    item: str = ""
    goes_on: Callable[[_State], bool] = bool
    next_item: Any = None
    """Item of one more round. None if one round too many is no plausible mistake."""


@dataclass(frozen=True)
class _Run:
    """Trace of a run: one line for each round, and the output."""

    lines: list[str]
    output: str


_Slip = tuple[_Run, str]


def make(rng: random.Random, difficulty: int) -> Problem:
    """A loop of about 3 to 10 rounds over numbers, lists or letters."""
    ending, worked = rng.choice(_ENDINGS), rng.random() < 0.3

    def written(run: _Run) -> str:
        return "\n".join([*(run.lines if worked else []), ending.format(run.output)])

    while True:
        program = rng.choice([_sum, _pair, _list, _letters, _halving])(rng, difficulty)
        right = _run(program)
        slips = _as_long(rng, written, right, _slips(program, right))
        if slips:
            break
    wrong, why = rng.choice(slips)
    return Problem(
        question=f"{rng.choice(_ASKS)}\n```python\n{program.code}\n```",
        correct=written(right),
        wrong=written(wrong),
        steps="\n".join([f"At first {_values(program, program.start)}.", *right.lines, f"It prints {right.output}"]),
        check_correct=agrees(right.output),
        check_wrong=differs(wrong.output, right.output, f"It fits a slip in the loop: {why}."),
    )


def _values(program: _Program, state: _State) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in zip(program.names, state, strict=True))


def _run(program: _Program, flipped: int | None = None, more: int = 0) -> _Run:
    """Run a program, with the wrong branch in round `flipped`, or one round too many (`more` 1) or too few (-1)."""
    states, lines = [program.start], []
    items = program.items

    def play(item: Any) -> None:
        state, place = states[-1], len(states) - 1
        branch = program.test(state, item) != (place == flipped)
        states.append(program.step(state, item, branch))
        head = f"{program.item} = {item!r}" if program.item else f"round {place + 1}"
        lines.append(f"{head}: {program.condition} {_HOLDS[branch]}, {_values(program, states[-1])}")

    while program.goes_on(states[-1]) if items is None else len(states) <= len(items):
        play(None if items is None else items[len(states) - 1])
    if more > 0:
        play(program.next_item)
    elif more < 0:
        states.pop()
        lines.pop()
    return _Run(lines, program.shown(states[-1]))


def _slips(program: _Program, right: _Run) -> list[_Slip]:
    """The runs with a mistake and another output, each with its explanation."""
    slips = []
    for place, line in enumerate(right.lines):
        test = line.partition(", ")[0]
        slips.append((_run(program, flipped=place), f"{test}, but it is taken to be the contrary"))
    if program.next_item is not None:
        rounds = len(right.lines)
        for more in (-1, 1):
            slips.append((_run(program, more=more), f"it runs {counted(rounds, 'time')}, not {rounds + more}"))
    return [(run, why) for run, why in slips if run.output != right.output]


def _as_long(rng: random.Random, written: Callable[[_Run], str], right: _Run, slips: list[_Slip]) -> list[_Slip]:
    """Mistakes with answers of the same length as the right one, or all longer or all shorter, drawn at random.

    The list is empty if there are none, or only longer or only shorter ones: length would reveal the right answer.
    """
    by_length: dict[int, list[_Slip]] = {-1: [], 0: [], 1: []}
    for slip in slips:
        size, other = len(written(right)), len(written(slip[0]))
        # A much longer or shorter run is no slight mistake, and right answers have no negative numbers.
        if abs(other - size) <= max(8, size // 3) and "-" not in written(slip[0]):
            by_length[(other > size) - (other < size)].append(slip)
    groups = [by_length[0]] if by_length[0] else []
    if by_length[-1] and by_length[1]:
        groups.append(by_length[rng.choice([-1, 1])])
    return rng.choice(groups) if groups else []


def _range(rng: random.Random, difficulty: int) -> tuple[str, list[int], int]:
    """A `range(...)`, its items, and the item after its last one."""
    first, stride = rng.randint(0, 9), 1 if difficulty < 3 else rng.randint(1, 3)
    rounds = _ROUNDS[difficulty]
    stop = first + stride * rounds
    text = f"range({first}, {stop})" if stride == 1 else f"range({first}, {stop}, {stride})"
    return text, list(range(first, stop, stride)), stop


def _sum(rng: random.Random, difficulty: int) -> _Program:
    """A loop with a total, and from difficulty 4 also a count."""
    start, divisor, rest = rng.randint(10, 40), rng.randint(2, 4), rng.randint(0, 1)
    factor, plus, two = rng.randint(1, 3), rng.randint(1, 9), difficulty >= 4
    text, items, after = _range(rng, difficulty)
    gain = "total += n" if factor == 1 else f"total += n * {factor}"
    code = [f"total = {start}", *(["count = 0"] if two else []), f"for n in {text}:"]
    code += [
        f"    if n % {divisor} == {rest}:",
        f"        {gain}",
        *(["        count += 1"] if two else []),
    ]
    code += [
        "    else:",
        f"        total += {plus}",
        f"print({'total, count' if two else 'total'})",
    ]

    def step(state: _State, n: int, branch: bool) -> _State:
        total = state[0] + (n * factor if branch else plus)
        return (total, state[1] + branch) if two else (total,)

    return _Program(
        code="\n".join(code),
        names=("total", "count") if two else ("total",),
        start=(start, 0) if two else (start,),
        condition=f"n % {divisor} == {rest}",
        test=lambda state, n: n % divisor == rest,
        step=step,
        shown=lambda state: " ".join(map(str, state)),
        items=items,
        item="n",
        next_item=after,
    )


def _pair(rng: random.Random, difficulty: int) -> _Program:
    """A loop with two variables that depend on each other."""
    a, b, plus, bound = (
        rng.randint(1, 9),
        rng.randint(1, 9),
        rng.randint(1, 5),
        rng.randint(8, 20),
    )
    text, items, after = _range(rng, difficulty)
    code = f"a, b = {a}, {b}\nfor n in {text}:\n    if a < b:\n        a, b = b, a + {plus}\n    else:\n"
    code += f"        a, b = a - b, n + {bound}\nprint(a, b)"
    return _Program(
        code=code,
        names=("a", "b"),
        start=(a, b),
        condition="a < b",
        test=lambda state, n: state[0] < state[1],
        step=lambda state, n, branch: (state[1], state[0] + plus) if branch else (state[0] - state[1], n + bound),
        shown=lambda state: f"{state[0]} {state[1]}",
        items=items,
        item="n",
        next_item=after,
    )


def _list(rng: random.Random, difficulty: int) -> _Program:
    """A loop with a list that grows at both ends."""
    items = [rng.randint(10, 90) for _ in range(_ROUNDS[difficulty])]
    divisor, rest, plus = rng.randint(2, 3), rng.randint(0, 1), rng.randint(1, 9)
    condition = f"n % {divisor} == {rest}"
    code = f"out = []\nfor n in {items}:\n    if {condition}:\n        out.append(n)\n    else:\n"
    code += f"        out.insert(0, n + {plus})\nprint(out)"
    return _Program(
        code=code,
        names=("out",),
        start=([],),
        condition=condition,
        test=lambda state, n: n % divisor == rest,
        step=lambda state, n, branch: ([*state[0], n] if branch else [n + plus, *state[0]],),
        shown=lambda state: str(state[0]),
        items=items,
        item="n",
    )


def _letters(rng: random.Random, difficulty: int) -> _Program:
    """A loop that builds a text letter by letter."""
    text = ""
    while abs(len(text) - _ROUNDS[difficulty]) > 1:
        text = coined(rng, 1 + difficulty // 2) if rng.random() < 0.5 else rng.choice(WORDS)
    # Random letters instead of the vowels: the looks of a wrong output must not reveal it.
    present = sorted(set(text))
    chosen = "".join(sorted(rng.sample(present, max(1, len(present) // 2))))
    upper = "" if difficulty < 3 else ".upper()"
    code = f'out = ""\nfor ch in "{text}":\n    if ch in "{chosen}":\n        out = ch + out\n    else:\n'
    code += f"        out = out + ch{upper}\nprint(out)"
    return _Program(
        code=code,
        names=("out",),
        start=("",),
        condition=f'ch in "{chosen}"',
        test=lambda state, ch: ch in chosen,
        step=lambda state, ch, branch: (ch + state[0] if branch else state[0] + (ch.upper() if upper else ch),),
        shown=lambda state: state[0],
        items=list(text),
        item="ch",
    )


def _halving(rng: random.Random, difficulty: int) -> _Program:
    """A `while` loop that counts its rounds."""
    # An odd n minus an odd number is even, so every second round halves.
    rounds = 1 + _ROUNDS[difficulty] * 2 // 3
    low, less = rng.randint(1, 4), rng.choice([1, 3])
    n = rng.randint(2 ** (rounds - 1) + low, 2**rounds + low + 4)
    code = f"n = {n}\nsteps = 0\nwhile n > {low}:\n    if n % 2 == 0:\n        n = n // 2\n    else:\n"
    code += f"        n = n - {less}\n    steps += 1\nprint(steps, n)"
    return _Program(
        code=code,
        names=("n", "steps"),
        start=(n, 0),
        condition="n % 2 == 0",
        test=lambda state, item: state[0] % 2 == 0,
        step=lambda state, item, branch: (
            state[0] // 2 if branch else state[0] - less,
            state[1] + 1,
        ),
        shown=lambda state: f"{state[1]} {state[0]}",
        goes_on=lambda state: state[0] > low,
    )
