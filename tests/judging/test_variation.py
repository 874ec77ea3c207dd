from collections import Counter

from judgelit.judging.prompts import Templates, judge_prompts
from judgelit.judging.template import Template, load_templates
from judgelit.judging.variation import vary
from tests.support import make_pair

CHOSEN = load_templates(["en-*", "zh-*"])


def test_role_criteria_and_form_are_drawn_apart_from_each_other_and_from_the_text() -> None:
    template = CHOSEN["en-form"]
    drawn = [vary(template, CHOSEN, f"p{n}", 0) for n in range(400)]
    for field in ("role", "criteria", "format"):
        assert len({getattr(one, field) for one in drawn}) >= 8
    assert len({(one.role, one.criteria, one.format) for one in drawn}) > 250
    # A role says nothing about the criteria.
    most, _ = Counter(one.role for one in drawn).most_common(1)[0]
    assert len({one.criteria for one in drawn if one.role == most}) >= 8
    assert {(one.id, one.body, one.language, one.style) for one in drawn} == {
        (template.id, template.body, "en", "careful")
    }


def test_values_are_of_the_same_language() -> None:
    for name, other in (("zh-form", "en"), ("en-form", "zh")):
        foreign = {value for t in CHOSEN.values() if t.language == other for value in (t.role, t.criteria, t.format)}
        for n in range(200):
            one = vary(CHOSEN[name], CHOSEN, str(n), 0)
            assert not {one.role, one.criteria, one.format} & foreign


def test_the_pair_and_the_seed_decide() -> None:
    template = CHOSEN["en-form"]
    assert vary(template, CHOSEN, "p", 0) == vary(template, CHOSEN, "p", 0)
    assert [vary(template, CHOSEN, str(n), 0) for n in range(9)] != [
        vary(template, CHOSEN, str(n), 1) for n in range(9)
    ]


def test_a_field_that_the_text_does_not_use_stays() -> None:
    template = Template("own", "en", "R", "C", "F", "{{ role }} {{ question }} {{ answer_a }} {{ answer_b }}")
    drawn = [vary(template, {"own": template}, str(n), 0) for n in range(50)]
    assert {(one.criteria, one.format) for one in drawn} == {("C", "F")}
    assert "R" in {one.role for one in drawn} and len({one.role for one in drawn}) > 2


def test_every_varied_prompt_holds_the_pair_and_asks_for_a_verdict(chatml) -> None:
    pairs = [make_pair(n) for n in range(60)]
    plain, _ = judge_prompts(pairs, CHOSEN, chatml, 4000)
    varied, _ = judge_prompts(pairs, CHOSEN, chatml, 4000, reword=lambda template, key: vary(template, CHOSEN, key, 0))
    assert plain != varied
    for one, other in zip(plain, varied, strict=True):
        assert (one.template, one.order, one.pair) == (other.template, other.order, other.pair)
        text, meta = other.messages[-1]["content"], other.meta()
        assert all(part in text for part in (other.pair.question, other.pair.answer_a, "[[A]]", "[[B]]"))
        assert meta["language"] == CHOSEN[other.template].language
        if "{{ role }}" in CHOSEN[other.template].body:
            assert meta["role"] in text
    # Both orders of a pair are asked in the same words.
    assert all(one.wording == other.wording for one, other in zip(varied[::2], varied[1::2], strict=True))


def test_without_rewording_the_template_itself_is_asked(chatml) -> None:
    ((prompt, _), _) = judge_prompts([make_pair(1)], Templates().load(), chatml, 4000)
    rise = load_templates(["rise"])["rise"]
    assert prompt.messages == rise.render(prompt.pair) and prompt.meta()["role"] == rise.role
    assert (prompt.meta()["better_characters"], prompt.meta()["worse_characters"]) == (3, 2)
