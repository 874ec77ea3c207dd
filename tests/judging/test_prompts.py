from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.judging.prompts import Templates, drawn_order, in_drawn_order, judge_prompts
from judgelit.records.records import PreferencePair, swap_label
from tests.support import make_pair, short_templates

PAIRS = [make_pair(number, ("A", "B", "tie")[number % 3], f"right {number}", f"wrong {number}") for number in range(30)]


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    return short_templates(tmp_path / "templates", {"one": "careful", "two": "careful", "three": "brief"})


def test_both_orders_share_pair_and_template_and_have_opposite_labels(
    chatml: ChatTokenizer, templates: Templates
) -> None:
    prompts, report = judge_prompts(PAIRS, templates.load(), chatml, 500)
    assert (report.prompts, report.shortened, report.skipped) == (60, 0, ())
    for pair, first, second in zip(PAIRS, prompts[::2], prompts[1::2], strict=True):
        assert (first.order, second.order) == ("ab", "ba")
        assert first.pair == pair and second.pair == pair.swapped()
        assert first.pair.id == second.pair.id and first.template == second.template
        assert second.pair.label == swap_label(first.pair.label)
        one, other = (prompt.messages[-1]["content"].splitlines() for prompt in (first, second))
        assert one[1:3] == [f"A: {pair.answer_a}", f"B: {pair.answer_b}"]
        assert other[1:3] == [f"A: {pair.answer_b}", f"B: {pair.answer_a}"]
        metas = [prompt.meta(judge="me") for prompt in (first, second)]
        assert [meta.pop("order") for meta in metas] == ["ab", "ba"]
        assert [meta.pop("verdict") for meta in metas] == [pair.label, swap_label(pair.label)]
        assert metas[0] == metas[1]
        assert (metas[0]["pair_id"], metas[0]["question"]) == (pair.id, pair.question_key)


def test_templates_are_drawn_by_pair_and_seed(chatml: ChatTokenizer, templates: Templates) -> None:
    def drawn(seed: int) -> dict[str, str]:
        return {p.pair.id: p.template for p in judge_prompts(PAIRS, templates.load(), chatml, 500, seed=seed)[0]}

    assert set(drawn(0).values()) == {"one", "two", "three"}
    assert drawn(0) == drawn(0) != drawn(1)


@given(st.text(), st.integers())
def test_the_drawn_order_of_a_pair_is_fixed(pair_id: str, seed: int) -> None:
    assert drawn_order(pair_id, seed) == drawn_order(pair_id, seed)


def test_drawn_orders_are_balanced_and_keep_one_prompt_of_each_pair(
    chatml: ChatTokenizer, templates: Templates
) -> None:
    for seed in range(3):
        orders = [drawn_order(f"p{number}", seed) for number in range(2000)]
        assert 900 < orders.count("ab") < 1100
    prompts, _ = judge_prompts(PAIRS, templates.load(), chatml, 500)
    kept = in_drawn_order(prompts, 7)
    assert [prompt.pair.id for prompt in kept] == [pair.id for pair in PAIRS]
    assert [prompt.order for prompt in kept] == [drawn_order(pair.id, 7) for pair in PAIRS]
    assert [prompt.order for prompt in in_drawn_order(prompts, 8)] != [prompt.order for prompt in kept]


def test_a_folder_of_templates_without_names_is_refused(tmp_path: Path) -> None:
    folder = short_templates(tmp_path).folder
    with pytest.raises(UserError, match=r"templates\.folder: found .* without templates\.names"):
        Templates(folder=folder).load()
    assert Templates(["rise"], folder).load().keys() == {"rise"}


def test_a_pair_whose_shortened_answers_are_equal_is_skipped(chatml: ChatTokenizer, templates: Templates) -> None:
    right = "x" * 400 + "5" + "x" * 400
    prompts, report = judge_prompts([make_pair(1, "A", right, right.replace("5", "6"))], templates.load(), chatml, 300)
    assert (prompts, report.skipped) == ([], ("p1",))


def test_too_long_answers_lose_their_middle_in_both_orders_alike(chatml: ChatTokenizer, templates: Templates) -> None:
    long = make_pair(1, "A", "begin " + "x" * 600 + " end", "short one")
    prompts, report = judge_prompts([long], templates.load(), chatml, 300)
    assert (report.prompts, report.shortened, report.skipped) == (2, 2, ())
    for prompt in prompts:
        text = prompt.messages[-1]["content"]
        assert len(chatml.prompt_ids(prompt.messages)) <= 300
        assert "begin xxx" in text and "xxx end" in text and "characters left out" in text and "short one" in text
    assert "2 with shortened answers" in str(report)


def test_pairs_that_cannot_fit_are_skipped_in_both_orders_and_reported(
    chatml: ChatTokenizer, templates: Templates
) -> None:
    endless = [make_pair(number, question="why? " * 200) for number in range(100, 105)]
    prompts, report = judge_prompts([*endless[:2], PAIRS[0], *endless[2:]], templates.load(), chatml, 200)
    assert [(prompt.pair.id, prompt.order) for prompt in prompts] == [("p0", "ab"), ("p0", "ba")]
    assert report.skipped == tuple(pair.id for pair in endless)
    assert str(report) == "2 judge prompts, 5 pairs skipped as too long (p100, p101, p102, ...)"
    assert "(a\\x1b[2J)" in str(replace(report, skipped=("a\x1b[2J",)))


def test_a_pair_that_fits_in_one_order_only_is_skipped_in_both(chatml: ChatTokenizer, tmp_path: Path) -> None:
    # This template repeats answer A, so the prompt is longer if the longer answer is first.
    (tmp_path / "twice.jinja").write_text(
        "---\nlanguage: en\nrole: r\ncriteria: c\nformat: f\n---\n"
        "{{ question }} {{ answer_a }} {{ answer_b }} {{ answer_a }} [[A]] or [[B]]"
    )
    templates = Templates(["twice"], str(tmp_path)).load()
    pair = make_pair(1, "A", "a" * 60, "b" * 10)
    lengths = [len(chatml.prompt_ids(templates["twice"].render(pair.in_order(order)))) for order in ("ab", "ba")]
    assert lengths[0] > lengths[1]
    prompts, report = judge_prompts([pair], templates, chatml, lengths[1])
    assert (prompts, report.skipped) == ([], ("p1",))
    assert len(judge_prompts([pair], templates, chatml, lengths[0])[0]) == 2


def test_earlier_turns_need_a_template_with_a_place_for_them(chatml: ChatTokenizer, templates: Templates) -> None:
    pair = PreferencePair("p", "and now?", "a", "b", "A", context=({"role": "user", "content": "earlier"},))
    with pytest.raises(UserError, match="has no 'context'"):
        judge_prompts([pair], templates.load(), chatml, 500)
    prompts, _ = judge_prompts([pair], Templates().load(), chatml, 100_000)
    assert "earlier" in prompts[0].messages[-1]["content"]
