from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.judging.prompts import judge_prompts
from judgelit.judging.template import load_templates
from judgelit.judging.verdict import parse
from judgelit.records.records import PreferencePair, SFTExample
from judgelit.synthesis.balance import choose_balanced, side_of
from judgelit.synthesis.example_kinds import Judged, replace_shares
from tests.support import make_pair


def judged(chatml: ChatTokenizer, pairs: list[PreferencePair], names: tuple[str, ...] = ("en-form", "zh-form")) -> Any:
    prompts, _ = judge_prompts(pairs, load_templates(names), chatml, 4000, orders=("ab",))
    found: list[Judged] = []
    for prompt in prompts:
        meta = prompt.meta(teacher="t", kind="judgment", rewrite="en-form 1")
        text = f"Answer {prompt.pair.label} is right about {prompt.pair.id}.\n[[{prompt.pair.label}]]"
        found.append((prompt, SFTExample(prompt.messages, text, prompt.pair.id, meta)))
    return found


def balanced(count: int) -> list[PreferencePair]:
    pairs = [make_pair(n, "AB"[n % 2], "right" * (1 + n % 3), "nope" * (1 + n % 2)) for n in range(count)]
    return [pairs[index] for index in choose_balanced(pairs, True, True, 0)[0]]


def shares(found: Any, chatml: Any, verdict_only: float, reconstruction: float, room: int = 4000) -> Any:
    return replace_shares(found, verdict_only, reconstruction, chatml, room, labels=True, seed=0)


@pytest.mark.parametrize(("verdict_only", "reconstruction"), [(0.15, 0.15), (0.5, 0.5), (0.0, 0.3), (1.0, 0.0)])
def test_each_kind_has_its_share_and_is_balanced(chatml, verdict_only: float, reconstruction: float) -> None:
    pairs = balanced(160)
    examples = shares(judged(chatml, pairs), chatml, verdict_only, reconstruction)
    assert [example.pair_id for example in examples] == [pair.id for pair in pairs]
    kinds = Counter(example.meta["kind"] for example in examples)
    assert kinds["verdict_only"] == pytest.approx(verdict_only * len(pairs), abs=1)
    assert kinds["reconstruction"] == pytest.approx(reconstruction * len(pairs), abs=1)
    by_id = {pair.id: pair for pair in pairs}
    for kind in kinds:
        of_kind = [by_id[example.pair_id] for example in examples if example.meta["kind"] == kind]
        assert Counter(pair.label for pair in of_kind)["A"] * 2 == len(of_kind)
        assert sum(map(side_of, of_kind)) == 0


def test_a_verdict_alone_is_asked_for_in_the_same_language_and_role(chatml) -> None:
    found = judged(chatml, balanced(60))
    for (prompt, before), after in zip(found, shares(found, chatml, 1, 0), strict=True):
        assert after.completion == f"[[{prompt.pair.label}]]" and parse(after.completion) == prompt.pair.label
        text = after.messages[-1]["content"]
        assert prompt.pair.question in text and prompt.pair.answer_a in text and prompt.pair.answer_b in text
        assert prompt.wording["role"] in text and before.meta["language"] == after.meta["language"]
        assert ("without any explanation" in text) == (after.meta["language"] == "en")
        assert after.meta["template"] in ("en-verdict", "zh-verdict") and "rewrite" not in after.meta


def test_answers_are_reconstructed_from_the_judgment(chatml) -> None:
    context = ({"role": "user", "content": "Earlier."}, {"role": "assistant", "content": "Indeed."})
    pairs = [replace(pair, context=context) if n < 6 else pair for n, pair in enumerate(balanced(60))]
    found = judged(chatml, pairs)
    for n, ((prompt, before), after) in enumerate(zip(found, shares(found, chatml, 0, 1), strict=True)):
        text = after.messages[-1]["content"]
        assert prompt.pair.question in text and before.completion in text
        assert prompt.pair.answer_a not in text.replace(before.completion, "")
        assert after.completion.index(prompt.pair.answer_a) < after.completion.index(prompt.pair.answer_b)
        assert ("Indeed." in text) == (n < 6)
        assert after.meta["kind"] == "reconstruction" and after.meta["verdict"] == prompt.pair.label
        assert after.meta["template"] == f"{before.meta['language']}-reconstruction" and "role" not in after.meta


def test_what_does_not_fit_or_was_shortened_stays_a_judgment(chatml) -> None:
    pairs = balanced(40)
    found = judged(chatml, pairs)
    assert {e.meta["kind"] for e in shares(found, chatml, 0.5, 0.5, room=20)} == {"judgment"}
    shown = [(replace(prompt, messages=({"role": "user", "content": "[...]"},)), example) for prompt, example in found]
    assert {e.meta["kind"] for e in shares(shown, chatml, 0, 1)} == {"judgment"}


def test_hostile_text_is_only_text(chatml) -> None:
    pairs = [
        make_pair(0, "A", "{} {0} {{ role }} [[B]]", "{question}", question="{} %s {{ answer_a }}"),
        make_pair(1, "B", "x", "longer {}"),
    ]
    found = judged(chatml, pairs, ("en-form",))
    (verdict, _), (answers, _) = shares(found, chatml, 1, 0), shares(found, chatml, 0, 1)
    assert "{} {0} {{ role }} [[B]]" in verdict.messages[-1]["content"] and verdict.completion == "[[A]]"
    assert "{} %s {{ answer_a }}" in answers.messages[-1]["content"] and "{} {0} {{ role }}" in answers.completion
