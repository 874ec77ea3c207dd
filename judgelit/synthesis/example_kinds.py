"""Examples for the warm-up that are no step-by-step judgments: the verdict alone, and reconstructed answers.

SFR-Judge (arXiv 2409.14664) trains on 70% critiques, 15% verdicts without a critique and 15% "response deductions": the
two answers are deduced from the judgment. They are made here of judgments that were kept, in place of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from judgelit.judging.prompts import WORDING, JudgePrompt
from judgelit.judging.template import SHIPPED, Language, read_folder
from judgelit.judging.token_ids import PromptCounter
from judgelit.judging.truncation import fit_prompt
from judgelit.records.records import SFTExample
from judgelit.records.row_fields import Message
from judgelit.synthesis.balance import balanced_units

JUDGMENT, VERDICT_ONLY, RECONSTRUCTION = "judgment", "verdict_only", "reconstruction"
"""Values of an example's `meta.kind`."""
_RECONSTRUCTION: dict[Language, tuple[str, str, str, str]] = {
    "en": (
        "Two assistants have answered the question below, and a judge has compared Answer A with Answer B. You see the "
        "question and the judgment, but not the answers. Deduce from the judgment what the answers said.",
        "[Earlier Conversation]\n{}\n[End of Earlier Conversation]\n\n",
        "[Question]\n{}\n[End of Question]\n\n[Judgment]\n{}\n[End of Judgment]\n\nWrite both answers in full: first "
        "Answer A after the line [Answer A], then Answer B after the line [Answer B].",
        "[Answer A]\n{}\n\n[Answer B]\n{}",
    ),
    "zh": (
        "两个助手回答了下面的问题，一位裁判比较了回答A和回答B。你能看到问题和评语，但看不到回答。请根据评语推断两个回答的内容。",
        "【对话历史】\n{}\n【对话历史结束】\n\n",
        "【问题】\n{}\n【问题结束】\n\n【评语】\n{}\n【评语结束】\n\n请完整写出两个回答：先在【回答A】一行之后写回答A，再在【回答B】一行之后写回答B。",
        "【回答A】\n{}\n\n【回答B】\n{}",
    ),
}

Judged = tuple[JudgePrompt, SFTExample]
"""A prompt and the example with its right judgment."""


def replace_shares(
    judged: Sequence[Judged],
    verdict_only: float,
    reconstruction: float,
    counter: PromptCounter,
    max_prompt_tokens: int,
    *,
    labels: bool,
    seed: int,
) -> list[SFTExample]:
    """The examples, a share of them replaced by verdicts alone and a share by reconstructions of the answers.

    Balanced judgments stay balanced in each kind. An example that would be too long, or whose prompt has shortened
    answers, is not replaced by a reconstruction.

    Args:
        judged: The kept judgments.
        verdict_only: Share of the examples that become verdicts alone, 0 to 1.
        reconstruction: Share of the examples that become reconstructions.
        counter: Counts the tokens of prompts.
        max_prompt_tokens: Longest prompt.
        labels: Whether the labels are balanced.
        seed: Seed of the choice.
    """
    examples = [example for _, example in judged]
    units = balanced_units([prompt.pair for prompt, _ in judged], labels, seed)
    kinds: list[tuple[float, Callable[[Judged], SFTExample | None]]] = [
        (verdict_only * len(judged), lambda one: _verdict_only(one, counter, max_prompt_tokens)),
        (reconstruction * len(judged), lambda one: _reconstruction(one, counter, max_prompt_tokens)),
    ]
    for wanted, make in kinds:
        made, left = 0, []
        for unit in units:
            others = [make(judged[index]) for index in unit] if made + len(unit) / 2 <= wanted else [None]
            if None in others:
                left.append(unit)
                continue
            for index, other in zip(unit, others, strict=True):
                assert other is not None
                examples[index] = other
            made += len(unit)
        units = left
    return examples


def _verdict_only(judged: Judged, counter: PromptCounter, max_tokens: int) -> SFTExample | None:
    """The example with the verdict alone; None if its prompt does not fit."""
    prompt, example = judged
    language = prompt.wording["language"]
    template = read_folder(SHIPPED / "verdict_only")[f"{language}-verdict"]
    template = replace(template, role=prompt.wording["role"], criteria=prompt.wording["criteria"])
    fitted = fit_prompt(prompt.pair, template.render, counter.count, max_tokens)
    if fitted is None:
        return None
    wording = {name: getattr(template, name) for name in WORDING}
    meta = {**example.meta, "template": template.id, **wording, "kind": VERDICT_ONLY}
    meta.pop("rewrite", None)
    return replace(example, messages=fitted.messages, completion=f"[[{prompt.pair.label}]]", meta=meta)


def _reconstruction(judged: Judged, counter: PromptCounter, max_tokens: int) -> SFTExample | None:
    """The example that asks for the answers; None if it is too long or the judge did not see the whole answers."""
    prompt, example = judged
    pair, shown = prompt.pair, prompt.messages[-1]["content"]
    if pair.answer_a not in shown or pair.answer_b not in shown:
        return None
    language: Language = "zh" if prompt.wording["language"] == "zh" else "en"
    task, earlier, question, answers = _RECONSTRUCTION[language]
    turns = "\n".join(f"{turn['role']}: {turn['content']}" for turn in pair.context)
    text = f"{task}\n\n{earlier.format(turns) if turns else ''}{question.format(pair.question, example.completion)}"
    messages: tuple[Message, ...] = ({"role": "user", "content": text},)
    completion = answers.format(pair.answer_a.strip(), pair.answer_b.strip())
    # As long as the judgment's example at most: its judgment has become prompt, its answers completion.
    if counter.count(messages) > max_tokens:
        return None
    # The role, criteria and form of the judgment are no part of this prompt.
    meta = {name: value for name, value in example.meta.items() if name not in (*WORDING, "rewrite")}
    meta |= {"template": f"{language}-reconstruction", "language": language, "kind": RECONSTRUCTION}
    return replace(example, messages=messages, completion=completion, meta=meta)
