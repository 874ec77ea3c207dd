import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.evaluation.judgments import as_judgment, judge, judged_pairs, show, table_rows
from judgelit.evaluation.metrics import Estimate
from judgelit.generation.generate import Sampling
from judgelit.judging.prompts import judge_prompts
from judgelit.records.records import Judgment
from tests.support import ScriptedEngine, make_pair, short_templates


@pytest.fixture
def prompts(chatml: ChatTokenizer, tmp_path):
    pairs = [make_pair(number, "AB"[number % 2], f"right {number}", f"wrong {number}") for number in range(4)]
    return judge_prompts(pairs, short_templates(tmp_path / "templates").load(), chatml, 500)[0]


def test_judgments_stand_in_the_prompts_order_whatever_order_they_come_in(prompts):
    engine = ScriptedEngine(lambda prompt, _: "[[A]]" if "A: right" in prompt else "[[B]]")
    judgments = judge(engine, prompts, Sampling(max_new_tokens=8), seed=3)
    assert [(j.pair_id, j.order, j.prompt) for j in judgments] == [(p.pair.id, p.order, p.messages) for p in prompts]
    assert all(judgment.verdict == prompt.pair.label for judgment, prompt in zip(judgments, prompts, strict=True))
    assert {(j.engine, j.seed, j.template) for j in judgments} == {("scripted", 3, "short")}
    assert Judgment.from_dict(judgments[0].to_dict(), "here") == judgments[0]


def test_a_text_without_verdict_is_kept_as_such(prompts):
    judgment = as_judgment(prompts[0], "hard to say", "judge", 0)
    assert (judgment.verdict, judgment.text) == (None, "hard to say")


def test_judged_pairs_stand_once_and_in_their_own_order(prompts):
    pairs = judged_pairs(prompts[::-1])
    assert sorted(pairs, key=lambda pair: pair.id) == [
        make_pair(number, "AB"[number % 2], f"right {number}", f"wrong {number}") for number in range(4)
    ]


def test_figures_as_people_read_them():
    known, unknown = Estimate(0.5, 0.25, 0.754, 8), Estimate(float("nan"), float("nan"), float("nan"), 0)
    assert show(known) == "50.0% [25.0, 75.4]"
    assert show(unknown) == "-"
    results = {"base": {"one": {"accuracy": known}}, "sft": {"one": {"accuracy": unknown}, "two": {"accuracy": known}}}
    assert list(table_rows(results, ["accuracy"])) == [
        ("one", "base", "50.0% [25.0, 75.4]"),
        ("one", "sft", "-"),
        ("two", "sft", "50.0% [25.0, 75.4]"),
    ]
