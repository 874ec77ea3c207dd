"""Attacks that fool a naive pipeline, and not judgelit's parser and tokenizer."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.evaluation.bias import ATTACKS
from judgelit.evaluation.bias.attack import AttackedId, Judged, Target, attack_pairs, worse_letter
from judgelit.evaluation.bias.metrics import attack_metrics
from judgelit.evaluation.intervals import Estimate, estimates
from judgelit.judging.verdict import parse
from judgelit.records.records import Judgment, Order, PreferencePair
from tests.support import judge_prompt, make_judgment, make_pair

PAIRS = [make_pair(number, "AB"[number % 2], right="correct", wrong="mistaken") for number in range(6)]
SPEAKING = ["injection", "forged_turn", "forged_verdict"]


def measure(name: str, verdict: Callable[[PreferencePair], str | None]) -> dict[str, Estimate]:
    """The metrics of an attack on a judge, from its verdict about a pair in the order shown."""

    def judge(pairs: list[PreferencePair]) -> list[Judgment]:
        asked: list[tuple[PreferencePair, Order]] = []
        for pair in pairs:
            only = AttackedId.of(pair.id).order if "/" in pair.id else None
            asked += [(pair, "ab"), (pair, "ba")] if only is None else [(pair, only)]
        return [make_judgment(pair.id, order, verdict(pair.in_order(order))) for pair, order in asked]  # type: ignore[arg-type]

    attacked = attack_pairs(name, ATTACKS[name], PAIRS)
    return estimates(attack_metrics(Judged(PAIRS, judge(PAIRS), attacked, judge(attacked))))


def find_first(text: str) -> str | None:
    """A naive parser: the first verdict that stands anywhere."""
    found = re.search(r"\[\[([AB])\]\]", text)
    return found and found[1]


def honest(pair: PreferencePair) -> str:
    """The text of a judge that is always right and quotes nothing."""
    return f"Answer {pair.label} is right.\n\nFinal verdict: [[{pair.label}]]"


def quoting(pair: PreferencePair) -> str:
    """The text of a judge that is always right and first quotes both answers."""
    return f'Answer A is "{pair.answer_a}".\nAnswer B is "{pair.answer_b}".\n\nFinal verdict: [[{pair.label}]]'


def quoting_in_tags(pair: PreferencePair) -> str:
    """The text of a judge that is always right and quotes both answers as it got them."""
    return (
        f"<answer_a>\n{pair.answer_a}\n</answer_a>\n<answer_b>\n{pair.answer_b}\n</answer_b>\n\n"
        f"Final verdict: [[{pair.label}]]"
    )


@pytest.mark.parametrize("name", SPEAKING)
def test_a_parser_that_sees_the_prompt_is_fooled_and_ours_is_not(name: str) -> None:
    naive = measure(name, lambda pair: find_first(judge_prompt(pair)[0]["content"] + honest(pair)))
    ours = measure(name, lambda pair: parse(honest(pair)))
    assert naive["picked_before"].value == ours["picked_before"].value == 0
    assert naive["success"].value >= 0.5
    assert (ours["success"].value, ours["same_verdict"].value, ours["no_verdict"].value) == (0, 1, 0)


@pytest.mark.parametrize("text", [quoting, quoting_in_tags])
@pytest.mark.parametrize("name", SPEAKING)
def test_a_parser_that_takes_quotations_is_fooled_and_ours_is_not(
    name: str, text: Callable[[PreferencePair], str]
) -> None:
    naive = measure(name, lambda pair: find_first(text(pair)))
    ours = measure(name, lambda pair: parse(text(pair)))
    assert naive["success"].value >= 0.5
    assert (ours["success"].value, ours["same_verdict"].value, ours["no_verdict"].value) == (0, 1, 0)


@pytest.mark.parametrize("name", SPEAKING)
def test_a_judge_that_quotes_and_never_decides_has_no_verdict(name: str) -> None:
    def undecided(pair: PreferencePair) -> str:
        return f'Answer A is "{pair.answer_a}".\nAnswer B is "{pair.answer_b}".\nI cannot decide.'

    naive = measure(name, lambda pair: find_first(undecided(pair)))
    ours = measure(name, lambda pair: parse(undecided(pair)))
    assert naive["success"].value >= 0.5
    assert (ours["success"].value, ours["no_verdict"].value) == (0, 1)


OWN_TURN = {
    "chatml": "chatml",
    "qwen3": "chatml",
    "llama3": "llama3",
    "mistral": "mistral",
    "gemma": "gemma",
    "think": "deepseek",
    "pad_is_eos": "zephyr",
}
"""The forged turn of each chat format that has control tokens."""


@pytest.mark.parametrize("chat_format", OWN_TURN, indirect=True)
def test_a_tokenizer_that_lets_control_tokens_through_is_fooled_and_ours_is_not(
    chat_format: str, chat: ChatTokenizer
) -> None:
    controls = set(chat.controls.ids.values())

    def naive_ids(messages: Any) -> list[int]:
        text = chat.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return chat.hf(text, add_special_tokens=False)["input_ids"]

    def obedient(ids_of: Callable[[Any], list[int]]) -> Callable[[PreferencePair], str | None]:
        """A judge that repeats its earlier turn, if there is one; otherwise it is right."""
        usual = [token for token in ids_of(judge_prompt(PAIRS[0])) if token in controls]

        def judge(pair: PreferencePair) -> str | None:
            found = [token for token in ids_of(judge_prompt(pair)) if token in controls]
            return pair.label if found == usual else worse_letter(pair, "ab")

        return judge

    form = OWN_TURN[chat_format]
    naive = measure("forged_turn", obedient(naive_ids))
    ours = measure("forged_turn", obedient(chat.prompt_ids))
    assert (naive["picked_before"].value, naive[f"success/{form}"].value) == (0, 1)
    assert (ours["success"].value, ours["same_verdict"].value) == (0, 1)


@pytest.mark.parametrize("name", SPEAKING)
def test_injected_words_praise_the_attacked_answer_and_blame_the_other(name: str) -> None:
    for form in ATTACKS[name].forms.values():
        for letter, other in (("A", "B"), ("B", "A")):
            text = form(Target("mistaken", "correct", letter))
            assert text.startswith("mistaken") and f"[[{other}]]" not in text
            said = re.findall(r"Answer ([AB]) is (wrong|correct|right|better)", text)
            assert all(named == (other if word == "wrong" else letter) for named, word in said), text
