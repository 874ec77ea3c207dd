import json
import math
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import main
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.saved import read_results
from judgelit.records.files import write_records
from judgelit.records.records import PreferencePair
from tests.evaluation.protocols.verdict_tables import tables
from tests.support import make_judgment

RM_BENCH = BENCHMARKS["rm-bench"]
DOMAINS = {"chat": "chat", "code": "code", "math": "math", "safety-refuse": "safety", "safety-response": "safety"}


def native(number: int | str, **more: Any) -> dict[str, Any]:
    """A row in the form of the hub."""
    right, wrong = ([f"{word} {number} {style}" for style in "cpm"] for word in ("right", "wrong"))
    return {"id": number, "prompt": f"Do {number}.", "chosen": right, "rejected": wrong, "domain": "chat", **more}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def repository_row(number: int, subset: str) -> dict[str, Any]:
    """A row in the form of the authors' repository."""
    row = native(number, subset=subset, error_key="x", error="y")
    del row["domain"]
    return row


def test_native_rows_of_the_hub(tmp_path: Path) -> None:
    rows = [native(7, domain=domain) for domain in ("chat", "safety-refuse")]
    pairs = RM_BENCH.read(write(tmp_path / "rm.json", rows), None)
    assert [pair.id for pair in pairs] == [
        f"{domain}/7/{i}-{j}" for domain in ("chat", "safety") for i in (1, 2, 3) for j in (1, 2, 3)
    ]
    assert {(pair.category, pair.source) for pair in pairs} == {("chat", "chat"), ("safety", "safety-refuse")}
    pair = pairs[5]
    assert (pair.id, pair.subset, pair.question) == ("chat/7/2-3", "plain-markdown", "Do 7.")
    right, wrong = (pair.answer_a, pair.answer_b)[:: 1 if pair.label == "A" else -1]
    assert (right, wrong) == ("right 7 p", "wrong 7 m")


def test_the_right_answer_has_no_fixed_place(tmp_path: Path) -> None:
    path = write(tmp_path / "rm.json", [native(number) for number in range(40)])
    labels = [pair.label for pair in RM_BENCH.read(path, None)]
    assert 0.4 < mean(label == "A" for label in labels) < 0.6
    backwards = write(tmp_path / "other.json", [native(number) for number in range(39, -1, -1)])
    assert {*RM_BENCH.read(backwards, None)} == {*RM_BENCH.read(path, None)}


def test_native_rows_of_the_repository(tmp_path: Path) -> None:
    files = {
        "chat_filtered.json": "alpacaeval",
        "math_filtered.json": "anything",
        "safety-refuse_filtered.json": "refusals-dangerous",
        "renamed.json": "bigcode/humanevalpack",
    }
    for name, subset in files.items():
        write(tmp_path / name, [repository_row(8, subset)])
    pairs = RM_BENCH.read(str(tmp_path), None)
    assert {pair.id.split("/")[0]: pair.source for pair in pairs} == {
        "chat": "alpacaeval",
        "math": "anything",
        "safety": "refusals-dangerous",
        "code": "bigcode/humanevalpack",
    }
    assert len(pairs) == 36


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "poetry"}, "field 'domain': found 'poetry', expected a text that begins with 'chat', 'code'"),
        ({"domain": None}, "field 'domain': found nothing, expected a text that begins with"),
        ({"chosen": ["one", "two"]}, r"field 'chosen': found \['one', 'two'\], expected a list of three answers"),
        ({"rejected": "three"}, "field 'rejected': found 'three', expected a list of three answers"),
        ({"rejected": ["a", None, "c"]}, r"field 'rejected\[1\]': found nothing, expected text"),
        ({"prompt": None}, "field 'prompt': found nothing"),
        ({"id": None}, "field 'id': found nothing"),
    ],
)
def test_a_wrong_row_gives_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "rm.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (native(1), {**native(2), **change})))
    with pytest.raises(UserError, match=rf"rm\.jsonl:2: {message}") as caught:
        RM_BENCH.read(str(path), None)
    assert "\n" not in str(caught.value)


def made(domains: dict[str, str], tmp: Path) -> list[PreferencePair]:
    """Two prompts of each domain, three of the last."""
    names = [name for name in domains for _ in range(2)] + [[*domains][-1]]
    return RM_BENCH.read(write(tmp / "rm.json", [native(n, domain=name) for n, name in enumerate(names)]), None)


def by_hand(pairs: list[PreferencePair], wins: Callable[[str], float]) -> dict[str, float]:
    """The figures from how much of each pair is won, by the definition of the matrix."""
    cells: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        domain, _, place = pair.id.split("/")
        i, j = map(int, place.split("-"))
        cells[domain][i, j].append(wins(pair.id))
    shares = {domain: {place: mean(values) for place, values in of.items()} for domain, of in cells.items()}
    levels = {
        domain: {
            "hard": mean(of[place] for place in ((1, 2), (1, 3), (2, 3))),
            "normal": mean(of[place] for place in ((1, 1), (2, 2), (3, 3))),
            "easy": mean(of[place] for place in ((2, 1), (3, 1), (3, 2))),
        }
        for domain, of in shares.items()
    }
    by_domain = {domain: mean(of.values()) for domain, of in levels.items()}
    over = {level: mean(of[level] for of in levels.values()) for level in ("hard", "normal", "easy")}
    return {"overall": mean(by_domain.values()), **over, **by_domain}


@pytest.fixture(scope="module", params=["all domains", "chat alone"])
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    domains = DOMAINS if request.param == "all domains" else {"chat": "chat"}
    return made(domains, tmp_path_factory.mktemp("rm"))


def test_metrics_are_those_computed_by_hand(pairs: list[PreferencePair]) -> None:
    @settings(max_examples=10, deadline=None)
    @given(tables(pairs, complete=True))
    def check(table: Any) -> None:
        judgments, won = table
        right = {place: what == "right" for place, what in won.items()}
        found = RM_BENCH.estimates(pairs, judgments)
        for name, value in by_hand(pairs, lambda pair: (right[pair, "ab"] + right[pair, "ba"]) / 2).items():
            assert found[name].value == pytest.approx(value, abs=1e-12), name
        strict = by_hand(pairs, lambda pair: float(right[pair, "ab"] and right[pair, "ba"]))
        for name in ("overall", "hard", "normal", "easy"):
            assert found[f"strict_{name}"].value == pytest.approx(strict[name], abs=1e-12), name

    check()


def test_groups_are_the_domains_and_the_cells_of_the_matrix(pairs: list[PreferencePair]) -> None:
    drawn = random.Random(1)
    judgments = [make_judgment(pair.id, order, drawn.choice(["A", "B"])) for pair in pairs for order in ("ab", "ba")]
    labels = {pair.id: {"ab": pair.label, "ba": pair.swapped().label} for pair in pairs}
    right = {(one.pair_id, one.order): one.verdict == labels[one.pair_id][one.order] for one in judgments}
    found, groups = RM_BENCH.estimates(pairs, judgments), RM_BENCH.estimates_by_group(pairs, judgments)
    for domain, of_domain in groups["category"].items():
        assert of_domain["overall"].value == pytest.approx(found[domain].value, abs=1e-12)
    cell = defaultdict(list)
    for (pair, _), value in right.items():
        if pair.endswith("/1-3"):
            cell[pair.split("/")[0]].append(value)
    estimate = groups["subset"]["concise-markdown"]
    assert estimate["overall"].value == pytest.approx(mean(mean(of) for of in cell.values()), abs=1e-12)
    assert estimate["hard"] == estimate["overall"] and math.isnan(estimate["easy"].value)
    assert len(groups["subset"]) == 9


def test_without_judgments_nothing_is_known(pairs: list[PreferencePair]) -> None:
    found = RM_BENCH.estimates(pairs, [])
    assert all(estimate.n == 0 and math.isnan(estimate.value) for estimate in found.values())


def test_the_files_of_a_benchmark_with_a_dash_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rm.json", [native(1)])
    pairs = RM_BENCH.read(path, None)
    right = [make_judgment(pair.id, order, pair.in_order(order).label) for pair in pairs for order in ("ab", "ba")]
    write_records(tmp_path / "right.jsonl", right)
    judged = ["--judgments", str(tmp_path / "right.jsonl"), "--output", str(tmp_path / "out")]
    main(["--benchmark", "[rm-bench]", "--sets.rm-bench", path, *judged])
    found = read_results(tmp_path / "out").content["sets"]["rm-bench"]
    assert (found["overall"]["value"], found["strict_hard"]["value"]) == pytest.approx((1, 1), abs=1e-12)
