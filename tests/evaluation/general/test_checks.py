import random
import re
from itertools import combinations

import pytest

from judgelit.evaluation.general.checks import KINDS, Check


def make(kind: str, text: str) -> Check:
    """The instruction of this kind whose text matches a pattern."""
    drawn = (KINDS[kind].make(random.Random(seed)) for seed in range(2000))
    return next(check for check in drawn if re.fullmatch(text, check.text))


@pytest.mark.parametrize(
    ("kind", "text", "followed", "broken"),
    [
        ("most_words", "Use at most 40 words.", ["word " * 40, "one"], ["word " * 41]),
        ("least_words", "Use at least 40 words.", ["word\n" * 40], ["word " * 39]),
        (
            "sentences",
            "Write exactly 2 sentences.",
            ["It is 3.5 cm. Is it?", 'He said: "No!" Then he left...', "One.\nTwo!"],
            ["One.", "One. Two. Three.", "no end", "a.b.c"],
        ),
        (
            "paragraphs",
            "Write exactly 2 paragraphs, with an empty line between them.",
            ["a\nb\n\nc", "a\n \n\nb\n", "\n\na\n\nb"],
            ["a\nb", "a\n\nb\n\nc"],
        ),
        (
            "bullets",
            "Write exactly 2 bullet points.*",
            ["- a\n- b", "Look:\n- a\n  - b"],
            ["- a", "-a\n-b", "* a\n* b"],
        ),
        (
            "numbered",
            "Write a numbered list of exactly 3 items.*",
            ["1. a\n2. b\n3. c", "List:\n 1. a\n\n 2. b\n 3. c\nThat is it."],
            ["1. a\n2. b", "1. a\n2. b\n3. c\n4. d", "1. a\n3. b\n2. c", "1) a\n2) b\n3) c"],
        ),
        (
            "two_versions",
            ".* the line ###### between them.",
            ["a\n######\nb", "a\n  ######  \nb"],
            ["a\n######\na", "a ###### b", "a\n######\n", "a\n######\nb\n######\nc"],
        ),
        ("has_word", "Use the word 'home' at least 2 times.", ["Home, home", "home-home"], ["home", "homely homes"]),
        ("has_word", "Use the word 'home' at least once.", ["at home."], ["homeless"]),
        ("lacks_word", "Do not use the word 'very'.", ["everything"], ["Very good", "not very."]),
        ("lacks_letter", "Use no word that has the letter 'z'.", ["a lion"], ["Zoo", "a lazy day"]),
        ("no_comma", ".*comma.", ["a; b"], ["a, b"]),
        ("no_digit", ".*digit.", ["two"], ["2", "two²"]),
        ("exclamations", "Use exactly one exclamation mark.", ["Oh!"], ["Oh", "Oh!!"]),
        (
            "placeholders",
            "Use at least 2 placeholders.*",
            ["[name] and [the place]"],
            ["[name]", "[] []", "[a\nb] [c]"],
        ),
        ("lower", ".*", ["all small. 1"], ["One"]),
        ("upper", ".*", ["ALL. 1"], ["ONE two"]),
        ("title", ".*", ["A TITLE\ntext", "\nA TITLE: 2\n\ntext"], ["A Title\ntext", "A TITLE", "12\ntext"]),
        ("starts", ".*: In short:", ["In short: yes", " In short:"], ["in short: yes", "So. In short:"]),
        ("ends", ".*: Come back soon.", ["Bye. Come back soon.\n"], ["Come back soon. Bye.", "come back soon."]),
        ("question", ".*", ["Who?", "So. Who? \n"], ["Who? Me."]),
        ("quoted", ".*", ['"a b"', "“a”\n"], ['"a', '"', 'he said "a"']),
    ],
)
def test_a_check_knows_what_follows_its_instruction(
    kind: str, text: str, followed: list[str], broken: list[str]
) -> None:
    check = make(kind, text)
    assert [check.followed(answer) for answer in followed] == [True] * len(followed)
    assert [check.followed(answer) for answer in broken] == [False] * len(broken)


def test_json_objects_have_exactly_the_asked_keys() -> None:
    check = make("json", ".* keys 'title', 'year' and 'notes', .*")
    right = '{"year": 1, "title": "a", "notes": null}'
    assert (
        check.followed(right) and check.followed(f"\n```json\n{right}\n```\n") and check.followed(f"```\n{right}\n```")
    )
    wrong = ["", "[1]", "{}", right[:-1], f"Here: {right}", right.replace("null", '0, "more": 1'), "[" * 100_000]
    assert not any(map(check.followed, wrong))


def test_fixed_texts_of_one_kind_do_not_break_another() -> None:
    """A start or an end that one instruction gives must not break an instruction of a kind that may stand beside it."""
    for (name, kind), (other, beside) in combinations(KINDS.items(), 2):
        if kind.about & beside.about or name not in ("starts", "ends", "has_word"):
            continue
        for seed in range(20):
            asked = kind.make(random.Random(seed)).text.rpartition(": ")[2].split("'")
            given = asked[1] if name == "has_word" else asked[0]
            if other.startswith(("lacks", "no")):
                assert beside.make(random.Random(seed + 1)).followed(given)
