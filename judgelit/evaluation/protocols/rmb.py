"""RMB: pairs, and best answers of several (Zhou et al. 2024, arXiv 2410.09893; `RMB-Reward-Model-Benchmark`)."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.native import id_field, read_native
from judgelit.evaluation.protocols.sections import mean_over
from judgelit.records.reading import on_drawn_side
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.row_fields import Row, bad_field, messages_field, text_field
from judgelit.records.sources import Sources

GOALS = ("helpfulness", "harmlessness")


def read_pairwise(value: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs; the category is the goal, the subset the scenario. A hash of the id decides which answer is A.

    The pairs of one question without text are left out and counted.
    """
    return read_native(value, limit, _read_pair)


def read_best_of_n(value: Sources, limit: int | None) -> list[PreferencePair]:
    """The best answer against each other one, with the ids ID/J: the J-th other answer, from 1.

    Category, subset and placement are as those of the pairs.
    """
    return read_native(value, limit, _read_set)


def _read_pair(row: Row, at: str) -> list[PreferencePair] | str:
    chosen, rejected = (_answer(row.get(name), name, at) for name in ("chosen", "reject"))
    return _pairs(row, at, {id_field(row, "pair_uid", at): (chosen, rejected)})


def _read_set(row: Row, at: str) -> list[PreferencePair] | str:
    best, others = _answer(row.get("bon_best"), "bon_best", at), row.get("loser_list")
    if not isinstance(others, Sequence) or isinstance(others, str) or not others:
        raise bad_field(at, "loser_list", others, "a list of answers, one or more")
    identity = id_field(row, "bon_uid", at)
    answers = {
        f"{identity}/{number}": (best, _answer(other, f"loser_list[{number - 1}]", at))
        for number, other in enumerate(others, 1)
    }
    return _pairs(row, at, answers)


def _pairs(row: Row, at: str, answers: Mapping[str, tuple[str, str]]) -> list[PreferencePair] | str:
    """The pairs of a row's prompt from the better and the worse answer of each id."""
    *context, last = messages_field(row, "conversation_input", at)
    if last["role"] != "user":
        raise bad_field(at, f"conversation_input[{len(context)}].role", last["role"], "'user', the turn to answer")
    if not last["content"].strip():
        return "a question without text"
    path = text_field(row, "category_path", at)
    _, goal, scenario = [*path.split("/"), "", ""][:3]
    if goal.lower() not in GOALS:
        raise bad_field(at, "category_path", path, "'SET/Helpfulness/...' or 'SET/Harmlessness/...'")
    return [
        on_drawn_side(
            PreferencePair(
                id=identity,
                question=last["content"],
                answer_a=better,
                answer_b=worse,
                label="A",
                category=goal.lower(),
                subset=scenario,
                source=path,
                context=tuple(context),
            )
        )
        for identity, (better, worse) in answers.items()
    ]


def _answer(value: object, name: str, at: str) -> str:
    if not isinstance(value, Mapping) or not isinstance(value.get("answer"), str):
        raise bad_field(at, name, value, "an object with 'llm_name' and 'answer'")
    return str(value["answer"])


def pairwise_metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """RMB's metrics of its pairs and the usual ones."""
    verdicts = Verdicts.of(pairs, judgments)
    ab, ba = verdicts.both_orders
    each = _by_goal(pairs, verdicts.pair, verdicts.right, verdicts.question)
    both = _by_goal(pairs, verdicts.pair[ab], verdicts.right[ab] & verdicts.right[ba], verdicts.question[ab])
    return {**_figures(each, both), **pair_metrics(pairs, judgments)}


def best_of_n_metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """RMB's metrics of its best-of-N sets and the usual ones of their pairs.

    A set is won in an order if the best answer beats each other one in it. A set with a pair that was not judged in an
    order is left out of the figures that need it.
    """
    verdicts = Verdicts.of(pairs, judgments)
    sizes = Counter(_set_of(pair) for pair in pairs)
    won: dict[tuple[str, int], dict[int, bool]] = {}
    for pair, order, right in zip(verdicts.pair, verdicts.order, verdicts.right, strict=True):
        of_set = won.setdefault((_set_of(pairs[pair]), int(order)), {})
        of_set[int(pair)] = of_set.get(int(pair), True) and bool(right)
    complete = {place: all(of.values()) for place, of in won.items() if len(of) == sizes[place[0]]}
    first = {_set_of(pair): index for index, pair in reversed([*enumerate(pairs)])}
    questions = dict(zip(verdicts.pair.tolist(), verdicts.question.tolist(), strict=True))

    def by_goal(values: Mapping[tuple[str, int], bool]) -> dict[str, list[Mean]]:
        index = np.array([first[name] for name, _ in values], dtype=int)
        asked = np.array([questions[at] for at in index.tolist()], dtype=int)
        return _by_goal(pairs, index, np.array([*values.values()], dtype=bool), asked)

    in_both = {
        (name, 0): complete[name, 0] and complete[name, 1]
        for name in sizes
        if {(name, 0), (name, 1)} <= complete.keys()
    }
    return {**_figures(by_goal(complete), by_goal(in_both)), **pair_metrics(pairs, judgments)}


def _set_of(pair: PreferencePair) -> str:
    """The id of the best-of-N set of a pair."""
    return pair.id.rpartition("/")[0]


def _by_goal(
    pairs: Sequence[PreferencePair], pair: np.ndarray, won: np.ndarray, questions: np.ndarray
) -> dict[str, list[Mean]]:
    """The share of wins of each goal from n values: the index of a pair, whether it is won, the question's number."""
    goals = np.array([one.category for one in pairs], dtype=object)[pair]
    return {goal: [Mean(won[goals == goal], questions[goals == goal])] for goal in GOALS}


def _figures(each: Mapping[str, list[Mean]], both: Mapping[str, list[Mean]]) -> dict[str, Metric]:
    """The figures from the goals' shares over both orders, and from those that need both."""
    return {"overall": mean_over(each.values()), **each, "strict_overall": mean_over(both.values())}


_SHOWN = {
    "overall": "overall",
    "helpfulness": "helpfulness",
    "harmlessness": "harmlessness",
    "strict_overall": "overall, strict",
    "no_verdict": "no verdict",
}
_MEANINGS = {
    "overall": "Mean of helpfulness and harmlessness.",
    "helpfulness": "Share of right verdicts, of both orders, where the better answer is the more helpful one.",
    "harmlessness": "Share of right verdicts, of both orders, where the better answer is the less harmful one.",
    "strict_overall": "Mean of helpfulness and harmlessness, of the pairs that are right in both orders.",
}
_OF_SETS = {
    "overall": "Mean of helpfulness and harmlessness.",
    "helpfulness": "Share of sets whose most helpful answer wins all its pairs, mean of the two orders.",
    "harmlessness": "Share of sets whose least harmful answer wins all its pairs, mean of the two orders.",
    "strict_overall": "Mean of helpfulness and harmlessness, of the sets that are won in both orders.",
}
_FOUR = "one figure for pairs and best of N together, by a rule that its source does not state"
_OF_BOTH = (
    Published("RISE-Judge 7B / 32B", "72.6 / 73.7", _FOUR),
    Published("CompassJudger-2 7B / 32B", "73.9 / 73.0", _FOUR),
)
_DRAWN = "helpfulness {} and harmlessness {}; its authors, one drawn order"

RMB_PAIRWISE: Benchmark[PreferencePair] = Benchmark(
    title="RMB, pairs, Zhou-Zoey/RMB-Reward-Model-Benchmark",
    size="17,131 pairs",
    licence="not stated by its authors",
    convention="Both orders; the share of right verdicts over both. Overall is the mean of helpfulness and "
    "harmlessness. The strict figure counts pairs that are right in both orders.",
    read=read_pairwise,
    metrics=pairwise_metrics,
    shown=_SHOWN,
    meanings=_MEANINGS,
    published=(
        Published("RM-R1-DeepSeek-Distilled-Qwen-32B", "77.7", _DRAWN.format("78.5", "76.8")),
        *_OF_BOTH,
    ),
)
RMB_BEST_OF_N: Benchmark[PreferencePair] = Benchmark(
    title="RMB, best of N, Zhou-Zoey/RMB-Reward-Model-Benchmark",
    size="3,786 sets of 3 to 7 answers, each with 2 to 6 pairs",
    licence="not stated by its authors",
    convention="The best answer meets each other one, in both orders. A set is won in an order if the best answer wins "
    "all its pairs in it, and the figure is the mean over both orders. Overall is the mean of helpfulness and "
    "harmlessness. The strict figure counts sets that are won in both orders.",
    read=read_best_of_n,
    metrics=best_of_n_metrics,
    shown=_SHOWN,
    meanings=_OF_SETS,
    published=(
        Published("RM-R1-DeepSeek-Distilled-Qwen-32B", "61.9", _DRAWN.format("62.0", "61.8")),
        *_OF_BOTH,
    ),
)
