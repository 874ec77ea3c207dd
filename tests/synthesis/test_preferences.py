"""Preferences from verdicts."""

from dataclasses import replace

import pytest

from judgelit.evaluation.votes import vote
from judgelit.records.records import AnswerSet, Label, PreferenceExample, PreferencePair
from judgelit.synthesis.preferences import best_against_worst, pair_preference
from judgelit.synthesis.tournament import Ranking
from tests.support import make_judgment, make_pair


def preference(pair: PreferencePair, ab: Label | None, ba: Label | None) -> PreferenceExample | str:
    verdict = vote([make_judgment(pair.id, "ab", ab), make_judgment(pair.id, "ba", ba)])
    return pair_preference(pair, verdict, "judge")


def chosen(pair: PreferencePair, ab: Label | None, ba: Label | None) -> str:
    found = preference(pair, ab, ba)
    return f"chosen: {found.chosen}" if isinstance(found, PreferenceExample) else found


def test_a_preference_needs_the_same_winner_in_both_orders() -> None:
    pair = make_pair(1, "A", "one", "two")
    assert chosen(pair, "A", "B") == "chosen: one"
    assert chosen(pair, "B", "A") == "chosen: two"
    different: list[tuple[Label | None, Label | None]] = [
        ("A", "A"),
        ("B", "B"),
        ("A", None),
        (None, "B"),
        ("A", "tie"),
    ]
    for verdicts in different:
        assert chosen(pair, *verdicts) == "different winners in the two orders", verdicts
    assert chosen(pair, "tie", "tie") == "a tie"
    assert chosen(pair, None, None) == "no verdict"
    one_order = vote([make_judgment("p1", "ab", "A")])
    assert pair_preference(pair, one_order, "judge") == "different winners in the two orders", "one order is not both"
    assert isinstance(pair_preference(pair, vote([make_judgment("p1", "ab", "A")], False), "judge"), PreferenceExample)
    assert pair_preference(pair, vote([]), "judge") == "too long"


@pytest.mark.parametrize("answers", [("one", "one"), ("one", "one "), ("one", " "), ("", "")])
def test_readers_would_reject_equal_and_blank_answers(answers: tuple[str, str]) -> None:
    assert chosen(make_pair(1, "A", *answers), "A", "B") == "equal or blank answers"


def test_a_preference_has_the_prompt_of_the_policy() -> None:
    turns = ({"role": "system", "content": "be kind"},)
    pair = PreferencePair("p", "why?", "one", "two", "A", context=turns)
    example = preference(pair, "B", "A")
    assert isinstance(example, PreferenceExample)
    assert example.messages == (*turns, {"role": "user", "content": "why?"})
    assert (example.chosen, example.rejected, example.meta["confidence"]) == ("two", "one", 1.0)
    assert PreferenceExample.from_dict(example.to_dict(), "here") == example
    assert example.group == pair.question_key


def test_the_best_answer_against_the_worst() -> None:
    answers = AnswerSet("q", "why?", ("a", "b", "", "c"), ({"role": "system", "content": "s"},))
    ranking = Ranking([2, 1, None, 3], [0.0, 1.0, None, -1.0], [], [], best=1, worst=3, confidence=0.8)
    example = best_against_worst(answers, ranking, "judge")
    assert isinstance(example, PreferenceExample)
    assert (example.chosen, example.rejected, example.meta["confidence"]) == ("b", "c", 0.8)
    assert [turn["role"] for turn in example.messages] == ["system", "user"] and example.group == answers.question_key
    equal = replace(ranking, ranks=[1, 1, None, 1], best=0, worst=0)
    assert best_against_worst(answers, equal, "judge") == "equal scores"
    assert best_against_worst(replace(answers, answers=("a", " ", "a")), ranking, "judge") == "equal or blank answers"


def test_the_best_and_the_worst_must_not_have_met_with_another_result() -> None:
    answers = AnswerSet("q", "why?", ("a", "b", "c"))
    ranking = Ranking([2, 1, 3], [0.0, 1.0, -1.0], [], [], best=1, worst=2, confidence=0.8)

    def found(ab: Label | None, ba: Label | None, first: str = "b", second: str = "c") -> str:
        pair = PreferencePair("p", "why?", first, second, "tie")
        verdict = vote([make_judgment("p", "ab", ab), make_judgment("p", "ba", ba)])
        example = best_against_worst(answers, ranking, "judge", [(pair, verdict)])
        return example.chosen if isinstance(example, PreferenceExample) else example

    assert found("A", "B") == found("B", "A", "c", "b") == "b"
    assert found("A", None) == found("A", "A") == "different winners in the two orders"
    assert (found("tie", "tie"), found("B", "A")) == ("a tie", "won by the worst answer")
    # Another pair of the set decides nothing here.
    assert found("B", "A", "a", "c") == "b"
