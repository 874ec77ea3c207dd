"""Several benchmarks in one command, and judgments made elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate, main
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.saved import read_results
from judgelit.records.files import write_records
from judgelit.records.records import UNKNOWN, AnswerSet, Judgment
from tests.support import make_judgment, make_pair

ITEMS = [make_pair(number, "AB"[number % 2], category=f"c{number % 3}") for number in range(12)]
SAID = [
    make_judgment(pair.id, order, [pair.label if order == "ab" else pair.swapped().label, None][number % 4 == 3])
    for number, pair in enumerate(ITEMS)
    for order in ("ab", "ba")
]


def own_judgments(row: Any, at: str, items: Any) -> list[Judgment]:
    """Rows such as {"pair": "p1", "winners": ["A", "B"]}, one winner for each order."""
    orders = zip(("ab", "ba"), row["winners"], strict=True)
    return [replace(make_judgment(row["pair"], order, winner), text="") for order, winner in orders]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A benchmark with result files of its own, whose pairs lie where its `hub` says."""
    path = str(tmp_path / "made-up.jsonl")
    write_records(path, ITEMS)
    monkeypatch.setitem(BENCHMARKS, "made-up", replace(PAIRS, title="made up", hub=path, judgments=own_judgments))
    return path


@pytest.fixture
def said(tmp_path: Path) -> str:
    write_records(tmp_path / "said.jsonl", SAID)
    return str(tmp_path / "said.jsonl")


def results_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_judgments_made_elsewhere_give_the_figures_of_their_benchmark(
    made_up: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--benchmark=made-up", f"--judgments={said}", "--model=somebody", f"--output={tmp_path}/out"])
    results = results_in(tmp_path / "out")
    assert (results["model"], results["benchmarks"]) == ("somebody", {"made-up": "made-up"})
    found = PAIRS.estimates(ITEMS, SAID)
    assert results["sets"]["made-up"] == {name: one.to_dict() for name, one in found.items()}
    printed = capsys.readouterr().out
    assert "75.0%" in printed and "by category:" in printed and "made-up, c2" in printed
    saved = read_results(tmp_path / "out")
    assert (saved.model, list(saved.sets), saved.sets["made-up"].name) == ("somebody", ["made-up"], "made-up")
    assert (saved.sets["made-up"].items, saved.sets["made-up"].judgments) == (ITEMS, SAID)


def test_a_benchmarks_own_result_files_are_read(made_up: str, tmp_path: Path) -> None:
    rows = [
        {"pair": one.pair_id, "winners": [one.verdict, other.verdict]}
        for one, other in zip(SAID[::2], SAID[1::2], strict=True)
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(str(tmp_path / "out"), benchmark="made-up", judgments=str(path))
    assert results_in(tmp_path / "out")["model"] == "e"  # the engine of all judgments
    found = PAIRS.estimates(ITEMS, SAID)
    assert results_in(tmp_path / "out")["sets"]["made-up"] == {name: one.to_dict() for name, one in found.items()}


@pytest.mark.parametrize(("engines", "named"), [("xx", "x"), ("xu", "x"), ("xy", "said.jsonl"), ("uu", "said.jsonl")])
def test_judgments_made_elsewhere_name_their_judge(made_up: str, tmp_path: Path, engines: str, named: str) -> None:
    names = [UNKNOWN if engine == "u" else engine for engine in engines]
    rows = [replace(one, engine=names[number % 2]) for number, one in enumerate(SAID)]
    write_records(tmp_path / "said.jsonl", rows)
    evaluate(str(tmp_path / "out"), benchmark="made-up", judgments=str(tmp_path / "said.jsonl"))
    assert results_in(tmp_path / "out")["model"] == named


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            SAID[:-1],
            "said.jsonl: found no judgment of 1 of 12 pairs, expected one of each; the first: 'p11' in order ba",
        ),
        (SAID[2:], "said.jsonl: found no judgment of 1 of 12 pairs, expected one of each; the first: 'p0' in order ab"),
        ([*SAID, SAID[3]], "said.jsonl:25: pair 'p1': found a second judgment in order ba, expected one"),
        ([*SAID, make_judgment("p99", "ab", "A")], "said.jsonl:25: pair 'p99' is not among the 12 that were read"),
    ],
)
def test_judgments_that_do_not_fit_are_one_line(
    made_up: str, tmp_path: Path, rows: list[Judgment], complaint: str
) -> None:
    write_records(tmp_path / "said.jsonl", rows)
    with pytest.raises(UserError) as error:
        evaluate(str(tmp_path / "out"), benchmark="made-up", judgments=str(tmp_path / "said.jsonl"))
    assert str(error.value).endswith(complaint) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({}, "missing --model, or --judgments"),
        ({"judgments": "{said}", "dtype": "bfloat16"}, "dtype: has no meaning with judgments"),
        ({"judgments": "{said}", "max_new_tokens": 9}, "max_new_tokens: has no meaning with judgments"),
        ({"judgments": "{said}", "seed": 1}, "seed: has no meaning with judgments"),
        ({"judgments": "{said}", "benchmark": ["made-up", "pairs"], "sets": {"pairs": "{said}"}}, "found 2 sets"),
        ({"benchmark": "made-down"}, "the nearest known one is 'made-up'"),
        ({"benchmark": ["made-up", "pairs"]}, "pairs: is not on the hub; give its files"),
        ({"benchmark": ["made-up"], "sets": {"other": "{said}"}}, "sets: found 'other', expected names of the bench"),
        ({"benchmark": ["made-up", "pairs"], "pairs": "{said}"}, "pairs: found beside several sets or benchmarks"),
        ({"shard": "3/2"}, "shard: found '3/2'"),
        ({"shard": "1/999999"}, "shard: 1/999999 has none of the 12 pairs of made-up"),
    ],
)
def test_options_that_do_not_fit_together_are_one_line(
    made_up: str, said: str, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    filled = json.loads(json.dumps({"benchmark": "made-up", **options}).replace("{said}", said))
    filled["sets"] = dict.fromkeys(filled["sets"], made_up) if "sets" in filled else None
    with pytest.raises(UserError) as error:
        evaluate(str(tmp_path / "out"), **filled)
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_a_used_folder_takes_no_other_judgments(made_up: str, said: str, tmp_path: Path) -> None:
    evaluate(str(tmp_path / "out"), benchmark="made-up", judgments=said)
    evaluate(str(tmp_path / "out"), benchmark="made-up", judgments=said)
    other = [replace(one, verdict="A") for one in SAID]
    write_records(tmp_path / "other.jsonl", other)
    with pytest.raises(UserError, match=r"settings\.json: (model|judgments): found .* choose another folder"):
        evaluate(str(tmp_path / "out"), benchmark="made-up", judgments=str(tmp_path / "other.jsonl"))


def test_the_list_shows_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    printed = capsys.readouterr().out
    for name, benchmark in BENCHMARKS.items():
        assert f"{name}: {benchmark.title}" in printed
        assert all(one.model in printed for one in benchmark.published)
    assert all(len(line) <= 112 for line in printed.splitlines() if not line.startswith(tuple(BENCHMARKS)))


def test_results_of_answer_sets_are_read_as_they_were_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(where: Any, limit: int | None) -> list[AnswerSet]:
        return [AnswerSet(f"s{n}", f"{n}?", ("a", "b", "c", "d"), right=(0,), subset="math") for n in range(3)]

    def metrics(items: Any, judgments: Any) -> Any:
        return PAIRS.metrics([], [])

    own = replace(PAIRS, read=read, metrics=metrics)
    monkeypatch.setitem(BENCHMARKS, "four", own)
    said = [replace(make_judgment(f"s{n}", "ab", "A"), order="dbac", verdict="D") for n in range(3)]
    write_records(tmp_path / "said.jsonl", said)
    evaluate(str(tmp_path / "out"), benchmark="four", pairs="unused", judgments=str(tmp_path / "said.jsonl"))
    saved = read_results(tmp_path / "out").sets["four"]
    assert (saved.items, saved.judgments) == (read("", None), said)
    with pytest.raises(UserError, match="found no results"):
        read_results(tmp_path)
