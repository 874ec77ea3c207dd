"""Read the verdict of a judgment, without guessing.

`parse` applies these rules in this order:

1. **Form.** A verdict is `[[A]]`, `[[B]]` or, for a tie, `[[C]]` or `[[tie]]`, in any case, with spaces or emphasis
   inside. `\\[\\[A\\]\\]`, full-width `［［Ａ］］` and `【【A】】` are the same. The text around it does not matter:
   bold, `\\boxed{}`, a third bracket, any script. `[A]`, `[[AB]]`, `[[A/B]]`, `[ [A] ]` and similar letters of other
   scripts are not verdicts.
2. **Reasoning.** Only the text after the last `</think>`, `</thinking>` or `</reasoning>` counts. If such a block is
   still open at the end, there is no verdict. A tag directly between quotation marks is not a tag.
3. **Quotation.** Fenced code, lines that begin with `>`, `<answer>`-like and `<quote>`-like elements, inline code and
   text in quotation marks are quotations, and verdicts inside them do not count. A fence or element that never closes
   reaches to the end of the text, inline code or a quotation mark to the end of its line. A single quotation mark that
   does not close on its line is an apostrophe. One exception: a line that holds only a quoted verdict, perhaps after
   a lead-in such as `Final verdict:`, counts, unless the whole line is in a fence, a `>` quotation or an element.
4. **The last verdict.** All verdicts of the last sentence with a verdict must agree, together with earlier ones that
   only space, punctuation or a word such as "or" separates from it; otherwise there is no verdict. A new line begins
   a new sentence.

Every step takes time linear in the length of the text: repetitions do not backtrack (`*+`, `++`).
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import pairwise

from judgelit.records.records import Label

_LABELS: dict[str, Label] = {"a": "A", "b": "B", "c": "tie", "tie": "tie"}

# Character by character: normalising the whole text would take quadratic time in a run of combining marks. Verdicts are
# written in full-width and mathematical (bold, italic) letters; other compatibility forms do not occur.
_FOLDED = (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D6A4))
_FOLD = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in _FOLDED},
    **{ord("【"): "[", ord("】"): "]"},
    **dict.fromkeys(map(ord, "\r\v\f\x85\u2028\u2029"), "\n"),
}

_PAD = r"(?:[^\S\n]|[*_\u200b-\u200f\u2060-\u2069\ufeff])*+"  # space, emphasis, direction marks
_VERDICT = rf"(?:\[\[|\\\[\\\[){_PAD}(?P<label>[AaBbCc]|[Tt][Ii][Ee]){_PAD}(?:\]\]|\\\]\\\])"
_FIND_VERDICT = re.compile(_VERDICT)

# Reasoning, fences, block quotes and elements.
_MENTIONED = r"(?<=[`\"'“‘「])<[^<>\n]*+>(?=[`\"'”’」])"
_REASONING_TAG = re.compile(rf"(?!{_MENTIONED})<(?P<end>/?)(?:think|thinking|reasoning)[^\S\n]*+>", re.I)
_ELEMENT = r"(?:answer|response|assistant)[\w-]*+|quoted?|blockquote|q|code|pre"
_ELEMENT_TAG = re.compile(rf"(?!{_MENTIONED})<(?P<end>/?)(?:{_ELEMENT})(?:\s[^<>\n]*+)?>", re.I)
_LINE_START = r"[^\S\n]*+(?:(?:[-*+]|\d{1,3}[.)])[^\S\n]++)?+"  # A list item may hold a fence or a block quote.
_FENCE = re.compile(rf"^{_LINE_START}(?P<run>```++|~~~++)(?P<info>[^\n]*+)", re.M)
_BLOCK_QUOTE = re.compile(rf"^{_LINE_START}>[^\n]*+(?:\n{_LINE_START}>[^\n]*+)*+", re.M)

# Inline code and quotation marks. A straight mark directly after a letter is an apostrophe, an inch sign or a closing
# mark, unless a verdict follows directly (or a word, for a double mark outside Hebrew). Scripts from U+0800 on put no
# space before a quotation.
_NO_LETTER = r"(?<![^\W_\u0800-\U0010ffff])"
_OPENING = re.compile(
    rf"(?P<mark>[“”„«»‹›「『｢〝]|{_NO_LETTER}\"|\"(?=[^\W\u0590-\u05ff]|\\?\[)"
    rf"|‘(?=\S)|{_NO_LETTER}'(?=\S)|'(?=\\?\[))"
    r"|(?P<ticks>`++)(?:[^\n]*?(?<!`)(?P=ticks)(?!`)|[^\n]*+)"
)
_PAIRS = ('""', "“”", "””", "«»", "»«", "‹›", "›‹", "「」", "『』", "｢｣", "〝〞")
_SINGLE = "'‘"
_CLOSING = {
    **{pair[0]: re.compile(pair[1]) for pair in _PAIRS},
    "„": re.compile("[“”]"),
    **{mark: re.compile(r"(?<=\S)['’](?!\w)") for mark in _SINGLE},
    "\n": re.compile(r"\n|\Z"),
}
_QUOTED = " quoted "  # Takes the place of a quotation. It is a word, so it still separates two verdicts.

# A line that holds only a quoted verdict.
_LEAD_IN = (
    r"(?:(?:so|thus|hence|therefore|my|the|final|overall)\b[\s,]*+)*+"
    r"(?:verdict|judge?ment|decision|conclusion|winner|result|choice|(?<=final )answer)(?:\s+is)?+"
    r"|(?:因此|所以|综上(?:所述)?+)?+,?(?:我的)?+(?:最终|最后|综合)?+"
    r"(?:判决|裁决|判定|判断|评判|结论|结果|选择|答案)(?:结果)?+(?:是|为)?+"
)
_MARKS = "\"'`“”„«»‹›「」『』｢｣〝〞‘’"
_PLAIN = rf"(?:[^\w\n\[\]\\<{_MARKS}]|_)*+"  # Decoration and punctuation.
_ALONE = re.compile(
    rf"^(?P<head>{_PLAIN}(?:(?:{_LEAD_IN}){_PLAIN})?+)(?:[{_MARKS}]++|<\w++>)"
    rf"(?P<verdict>{_PLAIN}{_VERDICT}{_PLAIN})(?:[{_MARKS}]++|</\w++>)(?P<tail>{_PLAIN})$",
    re.M | re.I,
)

# The line of the verdict, and the text that may precede the verdict on it.
_AT_LINE_END = re.compile(rf"{_VERDICT}[^\w\n]*+\n\s*+\Z")
_CONCLUDING = (
    r"(?:so|thus|hence|therefore|overall|finally|accordingly|consequently|in (?:conclusion|summary)|to conclude"
    r"|(?:my |the )?final)\b|因此|所以|综上|总之|最终"
)
_BEFORE = re.compile(rf"{_PLAIN}(?:(?:{_CONCLUDING})[^\n]*+|(?:(?:{_LEAD_IN}){_PLAIN})?+)", re.I)
_ALL_CLOSING = "".join(sorted({pair[1] for pair in _PAIRS}))

# Text between two verdicts.
_SENTENCE_END = re.compile(r"[!?。؟।…\n]|\.(?=[\s\"'”’)*_])")
_MERE_LINK = re.compile(r"(?:\\[a-z]++|</?[a-z]++>|\b(?:and|or|vs|versus)\b|或者?|和|与|还是|[\W_])*+", re.I)


def parse(text: str) -> Label | None:
    """The last verdict after the reasoning and outside quotations, or None if there is none or two disagree.

    The docstring of this module has the rules. Takes any text and never raises.
    """
    own = _own_words(_after_reasoning(text.translate(_FOLD)))
    found = list(_FIND_VERDICT.finditer(own))
    gaps = [own[one.end() : other.start()] for one, other in pairwise(found)]
    first = len(gaps)
    while first and not _SENTENCE_END.search(gaps[first - 1]):
        first -= 1
    while first and _MERE_LINK.fullmatch(gaps[first - 1]):
        first -= 1
    final = {_LABELS[verdict["label"].lower()] for verdict in found[first:]}
    return final.pop() if len(final) == 1 else None


def concludes(text: str) -> bool:
    """Whether `text` has just ended the line of its verdict, so that generation can stop.

    That line holds only the verdict, perhaps after a lead-in such as `Final verdict:`, or it begins like a conclusion
    (`Therefore`, `My final`). A verdict at the end of another line may be one of several, one for each criterion. A
    text does not conclude inside reasoning, or if a closing quotation mark could still turn the verdict into a
    quotation.
    """
    if not ends_line(text):
        return False
    own = _own_words(_after_reasoning(text.translate(_FOLD))).rstrip() + "\n"
    said = _AT_LINE_END.search(own)
    if said is None or not _BEFORE.fullmatch(own, own.rfind("\n", 0, said.start()) + 1, said.start()):
        return False
    label = parse(text)
    return label is not None and parse(text + _ALL_CLOSING) == label


def ends_line(text: str) -> bool:
    """Whether `text` has just ended a line that has a verdict at its end, quoted or not."""
    return _AT_LINE_END.search(text.translate(_FOLD)) is not None


def reasons(text: str) -> bool:
    """Whether a reasoning block is open at the end of `text`."""
    tags = [*_REASONING_TAG.finditer(text.translate(_FOLD))]
    return bool(tags) and not tags[-1]["end"]


def _after_reasoning(text: str) -> str:
    start, thinking = 0, False
    for tag in _REASONING_TAG.finditer(text):
        start, thinking = tag.end(), not tag["end"]
    return "" if thinking else text[start:]


def _own_words(text: str) -> str:
    """`text` without its quotations."""
    text = _without(text, _fences(text))
    text = _BLOCK_QUOTE.sub(_QUOTED, text)
    text = _ALONE.sub(r"\g<head>\g<verdict>\g<tail>", text)
    text = _without(text, _elements(text))
    return _without(text, _quotations(text))


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    kept, at = [], 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return _QUOTED.join([*kept, text[at:]])


def _fences(text: str) -> Iterator[tuple[int, int]]:
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        if opened is None:
            if line["run"][0] == "~" or "`" not in line["info"]:  # Otherwise it is inline code.
                opened = line
        elif line["run"].startswith(opened["run"]) and not line["info"].strip():
            yield opened.start(), line.end()
            opened = None
    if opened is not None:
        yield opened.start(), len(text)


def _elements(text: str) -> Iterator[tuple[int, int]]:
    start = depth = 0
    for tag in _ELEMENT_TAG.finditer(text):
        if not tag["end"]:
            start = start if depth else tag.start()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                yield start, tag.end()
    if depth:
        yield start, len(text)


def _quotations(text: str) -> Iterator[tuple[int, int]]:
    nearest: dict[str, int] = {}

    def closed(mark: str, at: int) -> int:
        """End of the next closing mark. The last result is kept, because searching each time would be quadratic."""
        if nearest.get(mark, -1) < at:
            found = _CLOSING[mark].search(text, at)
            nearest[mark] = found.end() if found else len(text) + 1
        return nearest[mark]

    at = 0
    while opened := _OPENING.search(text, at):
        at, mark = opened.end(), opened["mark"]
        if mark is not None:
            end = closed(mark, at)
            if mark in _SINGLE and end > closed("\n", at):
                continue
            at = end if end <= len(text) else closed("\n", at)
        yield opened.start(), at
