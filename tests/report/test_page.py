"""The page's content, and what is refused."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from judgelit.cli import main
from judgelit.errors import UserError
from judgelit.evaluation.compare import compare_with
from judgelit.evaluation.intervals import as_json
from judgelit.evaluation.judged_folder import BenchmarkSet, write_set
from judgelit.evaluation.protocols import BENCHMARKS
from judgelit.evaluation.saved import read_results
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.report.browser import outcome, script_json
from judgelit.report.curves import MOST_POINTS, charts_of
from judgelit.report.figures import meaning
from judgelit.report.page import write_report
from tests.report.conftest import HOSTILE, write_results, write_run, write_voted
from tests.support import make_judgment, make_pair


class Elements(HTMLParser):
    """The elements of a page, and the text of its data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_data = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data


def page_of(tmp_path: Path, *folders: Path) -> str:
    write_report(folders, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800 alone", "\u2028"])
def test_json_in_a_script_is_the_value_and_ends_no_script(text: str) -> None:
    found = script_json({"text": text})
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", found)
    assert json.loads(found)["text"] == text.replace("\ud800", "\ufffd")


def test_the_page_holds_every_text_and_no_element_of_it(tmp_path: Path) -> None:
    text = page_of(tmp_path, write_results(tmp_path / "r", 14))
    elements = Elements(text)
    assert elements.tags.count("script") == 3 and not {"iframe", "img", "b"} & set(elements.tags)
    data = json.loads(elements.data)
    assert len(data["items"]) == 14 and len(data["judgments"]) == 28
    assert all(any(hostile in item["question"] for item in data["items"]) for hostile in HOSTILE)
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "default-src 'none'" in text.replace(
        "&#39;", "'"
    )


def test_figures_are_those_of_the_results(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "r", 8)
    content = json.loads((folder / "results.json").read_text())
    content["sets"]["mine"]["accuracy"] = {"value": 0.4321, "low": 0.4, "high": 0.5, "n": 16}
    content["sets"]["mine"].pop("cut_by_length")
    content["attacks"] = {"mine": {"master_key": {"success": {"value": 0.3333, "low": 0.1, "high": 0.6, "n": 9}}}}
    bins = [{"confidence": 0.9, "accuracy": 0.5, "n": 4}, {"confidence": None, "accuracy": None, "n": 0}]
    content["calibration"] = {"mine": {"ece": {"value": 0.0987, "low": 0.05, "high": 0.2, "n": 16}, "bins": bins}}
    (folder / "results.json").write_text(json.dumps(content))
    text = page_of(tmp_path, folder)
    assert "43.2%" in text and "40.0 to 50.0" in text
    assert "Master key, mine" in text and "33.3%" in text and "calibration error 9.9% (5.0 to 20.0)" in text
    # One of 8 pairs has no verdict: both of its judgments are cut. The results lack that share.
    assert "cut by length" in text and text.count("12.5%") >= 2


def test_the_figures_of_categories_are_those_that_the_benchmark_has_of_them(tmp_path: Path) -> None:
    """RewardBench's score is a mean of its sections, so a section alone has none."""
    subsets = {"alpacaeval-easy": "Chat", "llmbar-natural": "Chat Hard"}
    pairs = [
        make_pair(number, "A", category=section, subset=subset)
        for number, (subset, section) in enumerate(subsets.items())
    ]
    judgments = [
        make_judgment(pair.id, order, verdict) for pair in pairs for order, verdict in (("ab", "A"), ("ba", "B"))
    ]
    of_set = BenchmarkSet("rewardbench", pairs)
    write_set(tmp_path, "rewardbench", pairs, judgments)
    content = {
        "judgelit": "0.1.0",
        "model": "nano",
        "settings": {"seed": 0},
        "benchmarks": {"rewardbench": "rewardbench"},
        "sets": as_json({"rewardbench": of_set.benchmark.estimates(pairs, judgments)}),
        "groups": as_json({"rewardbench": of_set.benchmark.estimates_by_group(pairs, judgments)}),
    }
    (tmp_path / "results.json").write_text(json.dumps(content), encoding="utf-8")
    page = page_of(tmp_path, tmp_path)
    by_section = page[page.index("rewardbench, by category") :]
    assert "official accuracy" in by_section and by_section.count("100.0%") >= 2


def test_a_gain_about_one_question_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"base": "03-base", "sft": "05-sft-judged"})
    content = json.loads((run / "results.json").read_text())
    for gain in content["gains"]:
        gain |= {"low": None, "high": None, "p": None}
    (run / "results.json").write_text(json.dumps(content), encoding="utf-8")
    assert "one question" in page_of(tmp_path, run)


def test_a_comparison_with_another_judge_is_shown(tmp_path: Path) -> None:
    first = write_results(tmp_path / "first", 12, "first")
    second = write_results(tmp_path / "second", 12, "second")
    saved = read_results(second)
    judged = {"mine": saved.sets["mine"].judgments}
    compared = compare_with(read_results(first), saved.sets, judged, saved.content["settings"])
    content = {**saved.content, "against": compared.to_dict()}
    (second / "results.json").write_text(json.dumps(content), encoding="utf-8")
    page = page_of(tmp_path, second)
    assert "Two judges compared" in page and "against <bdi>first</bdi>" in page
    assert "0.0 points [0.0, 0.0]" in page and "0.0% of 24" in page
    assert "Two judges compared" not in page_of(tmp_path, first)


def test_votes_attacks_and_the_most_confident_judgments(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_voted(tmp_path / "r", 4))
    assert "majority of 5 votes" in page and "40 votes on 8 prompts" in page and "the share of votes for" in page
    # The orders ab have a majority of 3 of 5 with one vote missing, and are right; those of ba have none.
    selective = page[page.index("The most confident judgments") : page.index('id="judgments"')]
    shares = ["most confident 50%", "most confident 80%", "most confident 90%", ">all<"]
    assert sorted(shares, key=selective.index) == shares and "100.0%" in selective
    # Two of four pairs, whose worse answer the judge did not pick before.
    success = page[page.index("Success of each attack, mine") : page.index("Padding, mine")]
    assert "50.0%" in success and "#set=mine&amp;attack=any&amp;fooled=1" in success
    data = json.loads(Elements(page).data)
    attacked = [item for item in data["items"] if "attack" in item]
    assert len(attacked) == 4 and all(data["items"][item["of"]]["label"] == "A" for item in attacked)
    assert all(item["answers"][0] is None and item["answers"][1] for item in attacked)
    assert not any("question" in item for item in attacked)
    assert "4 questions with answers · 40 judgments and 40 of attacked pairs" in page


def test_too_many_attacked_judgments_are_left_out_by_pair_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judgelit.report.browser.MOST_ATTACKED", 25)
    page = page_of(tmp_path, write_voted(tmp_path / "r", 4))
    data = json.loads(Elements(page).data)
    # Each pair has ten judgments of its attacked pair: two pairs fit.
    attacked = [item for item in data["items"] if "attack" in item]
    assert [data["items"][item["of"]]["id"] for item in attacked] == ["p0", "p1"] and data["left_out"] == 20
    assert "The other 20 are in the files" in page and "40 judgments and 40 of attacked pairs" in page


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_metric_that_a_benchmark_shows_is_explained(name: str) -> None:
    benchmark = BENCHMARKS[name]
    explained = {metric: meaning(metric, benchmark) for metric in (*benchmark.shown, *(benchmark.shown_groups or ()))}
    assert all(text.endswith(".") for text in explained.values()), explained
    # Text for a metric that does not exist would never be read.
    assert set(benchmark.meanings) <= set(benchmark.metrics([], []))


def test_several_folders_stand_side_by_side(tmp_path: Path) -> None:
    data = json.loads(
        Elements(page_of(tmp_path, write_results(tmp_path / "x", 6), write_results(tmp_path / "y", 8))).data
    )
    assert data["judges"] == ["x: nano", "y: nano"]
    # The six pairs that both have judged are there once.
    assert len(data["items"]) == 8 and len(data["judgments"]) == 28


def test_a_run_and_an_unfinished_run(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", {"base": "03-base", "sft": "05-sft-judged"})
    text = page_of(tmp_path, whole)
    assert "base to sft" in text and "+12.5" in text and "04-sft" in text and "seed: 3" in text
    half = page_of(tmp_path, write_run(tmp_path / "half", {"base": "03-base"}, trained=False))
    assert json.loads(Elements(half).data)["judges"] == ["base"] and 'id="training"' not in half
    (whole / "results.json").unlink()
    assert "No judge has been measured yet" in page_of(tmp_path, whole)


def test_long_curves_are_thinned_and_keep_their_last_point() -> None:
    rows = [{"step": str(step), "train/loss": str(float(step)), "val/loss": ""} for step in range(10_000)]
    ((line,),) = [chart.lines for chart in charts_of(rows)]
    assert len(line.steps) <= MOST_POINTS and line.steps[-1] == 9999 and line.values[-1] == 9999.0


PAIR = PreferencePair("p", "q", "a", "b", "B")
SET = AnswerSet("s", "q", ("w", "x", "y", "z"), right=(2,))


@pytest.mark.parametrize(
    ("item", "order", "verdict", "expected"),
    [
        (PAIR, "ab", "B", "right"),
        (PAIR, "ba", "B", "wrong"),
        (PAIR, "ba", None, "none"),
        (PAIR, "ab", "tie", "wrong"),
        (PreferencePair("p", "q", "a", "b", "tie"), "ab", "A", "open"),
        (SET, "cadb", "A", "right"),
        (SET, "cadb", "C", "wrong"),
        (SET, "c", "7", "open"),
    ],
)
def test_outcome(item: Any, order: str, verdict: str | None, expected: str) -> None:
    judgment = Judgment(item.id, ({"role": "user", "content": "?"},), "t", verdict, order, "t", "e", 0)
    assert outcome(item, judgment) == expected


@pytest.mark.parametrize(("verdict", "expected"), [("tie", "right"), ("A", "wrong"), (None, "none")])
def test_a_tie_is_right_where_the_benchmark_counts_ties(verdict: str | None, expected: str, tmp_path: Path) -> None:
    pairs = [make_pair(1, "tie")]
    judgments = [make_judgment("p1", "ab", verdict)]
    write_set(tmp_path, "mine", pairs, judgments)
    content = {"model": "nano", "benchmarks": {"mine": "auto-j"}, "groups": {"mine": {}}}
    sets = as_json({"mine": BenchmarkSet("auto-j", pairs).benchmark.estimates(pairs, judgments)})
    (tmp_path / "results.json").write_text(json.dumps({**content, "sets": sets}), encoding="utf-8")
    (row,) = json.loads(Elements(page_of(tmp_path, tmp_path)).data)["judgments"]
    assert row[4] == expected


def test_code_that_results_name_runs_only_if_the_user_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_results(tmp_path / "theirs", 4)
    code = tmp_path / "bench.py"
    code.write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
        "from judgelit.evaluation.protocols import BENCHMARKS\nMINE = BENCHMARKS['pairs']\n",
        encoding="utf-8",
    )
    content = json.loads((folder / "results.json").read_text())
    content["benchmarks"] = {"mine": f"{code}:MINE"}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    report = ["report", str(folder), "--output", str(tmp_path / "r.html")]
    with pytest.raises(SystemExit) as ended:
        main(report)
    assert ended.value.code == 2 and "runs only if you name it" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    main([*report, "--benchmark", f"{code}:MINE"])
    assert (tmp_path / "ran").exists() and (tmp_path / "r.html").exists()


def test_sets_of_one_name_and_two_benchmarks_are_two_sets(tmp_path: Path) -> None:
    folders = [write_results(tmp_path / name, 6, benchmark=name) for name in ("pairs", "pandalm")]
    saved = read_results(folders[0])
    judged = {name: one.judgments for name, one in saved.sets.items()}
    against = compare_with(saved, saved.sets, judged, saved.content["settings"]).to_dict()
    (folders[0] / "results.json").write_text(json.dumps({**saved.content, "against": against}), encoding="utf-8")
    for order in (folders, folders[::-1]):
        elements = Elements(page_of(tmp_path, *order))
        assert {item["set"] for item in json.loads(elements.data)["items"]} == {"mine (pairs)", "mine (pandalm)"}
    assert ">mine<" not in page_of(tmp_path, *folders) and ">mine<" in page_of(tmp_path, folders[0])


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("absent", None, "found no folder, expected a folder that `judgelit run` or `judgelit evaluate` has written"),
        ("empty", "", r"found no results\.json, expected a folder"),
        ("broken", "{", "cannot be read as JSON"),
        ("other", '{"a": 1}', "found no results, expected those of"),
        ("form", '{"benchmarks": {}, "model": "m"}', "found content of another form .*'sets'.*run that command again"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(tmp_path: Path, name: str, content: str | None, error: str) -> None:
    if content is not None:
        (tmp_path / name).mkdir()
    if content:
        (tmp_path / name / "results.json").write_text(content)
    with pytest.raises(UserError, match=error) as found:
        write_report([tmp_path / name], tmp_path / "report.html")
    assert "\n" not in str(found.value) and not (tmp_path / "report.html").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_results(tmp_path / "r", 3)
    main(["report", str(folder), "-o", str(tmp_path / "page.html")])
    assert "open it in a browser" in capsys.readouterr().out and (tmp_path / "page.html").exists()
    for arguments, error in (([], "folders"), ([str(folder), "-o", str(tmp_path)], "expected a file")):
        with pytest.raises(SystemExit, match="2"):
            main(["report", *arguments])
        assert error in capsys.readouterr().err
