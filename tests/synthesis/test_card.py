from pathlib import Path
from typing import Any

import pytest

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.generation.endpoint_tokens import EstimatedCounter, ExactCounter
from judgelit.records.records import PreferenceExample, SFTExample
from judgelit.synthesis.card import ESTIMATED, card_path, describe, write_card
from tests.support import read_card

LANGUAGES = ("en", "en", "zh", "en")
PROMPT = ({"role": "user", "content": "Which one?"},)


def metas() -> list[dict[str, Any]]:
    """Four metas: the better answer is longer in two, shorter in one, equally long in one."""
    lengths = [(9, 3), (8, 2), (1, 5), (4, 4)]
    return [
        {
            "pair_id": f"p{n // 2}",
            "question": "q",
            "verdict": "AB"[n % 2],
            "language": LANGUAGES[n],
            "template": "one|two",
            "better_characters": better,
            "worse_characters": worse,
        }
        for n, (better, worse) in enumerate(lengths)
    ]


def test_numbers_are_those_of_the_examples(chatml: ChatTokenizer) -> None:
    texts = ["x", "x y", "x y z", "x y z w"]
    found = describe(
        [SFTExample(PROMPT, text, meta["pair_id"], meta) for text, meta in zip(texts, metas(), strict=True)], chatml
    )
    assert (found["examples"], found["pairs"], found["questions"]) == (4, 2, 1)
    assert found["longer_answer"] == {"better": 2, "worse": 1, "equal": 1, "share": 0.6667}
    assert found["verdict"] == {"A": 2, "B": 2} and found["language"] == {"en": 3, "zh": 1}
    lengths = [len(chatml.text_ids(text)) for text in texts]
    tokens = found["tokens"]["completion"]
    assert tokens["sum"] == sum(lengths) and tokens["mean"] == round(sum(lengths) / 4, 1)
    assert tokens["longest"] == max(lengths) and tokens["median"] == (lengths[1] + lengths[2]) / 2
    assert found["tokens"]["prompt"]["mean"] == len(chatml.prompt_ids(PROMPT))


def test_preferences_are_described_with_both_completions(chatml: ChatTokenizer) -> None:
    found = describe([PreferenceExample(PROMPT, "long " * 9, "short", meta) for meta in metas()], chatml)
    assert set(found["tokens"]) == {"prompt", "chosen", "rejected"}
    assert found["longer_completion"] == {"chosen": 4, "rejected": 0, "equal": 0, "share": 1.0}
    assert found["pairs"] == 2


def test_a_counter_of_prompts_alone_counts_completions_too(chatml: ChatTokenizer) -> None:
    class Counter:
        context = 100

        def count(self, messages: Any) -> int:
            return 7 + sum(len(turn["content"].split()) for turn in messages)

    found = describe([SFTExample(PROMPT, "five words are in it")], Counter())
    assert found["tokens"]["completion"]["sum"] == 5 and found["tokens"]["prompt"]["sum"] == 9


def test_the_card_is_read_by_machines_and_people(tmp_path: Path, chatml: ChatTokenizer) -> None:
    examples = [SFTExample(PROMPT, "x", meta["pair_id"], meta) for meta in metas()]
    path = card_path(tmp_path / "sft.jsonl")
    write_card(
        path,
        "Judgments",
        examples,
        chatml,
        tokenizer="chatml",
        summary="4 kept.",
        dropped={"wrong": 3},
        cost={"new_tokens": 12},
        settings={"teacher": {"model": "T", "temperature": 0.7}, "templates": ("en-*",), "seed": 0},
        decontamination={"llmbar": {"questions": 5, "dropped": 1}},
    )
    assert path.name == "sft.jsonl.card.md"
    content = read_card(path)
    assert content["data"] == {"tokenizer": "chatml", **describe(examples, chatml)}
    assert content["dropped"] == {"wrong": 3} and content["cost"] == {"new_tokens": 12}
    assert content["decontamination"]["llmbar"]["dropped"] == 1
    assert content["settings"]["teacher"]["temperature"] == 0.7 and content["settings"]["templates"] == ["en-*"]
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\nlanguage:\n- en\n- zh\n")
    assert "| share | 0.6667 |" in text and "| one\\|two | 4 |" in text and "## Dropped\n\n" in text


def test_names_are_shown_as_they_are(tmp_path: Path, chatml: ChatTokenizer) -> None:
    hostile = "[a](https://x.example) <img src=x> `b` **c** &amp;"
    path = tmp_path / "sft.jsonl.card.md"
    settings = {"templates": hostile, hostile: 1, "max_new_tokens": 3}
    nothing: dict[str, Any] = {"summary": "", "dropped": {}, "cost": {}}
    write_card(path, "Judgments", [], chatml, tokenizer="chatml", settings=settings, **nothing)
    table = path.read_text(encoding="utf-8").split("---\n")[-1]
    shown = r"\[a\](https://x.example) \<img src=x\> \`b\` \*\*c\*\* \&amp;"
    assert f"| templates | {shown} |" in table and f"| {shown} | 1 |" in table and "| max_new_tokens | 3 |" in table


@pytest.mark.parametrize("examples", [[], [SFTExample(PROMPT, "x")]])
def test_sets_without_meta_or_examples_have_a_description(examples: list[SFTExample], chatml: ChatTokenizer) -> None:
    found = describe(examples, chatml)
    assert found["longer_answer"] == {"better": 0, "worse": 0, "equal": 0}
    assert "language" not in found


def test_the_card_of_a_model_at_an_endpoint_says_how_its_tokens_are_counted(
    tmp_path: Path, chatml: ChatTokenizer
) -> None:
    texts = [" two words ", "x<|im_end|>"]
    examples = [PreferenceExample(PROMPT, texts[0], texts[1], meta) for meta in metas()]
    parts: dict[str, Any] = {"summary": "", "dropped": {}, "cost": {}, "settings": {}}
    for counter, name in ((ExactCounter(chatml, 100), "chatml"), (EstimatedCounter(100), ESTIMATED)):
        write_card(tmp_path / "card.md", "Set", examples, counter, tokenizer="chatml", **parts)
        data = read_card(tmp_path / "card.md")["data"]
        assert data["tokenizer"] == name
        if name == "chatml":
            lengths = [data["tokens"][of]["median"] for of in ("chosen", "rejected")]
            assert lengths == [len(chatml.text_ids(text)) for text in texts]
