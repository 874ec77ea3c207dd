from pathlib import Path
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.local import LocalEngine
from judgelit.generation.requests import Requests
from judgelit.judging.prompts import judge_prompts
from judgelit.judging.verdict import parse
from judgelit.records.records import PreferencePair
from judgelit.synthesis.tasks.pairs import TaskPairs, worked_judgment
from judgelit.synthesis.teachers import EngineTeacher, TaskTeacher
from tests.support import make_pair, short_templates


@pytest.fixture
def templates(tmp_path: Path) -> Any:
    return short_templates(tmp_path / "templates", {"careful": "careful", "hurried": "brief"}).load()


@pytest.fixture
def prompts(chatml: ChatTokenizer, templates: Any) -> Any:
    pairs = TaskPairs(kinds=["sorting"], difficulties=[1], count=150).read(PreferencePair)
    return judge_prompts(pairs, templates, chatml, 900)[0]


def said(teacher: Any, prompts: Any, templates: Any, seed: int = 0) -> list[str]:
    answers = teacher.judgments(prompts, templates, Path("unused"), seed)
    texts = {index: answer.text for index, answer in answers}
    return [texts[index] for index in range(len(prompts))]


def test_the_task_teacher_works_out_each_prompt(prompts: Any, templates: Any) -> None:
    for prompt, text in zip(prompts, said(TaskTeacher(), prompts, templates), strict=True):
        assert text == worked_judgment(prompt.pair) and parse(text) == prompt.pair.label
    assert not Path("unused").exists()
    for prompt, text in zip(prompts, said(TaskTeacher(short=True), prompts, templates), strict=True):
        assert text == worked_judgment(prompt.pair, short=True)
    assert TaskTeacher(short=True).settings()["short"]


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_it_glances_under_brief_templates_at_the_set_rate(prompts: Any, templates: Any, rate: float) -> None:
    texts = list(zip(prompts, said(TaskTeacher(rate), prompts, templates), strict=True))
    glances = [(prompt, text) for prompt, text in texts if text.startswith("At a glance")]
    brief = sum(prompt.template == "hurried" for prompt in prompts)
    assert all(prompt.template == "hurried" for prompt, _ in glances)
    assert len(glances) == pytest.approx(rate * brief, abs=0 if rate in (0, 1) else 0.12 * brief)
    if rate == 1:
        right = sum(parse(text) == prompt.pair.label for prompt, text in glances)
        assert 0.4 * brief < right < 0.6 * brief, "no better than a coin"


def test_its_glances_depend_on_the_seed(prompts: Any, templates: Any) -> None:
    assert said(TaskTeacher(0.5), prompts, templates) == said(TaskTeacher(0.5), prompts[:], templates)
    assert said(TaskTeacher(0.5), prompts, templates) != said(TaskTeacher(0.5), prompts, templates, seed=1)


def test_other_pairs_and_rates_are_refused(chatml: ChatTokenizer, templates: Any) -> None:
    foreign = judge_prompts([make_pair(1)], templates, chatml, 900)[0]
    with pytest.raises(UserError, match="not the id of a task"):
        said(TaskTeacher(), foreign, templates)
    with pytest.raises(UserError, match=r"glance_rate: found 1\.5"):
        TaskTeacher(1.5)


@pytest.mark.parametrize("kind", ["llama", "warm_adapter"])
def test_a_model_or_an_adapter_as_teacher_is_asked_once(
    chatml: ChatTokenizer,
    templates: Any,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    model: str = request.getfixturevalue(kind)
    prompts = judge_prompts([make_pair(number) for number in range(3)], templates, chatml, 900)[0]
    teacher = EngineTeacher(max_new_tokens=4, model=model, batch_size=2)
    assert teacher.name == model
    first = dict(teacher.judgments(prompts, templates, tmp_path / "journal.sqlite", 0))
    assert set(first) == set(range(6)) and any(first.values())

    def asked(*args: Any, **more: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(LocalEngine, "answer", asked)
    assert dict(teacher.judgments(prompts, templates, tmp_path / "journal.sqlite", 0)) == first


def test_prices_of_an_endpoint_say_what_answers_cost() -> None:
    requests = Requests(prompt_price=2.0, completion_price=10.0)
    assert EngineTeacher(model="m", endpoint="http://localhost:1/v1", requests=requests).price(500_000, 100_000) == 2.0
    assert EngineTeacher(model="m").price(5, 5) is None and TaskTeacher().price(0, 0) is None
