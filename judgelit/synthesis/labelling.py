"""Labels of pairs and of answer sets, one at a time: the line of the verdict, the judgments, the preferences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from judgelit.evaluation.votes import PairVerdict, vote, winner_of
from judgelit.progress import track
from judgelit.records.records import AnswerSet, Judgment, Label, PreferenceExample, PreferencePair
from judgelit.synthesis.pair_judge import PairJudge
from judgelit.synthesis.preferences import Dropped, best_against_worst, pair_preference
from judgelit.synthesis.tournament import Ranking, Schedule, Tournament

Preferences = Literal["best_worst", "all"]
PAIRS_OF_A_ROUND = 500
"""Pairs of a round of all tournaments that go on side by side, about."""


@dataclass(frozen=True)
class Labelled:
    """What a judge says about one pair or one answer set."""

    line: dict[str, Any]
    """The verdict, as a line of a file."""
    judgments: list[Judgment]
    """All judgments behind it."""
    pairs: list[PairVerdict]
    """The verdict of each judged pair."""
    preferences: list[PreferenceExample | Dropped]
    """The preferences that follow, and for each that does not the reason."""
    equal: int = 0
    """Answers of a set that are equal to an earlier one."""
    blank: int = 0
    """Blank answers of a set."""


def label_pairs(judge: PairJudge, pairs: Sequence[PreferencePair]) -> Iterator[tuple[int, Labelled]]:
    """Yield (index, label) for every pair as soon as it is judged."""
    for index, judgments in track(judge.judge(pairs), "judging pairs", total=len(pairs)):
        pair, verdict = pairs[index], vote(judgments, judge.both_orders)
        line = {
            "id": pair.id,
            "question": pair.question,
            "answer_a": pair.answer_a,
            "answer_b": pair.answer_b,
            **({"context": list(pair.context)} if pair.context else {}),
            "verdict": verdict.verdict,
            "consistent": verdict.consistent,
            "confidence": verdict.confidence,
            "confidence_from": verdict.confidence_from,
            "probability_a": verdict.probability_a,
            "votes": verdict.votes,
            "critique": _critique(judgments, verdict.verdict),
        }
        yield index, Labelled(line, judgments, [verdict], [pair_preference(pair, verdict, judge.engine.name)])


def rank_answers(
    judge: PairJudge, sets: Sequence[AnswerSet], schedule: Schedule, preferences: Preferences
) -> Iterator[tuple[int, Labelled]]:
    """Yield (index, label) for every answer set as soon as its tournament is over.

    The tournaments of many sets go on side by side, so that an engine gets the pairs of a round of all in one call.
    """
    for group in _groups(judge, sets, schedule):
        running, number = group, 0
        while running:
            number += 1
            asked: list[tuple[int, PreferencePair]] = []
            for index, tournament in list(running.items()):
                pairs = tournament.next_round()
                asked += [(index, pair) for pair in pairs]
                if not pairs:
                    yield index, _label_set(running.pop(index), judge.engine.name, preferences)
            description = "judging pairs" if schedule.kind == "full" else f"judging pairs, round {number}"
            for place, judgments in track(judge.judge([pair for _, pair in asked]), description, total=len(asked)):
                index, pair = asked[place]
                running[index].record(pair.id, judgments)
                if running[index].over:
                    yield index, _label_set(running.pop(index), judge.engine.name, preferences)


def _groups(judge: PairJudge, sets: Sequence[AnswerSet], schedule: Schedule) -> Iterator[dict[int, Tournament]]:
    """Tournaments by the index of their set, in groups whose rounds have about PAIRS_OF_A_ROUND pairs."""
    group: dict[int, Tournament] = {}
    pairs = 0
    for index, answers in enumerate(sets):
        group[index] = Tournament(answers, schedule, judge.both_orders, judge.seed)
        pairs += schedule.pairs_of(len(group[index].entrants))
        if pairs >= PAIRS_OF_A_ROUND:
            yield group
            group, pairs = {}, 0
    yield group


def _label_set(tournament: Tournament, judge: str, preferences: Preferences) -> Labelled:
    answers, ranking, judged = tournament.answers, tournament.ranking(), tournament.judged
    judgments = [one for _, of_pair, _ in judged for one in of_pair]
    line = {
        "id": answers.id,
        "question": answers.question,
        **({"context": list(answers.context)} if answers.context else {}),
        "answers": list(answers.answers),
        "best": ranking.best,
        "confidence": ranking.confidence,
        "ranks": ranking.ranks,
        "scores": ranking.scores,
        "low": ranking.low,
        "high": ranking.high,
        "judgments": len(judgments),
        "no_verdict": sum(one.verdict is None for one in judgments),
        "critique": _critique_of_best(tournament, ranking),
    }
    met = [(pair, verdict) for pair, _, verdict in judged]
    found: list[PreferenceExample | Dropped] = [best_against_worst(answers, ranking, judge, met)]
    if preferences == "all" and judged:
        found = [pair_preference(pair, verdict, judge) for pair, verdict in met]
    verdicts = [verdict for _, _, verdict in judged]
    return Labelled(line, judgments, verdicts, found, tournament.equal, tournament.blank)


def _critique(judgments: Sequence[Judgment], verdict: Label | None) -> str | None:
    """The text of the first judgment that gives this verdict, else of the first one."""
    agreeing = (one for one in judgments if winner_of(one) == verdict)
    critique = next(agreeing, next(iter(judgments), None))
    return None if critique is None else critique.text


def _critique_of_best(tournament: Tournament, ranking: Ranking) -> str | None:
    """The text of a judgment that prefers the best answer, against its strongest opponent of which there is one."""
    answers = tournament.answers.answers
    found: list[tuple[int, str]] = []
    for pair, judgments, _ in tournament.judged:
        for winner, own, other in (("A", pair.answer_a, pair.answer_b), ("B", pair.answer_b, pair.answer_a)):
            won = next((one for one in judgments if winner_of(one) == winner), None)
            if ranking.best is not None and own == answers[ranking.best] and won is not None:
                found.append((ranking.ranks[answers.index(other)] or 0, won.text))
    return min(found, key=lambda one: one[0])[1] if found else None
