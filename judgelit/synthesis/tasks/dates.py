"""Adding days, days between dates, days of the week. The wrong answer takes a month or year for longer or shorter."""

import random
from calendar import isleap, monthrange
from dataclasses import dataclass
from datetime import date, timedelta

from judgelit.synthesis.tasks.problem import Problem, agrees, counted, differs

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_WEEKDAYS = (
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
)
_SPANS = {1: (10, 45), 2: (60, 150), 3: (200, 360), 4: (400, 800), 5: (1000, 2500)}
"""For each difficulty the fewest and most days between the two dates."""


@dataclass(frozen=True)
class _Stretch:
    """Part of the time between two dates: a month, part of a month, or a whole year."""

    name: str
    days: int
    common_slip: tuple[int, str] = (0, "")
    """A common mistake about its length, if any: the days counted too many, and the explanation."""

    def __str__(self) -> str:
        return f"{self.name}: {counted(self.days, 'day')}"


def make(rng: random.Random, difficulty: int) -> Problem:
    """Two dates up to seven years apart. The question asks for a date, the days between them or a day of the week."""
    start = date(rng.randint(1890, 2110), 1, 1) + timedelta(days=rng.randrange(365))
    end = start + timedelta(days=rng.randint(*_SPANS[difficulty]))
    return rng.choice([_adding, _between, _weekday])(rng, start, end, _stretches(start, end))


def _adding(rng: random.Random, start: date, end: date, stretches: list[_Stretch]) -> Problem:
    span = sum(stretch.days for stretch in stretches)
    _, off, why = _slip(rng, stretches)
    # If a part is taken for longer, the resulting date is earlier.
    result, found = _written(end), _written(end - timedelta(days=off))
    ending = rng.choice(["{}", "It is {}.", "The date is {}.", "That is {}."])
    lines, left = [], span
    for stretch in stretches:
        left -= stretch.days
        lines.append(f"{stretch}, {left} left")
    return Problem(
        question=rng.choice(["What date is {} after {}?", "Which date comes {} after {}?"]).format(
            counted(span, "day"), _written(start)
        ),
        correct=ending.format(result),
        wrong=ending.format(found),
        steps="\n".join(
            [
                f"There are {counted(span, 'day')} to go.",
                *lines,
                f"The date is {result}.",
            ]
        ),
        check_correct=agrees(result),
        check_wrong=differs(found, result, f"It fits a slip in the count: {why}."),
    )


def _between(rng: random.Random, start: date, end: date, stretches: list[_Stretch]) -> Problem:
    at, off, why = _slip(rng, stretches)
    right = [stretch.days for stretch in stretches]
    wrong = [*right[:at], right[at] + off, *right[at + 1 :]]
    ending = rng.choice(["{} days", "It is {} days.", "There are {} days between them."])
    correct, mistaken = ending.format(sum(right)), ending.format(sum(wrong))
    slip = f"It fits a slip in the count: {why}."
    if rng.random() < 0.5:
        correct, mistaken = (_with_count(stretches, days, text) for days, text in ((right, correct), (wrong, mistaken)))
        slip = f"Its line '{stretches[at].name}' is where it slips: {why}."
    return Problem(
        question=rng.choice(
            [
                "How many days is it from {} to {}?",
                "How many days after {} is {}?",
                "How many days lie from {} to {}?",
            ]
        ).format(_written(start), _written(end)),
        correct=correct,
        wrong=mistaken,
        steps="\n".join(
            [
                *map(str, stretches),
                f"Together: {' + '.join(map(str, right))} = {sum(right)} days.",
            ]
        ),
        check_correct=agrees(f"{sum(right)} days"),
        check_wrong=differs(f"{sum(wrong)} days", f"{sum(right)} days", slip),
    )


def _weekday(rng: random.Random, start: date, end: date, stretches: list[_Stretch]) -> Problem:
    span = sum(stretch.days for stretch in stretches)
    _, off, why = _slip(rng, stretches)
    first, result = _WEEKDAYS[start.weekday()], _WEEKDAYS[end.weekday()]
    found = _WEEKDAYS[(end.weekday() + off) % 7]
    ending = rng.choice(["{}", "It is a {}.", f"{_written(end)} falls on a {{}}."])
    correct, mistaken = ending.format(result), ending.format(found)
    slip = f"It fits a slip in the count: {why}."
    if rng.random() < 0.5:
        correct, mistaken = (
            f"{_full_weeks(span)}. {correct}",
            f"{_full_weeks(span + off)}. {mistaken}",
        )
        slip = f"It counts {span + off} days, but there are {span}: {why}."
    days = " + ".join(str(stretch.days) for stretch in stretches)
    return Problem(
        question=f"{_written(start)} is a {first}. "
        + rng.choice(["What day of the week is {}?", "On which day of the week does {} fall?"]).format(_written(end)),
        correct=correct,
        wrong=mistaken,
        steps="\n".join(
            [
                *map(str, stretches),
                f"Together: {days} = {_full_weeks(span)}.",
                f"{first} + {span % 7} is {result}.",
            ]
        ),
        check_correct=agrees(result),
        check_wrong=differs(found, result, slip),
    )


def _written(day: date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _full_weeks(days: int) -> str:
    return f"{days} days = {counted(days // 7, 'week')} and {counted(days % 7, 'day')}"


def _with_count(stretches: list[_Stretch], days: list[int], total: str) -> str:
    return "\n".join(
        [
            *(f"{stretch.name}: {counted(number, 'day')}" for stretch, number in zip(stretches, days, strict=True)),
            total,
        ]
    )


def _stretches(start: date, end: date) -> list[_Stretch]:
    """The time from `start` to `end` in whole years where they fit, otherwise month by month."""
    found, at = [], start
    while at < end:
        to = date(at.year + 1, 1, 1)
        if at.month == at.day == 1 and to <= end:
            found.append(_year(at.year))
        else:
            to = min(date(at.year + at.month // 12, at.month % 12 + 1, 1), end)
            found.append(_month(at, to))
        at = to
    return found


def _year(year: int) -> _Stretch:
    if isleap(year):
        return _Stretch(
            f"all of {year}, a leap year",
            366,
            (-1, f"{year} is a leap year and has 366 days, not 365"),
        )
    return _Stretch(
        f"all of {year}",
        365,
        (1, f"{year} is not a leap year and has 365 days, not 366"),
    )


def _month(at: date, to: date) -> _Stretch:
    name, days = f"from {_written(at)} to {_written(to)}", (to - at).days
    length = monthrange(at.year, at.month)[1]
    if to.day > 1:
        return _Stretch(name, days)
    taken_for = {28: 29, 29: 28, 30: 31, 31: 30}[length]
    month = f"{_MONTHS[at.month - 1]} {at.year}"
    return _Stretch(name, days, (taken_for - length, f"{month} has {length} days, not {taken_for}"))


def _slip(rng: random.Random, stretches: list[_Stretch]) -> tuple[int, int, str]:
    """The part that is counted wrong, the error in days (1 or -1, equally often), and the explanation."""
    off = rng.choice([-1, 1])
    common = [place for place, stretch in enumerate(stretches) if stretch.common_slip[0] == off]
    # Leap years are the most common mistake.
    leaps = [
        place for place in common if "leap" in stretches[place].name or "February" in stretches[place].common_slip[1]
    ]
    at = rng.choice(leaps or common or range(len(stretches)))
    stretch = stretches[at]
    if at in common:
        return at, off, stretch.common_slip[1]
    return (
        at,
        off,
        f"{stretch.name} it is {counted(stretch.days, 'day')}, not {stretch.days + off}",
    )
