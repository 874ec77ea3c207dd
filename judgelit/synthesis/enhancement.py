"""The enhancement (DPO) set: right and wrong judgments of the same prompt, sampled from the warm judge."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from judgelit.errors import UserError
from judgelit.generation.engine import Engine, Generated
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.kept_templates import KeptTemplates
from judgelit.judging.prompts import JudgePrompt, Templates, in_drawn_order, judge_prompts
from judgelit.progress import track
from judgelit.records.records import PreferenceExample, PreferencePair
from judgelit.records.shards import Shard
from judgelit.synthesis.couples import choose_couples
from judgelit.synthesis.decontamination import EvaluationSet, drop_held
from judgelit.synthesis.enhancement_report import EnhancementReport, count_rates, count_tokens
from judgelit.synthesis.hint_writer import Hint, HintWriter, prompt_key
from judgelit.synthesis.teachers import TaskTeacher, Teacher
from judgelit.synthesis.warmup import count_shortened, list_counts

_SAMPLES_WITHOUT_VERDICT = 64
"""Sampling stops with an error if none of the first samples, this many, has a verdict."""
_SEEDS_OF_A_ROUND = 1_000_003
"""Distance between the seeds of two rounds."""


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
    similar_length: bool = True
    """Pair right and wrong judgments of similar length; otherwise at random."""
    both_orders: bool = True
    """Sample each pair of answers in both orders; otherwise in one order drawn at random."""
    right: Literal["this_order", "both_orders"] = "this_order"
    """When a judgment is right. this_order: its verdict is the label. both_orders: and the judge also has a right
    judgment with the answers in the other order. J1 (arXiv 2505.10320, table 8) trains on both orders and rewards a
    verdict that is right in both."""
    unparsed: Literal["rejected", "dropped"] = "rejected"
    """Whether a judgment without verdict may be the wrong one. One that names the right answer in any form never is."""
    hint: Hint = "none"
    """What is done with a prompt that the judge never gets right. none: it is dropped, or judged by the teacher if
    there is one. right: a writer that is shown the label writes the right judgment: the teacher, or the judge itself.
    both: the writer also writes the wrong one, shown the wrong label, as in Con-J (arXiv 2410.03742). Written judgments
    that mention what they were shown are dropped. The examples have the prompt without the hint."""
    easy_to_hard: bool = False
    """Write examples of pairs with a high solve rate first (FARE, arXiv 2510.17793); otherwise in the order of the
    pairs. `judgelit fit` shuffles its examples; a trainer that reads the file in order keeps it."""

    def __post_init__(self) -> None:
        if self.samples < 2 or self.sampling().temperature == 0:
            raise UserError("enhancement needs samples that differ: samples of 2 or more, temperature above 0")
        if self.pairs_per_prompt < 1:
            raise UserError(f"pairs_per_prompt: found {self.pairs_per_prompt}, expected 1 or more")
        if self.right == "both_orders" and not self.both_orders:
            raise UserError("right: found both_orders with both_orders false, expected this_order or both_orders true")

    def sampling(self) -> Sampling:
        """How the engine samples."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.stop_at_verdict)


@dataclass(frozen=True)
class _Sampled:
    """The judgments that were sampled of one prompt."""

    prompt: JudgePrompt
    answers: Sequence[Generated]
    right: Sequence[str]
    """Different texts whose verdict is the label, and that the limit of tokens has not cut: they are imitated."""
    wrong: Sequence[str]
    """Different texts that may be the wrong one of an example."""
    right_samples: int
    without_verdict: int

    @classmethod
    def of(cls, prompt: JudgePrompt, answers: Sequence[Generated], settings: Enhancement) -> "_Sampled":
        label = prompt.pair.label
        judged = [(answer.text.strip(), verdict.parse(answer.text)) for answer in answers]
        cut = {answer.text.strip() for answer in answers if answer.finish == "length"}

        def may_lose(text: str) -> bool:
            return settings.unparsed == "rejected" and not verdict.names(text, label)

        return cls(
            prompt,
            answers,
            right=_different(text for text, said in judged if said == label and text not in cut),
            wrong=_different(
                text for text, said in judged if text and (may_lose(text) if said is None else said != label)
            ),
            right_samples=sum(said == label for _, said in judged),
            without_verdict=sum(said is None for _, said in judged),
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
    round: int = 1,
    shard: Shard | None = None,
    decontaminate: Mapping[str, EvaluationSet] | None = None,
) -> tuple[list[PreferenceExample], EnhancementReport]:
    """Preference pairs of a right and a wrong judgment of the same prompt, both sampled from the judge.

    Pairs whose question is in an evaluation set are dropped, as in the warm-up.
    Dropped are also prompts that the judge always gets right, and prompts without a wrong judgment that may be used. A
    prompt that the judge never gets right is dropped too, unless a right judgment is written for it: see
    `Enhancement.hint`. What is made of a prompt depends on its pair alone, and not on the other pairs.

    `meta` of an example has the `solve_rate`, which is the share of right ones among the samples of its prompt, and the
    `pair_solve_rate`, which is that share over all sampled orders of the pair.

    Args:
        pairs: Labelled pairs; ties are dropped.
        judge: The warm judge.
        templates: Judge prompts to draw from.
        journal: File that keeps the samples and the teacher's answers.
        max_prompt_tokens: Longest prompt.
        settings: How judgments are sampled and paired.
        teacher: Writes right judgments where the judge has none.
        seed: Seed of all draws.
        round: Number of the round, from 1. Each round draws other samples.
        shard: The part of the questions to use. None: all.
        decontaminate: Evaluation sets by name.

    Raises:
        UserError: The judge gives no verdict at all, or no preference pair is kept, except in a shard.
    """
    if settings.hint == "both" and isinstance(teacher, TaskTeacher):
        raise UserError(
            "settings.hint: found both, but the teacher of the tasks writes no wrong judgment; choose right"
        )
    if round < 1:
        raise UserError(f"round: found {round}, expected 1 or more")
    seed += _SEEDS_OF_A_ROUND * (round - 1)
    pairs = pairs if shard is None else shard.part(pairs)
    usable = [pair for pair in pairs if pair.label != "tie"]
    template_by_id = templates.load()
    clean, decontamination = drop_held(usable, decontaminate or {})
    prompts, report = judge_prompts(clean, template_by_id, judge.tokenizer, max_prompt_tokens, seed=templates.seed)
    if not settings.both_orders:
        prompts = in_drawn_order(prompts, seed)
    dropped = Counter({"ties": len(pairs) - len(usable), "in evaluation sets": len(usable) - len(clean)})
    dropped["too long"] = len(report.skipped)

    # A small part of the questions may have no verdict by chance.
    enough = _SAMPLES_WITHOUT_VERDICT if shard else min(_SAMPLES_WITHOUT_VERDICT, len(prompts) * settings.samples)
    sampled = _sample(JournaledEngine(judge, journal), prompts, settings, seed, enough)
    writer = HintWriter(
        judge,
        teacher,
        settings.hint,
        template_by_id,
        max_prompt_tokens,
        settings.sampling(),
        settings.samples,
        journal,
        seed,
    )
    written = writer.write([one.prompt for one in sampled if not one.right])
    rates = _pair_solve_rates(sampled)
    right_orders = Counter(
        pair_id for pair_id, _ in {prompt_key(one.prompt) for one in sampled if one.right} | written.right.keys()
    )

    examples = []
    for one in sampled:
        prompt, key = one.prompt, prompt_key(one.prompt)
        right, wrong = one.right or written.right.get(key), written.wrong.get(key) or one.wrong
        if not right:
            never = "cut by the limit of tokens wherever right" if one.right_samples else "never right"
            dropped[written.failures.get(key, never)] += 1
        elif not wrong:
            always = one.right_samples == len(one.answers)
            dropped["always right" if always else "without a wrong one to use"] += 1
        elif settings.right == "both_orders" and right_orders[prompt.pair.id] < 2:
            dropped["right in one order only"] += 1
        else:
            rng = random.Random(f"{seed}/enhancement/{prompt.pair.id}/{prompt.order}")
            couples = choose_couples(right, wrong, settings.pairs_per_prompt, settings.similar_length, rng)
            meta = {
                **prompt.meta(judge=judge.name if one.right else writer.name),
                "round": round,
                "hint": "none" if one.right else settings.hint,
                "solve_rate": one.right_samples / len(one.answers),
                "pair_solve_rate": rates[prompt.pair.id],
            }
            examples += [PreferenceExample(prompt.messages, good, bad, meta) for good, bad in couples]
    if not examples and shard is None:
        raise UserError(f"{judge.name}: no prompt has both a right and a wrong judgment ({list_counts(dropped)})")
    if settings.easy_to_hard:
        examples.sort(key=lambda example: -example.meta["pair_solve_rate"])
    answers = [answer for one in sampled for answer in one.answers]
    return examples, EnhancementReport(
        prompts=len(prompts),
        kept=len(examples),
        dropped=dict(dropped),
        sampled=len(answers),
        right=sum(one.right_samples for one in sampled),
        without_verdict=sum(one.without_verdict for one in sampled),
        cut=sum(answer.finish == "length" for answer in answers),
        written=len(written.answers),
        solve_rates=count_rates(list(rates.values())),
        tokens=count_tokens([*answers, *written.answers]),
        shortened=count_shortened(prompts),
        decontamination=decontamination,
    )


def _sample(
    judge: Engine, prompts: Sequence[JudgePrompt], settings: Enhancement, seed: int, enough: int
) -> list[_Sampled]:
    """`settings.samples` judgments of each prompt, in the sequence of the prompts.

    Raises:
        UserError: None of the first judgments, `enough` of them, has a verdict.
    """
    found: list[_Sampled | None] = [None] * len(prompts)
    sampled = with_verdict = 0
    conversations = [prompt.messages for prompt in prompts]
    answers = judge.answer(conversations, settings.sampling(), samples=settings.samples, seed=seed)
    for index, of_prompt in track(answers, "sampling judgments", total=len(prompts)):
        one = found[index] = _Sampled.of(prompts[index], of_prompt, settings)
        sampled += len(of_prompt)
        with_verdict += len(of_prompt) - one.without_verdict
        if with_verdict == 0 and sampled >= enough:
            raise UserError(
                f"{judge.name}: none of the first {sampled} sampled judgments ends in a verdict; warm the judge up "
                "longer or raise max_new_tokens"
            )
    return [one for one in found if one is not None]


def _pair_solve_rates(sampled: Sequence[_Sampled]) -> dict[str, float]:
    """The share of right judgments over the sampled orders of each pair, by the pair's id."""
    right: Counter[str] = Counter()
    all_samples: Counter[str] = Counter()
    for one in sampled:
        right[one.prompt.pair.id] += one.right_samples
        all_samples[one.prompt.pair.id] += len(one.answers)
    return {pair_id: right[pair_id] / count for pair_id, count in all_samples.items()}


def _different(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
