"""The words of a question, for comparing questions: without case, width of letters, punctuation and spacing."""

import re
import unicodedata
from collections.abc import Iterator

import xxhash

from judgelit.records.records import PreferencePair

_LETTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts that put no space between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese); each character is a word."""
_WORD = rf"[{_LETTERS}]|(?:(?![{_LETTERS}])[^\W_])+"
_PUNCTUATION = r"""\s.,;:!?"'“”‘’„«»…。，、；：！？「」『』《》"""
_FIND_WORD = re.compile(_WORD)
_FIND_WORD_OR_SIGN = re.compile(rf"{_WORD}|[^{_PUNCTUATION}]")


def words(text: str, signs: bool = False) -> list[str]:
    """The words of a text in their sequence. The time is linear in its length.

    Args:
        text: Any text.
        signs: Return signs such as `+` and `(` too, each as a word, but no punctuation. `2+3` and `2-3` differ in their
            signs alone.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return (_FIND_WORD_OR_SIGN if signs else _FIND_WORD).findall(folded)


def ngrams(tokens: list[str], size: int) -> Iterator[int]:
    """Yield a 64-bit hash of every run of `size` words."""
    for start in range(len(tokens) - size + 1):
        yield xxhash.xxh3_64_intdigest("\x1f".join(tokens[start : start + size]).encode("utf-8", "surrogatepass"))


def conversation_text(pair: PreferencePair, user_only: bool = False) -> str:
    """The question after its earlier turns.

    Args:
        pair: The pair; its answers are not used.
        user_only: Leave out what the system and the assistant said.
    """
    turns = [turn["content"] for turn in pair.context if turn["role"] == "user" or not user_only]
    return "\n".join([*turns, pair.question])
