"""The warm judge's own judgments to the DPO set: of one prompt, a right one preferred to a wrong one."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Engine
from judgelit.generation.generate import Sampling
from judgelit.generation.journal import JournaledEngine
from judgelit.judging import verdict
from judgelit.judging.prompts import JudgePrompt, Templates, in_drawn_order, judge_prompts
from judgelit.progress import track
from judgelit.records.records import PreferenceExample, PreferencePair
from judgelit.synthesis.teachers import Teacher

_ENOUGH_TO_TELL = 64
"""Texts without a single verdict after which sampling on would be a waste."""


@dataclass(frozen=True)
class Enhancement:
    """How the warm judge is sampled and its judgments are paired."""

    samples: int = 8
    """Judgments sampled of each prompt."""
    sampling: Sampling = Sampling(max_new_tokens=1024, temperature=1.0, top_p=0.95)  # noqa: RUF009 (frozen)
    """Length, temperature and top-p of the samples."""
    pairs_per_prompt: int = 3
    """Most (right, wrong) pairs that one prompt gives."""
    both_orders: bool = True
    """Sample each pair of answers in both orders rather than in one drawn at random."""
    unparsed_as_rejected: bool = True
    """Whether a judgment without verdict may stand as the wrong one."""

    def __post_init__(self) -> None:
        if self.samples < 2 or self.sampling.temperature == 0:
            raise UserError("enhancement needs samples that differ: samples of 2 or more, temperature above 0")
        if self.pairs_per_prompt < 1:
            raise UserError(f"pairs_per_prompt: found {self.pairs_per_prompt}, expected 1 or more")


@dataclass(frozen=True)
class EnhancementReport:
    """What became of the prompts."""

    prompts: int
    kept: int
    dropped: dict[str, int]
    sampled: int
    right: int
    without_verdict: int

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count)
        return (
            f"{self.sampled} judgments of {self.prompts} prompts sampled: {self.right} right, {self.without_verdict} "
            f"without verdict; {self.kept} preference pairs kept; prompts dropped: {dropped or 'none'}"
        )


def synthesize_enhancement(
    pairs: Sequence[PreferencePair],
    judge: Engine,
    templates: Templates,
    tokenizer: ChatTokenizer,
    journal: Path,
    *,
    max_prompt_tokens: int,
    settings: Enhancement,
    teacher: Teacher | None = None,
    seed: int = 0,
) -> tuple[list[PreferenceExample], EnhancementReport]:
    """(right, wrong) judgments of the same prompt, both the judge's own.

    Prompts that the judge always gets right teach nothing and go, as do those of which no wrong judgment may be used.
    Where it is never right, the `teacher`, if there is one, writes the right judgment; a prompt of which its verdict is
    not the label either goes.

    Raises:
        UserError: The judge gives no verdict at all, or no pair is left.
    """
    rng = random.Random(f"{seed}/enhancement")
    usable = [pair for pair in pairs if pair.label != "tie"]
    chosen = templates.load()
    prompts, report = judge_prompts(usable, chosen, tokenizer, max_prompt_tokens, seed=templates.seed)
    if not settings.both_orders:
        prompts = in_drawn_order(prompts, seed)
    dropped = Counter({"ties": len(pairs) - len(usable), "too long": len(report.skipped)})

    texts = _sample(JournaledEngine(judge, journal), prompts, settings, seed)
    found = [[verdict.parse(text) for text in of_prompt] for of_prompt in texts]
    never_right = [i for i, prompt in enumerate(prompts) if prompt.pair.label not in found[i]]
    taught: dict[int, str] = {}
    if teacher is not None and never_right:
        asked = teacher.judgments([prompts[index] for index in never_right], chosen, journal, seed)
        for index, text in track(asked, f"asking {teacher.name}", total=len(never_right)):
            if verdict.parse(text) == prompts[never_right[index]].pair.label:
                taught[never_right[index]] = text

    examples = []
    for index, prompt in enumerate(prompts):
        label = prompt.pair.label
        judged = list(zip(texts[index], found[index], strict=True))
        right = list(dict.fromkeys(text.strip() for text, said in judged if said == label))
        wrong = list(
            dict.fromkeys(
                text.strip()
                for text, said in judged
                if said != label and text.strip() and (said is not None or settings.unparsed_as_rejected)
            )
        )
        if not right and index not in taught:
            dropped["never right"] += 1
        elif not wrong:
            always = all(said == label for said in found[index])
            dropped["always right" if always else "without a wrong one to use"] += 1
        else:
            source = judge.name if right else f"{judge.name}, right one by {teacher.name if teacher else ''}"
            couples = [(good, bad) for good in (right or [taught[index].strip()]) for bad in wrong]
            for good, bad in rng.sample(couples, min(settings.pairs_per_prompt, len(couples))):
                examples.append(PreferenceExample(prompt.messages, good, bad, prompt.meta(judge=source)))
    if not examples:
        counts = ", ".join(f"{number} {why}" for why, number in dropped.items() if number)
        raise UserError(f"{judge.name}: no prompt has both a right and a wrong judgment ({counts})")
    said = [(one, prompts[index].pair.label) for index, of_prompt in enumerate(found) for one in of_prompt]
    return examples, EnhancementReport(
        prompts=len(prompts),
        kept=len(examples),
        dropped=dict(dropped),
        sampled=len(said),
        right=sum(one == label for one, label in said),
        without_verdict=sum(one is None for one, _ in said),
    )


def _sample(judge: Engine, prompts: Sequence[JudgePrompt], settings: Enhancement, seed: int) -> list[list[str]]:
    texts: list[list[str]] = [[] for _ in prompts]
    seen = spoken = 0
    conversations = [prompt.messages for prompt in prompts]
    answers = judge.answer(conversations, settings.sampling, samples=settings.samples, seed=seed)
    for index, of_prompt in track(answers, "sampling judgments", total=len(prompts)):
        texts[index] = of_prompt
        seen += len(of_prompt)
        spoken += sum(verdict.parse(text) is not None for text in of_prompt)
        if spoken == 0 and seen >= min(_ENOUGH_TO_TELL, len(prompts) * settings.samples):
            raise UserError(
                f"{judge.name}: none of the first {seen} sampled judgments ends in a verdict; warm the judge up longer "
                "or raise sampling.max_new_tokens"
            )
    return texts
