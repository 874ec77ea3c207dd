"""Find the text that is the judge's own: after the reasoning, outside of quotations."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

_Span = tuple[int, int | None, int]
"""Beginning of a quotation, beginning of its words if they may be the judge's own, and its end."""
_Piece = tuple[int, int]
"""Beginning of a piece of text, after a step and before it."""

_MENTIONED = r"(?<=[`\"'“‘「])<[^<>\n]*+>(?=[`\"'”’」])"
_REASONING_TAG = re.compile(rf"(?!{_MENTIONED})<(?P<end>/?)(?:think|thinking|reasoning)[^\S\n]*+>", re.I)
_LINE_START = r"[^\S\n]*+(?:(?:[-*+]|\d{1,3}[.)])[^\S\n]++)?+"  # A list item may hold a fence or a block quote.
_FENCE = re.compile(rf"^{_LINE_START}(?P<run>```++|~~~++)(?P<info>[^\n]*+)", re.M)
_BLOCK_QUOTE = re.compile(rf"^{_LINE_START}>[^\n]*+(?:\n{_LINE_START}>[^\n]*+)*+", re.M)
_TAG = re.compile(
    r"<(?P<end>/?)(?P<name>(?:answer|response|assistant)[\w-]*+|quoted?|blockquote|q|code|pre)(?:\s[^<>\n]*+)?>", re.I
)
_OWN_ELEMENTS = ("answer", "response", "code", "pre")
# A straight mark opens and closes only beside a space or a sign. Scripts from U+0800 on put no space there.
LETTER = r"[^\W_\u0800-\U0010ffff]"
_INLINE = re.compile(
    r"(?<!`)(?P<ticks>`{1,3})(?!`)[^\n]*?(?<!`)(?P=ticks)(?!`)"
    rf"|(?<!{LETTER})\"(?=\S)[^\"]*+(?<=\S)\"(?!{LETTER})"
    rf"|(?<!{LETTER})'(?=\S)(?:[^'\n]|(?<={LETTER})'(?={LETTER}))*+(?<=\S)'(?!{LETTER})"
    rf"|‘(?=\S)(?:[^‘’\n]|(?<={LETTER})’(?={LETTER}))*+’(?!{LETTER})"
    r"|“[^“”]*+”|„[^„“”]*+[“”]|«[^«»]*+»|(?<!\S)»(?=\S)[^«»]*+«|「[^「」]*+」|『[^『』]*+』"
)
_CLOSING_MARKS = ('x" x” x» x」 x』 x', "« x")  # Apart: no » may stand between » and «, which is a quotation too.
_QUOTED = " quoted "  # Takes the place of a quotation. It is a word, so it still separates two verdicts.


@dataclass(frozen=True)
class OwnText:
    """The judge's own text, with the place of each character in the whole text."""

    text: str
    kept: tuple[list[_Piece], ...]
    """The pieces that each step has kept, the first step first."""

    def place(self, own: int) -> int:
        """Index in the whole text of the character with the index `own` in `text`; it must be of no quotation."""
        for pieces in reversed(self.kept):
            start, source = pieces[bisect_right(pieces, own, key=itemgetter(0)) - 1]
            own = source + own - start
        return own


def own_text(text: str, is_own: Callable[[str, int, int], bool]) -> OwnText:
    """`text` after its reasoning, without the quotations of others. It takes time linear in the length of the text.

    Args:
        text: A judgment.
        is_own: Whether the quotation between two places of a text is the judge's own; the others are left out.
    """
    start = end_of_reasoning(text)
    text, steps = text[start:], [[(0, start)]]
    for quotations in (_fences, partial(_marked, _BLOCK_QUOTE), _elements, partial(_marked, _INLINE)):
        kept, at, length = [], 0, 0
        pieces = [(0, 0)]
        for begin, inside, end in quotations(text):
            if begin < at:
                continue
            own = inside is not None and is_own(text, begin, end)
            kept.append(text[at:begin] if own else text[at:begin] + _QUOTED)
            at = inside if inside is not None and own else end
            length += len(kept[-1])
            pieces.append((length, at))
        text = "".join([*kept, text[at:]])
        steps.append(pieces)
    return OwnText(text, tuple(steps))


def reasons(text: str) -> bool:
    """Whether a reasoning block is open at the end of `text`."""
    tags = [*_REASONING_TAG.finditer(text)]
    return bool(tags) and not tags[-1]["end"]


def end_of_reasoning(text: str) -> int:
    """Where the text after the last reasoning block begins: 0 without one, the end of `text` if one is still open."""
    tags = [*_REASONING_TAG.finditer(text)]
    return 0 if not tags else tags[-1].end() if tags[-1]["end"] else len(text)


def without_tags(text: str) -> str:
    """`text` without the tags of reasoning blocks."""
    return _REASONING_TAG.sub("", text).strip()


def closings(text: str) -> Iterator[str]:
    """Texts that close the quotations that are open in `text`. Every open one is closed by one of them.

    A word follows each mark and tag, so that its quotation does not end a line. A fence may be closed or stay open.
    """
    longest = max(map(len, re.findall("`+|~+", text)), default=0)
    fences = "".join(f"{longest * sign}\n" for sign in "`~")
    tags = "".join(f"</{tag['name']}> x" for tag in _TAG.finditer(text))
    for marks in _CLOSING_MARKS:
        yield f"\n{marks}\n{tags}\nx"
        yield f"\n{marks}\n{fences}{tags}\nx"


def _fences(text: str) -> Iterator[_Span]:
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        if opened is None:
            if line["run"][0] == "~" or "`" not in line["info"]:  # Otherwise it is inline code.
                opened = line
        elif line["run"].startswith(opened["run"]) and not line["info"].strip():
            yield opened.start(), opened.end(), line.end()
            opened = None


def _marked(pattern: re.Pattern[str], text: str) -> Iterator[_Span]:
    for found in pattern.finditer(text):
        yield found.start(), found.start() + 1, found.end()


def _elements(text: str) -> Iterator[_Span]:
    opened: dict[str, list[re.Match[str]]] = {}
    spans: list[_Span] = []
    for tag in _TAG.finditer(text):
        name = tag["name"].lower()
        if not tag["end"]:
            opened.setdefault(name, []).append(tag)
        elif opened.get(name):
            start = opened[name].pop()
            spans.append((start.start(), start.end() if name in _OWN_ELEMENTS else None, tag.end()))
    yield from sorted(spans, key=lambda span: span[0])
