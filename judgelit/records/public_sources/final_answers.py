"""The final answer in a solution, and whether two final answers are the same.

Two ways to write one formula may count as different answers. Ways to write one number, percent signs, units and LaTeX's
spacing do not matter.
"""

import re
from fractions import Fraction

_MARKED = (
    re.compile(r"####[ \t]*([^\n]+)"),
    re.compile(r"^#+ *Answer[ \t]*\n+[ \t]*([^\n]+)", re.MULTILINE),
    re.compile(r"^[ \t]*A:[ \t]*([^\n]+)", re.MULTILINE),
    re.compile(r"(?:final\s+)?answer\s*(?:is|:|=)[\s:]*\**\s*([^\n]+?)(?:\.(?=\s|$)|\n|$)", re.IGNORECASE),
)
"""How solutions mark their final answer, besides a box."""
_NUMBER = re.compile(r"-?\$?-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}")
_PLAIN = re.compile(r"(-?\d*\.?\d+)(?:/(\d+))?")
_LETTERS = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")
_DROPPED = (r"\left", r"\right", r"\!", r"\,", r"\;", r"\:", r"\ ", "~", r"\$", "$", r"\%", "%", "^\\circ", "^{\\circ}")
_LONGEST = 10_000
"""Characters at the end of a solution in which its answer is looked for. Solutions are hostile text."""


def final_answer(solution: str, *, last_number: bool) -> str | None:
    """The final answer of a solution: what stands in its last box, or after its last mark such as `####`; or None.

    Args:
        solution: The text.
        last_number: Take the last number if there is no box and no mark.
    """
    text = solution[-_LONGEST:]
    if (boxed := _last_box(text)) is not None:
        return boxed
    for mark in _MARKED:
        if found := mark.findall(text):
            return str(found[-1]).strip()
    numbers = _NUMBER.findall(text) if last_number else []
    return str(numbers[-1]) if numbers else None


def same_answer(one: str, other: str) -> bool:
    """Whether two final answers are equal as numbers or, cautiously normalised, as texts."""
    first, second = _normal(one), _normal(other)
    numbers = _value(first), _value(second)
    return first == second or (numbers[0] is not None and numbers[0] == numbers[1])


def _last_box(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` whose braces close."""
    opened: list[int] = []
    last = None
    for index, character in enumerate(text):
        if character == "{":
            opened.append(index)
        elif character == "}" and opened:
            begin = opened.pop()
            if text[max(begin - 20, 0) : begin].rstrip().endswith("\\boxed"):
                last = text[begin + 1 : index].strip()
    return last


def _normal(answer: str) -> str:
    text = answer.strip().strip("*").rstrip(".").strip()
    if text.startswith("\\(") and text.endswith("\\)"):
        text = text[2:-2]
    # A unit comes after the number; an answer that is a word stands alone.
    words = _LETTERS.sub("", text).strip()
    text = words if any(character.isdigit() for character in words) else _LETTERS.sub(r"\1", text)
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = text.replace("dfrac", "frac").replace("tfrac", "frac").replace("{,}", ",")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", "".join(text.split()))
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = _GROUPED.sub("", text) if _is_grouped_number(text) else text
    text = re.sub(r"^[a-zA-Z]=", "", text)
    number = re.fullmatch(r"(-?[\d./]+)[a-zA-Z]+", text)
    return number[1] if number else text.strip("()") if len(text) == 3 and text[0] == "(" else text


def _is_grouped_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?[a-zA-Z]*", text) is not None


def _value(text: str) -> Fraction | None:
    """The number that a normalised answer is, or None."""
    if len(text) > 50:
        return None
    if fraction := _FRACTION.fullmatch(text):
        sign, top, bottom = fraction.groups()
        return Fraction(int(f"{sign}1") * int(top), int(bottom)) if int(bottom) else None
    plain = _PLAIN.fullmatch(text)
    if plain is None or (plain[2] and not int(plain[2])):
        return None
    return Fraction(plain[1]) / Fraction(int(plain[2] or 1))
