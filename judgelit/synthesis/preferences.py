"""Preferences from verdicts: the better answer as chosen, the worse one as rejected."""

from collections.abc import Sequence
from typing import Literal

from judgelit.evaluation.votes import PairVerdict
from judgelit.records.records import AnswerSet, PreferenceExample, PreferencePair
from judgelit.synthesis.tournament import Ranking

Dropped = Literal[
    "different winners in the two orders",
    "a tie",
    "no verdict",
    "too long",
    "equal or blank answers",
    "equal scores",
    "won by the worst answer",
]
"""Why there is no preference."""


def pair_preference(pair: PreferencePair, verdict: PairVerdict, judge: str) -> PreferenceExample | Dropped:
    """The preference of a pair, or why there is none; `judge` is the name of the judge.

    Readers of preferences reject equal and blank answers.
    """
    answers = (pair.answer_a, pair.answer_b)
    texts = {answer.strip() for answer in answers}
    if len(texts) < 2 or "" in texts:
        return "equal or blank answers"
    if not sum(verdict.votes.values()):
        return "too long"
    if verdict.verdict is None:
        return "no verdict"
    if verdict.consistent is False:
        return "different winners in the two orders"
    if verdict.verdict == "tie":
        return "a tie"
    chosen, rejected = answers if verdict.verdict == "A" else answers[::-1]
    return _example(pair, chosen, rejected, judge, verdict.confidence)


def best_against_worst(
    answers: AnswerSet, ranking: Ranking, judge: str, judged: Sequence[tuple[PreferencePair, PairVerdict]] = ()
) -> PreferenceExample | Dropped:
    """The preference of the best answer over the worst, or why there is none.

    If these two have met, their own pair must say the same, with the same winner in both orders.

    Args:
        answers: The answers.
        ranking: Their ranking.
        judge: The name of the judge.
        judged: The pairs that have met, with their verdicts.
    """
    if not has_several(answers) or ranking.best is None or ranking.worst is None:
        return "equal or blank answers"
    if ranking.ranks[ranking.best] == ranking.ranks[ranking.worst]:
        return "equal scores"
    chosen, rejected = answers.answers[ranking.best], answers.answers[ranking.worst]
    for pair, verdict in judged:
        if {pair.answer_a, pair.answer_b} == {chosen, rejected}:
            direct = pair_preference(pair, verdict, judge)
            if not isinstance(direct, PreferenceExample):
                return direct
            if direct.chosen != chosen:
                return "won by the worst answer"
    return _example(answers, chosen, rejected, judge, ranking.confidence)


def has_several(answers: AnswerSet) -> bool:
    """Whether a set has two different answers that are not blank."""
    return len({answer.strip() for answer in answers.answers} - {""}) > 1


def _example(
    of: PreferencePair | AnswerSet, chosen: str, rejected: str, judge: str, confidence: float | None
) -> PreferenceExample:
    messages = (*of.context, {"role": "user", "content": of.question})
    meta = {"pair_id": of.id, "question": of.question_key, "judge": judge, "confidence": confidence}
    return PreferenceExample(messages, chosen, rejected, meta)
