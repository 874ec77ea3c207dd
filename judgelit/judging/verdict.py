r"""Read the verdict of a judgment, without guessing.

`parse`, `parse_best` and `find` apply four rules:

1. **Form.** A verdict is `[[A]]`, `[[B]]` or, for a tie, `[[C]]` or `[[tie]]`, in any case, with spaces or emphasis
   inside. About four answers (`parse_best`) it is one of `[[A]]` to `[[D]]`, and there is no tie. `\[\[A\]\]`,
   full-width `［［Ａ］］` and `【【A】】` are the same. `[A]`, `[[AB]]`, `[[A/B]]`, `[ [A] ]` and similar letters of
   other scripts are not verdicts.
2. **Own text.** Reasoning (up to the last `</think>`) and quotations do not count. A quotation is a fence, lines that
   begin with `>`, an element such as `<answer_a>` or `<quote>`, inline code, or text in quotation marks. It has a
   beginning and an end; what never closes is no quotation. A quotation is the judge's own if it ends its line after a
   conclusion (`Verdict: "[[A]]"`, `hence "[[A]]"`), or if its verdict ends the text and no unfinished sentence leads
   to it. (`judgelit.judging.quotations` finds them.)
3. **Void.** A verdict is void if its sentence contradicts it:
   - a negation stands directly before it (`not [[A]]`) or follows (`[[A]] is not right`), or `I` deny it (`I refuse to
     output [[A]]`);
   - the sentence asks, or begins with `if` and has the verdict in its first clause or the next one (`If style matters,
     [[A]] wins`), or `would win`, `might` or the like follows;
   - the words before it name the loser (`than [[B]]`, `Worst: [[B]]`) or somebody else's words (`Answer B says [[B]]`).
   The patterns below have the words, in English and Chinese. Other words are not understood: `At first I thought of
   [[A]].` counts.
4. **The last one.** The last verdict that is not void counts. Others of its sentence must agree with it, and others of
   its list (`Accuracy: [[A]]`, next line `Style: [[B]]`) unless its line begins as a conclusion (`Overall: [[B]]`). If
   a denial of the same verdict follows, there is none.

Every step takes time linear in the length of the text: repetitions do not backtrack (`*+`) or are bounded.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Literal, TypeVar

from judgelit.judging.quotations import LETTER, closings, own_text
from judgelit.records.records import Label

L = TypeVar("L", bound=str)

_LABELS: dict[str, Label] = {"a": "A", "b": "B", "c": "tie", "tie": "tie"}
_BEST = {letter.lower(): letter for letter in "ABCD"}
_LAST = 64
"""Verdicts that are read, the last ones; a bound on the time."""
_WINDOW = 300
"""Characters that are read before and after a verdict or quotation; a bound on the time."""

# Character by character: normalising the whole text would take quadratic time in a run of combining marks. Verdicts are
# written in full-width and mathematical (bold, italic) letters; other compatibility forms do not occur.
_FOLDED = (*range(0xFF01, 0xFF5F), *range(0x1D400, 0x1D6A4))
_FOLD = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in _FOLDED},
    **{ord("【"): "[", ord("】"): "]"},
    **dict.fromkeys(map(ord, "\r\v\f\x85\u2028\u2029"), "\n"),
}

_PAD = r"(?:[^\S\n]|[*_\u200b-\u200f\u2060-\u2069\ufeff])*+"  # space, emphasis, direction marks
_VERDICT = rf"(?:\[\[|\\\[\\\[){_PAD}(?P<label>[A-Da-d]|[Tt][Ii][Ee]){_PAD}(?:\]\]|\\\]\\\])"
_FIND_VERDICT = re.compile(_VERDICT)
_AT_LINE_END = re.compile(rf"{_VERDICT}(?:</?\w++>|[^\w\n]|_)*+\n\s*+\Z")
_ENDS_QUOTATION = re.compile(rf"{_VERDICT}(?:</?\w++>|\W|_)*+\Z")
_SENTENCE_END = re.compile(r"[!?。؟।…\n]|\.(?=[\s\"'”’)*_])|(?=\bfinal verdict\b)", re.I)
_BLANK = re.compile(r"[\W_]*+\Z")
_REST_OF_LINE = re.compile(r"(?:[^\w\n]|_)*+$", re.M)
_CONCLUSION = re.compile(
    r"(?:[^\w\n\[]|_)*+(?:(?:and|in|my|the|our|revised)\b(?:[^\w\n]|_)*+)*+"
    r"(?:(?:so|therefore|thus|hence|overall|finally|accordingly|consequently|final|verdict|judge?ment|decision"
    r"|conclusion|summary|winner|result|choice|(?:better|best) (?:answer|response|assistant)|to conclude|all in all)\b"
    r"|因此|所以|综上|总之|最终|(?:我的)?(?:判决|裁决|判定|判断|结论|结果|选择|答案))",
    re.I,
)
_SPEAKER = r"\b[a-d] (?:says|said|writes|wrote|claims|claimed|contains|ends with)\b|声称|写道"
_OTHER = re.compile(rf"{_SPEAKER}|according to", re.I)
_SO = re.compile(r"\b(?:so|thus|hence|therefore|I)\b")

# Words that make a verdict void: those before it end at the verdict, those after it begin there.
_NOT = r"\b(?:not|\w+n['’]t|never|cannot|neither|nor|refuse|unable|decline|ignore|anything but)\b"
_DENIED_BEFORE = re.compile(
    rf"(?:{_NOT}(?:\s+(?:be|is|it|the|a|my|final|verdict|earlier|to|say|output|choose|pick|select|give))*+"
    r"|(?:不|拒绝|而非|并非)[是选会能应该想要愿认为输出择说]*+)[\s*_(]*+\Z"
    rf"|\b(?:i|we|you)(?:['’]\w+)?(?:\s+\w+){{0,2}}?\s+{_NOT}(?:(?!\b(?:so|but|and|i|we)\b)[^,;:.()])*+\Z",
    re.I,
)
_DENIED_AFTER = re.compile(
    r"\W*(?:is|was|does|would|should)(?:\s+not|n['’]t)\s+(?:be|the|a|my|right|correct|better|win)\b", re.I
)
# The request and what it is for may stand in several clauses, unless a later one is the judge's own.
_REQUEST = (
    r"(?:asks|asked|asking|tells|told|wants|wanted)\b[^,]*"
    r"(?:,(?![^,]*\b(?:i|me|we|us|so|thus|hence|therefore)\b)[^,]*)*\bto \w+"
)
_ANSWERS_VERDICT = (
    r"[a-d]['’]s (?:verdict|judge?ment|decision|conclusion|choice)\b"
    r"(?:[^,;:]*\b(?:is|was|be|being|as|of|that|says|said|reads|states))?"
)
_VOID_BEFORE = re.compile(
    rf"(?:{_SPEAKER}|\b(?:(?<!worse )than|over|beats|outperforms|instead of|between|the string|would have \w+"
    rf"|(?<!\bi )(?<!\bwe )(?:would|might) (?!be\b)\w+|{_REQUEST}"
    rf"|(?:superior|preferable|preferred|compared) (?:to|with)|{_ANSWERS_VERDICT})|优于|胜过|比|\]\]\s*>+"
    r"|(?:\A|[,;(|]|\band\b)\W*(?:see|(?:the )?(?:wors[et]|loser|2nd)(?: answer| one| response)?(?: is)?"
    r"|[更较最]差的是))[\s*_:(]*\Z",
    re.I,
)
_VOID_AFTER = re.compile(
    r"\W*(?:(?:if|means|loses|(?:is|was) (?:the )?(?:worse|wrong)|would (?:have|win|not)|might|could)\b|表示|不如)",
    re.I,
)
_CONDITION = re.compile(r"(?:\W*\w+:)?\W*(?:(?:if|unless)\b(?!\s+(?:i|we)\b)|如果|若)[^,:]*[,:]?[^,:]*", re.I)
_ALTERNATIVES = re.compile(rf"(?:{_VERDICT.replace('?P<label>', '?:')}[\s*_]*(?:and|or)[\s*_]*)++\Z", re.I)
_YES = re.compile(r"\W*(?:yes|是的)", re.I)

# Text between two verdicts of one sentence or list.
_MERE_LINK = re.compile(r"(?:\\[a-z]++|</?[a-z]++>|\b(?:and|or|vs|versus)\b|或者?|和|与|还是|[\W_])*+", re.I)
_LISTED = re.compile(r"[^\w\n]*\n(?P<label>[^\n]{0,60}[:|.)][^\w\n]*)")

# A verdict in any form: in any brackets, or in words.
_NAMED = {
    label: re.compile(
        rf"[\[({{][\W_]{{0,6}}+(?:\\?\w{{1,12}}[\W_]{{0,6}})?(?i:{letter})(?!{LETTER})[^\[\](){{}}\n]{{0,20}}[\])}}]"
        r"|(?i:verdict|winner|choice|decision|judge?ment|conclusion|choose|pick|select|判决|结论|选择|裁决|答案)"
        rf"(?:[\W_]|\b(?:is|the|[Aa]nswer|[Rr]esponse|[Aa]ssistant)\b|[是为回答复]){{0,20}}?{letter}(?!{LETTER})"
        rf"|(?:\b(?i:answer|response|assistant)\s{{1,3}}|回[答复]){letter}(?!{LETTER})[^.\n。]{{0,60}}?"
        r"(?:better|best|\bwins?\b|superior|prefer|correct|\bright\b|更好|更优|更准确|胜)"
    )
    for label, letter in (("A", "A"), ("B", "B"), ("tie", "(?:C|[Tt]ie)"))
}


def parse(text: str) -> Label | None:
    """The last verdict that the judge gives as its own, or None if there is none or two disagree.

    The docstring of this module has the rules. Takes any text and never raises.
    """
    found = find(text)
    return found[0] if found else None


def parse_best(text: str) -> str | None:
    """The last verdict about four answers, "A" to "D", by the rules of `parse`; or None."""
    found = _find(text, _BEST)
    return found[0] if found else None


def find(text: str) -> tuple[Label, int] | None:
    """The verdict that `parse` gives, and the index in `text` of its letter (of the first one in `[[tie]]`)."""
    return _find(text, _LABELS)


def places(text: str) -> list[int]:
    """The indices in `text` of the letters of all verdicts, void ones too, outside of reasoning and quotations."""
    whole = own_text(text.translate(_FOLD), _is_own)
    return [whole.place(one.start("label")) for one in _FIND_VERDICT.finditer(whole.text)]


def _find(text: str, labels: Mapping[str, L]) -> tuple[L, int] | None:
    """The last verdict and the index of its letter; `labels` says what each letter means, others are no verdicts."""
    whole = own_text(text.translate(_FOLD), _is_own)
    own = whole.text
    found = [one for one in _FIND_VERDICT.finditer(own) if one["label"].lower() in labels][-_LAST:]
    last: L | None = None
    place = 0
    denied = set()
    for at in reversed(range(len(found))):
        label = labels[found[at]["label"].lower()]
        sense = _void(own, found[at])
        if sense == "denied" and last is None:
            denied.add(label)
        elif sense is None:
            if label in denied or label != (last or label):
                return None
            if last is None:
                last, place = label, whole.place(found[at].start("label"))
        if last and (at == 0 or not _belong_together(own, found[at - 1], found[at])):
            break
    return (last, place) if last else None


def concludes(text: str) -> bool:
    """Whether `text` has just ended the line of its verdict, so that generation can stop.

    That line holds only the verdict, or it begins as a conclusion (`Final verdict:`, `Therefore`). A verdict at the end
    of another line may be one of several, one for each criterion. A text does not conclude if what follows could still
    turn the verdict into reasoning or a quotation, so no quotation may be open.
    """
    text = text.translate(_FOLD)
    last = _AT_LINE_END.search(text)
    if last is None or find(text) != (_LABELS.get(last["label"].lower()), last.start("label")):
        return False
    own = own_text(text, _is_own).text
    said = _AT_LINE_END.search(own)
    if said is None:
        return False
    before = own[own.rfind("\n", 0, said.start()) + 1 : said.start()]
    if not _BLANK.fullmatch(before) and not _CONCLUSION.match(before):
        return False
    return all(own_text(text + closing, _is_own).text.startswith(own) for closing in closings(text))


def ends_line(text: str) -> bool:
    """Whether `text` has just ended a line that has a verdict at its end, quoted or not."""
    return _AT_LINE_END.search(text.translate(_FOLD)) is not None


def names(text: str, label: Label) -> bool:
    """Whether `text` gives this verdict in any form: quoted, void, in reasoning, as `[A]` or in words."""
    return _NAMED[label].search(text.translate(_FOLD)) is not None


def _void(text: str, said: re.Match[str]) -> Literal["denied", "other"] | None:
    """Whether the sentence of a verdict contradicts it: by a denial, in another way, or not."""
    before, after = text[max(0, said.start() - _WINDOW) : said.start()], text[said.end() : said.end() + _WINDOW]
    before = _ALTERNATIVES.sub("", _SENTENCE_END.split(before)[-1])
    stop = _SENTENCE_END.search(after)
    tail = after[: stop.start()] if stop else after
    if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(tail):
        return "denied"
    asked = stop is not None and stop[0] in ("?", "؟") and not _YES.match(after, stop.end())
    if asked or _VOID_BEFORE.search(before) or _VOID_AFTER.match(tail) or _CONDITION.fullmatch(before):
        return "other"
    return None


def _belong_together(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two neighbouring verdicts are of one sentence, or of one list without a conclusion."""
    gap = text[one.end() : other.start()]
    if not _SENTENCE_END.search(gap) or _MERE_LINK.fullmatch(gap):
        return True
    listed = _LISTED.fullmatch(gap)
    if listed is None:
        return False
    label = text[max(0, one.start() - _WINDOW) : one.start()].split("\n")[-1]
    return not _CONCLUSION.match(listed["label"]) or listed["label"].strip() == label.strip()


def _is_own(text: str, begin: int, end: int) -> bool:
    """Whether the judge speaks in a quotation, by the text before it and its place."""
    if not _FIND_VERDICT.search(text, begin, end) or not _REST_OF_LINE.match(text, end):
        return False
    lines = text[max(0, begin - _WINDOW) : begin].split("\n")
    lead = _SENTENCE_END.split(lines[-1])[-1]
    if _BLANK.fullmatch(lead):
        earlier = [line for line in lines if not _BLANK.fullmatch(line)]
        if not earlier or not earlier[-1].rstrip(" *_").endswith(":"):
            return bool(_ENDS_QUOTATION.search(text, max(begin, end - _WINDOW), end) and _BLANK.match(text, end))
        lead = earlier[-1]
    if _OTHER.search(lead):
        return False
    return bool(_CONCLUSION.match(re.split("[,;]", lead)[-1]) or _SO.search(lead))
