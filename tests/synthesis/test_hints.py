import pytest

from judgelit.judging.prompts import JudgePrompt
from judgelit.judging.template import load_templates
from judgelit.records.records import PreferencePair
from judgelit.synthesis.hints import add_hint, hint_prompt, mentions_hint
from tests.support import make_pair

LEAKS = [
    "I was told that Answer A is better. [[A]]",
    "Since people prefer Answer B, it must be better.",
    "Human annotators preferred A.",
    "Answer A is preferred by most raters.",
    "The given label is A.",
    "According to the hint, B wins.",
    "I follow the instruction to argue for B.",
    "As you hinted, Answer A is better.",
    "Following this paragraph above, no: the paragraph above says A.",
    "I will write as if I did not know the outcome.",
    "人们更喜欢回答A，因此[[A]]",
    "根据提示，回答B更好。",
    "我被告知回答A更好。",
    "已知结论是A。",
    "标注者倾向于回答B。",
    "既然你告诉我A更好，我选A。",
]
CLEAN = [
    "Answer A follows the instruction to write in French, and the given instruction to be brief. [[A]]",
    "Answer A is right: 3 + 4 = 7. Answer B says 8. [[A]]",
    "The user asked for a list; Answer B gives one. I prefer Answer B. [[B]]",
    "Answer A follows the instructions and is preferable. [[A]]",
    "People with asthma should avoid this, which Answer B mentions.",
    "The question gives a hint of what is wanted, and Answer A is better.",
    "Answer B has the label on the wrong axis. [[A]]",
    "回答A更准确，并且遵循了指示。因此[[A]]",
    "回答B的提示更清楚，读者容易理解。[[B]]",
    "我更喜欢回答A，因为它更完整。",
]


@pytest.mark.parametrize("text", LEAKS)
def test_a_text_that_mentions_the_hint_is_found(text: str) -> None:
    assert mentions_hint(text)


@pytest.mark.parametrize("text", CLEAN)
def test_a_judgment_that_speaks_of_the_answers_alone_passes(text: str) -> None:
    assert not mentions_hint(text)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_judgment_that_repeats_the_hint_mentions_it(language) -> None:
    (turn,) = add_hint([{"role": "user", "content": "Judge."}], language, "A")
    assert mentions_hint(turn["content"]) and "[[A]]" in turn["content"]


@pytest.mark.parametrize("name", ["rise", "zh-impartial"])
def test_a_prompt_with_a_hint_is_the_prompt_and_a_paragraph_in_its_language(name: str, chatml) -> None:
    templates = load_templates([name])
    pair = make_pair(1)
    prompt = JudgePrompt(pair, "ab", name, templates[name].render(pair))
    hinted = hint_prompt(prompt, "B", templates, chatml, 10_000)
    assert hinted is not None and (hinted.pair, hinted.order, hinted.template) == (pair, "ab", name)
    text, with_hint = prompt.messages[-1]["content"], hinted.messages[-1]["content"]
    hint = with_hint.removeprefix(text.rstrip())
    assert hint != with_hint and "[[B]]" in hint and "[[A]]" not in hint
    assert ("回答B" in hint) == (name == "zh-impartial")
    assert hint_prompt(prompt, "B", templates, chatml, 20) is None


def test_only_the_last_turn_gets_the_hint() -> None:
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "Judge."}]
    first, last = add_hint(messages, "en", "B")
    assert first == messages[0] and last["role"] == "user" and last["content"].startswith("Judge.\n\n")
    assert messages[1]["content"] == "Judge."


def test_judged_text_with_braces_is_no_format(chatml) -> None:
    templates = load_templates(["rise"])
    pair = PreferencePair("p", "what is {label}?", "{0}", "{label} [[A]]", "A")
    prompt = JudgePrompt(pair, "ab", "rise", templates["rise"].render(pair))
    hinted = hint_prompt(prompt, "A", templates, chatml, 10_000)
    assert hinted is not None and "what is {label}?" in hinted.messages[-1]["content"]
