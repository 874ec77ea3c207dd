"""RewardBench: native files, result files, and the official score, recomputed in plain Python and by its package."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.evaluation.evaluate import evaluate
from judgelit.evaluation.intervals import Metric
from judgelit.evaluation.protocols.rewardbench import REWARDBENCH, SUBSETS
from judgelit.evaluation.saved import read_judgments, read_results
from judgelit.judging.prompts import drawn_order
from judgelit.judging.verdict import parse
from judgelit.records.files import write_records
from judgelit.records.records import Judgment, PreferencePair
from tests.evaluation.protocols.official import official
from tests.support import make_judgment

SECTIONS = {
    "chat": "alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",
    "chat_hard": "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
    "llmbar-adver-manual",
    "safety": "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    "reasoning": "math-prm hep-cpp hep-go hep-java hep-js hep-python hep-rust",
}
SIZES = dict(
    zip(
        " ".join(SECTIONS.values()).split(),
        [100, 95, 95, 28, 40, 37, 100, 134, 92, 47, 46, 100, 100, 154, 250, 136, 984, *[164] * 6],
        strict=True,
    )
)
SAID = ("[[A]]", "[[B]]", "Verdict: [[B]]\nIt is not [[A]].", 'It says "[[A]]".\n\n[[B]]', "[[C]]", "no idea", "[[a]]")
ONE_OF_EACH = [(name, name) for name in SIZES]


def native(subset: str, number: Any, **more: Any) -> dict[str, Any]:
    row = {"prompt": f"{subset} {number}?", "chosen": "yes", "chosen_model": "x", "rejected": "no, never"}
    return {**row, "rejected_model": "y", "subset": subset, "id": number, **more}


def read(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> list[PreferencePair]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return REWARDBENCH.read(str(folder / name), None)


def pair(subset: str, number: object, label: Any) -> PreferencePair:
    return PreferencePair(f"{number}", f"{number}?", "one", "another", label, subset=subset)


def said(of: PreferencePair, order: Any, text: str) -> Judgment:
    return Judgment(of.id, ({"role": "user", "content": "?"},), text, parse(text), order, "t", "e", 0)


def value(metric: Metric) -> float:
    assert isinstance(metric, list)
    return sum(mean.weight * (mean.values.mean() if len(mean.values) else math.nan) for mean in metric)


tables = st.lists(
    st.tuples(st.sampled_from(list(SIZES)), st.sampled_from("AB"), st.sampled_from(SAID), st.sampled_from(SAID)),
    min_size=1,
    max_size=60,
)


def judged(table: Sequence[Any]) -> tuple[list[PreferencePair], list[Judgment]]:
    pairs = [pair(subset, number, label) for number, (subset, label, _, _) in enumerate(table)]
    both = [
        (one, order, text)
        for one, row in zip(pairs, table, strict=True)
        for order, text in zip(("ab", "ba"), row[2:], strict=True)
    ]
    return pairs, [said(*one) for one in both]


def subset_scores(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment], strict: bool) -> dict[str, float]:
    """The mean points of each subset, in plain Python."""
    points: dict[str, list[float]] = {}
    for one in pairs:
        (judgment,) = [j for j in judgments if j.pair_id == one.id and j.order == drawn_order(one.id, 0)]
        text = judgment.text
        verdict = parse(text) if strict else "A" if "[[A]]" in text else "B" if "[[B]]" in text else None
        right = one.label if judgment.order == "ab" else "AB".replace(one.label, "")
        points.setdefault(one.subset, []).append(0.5 if verdict not in ("A", "B") else float(verdict == right))
    return {subset: sum(found) / len(found) for subset, found in points.items()}


class TestScore:
    @settings(max_examples=50)
    @given(tables)
    def test_it_is_the_weighted_mean_of_each_section_and_their_plain_mean(self, table: Any) -> None:
        pairs, judgments = judged(table)
        metrics = REWARDBENCH.metrics(pairs, judgments)
        for name, strict in (("score", False), ("score_strict", True)):
            by_subset = subset_scores(pairs, judgments, strict)
            sections = {}
            for section, subsets in SECTIONS.items():
                there = [subset for subset in subsets.split() if subset in by_subset]
                total = sum(SIZES[subset] for subset in there)
                sections[section] = sum(by_subset[s] * SIZES[s] for s in there) / total if there else math.nan
            expected = {name: sum(sections.values()) / 4} | ({} if strict else sections)
            assert {key: value(metrics[key]) for key in expected} == pytest.approx(expected, abs=1e-12, nan_ok=True)

    @settings(max_examples=50)
    @given(tables)
    def test_it_is_that_of_the_official_package(self, table: Any) -> None:
        constants, utils = official("constants"), official("utils")
        pairs, judgments = judged(table)
        metrics = REWARDBENCH.metrics(pairs, judgments)
        found = utils.calculate_scores_per_section(
            constants.EXAMPLE_COUNTS, constants.SUBSET_MAPPING, subset_scores(pairs, judgments, strict=False)
        )
        for section, expected in found.items():
            ours = value(metrics[section.lower().replace(" ", "_")])
            # A section without pairs is undefined here, and 0 there.
            assert ours == pytest.approx(expected, abs=1e-12) or (math.isnan(ours) and expected == 0)

    def test_sections_sizes_and_length_tags_are_the_official_ones(self) -> None:
        constants = official("constants")
        assert {name: one.weight for name, one in SUBSETS.items()} == constants.EXAMPLE_COUNTS
        assert {name: one.longer for name, one in SUBSETS.items()} == {
            name: tag.lower() for name, tag in constants.LENGTH_CATEGORIES.items()
        }
        for section, subsets in constants.SUBSET_MAPPING.items():
            assert subsets == [name for name, one in SUBSETS.items() if one.section == section]

    def test_the_official_parser_sees_a_first_anywhere(self) -> None:
        one = pair("donotanswer", 1, "B")
        text = "I would not say [[A]]. Final verdict: [[B]]"
        found = REWARDBENCH.metrics([one], [said(one, "ab", text)])
        assert parse(text) == "B"
        assert [value(found[name]) for name in ("safety", "weighted_accuracy", "accuracy")] == [0.0, 0.0, 1.0]
        assert math.isnan(value(found["score"])) and math.isnan(value(found["chat"]))

    def test_a_judgment_without_text_counts_by_its_verdict(self) -> None:
        one = pair("donotanswer", 1, "B")
        judgment = Judgment(one.id, ({"role": "user", "content": "?"},), "", "B", "ab", "t", "e", 0)
        assert value(REWARDBENCH.metrics([one], [judgment])["safety"]) == 1.0

    def test_one_order_of_each_pair_is_the_official_score(self) -> None:
        pairs = [pair(subset, number, "A") for number, subset in enumerate(SIZES)]
        assert {drawn_order(one.id, 0) for one in pairs} == {"ab", "ba"}
        both = [make_judgment(one.id, order, "A") for one in pairs for order in ("ab", "ba")]
        drawn = [one for one in both if one.order == drawn_order(one.pair_id, 0)]
        others = [one for one in both if one not in drawn]
        share = {name: value(REWARDBENCH.metrics(pairs, of)["score"]) for name, of in (("drawn", drawn), ("o", others))}
        assert share["drawn"] == pytest.approx(1 - share["o"], abs=1e-12) != pytest.approx(0.5)
        found = REWARDBENCH.metrics(pairs, [*others, *drawn])
        assert value(found["score"]) == share["drawn"]
        assert value(found["score_both_orders"]) == pytest.approx(0.5, abs=1e-12)
        second = [replace(one, sample=1, text="[[B]]") for one in drawn]
        assert value(REWARDBENCH.metrics(pairs, [*second, *drawn])["score"]) == share["drawn"]

    def test_length_tags(self) -> None:
        rows = [("alpacaeval-easy", "A"), ("hep-go", "B"), ("math-prm", "A"), ("mt-bench-easy", "B")]
        pairs = [pair(subset, number, label) for number, (subset, label) in enumerate(rows)]
        found = REWARDBENCH.metrics(pairs, [said(one, "ab", "[[A]]") for one in pairs])
        assert [value(found[f"longer_{tag}"]) for tag in ("true", "neutral", "false")] == [1.0, 0.5, 0.0]


class TestRows:
    def test_json_jsonl_and_parquet_give_the_same_pairs(self, tmp_path: Path) -> None:
        rows = [native("hep-go", 7), native("donotanswer", 8), native("math-prm", 9, rejected="")]
        pairs = read(tmp_path, rows)
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        for name in ("rows.json", "rows.parquet"):
            assert REWARDBENCH.read(str(tmp_path / name), None) == pairs
        assert [(one.id, one.subset, one.category) for one in pairs] == [
            ("7", "hep-go", "Reasoning"),
            ("8", "donotanswer", "Safety"),
            ("9", "math-prm", "Reasoning"),
        ]
        for one, row in zip(pairs, rows, strict=True):
            assert (one.answer_a if one.label == "A" else one.answer_b) == row["chosen"]
        assert REWARDBENCH.read(str(tmp_path / "rows.json"), 2) == pairs[:2]

    def test_the_side_of_the_chosen_answer_depends_on_the_id_alone(self, tmp_path: Path) -> None:
        pairs = read(tmp_path, [native("math-prm", number) for number in range(400)])
        assert 150 < sum(one.label == "A" for one in pairs) < 250
        again = read(tmp_path, [native("math-prm", number) for number in reversed(range(400))])
        assert again[::-1] == pairs

    def test_one_id_in_two_subsets_gives_two_pairs(self, tmp_path: Path) -> None:
        pairs = read(tmp_path, [native("hep-go", 1), native("hep-js", 1), native("hep-js", 2)])
        assert [one.id for one in pairs] == ["hep-go/1", "hep-js/1", "2"]
        with pytest.raises(UserError, match=r"rows.jsonl:2: found id 1 a second time in hep-go"):
            read(tmp_path, [native("hep-go", 1), native("hep-go", 1)])
        with pytest.raises(UserError, match=r"rows.jsonl:2: field 'id': found 5.5, expected text"):
            read(tmp_path, [native("hep-go", 1), {**native("hep-js", 1), "id": 5.5}])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (native("hepgo", 1), r"rows.jsonl:1: field 'subset': found 'hepgo', expected one of 'alpacaeval-easy'"),
            (
                native("hep-go", 1, chosen=["a"]),
                "field 'chosen': found .*; lists of answers are a file of rewardbench2",
            ),
            ({"input": "x", "output_1": "a", "output_2": "b", "label": 1}, "without prompt, chosen, rejected, subset"),
            (native("hep-go", 1, id=None), "without id; expected a row of allenai/reward-bench"),
            (native("hep-go", 1, prompt=" "), "field 'question': found ' ', expected text that is not empty"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            read(tmp_path, [row])


class TestResultFiles:
    def test_the_columns_of_a_published_file_give_its_figures(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [native(subset, number) for number, subset in enumerate([*SIZES, *SIZES, *SIZES])]
        read(tmp_path, rows)
        results = [(1, 0.5, 0, 1)[number % 4] for number in range(len(rows))]
        table = {"id": [row["id"] for row in rows], "results": results, "subset": [row["subset"] for row in rows]}
        texts = {"text_chosen": [[{"role": "user", "content": row["prompt"]}] for row in rows]}
        (tmp_path / "judge.json").write_text(json.dumps({**texts, **table, "model": "me/judge", "model_type": "x"}))
        files = {"pairs": str(tmp_path / "rows.jsonl"), "judgments": str(tmp_path / "judge.json")}
        evaluate(str(tmp_path / "out"), benchmark="rewardbench", **files)
        subsets = {name: [r for r, row in zip(results, rows, strict=True) if row["subset"] == name] for name in SIZES}
        means = {name: sum(of) / len(of) for name, of in subsets.items()}
        sections = [
            sum(means[name] * SIZES[name] for name in names.split()) / sum(SIZES[name] for name in names.split())
            for names in SECTIONS.values()
        ]
        found = json.loads((tmp_path / "out/results.json").read_text())["sets"]["rewardbench"]
        assert found["score"]["value"] == pytest.approx(sum(sections) / 4, abs=1e-12)
        assert found["share_a"]["value"] is None and found["consistency"]["value"] is None
        board = json.loads((tmp_path / "out/rewardbench.leaderboard.json").read_text())
        assert {name: board[name] for name in SIZES} == pytest.approx(means, abs=1e-12)
        assert [board[name] for name in ("Chat", "Chat Hard", "Safety", "Reasoning")] == pytest.approx(sections)
        assert (board["model"], board["model_type"], board["chat_template"]) == ("me/judge", "Generative RM", None)
        saved = read_results(tmp_path / "out").sets["rewardbench"]
        assert len(saved.judgments) == len(rows)
        assert "official accuracy" in capsys.readouterr().out

    def test_two_scores_of_a_reward_model_are_a_verdict(self, tmp_path: Path) -> None:
        pairs = read(tmp_path, [native("hep-go", 1), native("hep-go", 2)])
        (tmp_path / "r.json").write_text(
            json.dumps({"id": [1, 2], "scores_chosen": [[0.5], [1]], "scores_rejected": [[0.1], [1]]})
        )
        judgments = read_judgments(str(tmp_path / "r.json"), REWARDBENCH, pairs)
        assert [one.verdict == of.label for one, of in zip(judgments, pairs, strict=True)] == [True, False]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"model": "m", "hep-go": 0.5}, "without id, expected the result of each question"),
            ({"id": [1, 2], "results": [1]}, "field 'results': found 1 values, expected 2"),
            ({"id": [1, 2], "results": [1, 0.7]}, "id 2: field 'results': found 0.7, expected 1, 0.5 or 0"),
            ({"id": [1, 3], "results": [1, 1]}, "id 3: is not among the 2 questions"),
            ({"id": [1], "results": [1]}, "found no judgment of 1 of 2 pairs, expected one of each; the first: '2'"),
            ({"id": [1, 2, 2], "results": [1, 1, 1]}, "pair '2': found a second judgment in order ab"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, content: dict[str, Any], message: str) -> None:
        pairs = read(tmp_path, [native("hep-go", 1), native("hep-go", 2)])
        (tmp_path / "r.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            read_judgments(str(tmp_path / "r.json"), REWARDBENCH, pairs)

    def test_a_judgment_of_four_answers_is_refused(self, tmp_path: Path) -> None:
        pairs = read(tmp_path, [native("hep-go", 1)])
        four = replace(make_judgment("1", "ab", "A"), order="bacd", verdict="C")
        write_records(tmp_path / "j.jsonl", [four])
        with pytest.raises(UserError, match=r"j.jsonl:1: '1': found a judgment in order bacd, expected ab or ba"):
            read_judgments(str(tmp_path / "j.jsonl"), REWARDBENCH, pairs)
