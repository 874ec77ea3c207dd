"""Tournaments of N answers to one question: which two answers are compared, and the ranking that follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

from judgelit.errors import UserError
from judgelit.evaluation.bradley_terry import DIGITS, Games, bradley_terry, count_wins, ranks, score_answers
from judgelit.evaluation.votes import PairVerdict, vote, winner_of
from judgelit.records.records import AnswerSet, Judgment, PreferencePair

_WON = {"A": 1.0, "B": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Schedule:
    """Which answers meet."""

    kind: Literal["full", "swiss"] = "full"
    """`full`: each answer meets each other one. `swiss`: in each round answers of about the same score meet, at most
    once."""
    rounds: int | None = None
    """Rounds of a swiss tournament. Default: the logarithm of the number of answers to base 2, rounded up, plus 1."""

    def __post_init__(self) -> None:
        if self.rounds is not None and (self.kind == "full" or self.rounds < 1):
            expected = "none, since a full tournament has one round" if self.kind == "full" else "1 or more"
            raise UserError(f"rounds: found {self.rounds}, expected {expected}")

    def rounds_of(self, entrants: int) -> int:
        """Most rounds of a tournament of so many answers."""
        if entrants < 2 or self.kind == "full":
            return int(entrants > 1)
        return self.rounds if self.rounds is not None else math.ceil(math.log2(entrants)) + 1

    def pairs_of(self, entrants: int) -> int:
        """Most pairs of one round of so many answers."""
        return entrants * (entrants - 1) // 2 if self.kind == "full" else entrants // 2


def swiss_round(scores: Sequence[float], met: set[tuple[int, int]], drawn: Sequence[int]) -> list[tuple[int, int]]:
    """The matches of one round: from the best down, each answer meets the next one that it has not met.

    An answer without such an opponent sits out. There are no matches if all have met.

    Args:
        scores: The present score of each of N answers.
        met: Matches (i, j), i < j, of the rounds before.
        drawn: A permutation of the answers, which decides between equal scores.
    """
    left = sorted(range(len(scores)), key=lambda one: (-round(scores[one], DIGITS), drawn[one]))
    matches = []
    while left:
        one = left.pop(0)
        other = next((other for other in left if (min(one, other), max(one, other)) not in met), None)
        if other is not None:
            left.remove(other)
            matches.append((min(one, other), max(one, other)))
    return matches


@dataclass(frozen=True)
class Ranking:
    """The result of a tournament; each list has one value for each answer of the set.

    Equal answers have equal values. Blank answers do not take part: their rank and score are None.
    """

    ranks: list[int | None]
    """1 is the best; equal scores share a rank."""
    scores: list[float | None]
    """Bradley-Terry scores, log-odds."""
    low: list[float | None]
    """Lower ends of 95% bootstrap intervals of the scores."""
    high: list[float | None]
    """Upper ends."""
    best: int | None
    """Index of the answer with the highest score, the first one of several."""
    worst: int | None
    """Index of the answer with the lowest score, the first one of several."""
    confidence: float | None
    """Share of bootstrap resamples in which the best answer has the highest score; of two answers, the probability of
    their pair's verdict."""


class Tournament:
    """The tournament of one answer set. Its matches are pairs, asked round by round."""

    def __init__(self, answers: AnswerSet, schedule: Schedule, both_orders: bool, seed: int) -> None:
        """Choose the entrants: the different answers that are not blank.

        Args:
            answers: The set.
            schedule: Which answers meet.
            both_orders: Whether each pair is judged in both orders.
            seed: Seed of the draw between equal scores, and of the bootstrap.
        """
        self.answers = answers
        first: dict[str, int] = {}
        texts = [answer.strip() for answer in answers.answers]
        for index, text in enumerate(texts):
            if text:
                first.setdefault(text, index)
        self.entrants = list(first.values())
        """Index of each entrant; of equal answers the first."""
        self._entrant_of = [self.entrants.index(first[text]) if text else None for text in texts]
        self.blank = texts.count("")
        """Number of blank answers."""
        self.equal = len(texts) - self.blank - len(self.entrants)
        """Number of answers that are equal to an earlier one."""
        self._schedule = schedule
        self._both_orders = both_orders
        self._drawn = list(range(len(self.entrants)))
        Random(f"{seed}/tournament/{answers.id}").shuffle(self._drawn)
        self._seed = seed
        self._rounds = 0
        self._matches: dict[str, tuple[int, int]] = {}
        self._pairs: dict[str, PreferencePair] = {}
        self._judgments: dict[str, list[Judgment]] = {}

    def next_round(self) -> list[PreferencePair]:
        """The pairs of the next round; none if the tournament is over. Their labels mean nothing."""
        count = len(self.entrants)
        if self._rounds == self._schedule.rounds_of(count):
            return []
        self._rounds += 1
        if self._schedule.kind == "full":
            matches = [(one, other) for one in range(count) for other in range(one + 1, count)]
        else:
            games = self._games()
            scores = bradley_terry(count_wins(count, games, np.ones((1, len(games.won)))))[0]
            matches = swiss_round(scores.tolist(), set(self._matches.values()), self._drawn)
        pairs = [self._pair(*match) for match in matches]
        self._matches |= {pair.id: match for pair, match in zip(pairs, matches, strict=True)}
        self._pairs |= {pair.id: pair for pair in pairs}
        return pairs

    def record(self, pair_id: str, judgments: Sequence[Judgment]) -> None:
        """Take the judgments of a pair."""
        self._judgments[pair_id] = list(judgments)

    @property
    def over(self) -> bool:
        """Whether the last round is complete."""
        rounds = self._schedule.rounds_of(len(self.entrants))
        return self._rounds == rounds and len(self._judgments) == len(self._pairs)

    @property
    def judged(self) -> list[tuple[PreferencePair, list[Judgment], PairVerdict]]:
        """The pairs with their judgments and verdicts, in the sequence of the rounds."""
        return [
            (pair, self._judgments[name], vote(self._judgments[name], self._both_orders))
            for name, pair in self._pairs.items()
        ]

    def ranking(self) -> Ranking:
        """The result."""
        count = len(self.entrants)
        if count == 0:
            none = [None for _ in self._entrant_of]
            return Ranking([*none], [*none], [*none], [*none], None, None, None)
        found = score_answers(count, self._games(), self._seed)
        places = ranks(found.score)
        best, worst = places.index(1), places.index(max(places))
        confidence: float | None = round(float(found.best[best]), DIGITS)
        if count == 2:
            ((_, _, verdict),) = self.judged
            confidence = verdict.confidence

        def spread(values: Sequence[float]) -> list[float | None]:
            # Adding 0 turns -0.0 into 0.0.
            return [None if one is None else round(float(values[one]), DIGITS) + 0.0 for one in self._entrant_of]

        return Ranking(
            ranks=[None if one is None else places[one] for one in self._entrant_of],
            scores=spread(found.score.tolist()),
            low=spread(found.low.tolist()),
            high=spread(found.high.tolist()),
            best=self.entrants[best],
            worst=self.entrants[worst],
            confidence=confidence,
        )

    def _games(self) -> Games:
        """The judgments that have a verdict."""
        rows = [
            (number, *self._matches[pair_id], _WON[winner])
            for number, pair_id in enumerate(self._pairs)
            for judgment in self._judgments.get(pair_id, [])
            if (winner := winner_of(judgment)) is not None
        ]
        table = np.array(rows, dtype=float).reshape(-1, 4)
        match, first, second = table[:, :3].astype(np.int64).T
        return Games(match, first, second, table[:, 3])

    def _pair(self, one: int, other: int) -> PreferencePair:
        first, second = self.entrants[one], self.entrants[other]
        answers = self.answers
        return PreferencePair(
            id=f"{answers.id}/{first}-{second}",
            question=answers.question,
            answer_a=answers.answers[first],
            answer_b=answers.answers[second],
            label="tie",
            context=answers.context,
        )
