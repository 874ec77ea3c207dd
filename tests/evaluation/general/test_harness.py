import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.evaluation.general.harness import check_harness, harness_estimates, run_harness

ROWS = [
    {"q": "What is 6 + 6?", "choices": ["12", "15"], "gold": 0},
    {"q": "What is 12 + 3?", "choices": ["12", "15"], "gold": 1},
    {"q": "What is 3 + 3?", "choices": ["5", "6"], "gold": 1},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
"""
CHOICE = """\
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
TEXT = r"""
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
# What lm_eval 0.4.13 returns, shortened.
RECORDED = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "sample_len": 4,
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.1,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": 0.2,
        },
        "wikitext": {"alias": "wikitext", "word_perplexity,none": 12.5, "word_perplexity_stderr,none": "N/A"},
    },
    "n-samples": {"gsm8k": {"original": 1319, "effective": 4}, "wikitext": {"original": 62, "effective": 62}},
}
FAKE = """
calls = []
def simple_evaluate(model, tasks, limit, **more):
    from pathlib import Path
    with Path(__file__).with_name("calls.txt").open("a") as file:
        file.write(f"{tasks} {limit} {more}\\n")
    if tasks == ["needs_net"]:
        raise ConnectionError("no net\\nhere")
    return {"results": {tasks[0]: {"acc,none": 0.5, "acc_stderr,none": 0.1}}, "samples": object(),
            "n-samples": {tasks[0]: {"effective": 7}}}
"""
FAKE_TASKS = """
class TaskManager:
    def match_tasks(self, names):
        return [name for name in names if name in ("one", "two", "broken", "needs_net")]
def get_task_dict(names, manager):
    if names == ["broken"]:
        raise ValueError("no data\\nset")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the names that are used of lm_eval. Yields the file of its calls."""
    package = tmp_path / "packages/lm_eval"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE)
    (package / "tasks.py").write_text(FAKE_TASKS)
    (package / "models/__init__.py").write_text("")
    (package / "models/huggingface.py").write_text("def HFLM(model, **settings):\n    return model\n")
    about = tmp_path / "packages/lm_eval-0.4.99.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.99\n")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "lm_eval"}
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield package / "calls.txt"
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_metrics_with_their_standard_errors() -> None:
    found = harness_estimates(RECORDED)
    assert {name: (one.value, one.n) for name, one in found.items()} == {
        "gsm8k/exact_match,strict-match": (0.25, 4),
        "gsm8k/exact_match,flexible-extract": (0.5, 4),
        "wikitext/word_perplexity": (12.5, 62),
    }
    strict = found["gsm8k/exact_match,strict-match"]
    assert (strict.low, strict.high) == pytest.approx((0.25 - 0.196, 0.25 + 0.196), abs=1e-4)
    assert found["wikitext/word_perplexity"].to_dict()["low"] is None


def test_tasks_that_are_done_are_not_run_again(fake: Path, engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "harness.json"
    with pytest.raises(UserError, match=r"harness: needs_net: cannot run: ConnectionError: no net$"):
        run_harness(engine, ["one", "needs_net"], 7, path)
    assert list(json.loads(path.read_text())["tasks"]) == ["one"]
    found = run_harness(engine, ["one", "two"], 7, path)
    assert {name: (one.value, one.n) for name, one in found.items()} == {"one/acc": (0.5, 7), "two/acc": (0.5, 7)}
    asked = [line.split(" 7 ")[0] for line in fake.read_text().splitlines()]
    assert asked == ["['one']", "['needs_net']", "['two']"] and "'apply_chat_template': True" in fake.read_text()
    # With another limit, nothing of it is taken.
    run_harness(engine, ["one"], 3, path)
    assert fake.read_text().splitlines()[-1].startswith("['one'] 3")
    path.write_text("{}")
    with pytest.raises(UserError, match="found no results of the harness"):
        run_harness(engine, ["one"], 3, path)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("onee", "harness: found 'onee', expected a task of lm_eval"),
        ("own.yaml", r"harness: found no file own\.yaml, expected"),
        ("broken", "harness: broken: cannot be loaded: ValueError: no data$"),
    ],
)
def test_a_task_that_cannot_be_loaded_is_one_line(fake: Path, task: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_harness(["one", task])


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("judgelit.evaluation.general.harness.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"expected the extra harness: pip install 'judgelit\[harness\]'"):
        check_harness(["gsm8k"])


@pytest.mark.slow
def test_the_harness_runs_tasks_of_local_files(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    choice = TASK.format(name="sums_choice", data=data, kind="multiple_choice") + CHOICE
    (tmp_path / "choice.yaml").write_text(choice)
    (tmp_path / "text.yaml").write_text(TASK.format(name="sums_text", data=data, kind="generate_until") + TEXT)
    check_harness(["choice.yaml", "text.yaml"])
    found = run_harness(engine, ["choice.yaml", "text.yaml"], None, tmp_path / "harness.json")
    assert {name: one.n for name, one in found.items()} == {"sums_choice/acc": 3, "sums_text/exact_match": 3}
    assert found["sums_choice/acc"].value in [pytest.approx(right / 3) for right in range(4)]
    assert run_harness(engine, ["choice.yaml"], 2, tmp_path / "less.json")["sums_choice/acc"].n == 2
