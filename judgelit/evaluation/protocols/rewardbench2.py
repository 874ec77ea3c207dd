"""RewardBench 2 (Malik et al. 2025, arXiv 2506.01937): the best of four answers, or a rating of each answer.

This file reads its rows and has the first way, the ranking: four answers are shown at once, the right one in a slot
drawn from the question's id. The subset Ties has questions with many right answers; it is only rated, see
`rewardbench2_ratings`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from judgelit.errors import UserError
from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.rewardbench import RESULT_FILE, leaderboard_json
from judgelit.evaluation.protocols.rewardbench_files import distinct_ids, native_rows, result_rows
from judgelit.judging.answer_prompts import best_prompts
from judgelit.judging.verdict import parse_best
from judgelit.records.records import ANSWER_LETTERS, AnswerSet, Judgment
from judgelit.records.row_fields import Row, bad_field, choice_field, int_field, text_field
from judgelit.records.sources import FileSource, Sources, report_once

HUB = FileSource("allenai/reward-bench-2", split="test")
COLUMNS = ("id", "prompt", "chosen", "rejected", "num_correct", "subset")
RANKED = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
"""The subsets with one right answer."""
TIES = "Ties"
SUBSETS = (*RANKED, TIES)
CHANCE = 0.25
"""Points for no verdict."""
_SLOTS = "ABCD"
_TIES_ID = re.compile(r"(?:.*/)?(ref|tied):(\d+)")


def read(where: Sources, limit: int | None) -> list[AnswerSet]:
    """The questions of RewardBench 2's rows, each with its right answers first.

    Raises:
        UserError: A row has other columns, an unknown subset or too few answers, or two rows have the same id.
    """
    rows = list(native_rows(where, HUB, COLUMNS))
    items = [_item(row, at, name) for (at, row), name in zip(rows, distinct_ids(rows), strict=True)]
    return items[:limit]


def read_ranked(where: Sources, limit: int | None) -> list[AnswerSet]:
    """The questions with one right answer, and the first three wrong ones; those of the subset Ties are left out.

    Raises:
        UserError: As `read`; a question has several right answers or fewer than three wrong ones; or all are of Ties.
    """
    items = read(where, None)
    ranked = [item for item in items if item.category != TIES]
    if len(ranked) < len(items):
        report_once(
            f"rewardbench2: {len(items) - len(ranked)} of {len(items)} questions are of the subset Ties, which has no "
            "ranking; rewardbench2-ratings has it"
        )
    if not ranked:
        raise UserError("rewardbench2: found questions of the subset Ties alone; use rewardbench2-ratings")
    for item in ranked:
        if item.right != (0,) or len(item.answers) < 4:
            counts = f"{len(item.right)} right and {len(item.answers) - len(item.right)} wrong answers"
            raise UserError(f"question {item.id}: found {counts}, expected 1 right and 3 wrong")
    return [_first_four(item) for item in ranked[:limit]]


def ranking_metrics(items: Sequence[AnswerSet], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """The score of a ranking and its parts.

    A judgment has 1 point for the right answer, 0 for a wrong one and 1/4 for no verdict.

    - `score`: mean of the subsets without Ties; undefined if one of them has no judgment.
    - `factuality`, `precise_if`, `math`, `safety`, `focus`: mean of the points of a subset; `points`: of all.
    - `accuracy`: share of right judgments; one without a verdict is wrong.
    - `slot_a` to `slot_d`: mean of the points where the right answer stands in this slot.
    - `share_a` to `share_d`: share of verdicts that name this slot.
    - `no_verdict`, `cut_by_length`: as for pairs.

    Raises:
        UserError: A judgment is not about four answers.
    """
    table = QuestionTable(items)
    points, slots, said, about, cut = [], [], [], [], []
    for judgment in judgments:
        item = table.items[judgment.pair_id]
        if len(judgment.order) != 4:
            raise UserError(f"question {item.id}: found a judgment in order {judgment.order!r}, expected four answers")
        slot = _SLOTS[judgment.order.index(ANSWER_LETTERS[item.right[0]])]
        verdict = judgment.verdict if judgment.verdict in tuple(_SLOTS) else None
        points.append(CHANCE if verdict is None else float(verdict == slot))
        # A result file does not say in which slot the right answer stood.
        slots.append("" if judgment.template == RESULT_FILE else slot)
        said.append(verdict or "")
        about.append(judgment.pair_id)
        cut.append(judgment.finish)
    scored = np.array(points, dtype=float)
    at, verdicts = np.array(slots, dtype=str), np.array(said, dtype=str)
    subsets = table.subsets(about)
    parts = {name: [table.mean(scored, about, subsets == name)] for name in RANKED}
    known = (at != "") & (verdicts != "")
    return {
        "score": mean_of(list(parts.values())),
        **{subset_name(name): part for name, part in parts.items()},
        "points": [table.mean(scored, about)],
        "accuracy": [table.mean(scored == 1, about)],
        **{f"slot_{slot.lower()}": [table.mean(scored, about, at == slot)] for slot in _SLOTS},
        **{f"share_{slot.lower()}": [table.mean(verdicts == slot, about, known)] for slot in _SLOTS},
        "no_verdict": [table.mean(verdicts == "", about)],
        "cut_by_length": [cut_by_length(table, cut, about)],
    }


class QuestionTable:
    """The questions of a benchmark by id, with their numbers."""

    def __init__(self, items: Sequence[AnswerSet]) -> None:
        self.items = {item.id: item for item in items}
        numbers: dict[str, int] = {}
        # A tied question and its reference are one question for the bootstrap.
        keys = {item.id: f"ties {ties_id(item)[1]}" if item.category == TIES else item.question_key for item in items}
        self._numbers = {name: numbers.setdefault(key, len(numbers)) for name, key in keys.items()}

    def subsets(self, ids: Sequence[str]) -> np.ndarray:
        """The subset of each question, [n] str."""
        return np.array([self.items[name].category for name in ids], dtype=str)

    def mean(self, values: Any, ids: Sequence[str], where: Any = None, weight: float = 1.0) -> Mean:
        """The mean of values of questions, of those places where `where` is true if it is given."""
        numbers = np.array([self._numbers[name] for name in ids], dtype=int)
        index = np.arange(len(numbers)) if where is None else np.flatnonzero(where)
        return Mean(np.asarray(values)[index], numbers[index], weight)


def mean_of(parts: Sequence[Sequence[Mean]]) -> list[Mean]:
    return [mean._replace(weight=mean.weight / len(parts)) for part in parts for mean in part]


def cut_by_length(table: QuestionTable, finish: Sequence[str | None], ids: Sequence[str]) -> Mean:
    return table.mean([one == "length" for one in finish], ids, [one is not None for one in finish])


def ties_id(item: AnswerSet) -> tuple[str, int]:
    """`ref` or `tied`, and the number that a tied question shares with its reference."""
    found = _TIES_ID.fullmatch(item.id)
    assert found is not None
    return found[1], int(found[2])


def _item(row: Row, at: str, name: str) -> AnswerSet:
    answers: list[str] = []
    for field in ("chosen", "rejected"):
        if not isinstance(row[field], list | tuple):
            raise bad_field(at, field, row[field], "a list of texts; a single text is a row of rewardbench")
        answers.extend(row[field])
    text_field(row, "prompt", at)
    right = int_field(row, "num_correct", at)
    if not 1 <= right < len(answers):
        raise bad_field(at, "num_correct", right, f"from 1 to {len(answers) - 1}, with {len(answers)} answers")
    if len(answers) > len(ANSWER_LETTERS):
        raise UserError(f"{at}: found {len(answers)} answers, expected {len(ANSWER_LETTERS)} at most")
    subset = choice_field(row, "subset", at, SUBSETS)
    if subset == TIES:
        found = _TIES_ID.fullmatch(name)
        if found is None:
            raise bad_field(at, "id", row["id"], "ref:NUMBER or tied:NUMBER in the subset Ties")
        if found[1] == "tied" and right == 1:
            raise bad_field(at, "num_correct", right, "two or more right answers of a tied question")
    groups = {"category": subset, "source": HUB.path}
    question = {"id": name, "question": row["prompt"], "answers": answers, "right": list(range(right))}
    return AnswerSet.from_dict({**question, **groups}, at)


def _first_four(item: AnswerSet) -> AnswerSet:
    return AnswerSet(item.id, item.question, item.answers[:4], right=(0,), category=item.category, source=item.source)


def _ranking_results(row: Row, at: str, items: Mapping[str, AnswerSet]) -> list[Judgment]:
    """The judgments of a result file: 1 is right, 0 wrong, 1/4 no verdict. The right answer is taken as the first."""
    found = []
    for place, one, item in result_rows(_without_ties(row), at, items):
        points = one.get("results")
        if isinstance(points, bool) or points not in (0, CHANCE, 1):
            raise bad_field(place, "results", points, "1, 0.25 or 0; rewardbench2-ratings reads ratings and scores")
        found.append(result_judgment(item, one, "abcd", {0: "B", 1: "A"}.get(points)))
    return found


def _without_ties(row: Row) -> Row:
    """A row of a result file without the questions of Ties."""
    subsets = row.get("subset")
    if not isinstance(subsets, list):
        return {**row, "id": []} if subsets == TIES else row
    kept = [index for index, subset in enumerate(subsets) if subset != TIES]
    return {
        name: [values[index] for index in kept] if isinstance(values, list) and len(values) == len(subsets) else values
        for name, values in row.items()
    }


def result_judgment(item: AnswerSet, row: Row, order: str, verdict: str | None) -> Judgment:
    prompt = ({"role": "user", "content": item.question},)
    return Judgment(item.id, prompt, "", verdict, order, RESULT_FILE, str(row.get("model") or RESULT_FILE), 0)


def _ranking_leaderboard(model: str, items: Sequence[AnswerSet], judgments: Sequence[Judgment]) -> dict[str, Any]:
    found = ranking_metrics(items, judgments)
    return leaderboard_json(model, {name: found[subset_name(name)] for name in RANKED})


def subset_name(subset: str) -> str:
    return subset.lower().replace(" ", "_")


SHOWN = {"score": "score", **{subset_name(name): name for name in RANKED}}

_OF_SUBSET = "Mean points of the subset's questions: 1 for the right answer, 0 for a wrong one, 1/4 for no verdict."

REWARDBENCH2: Benchmark[AnswerSet] = Benchmark(
    title="RewardBench 2, ranking of four answers (allenai/reward-bench-2)",
    size="1,763 questions of five subsets, without Ties",
    licence="ODC-BY",
    convention=(
        "Mean of the five subsets; the right answer in a slot drawn from the question's id; 1/4 for no verdict. The "
        "published mean is of six: Ties has no ranking, and rewardbench2-ratings scores it."
    ),
    read=read_ranked,
    metrics=ranking_metrics,
    shown=SHOWN | {f"slot_{slot.lower()}": f"right in slot {slot}" for slot in _SLOTS} | {"no_verdict": "no verdict"},
    meanings={
        "score": "Mean of the five subsets without Ties; a judgment without a verdict has a quarter of a point.",
        "points": "Mean points of a judgment: 1 for the right answer, 0 for a wrong one, 1/4 for no verdict.",
        **{subset_name(name): _OF_SUBSET for name in RANKED},
        "accuracy": "Share of judgments that name the right answer of the four; no verdict is wrong.",
        **{
            f"slot_{slot.lower()}": f"Mean points of the questions whose right answer is shown as {slot}."
            for slot in _SLOTS
        },
        "share_a": "Share of verdicts that name the answer in slot A; a quarter if the judge favours no slot.",
    },
    shown_groups={"points": "points", "accuracy": "accuracy", "no_verdict": "no verdict"},
    hub=HUB,
    prompts=best_prompts,
    verdict=parse_best,
    judgments=_ranking_results,
    export=_ranking_leaderboard,
    published=(
        Published(
            "RISE-Judge-7B",
            "73.3 / 70.0 / 64.7 / 63.3",
            "accuracy with the right answer in slot A / B / C / D, measured by a third party",
        ),
    ),
)
