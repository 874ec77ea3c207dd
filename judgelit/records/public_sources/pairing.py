"""Rated answers to pairs: each two answers of different scores, once."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from judgelit.records.public_sources.public_set import Rated
from judgelit.records.reading import made_id, on_drawn_side, text_hash
from judgelit.records.records import AnswerSet, PreferencePair


def group_by_question(rows: Iterable[tuple[str, Rated]], name: str) -> list[tuple[str, Rated]]:
    """Put the answers to each question together, from all rows. Questions and answers keep their sequence.

    The id of a question is a hash of its text, so it does not depend on the files. `name` is its beginning.
    """
    questions: dict[str, tuple[str, Rated]] = {}
    for at, rated in rows:
        key = f"{name}/{text_hash(json.dumps(rated.prompt))[:16]}"
        first_at, first = questions.get(key, (at, rated._replace(answers=(), id=key)))
        questions[key] = first_at, first._replace(answers=(*first.answers, *rated.answers))
    return list(questions.values())


def pairs_of(rated: Rated, place: str, per_question: int | None, left_out: Counter[str]) -> Iterator[PreferencePair]:
    """Yield the pairs of a question: each two answers of different scores, once.

    A hash of a pair's id decides which of its answers is A.

    Args:
        rated: The question with its answers.
        place: Its place within its source, from which the ids are made if the question has no id.
        per_question: Most pairs, drawn by a hash of their ids.
        left_out: Counts what is left out, by reason.
    """
    *context, last = rated.prompt
    identity = _identity(rated, place)
    pairs = []
    for (one, score), (other, other_score) in combinations(_distinct(rated.answers, left_out), 2):
        if score == other_score:
            # Two right answers are no tie that anyone has judged.
            left_out["pairs of equal score"] += not isinstance(score, bool)
            continue
        better, worse = (one, other) if score > other_score else (other, one)
        pair_id = f"{identity}/{text_hash(json.dumps([better, worse]))[:12]}"
        pair = PreferencePair(pair_id, last["content"], better, worse, "A", context=tuple(context), **rated.kept)
        pairs.append(on_drawn_side(pair))
    left_out["questions without two answers of different scores"] += not pairs
    if per_question is not None and len(pairs) > per_question:
        left_out["pairs beyond per_question"] += len(pairs) - per_question
        drawn = {pair.id for pair in sorted(pairs, key=lambda pair: text_hash(f"drawn/{pair.id}"))[:per_question]}
        pairs = [pair for pair in pairs if pair.id in drawn]
    yield from pairs


def answer_set_of(rated: Rated, place: str) -> AnswerSet:
    """The question with all its answers; `meta` has their scores, and category, subset and source."""
    *context, last = rated.prompt
    meta = {**rated.kept, "scores": [score for _, score in rated.answers]}
    return AnswerSet(
        _identity(rated, place), last["content"], tuple(text for text, _ in rated.answers), tuple(context), meta
    )


def _identity(rated: Rated, place: str) -> str:
    return rated.id or made_id([text for text, _ in rated.answers], rated.prompt, place)


def _distinct(answers: Sequence[tuple[str, float]], left_out: Counter[str]) -> list[tuple[str, float]]:
    """The answers with text. One that occurs twice is kept once, or left out if its scores differ."""
    scores: dict[str, set[float]] = {}
    first: dict[str, str] = {}
    for text, score in answers:
        scores.setdefault(text.strip(), set()).add(score)
        first.setdefault(text.strip(), text)
    empty = sum(not text.strip() for text, _ in answers)
    left_out["empty answers"] += empty
    left_out["repeated answers"] += len(answers) - empty - sum(map(bool, scores))
    left_out["answers with different scores"] += sum(len(found) > 1 for text, found in scores.items() if text)
    return [(first[text], found.pop()) for text, found in scores.items() if text and len(found) == 1]
