"""Bradley-Terry scores against an independent fixed-point iteration, closed forms, and properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from judgelit.evaluation.bradley_terry import Games, bradley_terry, count_wins, ranks, score_answers


def fixed_point(wins: np.ndarray, rounds: int = 20_000) -> np.ndarray:
    """The same scores by the MM iteration (Hunter 2004, Annals of Statistics 32, eq. 3), one answer at a time.

    The fixed answer of strength 1 has played one tied game against every answer.
    """
    strength = [1.0] * len(wins)
    for _ in range(rounds):
        before = list(strength)
        for i in range(len(wins)):
            won, weight = 0.5, 1 / (strength[i] + 1)
            for j in range(len(wins)):
                if i != j:
                    won += wins[i, j]
                    weight += (wins[i, j] + wins[j, i]) / (strength[i] + strength[j])
            strength[i] = won / weight
        if max(abs(math.log(a / b)) for a, b in zip(before, strength, strict=True)) < 1e-13:
            break
    return np.log(strength)


def without_diagonal(wins: np.ndarray) -> np.ndarray:
    return wins * (1 - np.eye(len(wins)))


WINS = st.integers(1, 6).flatmap(
    lambda n: arrays(float, (n, n), elements=st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 7.0]))
)


@settings(max_examples=25, deadline=None)
@given(WINS)
def test_scores_are_those_of_an_independent_method(wins: np.ndarray) -> None:
    wins = without_diagonal(wins)
    assert bradley_terry(wins[None])[0] == pytest.approx(fixed_point(wins), abs=1e-6)


def test_scores_of_several_sets_of_games_are_those_of_each() -> None:
    sets = np.random.default_rng(0).integers(0, 4, size=(5, 4, 4)).astype(float)
    sets = np.stack([without_diagonal(wins) for wins in sets])
    together = bradley_terry(sets)
    assert together == pytest.approx(np.stack([bradley_terry(wins[None])[0] for wins in sets]))


def test_closed_forms() -> None:
    # No games: 0. As many wins as losses: equal. Against a fixed opponent alone, w wins and l losses of two answers
    # that mirror each other give s and -s with (w - (w + l) sigmoid(2s)) + 1/2 - sigmoid(s) = 0.
    assert bradley_terry(np.zeros((1, 3, 3))).tolist() == [[0, 0, 0]]
    assert bradley_terry(np.array([[[0, 3.0], [3.0, 0]]])).tolist() == [[0, 0]]
    ((s, minus_s),) = bradley_terry(np.array([[[0, 5.0], [1.0, 0]]]))
    assert s == pytest.approx(-minus_s)
    assert 5 - 6 / (1 + math.exp(-2 * s)) + 0.5 - 1 / (1 + math.exp(-s)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("games", [1.0, 1e3, 1e7])
def test_an_answer_that_wins_all_has_a_finite_score(games: float) -> None:
    wins = np.triu(np.full((5, 5), games), 1)
    scores = bradley_terry(wins[None])[0]
    assert np.isfinite(scores).all() and (np.diff(scores) < 0).all()
    assert scores == pytest.approx(-scores[::-1], abs=1e-6)


def games_of(outcomes: list[tuple[int, int, float]], judgments: int = 2) -> Games:
    """Each outcome as a match with as many judgments that agree."""
    rows = [(match, *outcome) for match, outcome in enumerate(outcomes) for _ in range(judgments)]
    match, first, second, won = (np.array(column) for column in zip(*rows, strict=True))
    return Games(match, first, second, won.astype(float))


def test_wins_are_counted_by_winner() -> None:
    games = Games(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([1, 1, 2]), np.array([1.0, 0.0, 0.5]))
    wins = count_wins(3, games, np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 2.0]]))
    assert wins[0].tolist() == [[0, 1, 0], [1, 0, 0.5], [0, 0.5, 0]]
    assert wins[1].tolist() == [[0, 3, 0], [0, 0, 1], [0, 1, 0]]


def test_intervals_and_the_best() -> None:
    n = 5
    clear = [(i, j, 1.0) for i in range(n) for j in range(i + 1, n)]
    scores = score_answers(n, games_of(clear))
    assert ranks(scores.score) == [1, 2, 3, 4, 5]
    assert (scores.low <= scores.score).all() and (scores.score <= scores.high).all()
    assert scores.best.sum() == pytest.approx(1) and scores.best[0] > 0.8
    assert score_answers(n, games_of(clear)).low.tolist() == scores.low.tolist(), "the same seed, the same interval"
    # A cycle of three has no best.
    cycle = score_answers(3, games_of([(0, 1, 1.0), (1, 2, 1.0), (0, 2, 0.0)]))
    assert cycle.score == pytest.approx([0, 0, 0], abs=1e-9) and ranks(cycle.score) == [1, 1, 1]
    assert cycle.best == pytest.approx([1 / 3] * 3, abs=0.05)


def test_more_matches_give_narrower_intervals_and_more_judgments_of_a_match_do_not() -> None:
    rng = np.random.default_rng(1)

    def width(matches: int, judgments: int) -> float:
        outcomes = [(0, 1, float(rng.random() < 0.7)) for _ in range(matches)]
        scores = score_answers(2, games_of(outcomes, judgments))
        return float(scores.high[0] - scores.low[0])

    assert width(400, 1) < 0.6 * width(40, 1)
    assert width(40, 10) > 0.8 * width(40, 1)


def test_the_interval_covers_the_score_that_made_the_games() -> None:
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(40):
        outcomes = [(0, 1, float(rng.random() < 1 / (1 + math.exp(-1.0)))) for _ in range(60)]
        scores = score_answers(2, games_of(outcomes, 1), seed=trial)
        covered.append(scores.low[0] <= 0.5 <= scores.high[0])
    assert 0.85 <= np.mean(covered) <= 1.0


def test_without_games_all_are_equal() -> None:
    none = Games(*(np.zeros(0, dtype=int) for _ in range(3)), np.zeros(0))
    scores = score_answers(3, none)
    assert scores.score.tolist() == scores.low.tolist() == scores.high.tolist() == [0, 0, 0]
    assert scores.best == pytest.approx([1 / 3] * 3)
