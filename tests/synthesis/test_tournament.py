"""Tournaments: who meets whom, and what the ranking says."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.synthesis.tournament import Schedule, Tournament, swiss_round
from tests.support import make_judgment


def better_number(pair: PreferencePair) -> list[Judgment]:
    """Judgments in both orders by a judge that prefers the larger number."""
    a_wins = int(pair.answer_a) > int(pair.answer_b)
    return [make_judgment(pair.id, "ab", "A" if a_wins else "B"), make_judgment(pair.id, "ba", "B" if a_wins else "A")]


def play(
    answers: list[str], schedule: Schedule, judge: Any = better_number, seed: int = 0
) -> tuple[Tournament, list[int]]:
    """The tournament, and the number of pairs of each round."""
    tournament = Tournament(AnswerSet("q", "Which?", tuple(answers)), schedule, True, seed)
    sizes = []
    while pairs := tournament.next_round():
        sizes.append(len(pairs))
        for pair in reversed(pairs):
            tournament.record(pair.id, judge(pair))
    return tournament, sizes


def test_a_full_tournament_asks_each_pair_once() -> None:
    tournament, sizes = play(["3", "1", "2"], Schedule())
    assert sizes == [3] and tournament.over
    asked = [(pair.id, pair.answer_a, pair.answer_b) for pair, _, _ in tournament.judged]
    assert asked == [("q/0-1", "3", "1"), ("q/0-2", "3", "2"), ("q/1-2", "1", "2")]
    ranking = tournament.ranking()
    assert ranking.ranks == [1, 3, 2] and (ranking.best, ranking.worst) == (0, 1)
    assert all(low <= score <= high for low, score, high in zip(ranking.low, ranking.scores, ranking.high, strict=True))


def test_equal_answers_are_one_entrant_and_blank_ones_none() -> None:
    tournament, sizes = play([" ", "2", "1", "2 ", "", "3"], Schedule())
    assert sizes == [3] and (tournament.equal, tournament.blank) == (1, 2)
    ranking = tournament.ranking()
    assert ranking.ranks == [None, 2, 3, 2, None, 1]
    assert ranking.scores[1] == ranking.scores[3] and ranking.scores[0] is None and ranking.best == 5


@pytest.mark.parametrize("answers", [["1"], ["1", "1 "], ["", "1"], ["", " "]])
def test_fewer_than_two_different_answers_need_no_judge(answers: list[str]) -> None:
    for schedule in (Schedule(), Schedule("swiss"), Schedule("swiss", 3)):
        tournament, sizes = play(answers, schedule)
        ranking = tournament.ranking()
        assert sizes == [] and tournament.over
        assert ranking.best == (answers.index("1") if "1" in answers else None) == ranking.worst


def test_of_two_answers_the_confidence_is_that_of_their_pair() -> None:
    def judge(pair: PreferencePair) -> list[Judgment]:
        return [replace(judgment, margin=0.5 if judgment.verdict == "A" else -0.5) for judgment in better_number(pair)]

    tournament, _ = play(["1", "2"], Schedule(), judge)
    ranking = tournament.ranking()
    assert ranking.best == 1 and ranking.confidence == pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-6)


def test_ties_are_half_a_win_and_missing_verdicts_none() -> None:
    tied, _ = play(["1", "2", "3"], Schedule(), lambda pair: [make_judgment(pair.id, "ab", "tie")] * 2)
    assert tied.ranking().ranks == [1, 1, 1]
    missing, _ = play(["1", "2"], Schedule(), lambda pair: [make_judgment(pair.id, "ab", None)])
    assert missing.ranking().ranks == [1, 1] and missing.ranking().confidence is None
    too_long, _ = play(["1", "2", "3"], Schedule(), lambda pair: [])
    assert too_long.ranking().ranks == [1, 1, 1]


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 20), st.integers(0, 5))
def test_a_swiss_tournament_finds_the_best_with_fewer_pairs(answers: int, seed: int) -> None:
    texts = [str(7 * number % 23) for number in range(answers)]
    tournament, sizes = play(texts, Schedule("swiss"), seed=seed)
    ids = [pair.id for pair, _, _ in tournament.judged]
    assert len(ids) == len(set(ids)) == sum(sizes), "no two answers meet twice"
    assert len(sizes) <= math.ceil(math.log2(answers)) + 1 and max(sizes) <= answers // 2
    ranking = tournament.ranking()
    assert ranking.best is not None and texts[ranking.best] == max(texts, key=int)


def test_enough_swiss_rounds_are_a_full_tournament() -> None:
    tournament, sizes = play([str(number) for number in range(6)], Schedule("swiss", 50))
    assert sum(sizes) == 15 and tournament.ranking().ranks == [6, 5, 4, 3, 2, 1]


SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.3, 2.0]), max_size=9)


@given(SCORES, st.data())
def test_a_swiss_round_is_fair(scores: list[float], data: st.DataObject) -> None:
    count = len(scores)
    every = [(one, other) for one in range(count) for other in range(one + 1, count)]
    met = set(data.draw(st.lists(st.sampled_from(every)))) if every else set()
    matches = swiss_round(scores, met, data.draw(st.permutations(range(count))))
    players = [player for match in matches for player in match]
    assert len(players) == len(set(players)) and not met & set(matches) and set(matches) <= set(every)
    sitting_out = set(range(count)) - set(players)
    assert all(match in met for match in every if set(match) <= sitting_out), "who sits out has met the others who do"
    if not met and matches:
        best = max(scores)
        assert best in {scores[player] for player in matches[0]}


def test_neighbours_in_the_ranking_meet() -> None:
    assert swiss_round([0.0, 3.0, 1.0, 2.0], set(), [0, 1, 2, 3]) == [(1, 3), (0, 2)]
    assert swiss_round([0.0, 3.0, 1.0, 2.0], {(1, 3)}, [0, 1, 2, 3]) == [(1, 2), (0, 3)]
    assert swiss_round([0.0] * 4, set(), [2, 0, 3, 1]) == [(1, 3), (0, 2)]


@pytest.mark.parametrize(("kind", "rounds"), [("full", 2), ("swiss", 0), ("swiss", -1)])
def test_senseless_rounds_are_refused(kind: Any, rounds: int) -> None:
    with pytest.raises(UserError, match=f"^rounds: found {rounds}, expected"):
        Schedule(kind, rounds)
