import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.evaluation.judgments import judge, make_judgment
from judgelit.generation.engine import Generated
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import judge_prompts
from judgelit.records.records import Judgment
from tests.support import ScriptedEngine, make_pair, short_templates


@pytest.fixture
def prompts(chatml: ChatTokenizer, tmp_path):
    pairs = [make_pair(number, "AB"[number % 2], f"right {number}", f"wrong {number}") for number in range(4)]
    return judge_prompts(pairs, short_templates(tmp_path / "templates").load(), chatml, 500)[0]


def test_judgments_have_the_sequence_of_the_prompts(prompts):
    engine = ScriptedEngine(lambda prompt, _: "[[A]]" if "A: right" in prompt else "[[B]]")
    judgments = judge(engine, prompts, Sampling(max_new_tokens=8), seed=3)
    assert [(j.pair_id, j.order, j.prompt) for j in judgments] == [(p.pair.id, p.order, p.messages) for p in prompts]
    assert all(judgment.verdict == prompt.pair.label for judgment, prompt in zip(judgments, prompts, strict=True))
    assert {(j.engine, j.seed, j.template) for j in judgments} == {("scripted", 3, "short")}
    assert Judgment.from_dict(judgments[0].to_dict(), "here") == judgments[0]


def test_a_text_without_verdict_is_kept(prompts):
    judgment = make_judgment(prompts[0], Generated("hard to say", "length"), "judge", 0)
    assert (judgment.verdict, judgment.text, judgment.finish) == (None, "hard to say", "length")
