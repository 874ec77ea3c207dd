import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.records.records import PreferencePair
from judgelit.synthesis.duplicates import drop_near_duplicates, near_duplicates, shingles, similarity
from judgelit.synthesis.question_words import words

LONG = (
    "Please explain to a child of seven years why the sky looks blue at noon and red in the evening, in short sentences"
)


def pair(name: str, question: str, a: str = "yes", b: str = "no") -> PreferencePair:
    return PreferencePair(name, question, a, b, "A")


few_words = st.lists(st.sampled_from("abc"), min_size=0, max_size=9).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(few_words, max_size=25), st.sampled_from([0.3, 0.55, 0.8, 1.0]), st.integers(0, 2))
def test_exactly_the_near_ones_are_dropped(texts: list[str], threshold: float, seed: int) -> None:
    questions = {f"q{n}": text for n, text in enumerate(texts)}
    dropped = near_duplicates(questions, threshold, seed)
    grams = {key: shingles(text) for key, text in questions.items()}

    def near(one: str, other: str) -> bool:
        return bool(grams[one]) and similarity(grams[one], grams[other]) >= threshold - 1e-9

    kept = [key for key in questions if key not in dropped]
    assert not any(near(one, other) for one, other in itertools.combinations(kept, 2))
    assert all(near(key, other) and other in kept for key, other in dropped.items())
    # The sequence in which they come does not matter.
    assert near_duplicates(dict(reversed(questions.items())), threshold, seed) == dropped


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (LONG, LONG.upper().replace(",", " -").replace("-", ""), True),
        (LONG, f"{LONG}!!", True),
        (LONG, LONG.replace("sky", "sea"), False),
        (f"{LONG}. {LONG[7:]} {LONG[15:]}", f"{LONG}. {LONG[7:]} {LONG[15:]} thanks", True),
        ("23+3=?", "23-3=?", False),
        ("23+3=?", "23 + 3 = ?", True),
        (
            "请用简单的语言向七岁的孩子解释天空为什么在中午是蓝色的",
            "请用简单的语言向七岁的孩子解释，天空为什么在中午是蓝色的？",
            True,
        ),
        ("请解释天空为什么是蓝色", "请解释大海为什么是蓝色", False),
        ("??", "!!", False),
    ],
)
def test_what_is_near(one: str, other: str, near: bool) -> None:
    assert (len(near_duplicates({"one": one, "other": other}, 0.8)) == 1) is near


def test_pairs_of_one_question_stay_and_repeated_ones_go() -> None:
    pairs = [
        pair("a", LONG),
        pair("b", LONG, "yes", "perhaps"),
        pair("again", LONG, "no", "yes"),
        pair("near", f"{LONG}?!"),
        pair("other", "What is it?"),
    ]
    kept, repeated, near = drop_near_duplicates(pairs, 0.8, 0)
    names = {one.id for one in kept}
    # The question with a mark more has the same key of words, and either it or the other one stays whole.
    assert (repeated, near) in [(1, 1), (1, 2)] and len(kept) == 5 - repeated - near
    assert "other" in names and (names & {"a", "again"} and "b" in names) != ("near" in names)
    assert kept == [one for one in pairs if one.id in names]
    for seed in range(3):
        again = drop_near_duplicates(pairs[::-1], 0.8, seed)[0]
        assert {one.id for one in again} == {one.id for one in drop_near_duplicates(pairs, 0.8, seed)[0]}


def test_ten_thousand_questions_take_seconds() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{n}" for n in range(3000)]
    frame = "Read the following text with care and answer in one sentence"
    questions = {}
    for n in range(5000):
        text = f"{frame}: {' '.join(draw.choices(vocabulary, k=30))}"
        questions[f"q{n}"] = text
        questions[f"near{n}"] = (
            text.replace("care", "great care") if n % 2 else " ".join(draw.choices(vocabulary, k=12))
        )
    began = time.perf_counter()
    dropped = near_duplicates(questions, 0.7)
    assert len(dropped) == 2500
    assert time.perf_counter() - began < 30


def test_words_ignore_case_width_and_punctuation() -> None:
    assert words("Ｈello, WORLD! 你好 3.5") == ["hello", "world", "你", "好", "3", "5"]
    assert words("f(x)=2", signs=True) == ["f", "(", "x", ")", "=", "2"]
    assert words("\ud800?") == [] or words("\ud800?") == ["\ud800"]
