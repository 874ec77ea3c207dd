"""Scores of answers from comparisons of two: the Bradley-Terry model, with bootstrap intervals.

In the model (Bradley & Terry 1952, Biometrika 39), answer i wins against j with probability sigmoid(s_i - s_j). Scores
are log-odds; times 173.7 they are Elo points.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
NUMBERS_AT_ONCE = 4_000_000
"""Numbers held in memory at once during the bootstrap: 32 MB."""
_STEPS = 200
_TOLERANCE = 1e-5
"""Longest last step; the error after it is about its square."""
DIGITS = 6
"""Scores that are equal to so many decimals are equal: the rest is rounding."""


class Games(NamedTuple):
    """Judged comparisons of N answers; each array has one value for each of G judgments that have a verdict."""

    match: np.ndarray
    """[G] int64: the number of the match. Judgments of a match are about the same two answers."""
    first: np.ndarray
    """[G] int64: one answer, between 0 and N."""
    second: np.ndarray
    """[G] int64: the other answer."""
    won: np.ndarray
    """[G] float64: 1 if the first answer won, 0 if the second did, 0.5 for a tie."""


class Scores(NamedTuple):
    """Scores of N answers, 95% intervals, and the probability of each to be the best; each [N] float64."""

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: np.ndarray


def bradley_terry(wins: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """The scores that are most probable after some games, for R sets of games at once.

    Each answer is also given half a win and half a loss against a fixed answer of score 0. So the scores exist and are
    unique for any games: an answer that has won all its games has a finite score, and one without games has score 0.

    Newton's method with the damped step of Sun & Tran-Dinh (2019, Math. Programming 178, eq. 19) for logistic terms,
    which converges from any point.

    Args:
        wins: [R, N, N] float64. wins[r, i, j] says how often i won against j; a tie is half a win for each.
        start: [N] float64, where to begin the search; scores near the result save time.

    Returns:
        [R, N] float64.
    """
    games = wins + wins.swapaxes(1, 2)
    scores = np.zeros(wins.shape[:2]) if start is None else np.tile(start, (len(wins), 1))
    for _ in range(_STEPS):
        p = _sigmoid(scores[:, :, None] - scores[:, None, :])
        against_0 = _sigmoid(scores)
        gradient = (wins - games * p).sum(2) + 0.5 - against_0
        curvature = games * p * (1 - p)
        hessian = -curvature
        diagonal = np.arange(wins.shape[1])
        hessian[:, diagonal, diagonal] += curvature.sum(2) + against_0 * (1 - against_0)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        spread = np.maximum(step.max(1, initial=0), 0) - np.minimum(step.min(1, initial=0), 0)
        damping = np.divide(np.log1p(spread), spread, out=np.ones_like(spread), where=spread > 0)
        scores += damping[:, None] * step
        if spread.max(initial=0) < _TOLERANCE:
            break
    return scores


def count_wins(answers: int, games: Games, weights: np.ndarray) -> np.ndarray:
    """Wins of N answers against each other, [R, N, N], for R weightings of the judgments, [R, G] float64."""
    wins = np.zeros((answers * answers, len(weights)))
    np.add.at(wins, games.first * answers + games.second, (weights * games.won).T)
    np.add.at(wins, games.second * answers + games.first, (weights * (1 - games.won)).T)
    return wins.T.reshape(len(weights), answers, answers)


def score_answers(answers: int, games: Games, seed: int = 0) -> Scores:
    """Scores of N answers with bootstrap intervals.

    The bootstrap draws matches, and then judgments within each drawn match, since judgments of one match depend on each
    other. `best` is the share of resamples in which an answer has the highest score; equal ones share it.

    Args:
        answers: N, 1 or more.
        games: The judgments.
        seed: Seed of the bootstrap.
    """
    scores = bradley_terry(count_wins(answers, games, np.ones((1, len(games.won)))))[0]
    resampled = np.concatenate(
        [bradley_terry(count_wins(answers, games, weights), scores) for weights in _resamples(answers, games, seed)]
    )
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    rounded = resampled.round(DIGITS)
    is_best = rounded == rounded.max(axis=1, keepdims=True)
    return Scores(scores, low, high, (is_best / is_best.sum(axis=1, keepdims=True)).mean(axis=0))


def ranks(scores: np.ndarray) -> list[int]:
    """The rank of each answer, 1 for the best; equal scores share the better rank."""
    rounded = scores.round(DIGITS)
    return [1 + int((rounded > score).sum()) for score in rounded]


def _resamples(answers: int, games: Games, seed: int) -> Iterator[np.ndarray]:
    """Weights of the judgments in each resample, in parts of [r, G] that sum to RESAMPLES rows."""
    rng = np.random.default_rng(seed)
    _, match, sizes = np.unique(games.match, return_inverse=True, return_counts=True)
    starts = np.cumsum(sizes) - sizes
    by_match = np.argsort(match, kind="stable")
    at_once = max(1, NUMBERS_AT_ONCE // max(answers * answers, len(match), 1))
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        weights = np.zeros((rows, len(match)))
        if len(sizes):
            drawn = rng.integers(len(sizes), size=(rows, len(sizes)))
            for row, matches in enumerate(drawn):
                owners = np.repeat(matches, sizes[matches])
                chosen = starts[owners] + (rng.random(len(owners)) * sizes[owners]).astype(int)
                np.add.at(weights[row], by_match[chosen], 1.0)
        yield weights


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
