import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.saved import read_judgments
from judgelit.records.records import Judgment
from tests.evaluation.protocols.human_labels import combined, share, values, winners
from tests.support import make_judgment

MT_BENCH = BENCHMARKS["mt-bench-human"]


def native(winner: str = "model_a", judge: Any = "expert_1", turn: Any = 1, **more: Any) -> dict[str, Any]:
    """A vote about the answers of alpaca and vicuna."""
    row = {"question_id": 95, "model_a": "alpaca", "model_b": "vicuna", "winner": winner, "judge": judge, "turn": turn}
    return {**row, "conversation_a": talk("alpaca"), "conversation_b": talk("vicuna"), **more}


def talk(model: str) -> list[dict[str, str]]:
    texts = ["Hi?", f"{model} 1", "And?", f"{model} 2"]
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """The same vote with the models at each other's place."""
    winner = {"model_a": "model_b", "model_b": "model_a"}.get(row["winner"], row["winner"])
    swapped = {
        f"{name}_{one}": row[f"{name}_{other}"] for name in ("model", "conversation") for one, other in ("ab", "ba")
    }
    return {**row, **swapped, "winner": winner}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_votes_about_the_same_answers_are_one_pair(tmp_path: Path) -> None:
    rows = [native(), turned(native("model_a", "expert_2")), native("tie", "expert_3"), native("model_b", turn=2)]
    rows += [native("model_b", "author_0"), native("model_b", ["gpt-4", "pair-v2"]), turned(native("tie", turn=2))]
    first, second = MT_BENCH.read(write(tmp_path / "votes.jsonl", rows), None)
    assert (first.id, first.label, first.source) == ("95/alpaca/vicuna/1", "A", "votes: A, A, tie")
    assert (first.question, first.answer_a, first.answer_b) == ("Hi?", "alpaca 1", "vicuna 1")
    assert (first.category, first.subset) == ("roleplay", "turn 1")
    assert (second.id, second.label, second.source) == ("95/alpaca/vicuna/2", "tie", "votes: B, tie")
    assert second.question == "Hi?" and second.subset == "turn 2"
    assert second.answer_a == "alpaca 1\n\nHuman: And?\n\nAssistant: alpaca 2"
    saved = write(tmp_path / "saved.jsonl", [first.to_dict(), second.to_dict()])
    assert MT_BENCH.read(saved, None) == [first, second]
    assert MT_BENCH.read(saved, 1) == [first]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (native("model_c"), ":2: field 'winner': found 'model_c', expected one of model_a, model_b, tie"),
        (native(turn=3), ":2: field 'turn': found 3, expected 1 or 2"),
        (native(judge=None), ":2: field 'judge': found nothing, expected text"),
        (
            native(turn=2, conversation_b=talk("v")[:2]),
            ":2: field 'conversation_b': found '2 turns', expected 4, since",
        ),
        (
            native(conversation_b=talk("other")),
            ":2: found other answers of pair '95/alpaca/vicuna/1' than in an earlier",
        ),
    ],
)
def test_an_invalid_row_is_one_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "votes.jsonl", [native(), row])
    with pytest.raises(UserError) as error:
        MT_BENCH.read(path, None)
    assert path + message in str(error.value) and "\n" not in str(error.value)


def test_files_without_a_human_vote_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no row with a vote of a human"):
        MT_BENCH.read(write(tmp_path / "votes.jsonl", [native(judge=["gpt-4", "pair-v2"])]), None)


def test_verdicts_of_the_data_sets_own_judge(tmp_path: Path) -> None:
    pairs = MT_BENCH.read(write(tmp_path / "votes.jsonl", [native(question_id=n) for n in range(81, 85)]), None)
    said = ["model_a", "model_b", "tie (inconsistent)", "error", "model_a"]
    rows = [turned(native(one, ["gpt-4", "pair-v2"], question_id=81 + n)) for n, one in enumerate(said)]
    found = read_judgments(write(tmp_path / "gpt4.jsonl", rows), MT_BENCH, pairs)
    # `turned` swaps the models back, so a vote for model_a is one for alpaca; nobody voted about the last question.
    assert [(one.pair_id[:2], one.order, one.verdict) for one in found] == [
        ("81", "ab", "A"),
        ("82", "ab", "B"),
        ("83", "ab", "tie"),
        ("84", "ab", None),
    ]
    assert {one.engine for one in found} == {"gpt-4/pair-v2"}
    figures = values(MT_BENCH, pairs, found)
    assert (figures["agreement"], figures["agreement_without_ties"]) == (0.25, 0.5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_metrics_equal_their_definitions(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn = random.Random(seed)
    names = {"A": "model_a", "B": "model_b", "tie": "tie"}
    votes = {n: [drawn.choice(["A", "B", "tie"]) for _ in range(drawn.randint(1, 4))] for n in range(81, 87)}
    rows = [
        drawn.choice([lambda row: row, turned])(native(names[vote], f"expert_{place}", question_id=n))
        for n, of_pair in votes.items()
        for place, vote in enumerate(of_pair)
    ]
    pairs = MT_BENCH.read(write(tmp_path_factory.mktemp("votes") / "votes.jsonl", rows), None)
    judgments: list[Judgment] = [
        make_judgment(pair.id, order, drawn.choice(["A", "B", "tie", None]))
        for pair in pairs
        for order in drawn.choice([("ab", "ba"), ("ab", "ba"), ("ab",), ("ba",)])
    ]
    said = {int(name.split("/")[0]): combined(by) for name, by in winners(judgments).items()}
    singles = [(said[n], vote) for n, of_pair in votes.items() for vote in of_pair]
    humans = [two for of_pair in votes.values() for two in combinations(of_pair, 2)]
    majority = {
        n: [one for one in "AB" if 2 * of.count(one) > len(of) or _most(of) == [one]] for n, of in votes.items()
    }
    labels = [(said[n], one[0] if one else "tie") for n, one in majority.items()]
    chance = sum(share(v == c for v, _ in labels) * share(w == c for _, w in labels) for c in ("A", "B", "tie", "none"))
    same = share(v == w for v, w in labels)
    expected = {
        "agreement": share(v == w for v, w in singles),
        "agreement_without_ties": share(v == w for v, w in singles if {v, w} <= {"A", "B"}),
        "human_agreement": share(v == w for v, w in humans),
        "human_agreement_without_ties": share(v == w for v, w in humans if {v, w} <= {"A", "B"}),
        "agreement_with_majority": same,
        "majority_kappa": (same - chance) / (1 - chance) if chance < 1 - 1e-9 else float("nan"),
    }
    found = values(MT_BENCH, pairs, judgments)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)


def _most(votes: list[str]) -> list[str]:
    """The verdicts with the most votes."""
    return [one for one in ("A", "B", "tie") if votes.count(one) == max(map(votes.count, votes))]
