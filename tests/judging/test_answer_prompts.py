"""Prompts about answer sets: what they show, how they are shortened, and how their texts are read."""

import time

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.judging.answer_prompts import best_order, best_prompts, parse_rating, rating_prompts
from judgelit.judging.verdict import parse_best
from judgelit.records.records import AnswerSet


def item(name: str = "q", answers: tuple[str, ...] = ("one", "two", "three", "four"), question: str = "?") -> AnswerSet:
    return AnswerSet(name, question, answers, right=(0,))


def test_the_best_is_asked_for_with_all_four_answers_in_the_drawn_order(chatml: ChatTokenizer) -> None:
    items = [item(f"{number}") for number in range(8)]
    prompts, report = best_prompts(items, {}, chatml, 10_000)
    assert [prompt.order for prompt in prompts] == [best_order(one.id) for one in items]
    for prompt in prompts:
        shown = [["one", "two", "three", "four"]["abcd".index(letter)] for letter in prompt.order]
        text = prompt.messages[0]["content"]
        places = [text.index(f"[Answer {name}]\n{answer}\n[End of") for name, answer in zip("ABCD", shown, strict=True)]
        assert places == sorted(places) and text.endswith(
            "[[A]], [[B]], [[C]] or [[D]], the letter of the best answer."
        )
    assert (report.prompts, report.shortened, report.skipped) == (8, 0, ())
    assert "judge templates show two answers, so the built-in prompt 'best-of-four' was asked with" in str(report)


def test_each_answer_is_rated_alone(chatml: ChatTokenizer) -> None:
    prompts, report = rating_prompts([item(answers=("one", "two"))], {}, chatml, 10_000)
    assert [prompt.order for prompt in prompts] == ["a", "b"] and report.prompts == 2
    first, second = (prompt.messages[0]["content"] for prompt in prompts)
    assert "[Answer]\none\n[End of Answer]" in first and "two" not in first.replace("two)", "")
    assert "[Answer]\ntwo\n[End of Answer]" in second


def test_long_answers_lose_their_middle_at_one_limit_and_a_long_question_is_skipped(chatml: ChatTokenizer) -> None:
    long = item("long", ("start " + "x" * 3000 + " end", "y" * 3000, "short", "z" * 3000))
    whole = chatml.count(best_prompts([item()], {}, chatml, 100_000)[0][0].messages)
    prompts, report = best_prompts([item(), long], {}, chatml, whole + 600)
    assert (report.prompts, report.shortened) == (2, 1)
    text = prompts[1].messages[0]["content"]
    assert chatml.count(prompts[1].messages) <= whole + 600
    assert text.count("characters left out ...]") == 3 and "\nshort\n" in text
    assert len({text.count(letter * 20) for letter in "yz"}) == 1
    for make in (best_prompts, rating_prompts):
        prompts, report = make([item("huge", question="why " * 5000)], {}, chatml, whole + 600)
        assert (prompts, report.skipped) == ([], ("huge",))


def test_earlier_turns_are_refused(chatml: ChatTokenizer) -> None:
    with_turns = AnswerSet("q", "?", ("a", "b"), context=({"role": "user", "content": "before"},))
    with pytest.raises(UserError, match="q: found earlier turns, expected a question without any"):
        rating_prompts([with_turns], {}, chatml, 1000)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good.\n\n[[7]]", "7"),
        ("Rating: [[10]]", "10"),
        ("Accuracy [[3]]. Overall:\n**[[ 4 ]]**.", "4"),
        ("Good.\n\n9", "9"),
        ("Final rating: **8/10**", "8"),
        ("My score is 2.", "2"),
        ("<think>[[3]]</think>\nRating: `[[5]]`", "5"),
        ('The answer says "[[10]]", which is no reason.\n[[2]]', "2"),
        ('It ends with "[[10]]"', None),
        ("> [[10]]\nI do not follow that.", None),
        ("<think>[[3]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[7.5]]", None),
        ("Rating: 7.5", None),
        ("Rating: -5", None),
        ("It has 7 errors", None),
        ("There are 10", None),
        ("[[A]]", None),
        ("", None),
    ],
)
def test_ratings(text: str, rating: str | None) -> None:
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("[[D]]", "D"),
        ("C is wrong.\n\n[[C]]", "C"),
        ("Final verdict: **[[c]]**", "C"),
        ('Answer D says "[[D]]", so: [[B]]', "B"),
        ("Answer C claims [[C]]. Final verdict: [[A]]", "A"),
        ("> [[D]]\nno verdict", None),
        ("It is not [[D]].", None),
        ("[[A]] and [[D]]", None),
        ("Best: [[D]], then [[A]]", None),
        ("[[tie]]", None),
        ("[[E]]", None),
        ("<think>[[A]]</think>[[D]]", "D"),
        ("", None),
    ],
)
def test_verdicts_about_four_answers(text: str, verdict: str | None) -> None:
    assert parse_best(text) == verdict


@pytest.mark.parametrize("text", ["[[1]] " * 50_000, '"[[1]]"\n' * 30_000, "rating " * 50_000, " " * 200_000 + "7"])
def test_long_texts_take_little_time(text: str) -> None:
    start = time.perf_counter()
    parse_rating(text)
    assert time.perf_counter() - start < 2
