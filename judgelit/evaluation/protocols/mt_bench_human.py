"""MT-Bench's human judgments: agreement with single human votes (Zheng et al. 2023, arXiv 2306.05685).

Figures as in FastChat's `compute_agreement.py`: the votes of experts count, not those of the authors.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from judgelit.errors import UserError
from judgelit.evaluation.agreement import cohens_kappa
from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import NO_VERDICT, TIE, Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.native import OWN, id_field, own_rows
from judgelit.evaluation.protocols.row_places import coded_label
from judgelit.evaluation.protocols.two_orders import combined_verdicts
from judgelit.records.conversations import part_conversations, read_turns
from judgelit.records.records import UNKNOWN, Judgment, Label, PreferencePair
from judgelit.records.row_fields import Row, bad_field, int_field, text_field
from judgelit.records.sources import FileSource, Sources, report_once

_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""The categories of MT-Bench's questions 81 to 160, ten each."""
_WINNERS: dict[str, Label] = {"model_a": "A", "model_b": "B", "tie": "tie", "tie (inconsistent)": "tie"}
_CODES = {"A": 0, "B": 1, "tie": TIE}
_VOTES = "votes: "
"""Begins the field `source` of a pair, which keeps its votes: `votes: A, tie, A`."""


def read(where: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs with a vote, with the ids QUESTION/MODEL/MODEL/TURN; the models stand in alphabetical order.

    All votes about the same answers are one pair. Its label is the verdict with the most votes, and a tie if several
    have as many. The votes themselves are kept in the field `source`. The category is that of the question, the subset
    the turn.

    A pair of turn 2 shows each model's whole conversation: the question is that of turn 1, and an answer holds the
    first answer, the second question and the second answer.

    Rows whose judge is an author or a model are left out and counted.

    Raises:
        UserError: A row cannot be read, two rows show different answers of one model to one question, or no row has a
            vote of a human.
    """
    found: dict[str, PreferencePair] = {}
    votes: dict[str, list[Label]] = {}
    left_out = 0
    for at, row in own_rows(where):
        if row.keys() >= OWN:
            pair = PreferencePair.from_dict(row, at)
            found[pair.id], votes[pair.id] = pair, _votes(pair)
            continue
        if not _is_human(row, at):
            left_out += 1
            continue
        pair = _pair(row, at)
        first = found.setdefault(pair.id, pair)
        if (first.answer_a, first.answer_b) != (pair.answer_a, pair.answer_b):
            raise UserError(f"{at}: found other answers of pair {pair.id!r} than in an earlier row, expected the same")
        votes.setdefault(pair.id, []).append(pair.label)
    if left_out:
        report_once(f"{left_out} rows are left out, since their judge is an author or a model")
    if not found:
        raise UserError("pairs: found no row with a vote of a human, expected at least one")
    return [_labelled(pair, votes[pair.id]) for pair in [*found.values()][:limit]]


def _is_human(row: Row, at: str) -> bool:
    """Whether the judge of a row is a human who is no author. A model is a list such as ["gpt-4", "pair-v2"]."""
    judge = row.get("judge")
    if isinstance(judge, Sequence) and not isinstance(judge, str):
        return False
    name = text_field(row, "judge", at)
    return not name.startswith(("author", "gpt", "claude"))


def _pair(row: Row, at: str) -> PreferencePair:
    """The pair of a row, with the row's vote as its label."""
    names = [text_field(row, name, at) for name in ("model_a", "model_b")]
    question, turn = id_field(row, "question_id", at), int_field(row, "turn", at)
    if turn not in (1, 2):
        raise bad_field(at, "turn", turn, "1 or 2")
    label = coded_label(row, "winner", at, _WINNERS)
    first, second = (read_turns(row.get(name), name, at)[: 2 * turn] for name in ("conversation_a", "conversation_b"))
    for name, turns in (("conversation_a", first), ("conversation_b", second)):
        if len(turns) < 2 * turn:
            raise bad_field(at, name, f"{len(turns)} turns", f"{2 * turn}, since the vote is about turn {turn}")
    prompt, answer_a, answer_b = part_conversations(first, second)
    if not prompt:
        raise bad_field(at, "conversation_b", second[0]["content"], "a conversation that begins as conversation_a does")
    *context, last = prompt
    pair = PreferencePair(
        id=f"{question}/{'/'.join(sorted(names))}/{turn}",
        question=last["content"],
        answer_a=answer_a,
        answer_b=answer_b,
        label=label,
        category=_category(question),
        subset=f"turn {turn}",
        context=tuple(context),
    )
    return pair if names == sorted(names) else pair.swapped()


def _category(question: str) -> str:
    number = int(question) - 81 if re.fullmatch(r"\d{1,9}", question) else -1
    return _CATEGORIES[number // 10] if 0 <= number < 80 else ""


def _labelled(pair: PreferencePair, votes: Sequence[Label]) -> PreferencePair:
    """The pair with the label of most votes, and with its votes."""
    most = max(votes.count(vote) for vote in votes)
    winners = [vote for vote in dict.fromkeys(votes) if votes.count(vote) == most]
    return replace(pair, label=winners[0] if len(winners) == 1 else "tie", source=_VOTES + ", ".join(votes))


def _votes(pair: PreferencePair) -> list[Label]:
    """The votes that a pair keeps; of a pair of another source, its label."""
    kept = pair.source.removeprefix(_VOTES).split(", ") if pair.source.startswith(_VOTES) else []
    known: dict[str, Label] = {"A": "A", "B": "B", "tie": "tie"}
    return [known[vote] for vote in kept if vote in known] or [pair.label]


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """Agreement of the judge and of humans with single human votes, and the usual metrics of pairs.

    The judge's verdict about a pair is the winner of both orders, and a tie if they differ.

    - `agreement`: share of human votes that equal the verdict; ties included, no verdict never equal.
    - `agreement_without_ties`: the same over votes and verdicts that name a winner.
    - `agreement_with_majority`: share of pairs whose verdict is the label.
    - `majority_kappa`: Cohen's kappa of verdict and label, over A, B, tie and no verdict.
    - `human_agreement`, `human_agreement_without_ties`: share of equal votes among all pairs of votes about the same
      answers, which is what a judge can hope for.
    """
    verdicts = Verdicts.of(pairs, judgments)
    first, said = combined_verdicts(verdicts)
    question, label = verdicts.question[first], verdicts.label[first]
    votes = [np.array([_CODES[vote] for vote in _votes(pairs[pair])]) for pair in verdicts.pair[first]]
    rows = [(verdict, vote, at) for verdict, of_pair, at in zip(said, votes, question, strict=True) for vote in of_pair]
    both = [(one, other, at) for of_pair, at in zip(votes, question, strict=True) for one, other in _each_two(of_pair)]
    return {
        "agreement": _equal(rows, NO_VERDICT),
        "agreement_without_ties": _equal(rows, TIE - 1),
        "human_agreement": _equal(both, NO_VERDICT),
        "human_agreement_without_ties": _equal(both, TIE - 1),
        "agreement_with_majority": [Mean(np.asarray(said == label), question)],
        "majority_kappa": cohens_kappa(said, label, NO_VERDICT + 1, question),
        **pair_metrics(pairs, judgments),
    }


def _each_two(values: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Each two of some values, in the order in which they stand."""
    for place, one in enumerate(values):
        for other in values[place + 1 :]:
            yield one, other


def _equal(rows: Sequence[tuple[int, int, int]], highest: int) -> Metric:
    """Share of rows with two equal values, of those with values up to `highest`; the third value is the question."""
    first, second, question = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    known = (first <= highest) & (second <= highest)
    return [Mean((first == second)[known], question[known])]


def read_judgments(row: Row, at: str, pairs: Mapping[str, PreferencePair]) -> list[Judgment]:
    """The judgment in a row of the data set's split `gpt4_pair`, which has the columns of the votes.

    Its winner stands for both orders: `tie (inconsistent)` if they differ. It is read as a judgment in the order ab.
    Rows about pairs without a human vote are left out.

    Args:
        row: A row.
        at: Its place, for error messages.
        pairs: The pairs by id.

    Raises:
        UserError: A field is missing or invalid.
    """
    failed = row.get("winner") == "error"
    pair = _pair({**row, "winner": "tie"} if failed else row, at)
    if pair.id not in pairs:
        report_once("mt-bench-human: judgments of pairs without a human vote are left out")
        return []
    judge = row.get("judge")
    engine = judge if isinstance(judge, str) else "/".join(map(str, judge or [UNKNOWN]))
    judgment = Judgment(
        pair_id=pair.id,
        prompt=({"role": "user", "content": ""},),
        text="",
        verdict=None if failed else pair.label,
        order="ab",
        template=engine,
        engine=engine,
        seed=0,
    )
    return [judgment]


MT_BENCH_HUMAN: Benchmark[PreferencePair] = Benchmark(
    title="MT-Bench's human judgments, lmsys/mt_bench_human_judgments",
    size="3,355 votes, of authors too, about answers of six models to 80 questions of two turns",
    licence="CC-BY-4.0",
    convention="Both orders; two different winners are a tie. Agreement is the share of single votes of experts that "
    "equal the verdict, ties included; without ties, only votes and verdicts with a winner count. The label of a pair "
    "is the majority of its votes.",
    read=read,
    metrics=metrics,
    ties_count=True,
    shown={
        "agreement": "agreement",
        "agreement_without_ties": "without ties",
        "majority_kappa": "kappa",
        "no_verdict": "no verdict",
    },
    meanings={
        "agreement": "Share of human votes that equal the verdict. Two orders that differ are a tie.",
        "agreement_without_ties": "Share of human votes that equal the verdict, where both name a winner.",
        "majority_kappa": "Cohen's kappa of verdict and majority of human votes: 1 if they agree, 0 as by chance.",
    },
    hub=FileSource("lmsys/mt_bench_human_judgments", split="human"),
    judgments=read_judgments,
    published=(Published("GPT-4, pairwise", "about 85", "without ties; as summaries of the paper give it"),),
)
