"""The enhancement (DPO) set: right and wrong judgments of the same prompt, sampled from the warm judge."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.engine import Engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.kept_templates import KeptTemplates
from judgelit.judging.prompts import JudgePrompt, Templates, in_drawn_order, judge_prompts
from judgelit.judging.template import Template
from judgelit.progress import track
from judgelit.records.records import Label, PreferenceExample, PreferencePair
from judgelit.synthesis.teachers import Teacher
from judgelit.synthesis.warmup import list_counts

_SAMPLES_WITHOUT_VERDICT = 64
"""Sampling stops with an error if none of the first samples, this many, has a verdict."""


@dataclass(frozen=True)
class Enhancement:
    """How judgments are sampled from the warm judge and paired."""

    samples: int = 8
    """Judgments sampled of each prompt."""
    max_new_tokens: int = 1024
    """Longest judgment, in tokens."""
    temperature: float = 1.0
    """Temperature of the samples."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens that holds this probability."""
    stop_at_verdict: bool = Sampling.stop_at_verdict
    """End a judgment with the line that says its verdict."""
    pairs_per_prompt: int = 3
    """Most (right, wrong) pairs that are made of one prompt."""
    both_orders: bool = True
    """Sample each pair of answers in both orders; otherwise in one order drawn at random."""
    unparsed_as_rejected: bool = True
    """Whether a judgment without verdict may be the wrong one. One that names the right answer in any form never is."""

    def __post_init__(self) -> None:
        if self.samples < 2 or self.sampling().temperature == 0:
            raise UserError("enhancement needs samples that differ: samples of 2 or more, temperature above 0")
        if self.pairs_per_prompt < 1:
            raise UserError(f"pairs_per_prompt: found {self.pairs_per_prompt}, expected 1 or more")

    def sampling(self) -> Sampling:
        """How the engine samples."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.stop_at_verdict)


@dataclass(frozen=True)
class EnhancementReport:
    """Report of the enhancement synthesis."""

    prompts: int
    kept: int
    """Number of preference pairs."""
    dropped: dict[str, int]
    """Number of dropped prompts by reason."""
    sampled: int
    """Number of sampled judgments, and of those that are right and that have no verdict."""
    right: int
    without_verdict: int

    def __str__(self) -> str:
        return (
            f"{self.sampled} judgments of {self.prompts} prompts sampled: {self.right} right, {self.without_verdict} "
            f"without verdict; {self.kept} preference pairs kept; prompts dropped: "
            f"{list_counts(self.dropped) or 'none'}"
        )


def synthesize_enhancement(
    pairs: Sequence[PreferencePair],
    judge: Engine,
    templates: Templates | KeptTemplates,
    journal: Path,
    *,
    max_prompt_tokens: int,
    settings: Enhancement,
    teacher: Teacher | None = None,
    seed: int = 0,
) -> tuple[list[PreferenceExample], EnhancementReport]:
    """Preference pairs of a right and a wrong judgment of the same prompt, both sampled from the judge.

    Dropped are prompts that the judge always gets right, and prompts without a wrong judgment that may be used. If the
    judge never gets a prompt right, the teacher writes the right judgment; without a teacher, or if the teacher's
    verdict is not the label, the prompt is dropped.

    Args:
        pairs: Labelled pairs; ties are dropped.
        judge: The warm judge.
        templates: Judge prompts to draw from.
        journal: File that keeps the samples and the teacher's answers.
        max_prompt_tokens: Longest prompt.
        settings: How judgments are sampled and paired.
        teacher: Writes right judgments where the judge has none.
        seed: Seed of all draws.

    Raises:
        UserError: The judge gives no verdict at all, or no preference pair is kept.
    """
    rng = random.Random(f"{seed}/enhancement")
    usable = [pair for pair in pairs if pair.label != "tie"]
    template_by_id = templates.load()
    prompts, report = judge_prompts(usable, template_by_id, judge.tokenizer, max_prompt_tokens, seed=templates.seed)
    if not settings.both_orders:
        prompts = in_drawn_order(prompts, seed)
    dropped = Counter({"ties": len(pairs) - len(usable), "too long": len(report.skipped)})

    texts = _sample(JournaledEngine(judge, journal), prompts, settings, seed)
    verdicts = [[verdict.parse(text) for text in of_prompt] for of_prompt in texts]
    never_right = [index for index, prompt in enumerate(prompts) if prompt.pair.label not in verdicts[index]]
    taught = _taught(teacher, prompts, never_right, template_by_id, journal, seed) if teacher is not None else {}

    def unparsed_may_lose(text: str, label: Label) -> bool:
        return settings.unparsed_as_rejected and not verdict.names(text, label)

    examples = []
    for index, prompt in enumerate(prompts):
        label = prompt.pair.label
        judged = list(zip(texts[index], verdicts[index], strict=True))
        right = list(dict.fromkeys(text.strip() for text, said in judged if said == label))
        wrong = list(
            dict.fromkeys(
                text.strip()
                for text, said in judged
                if said != label and text.strip() and (said is not None or unparsed_may_lose(text, label))
            )
        )
        if not right and index not in taught:
            dropped["never right"] += 1
        elif not wrong:
            always = all(said == label for said in verdicts[index])
            dropped["always right" if always else "without a wrong one to use"] += 1
        else:
            source = judge.name if right else f"{judge.name}, right one by {teacher.name if teacher else ''}"
            couples = [(good, bad) for good in (right or [taught[index].strip()]) for bad in wrong]
            for good, bad in rng.sample(couples, min(settings.pairs_per_prompt, len(couples))):
                examples.append(PreferenceExample(prompt.messages, good, bad, prompt.meta(judge=source)))
    if not examples:
        raise UserError(f"{judge.name}: no prompt has both a right and a wrong judgment ({list_counts(dropped)})")
    said = [(one, prompt.pair.label) for prompt, found in zip(prompts, verdicts, strict=True) for one in found]
    return examples, EnhancementReport(
        prompts=len(prompts),
        kept=len(examples),
        dropped=dict(dropped),
        sampled=len(said),
        right=sum(one == label for one, label in said),
        without_verdict=sum(one is None for one, _ in said),
    )


def _sample(judge: Engine, prompts: Sequence[JudgePrompt], settings: Enhancement, seed: int) -> list[list[str]]:
    """`settings.samples` texts for each prompt."""
    texts: list[list[str]] = [[] for _ in prompts]
    sampled = with_verdict = 0
    conversations = [prompt.messages for prompt in prompts]
    answers = judge.answer(conversations, settings.sampling(), samples=settings.samples, seed=seed)
    for index, of_prompt in track(answers, "sampling judgments", total=len(prompts)):
        texts[index] = [answer.text for answer in of_prompt]
        sampled += len(of_prompt)
        with_verdict += sum(verdict.parse(text) is not None for text in texts[index])
        if with_verdict == 0 and sampled >= min(_SAMPLES_WITHOUT_VERDICT, len(prompts) * settings.samples):
            raise UserError(
                f"{judge.name}: none of the first {sampled} sampled judgments ends in a verdict; warm the judge up "
                "longer or raise max_new_tokens"
            )
    return texts


def _taught(
    teacher: Teacher,
    prompts: Sequence[JudgePrompt],
    never_right: Sequence[int],
    templates: Mapping[str, Template],
    journal: Path,
    seed: int,
) -> dict[int, str]:
    """The teacher's right judgments of the prompts `never_right`, by the index of the prompt."""
    if not never_right:
        return {}
    taught: dict[int, str] = {}
    answers = teacher.judgments([prompts[index] for index in never_right], templates, journal, seed)
    for place, answer in track(answers, f"asking {teacher.name}", total=len(never_right)):
        index = never_right[place]
        if verdict.parse(answer.text) == prompts[index].pair.label:
            taught[index] = answer.text
    return taught
