"""Hints: a judge prompt with a paragraph that names the answer to argue for, and the check that no judgment tells it.

The example to train on has the prompt without the hint. So a judgment that mentions the hint would teach the judge to
speak of something that it has not seen.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from judgelit.judging.prompts import JudgePrompt
from judgelit.judging.template import Language, Template
from judgelit.judging.token_ids import PromptCounter
from judgelit.judging.truncation import fit_prompt
from judgelit.records.records import Label, PreferencePair
from judgelit.records.row_fields import Message

_HINTS: dict[Language, str] = {
    "en": (
        "People who have compared the two answers prefer Answer {label}. Find the reasons in the answers themselves, "
        "and reach the verdict [[{label}]] from them. Write as if you did not know what people prefer: do not mention "
        "this paragraph."
    ),
    "zh": (
        "比较过这两个回答的人更喜欢回答{label}。请从回答本身找出理由，并由此得出结论[[{label}]]。"
        "写作时要像不知道人们的偏好一样：不要提及这段话。"
    ),
}

_WHO = r"(?:people|humans?|raters?|annotators?|evaluators?|users?|readers?)"
_LEAKS = re.compile(
    # Who prefers what, as the hint says it.
    rf"\b{_WHO}\b[^.\n]{{0,40}}\b(?:prefer|preferred|preferences?|favou?red|chose)\b"
    rf"|\b(?:prefer(?:red|ences?)|chosen|favou?red) (?:by|of) (?:the |most |some )?{_WHO}\b"
    # Words about the hint.
    r"|\b(?:i|we) (?:was|were|am|are|have been|had been|['’]m|['’]ve been) "
    r"(?:told|informed|instructed|asked to (?:prefer|favou?r|choose|pick))\b"
    r"|\b(?:the|this|your|that|given|provided) (?:hint|paragraph above|last paragraph|known (?:verdict|preference|"
    r"outcome|label)|ground[ -]truth|instruction to (?:prefer|favou?r|choose|pick|argue))\b"
    r"|\b(?:given|provided|known|stated|reference|indicated) (?:label|preference|verdict|outcome)s?\b"
    r"|\b(?:as|since) (?:you|the prompt|the instructions?) (?:hinted|said|stated|told|indicated|noted|mentioned)\b"
    r"|\bas if (?:i|we) did(?:n['’]t| not) know\b|\bpretend(?:ing)? (?:not to know|i do(?:n['’]t| not) know)\b"
    # The same in Chinese.
    r"|(?:人们|人类|大家|评审者?|标注者?|标注员|用户|读者)[^。\n]{0,12}(?:更?喜欢|偏好|偏爱|选择了|倾向)"
    r"|(?:人类|人们的|已知的?|给定的?)(?:偏好|标签|结论|裁决|答案)"
    r"|(?:根据|按照|依照|如|鉴于)[^。\n]{0,6}(?:提示|暗示|指示|上述这?段话|这段话)"
    r"|(?:被|已被|已经被)告知|你(?:已经)?(?:告诉|提示|暗示)|(?:假装|装作)[^。\n]{0,6}不知道",
    re.I,
)


def mentions_hint(text: str) -> bool:
    """Whether a judgment tells that its writer was told which answer to argue for, in English or Chinese.

    The patterns are few and broad: a judgment of answers that speak of people's preferences may match too.
    """
    return _LEAKS.search(text) is not None


def add_hint(messages: Sequence[Message], language: Language, label: Label) -> tuple[Message, ...]:
    """The prompt with the hint as the last paragraph of its last turn.

    Args:
        messages: A judge prompt; its last turn is the user's.
        language: Language of the prompt.
        label: The answer to argue for, A or B.
    """
    *before, last = messages
    content = f"{last['content'].rstrip()}\n\n{_HINTS[language].format(label=label)}"
    return (*before, {**last, "content": content})


def hint_prompt(
    prompt: JudgePrompt, label: Label, templates: Mapping[str, Template], tokenizer: PromptCounter, max_tokens: int
) -> JudgePrompt | None:
    """The prompt with a hint to a label, or None if it does not fit.

    The hint takes tokens, so the answers may lose more of their middle than in the prompt without it.

    Args:
        prompt: A prompt without hint.
        label: The answer to argue for, A or B.
        templates: The templates by id.
        tokenizer: Counts the tokens of a prompt.
        max_tokens: Longest prompt.
    """
    template = templates[prompt.template]

    def render(pair: PreferencePair) -> tuple[Message, ...]:
        return add_hint(template.render(pair), template.language, label)

    fitted = fit_prompt(prompt.pair, render, tokenizer.count, max_tokens)
    return None if fitted is None else replace(prompt, messages=fitted.messages)
