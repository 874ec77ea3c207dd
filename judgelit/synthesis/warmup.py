"""The warm-up (SFT) set: a teacher's judgments of labelled pairs, filtered by the label and balanced."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import Generated
from judgelit.generation.journal_file import Journal
from judgelit.judging import verdict
from judgelit.judging.prompts import JudgePrompt, Templates, drawn_order, in_drawn_order, judge_prompts
from judgelit.judging.template import Template
from judgelit.judging.variation import vary
from judgelit.progress import track
from judgelit.records.records import Order, PreferencePair, SFTExample
from judgelit.records.shards import Shard
from judgelit.records.sources import Sources
from judgelit.synthesis.balance import choose_balanced
from judgelit.synthesis.card import write_card
from judgelit.synthesis.decontamination import drop_held, read_evaluation_sets
from judgelit.synthesis.duplicates import drop_near_duplicates
from judgelit.synthesis.example_kinds import JUDGMENT, RECONSTRUCTION, VERDICT_ONLY, Judged, replace_shares
from judgelit.synthesis.rewriting import Rewrites, rewrite_templates
from judgelit.synthesis.teachers import Teacher


@dataclass(frozen=True)
class Warmup:
    """How the judgments of the warm-up are asked for and chosen."""

    both_orders: bool = False
    """Keep a judgment only if the teacher is right in both orders."""
    balance_labels: bool = True
    """Drop judgments at random until as many have label A as B."""
    balance_length: bool = True
    """Drop judgments at random until as many have a longer better answer as a shorter one, in characters."""
    vary: bool = True
    """Draw the role, the criteria and the form of the judgment of each prompt apart from the template's text, from the
    values of all chosen templates of its language and a short list. Evaluation asks with the templates alone."""
    rewrite_prompts: bool = False
    """Let the teacher rewrite the text of the templates. Each pair draws one of the rewrites; the template itself is
    used where it has failed the check."""
    rewrites: int = 8
    """Rewrites of each template, if `rewrite_prompts` is set."""
    near_duplicates: float | None = 0.8
    """Drop all but one of the questions whose word 5-grams have this Jaccard similarity or more, and all but one of the
    pairs with the same question and answers. Several pairs of one question stay. null: drop none."""
    decontaminate: dict[str, Sources] | Sources | None = None
    """Evaluation sets by name, or one. Pairs are dropped whose question shares 13 words in a row with one of theirs,
    or is shorter and equal. `judgelit run` leaves these pairs out of the enhancement too."""
    verdict_only: float = 0.0
    """Share of the examples that ask for the verdict alone, in place of their judgment."""
    reconstruction: float = 0.0
    """Share of the examples that ask to deduce the two answers from the judgment."""

    def __post_init__(self) -> None:
        for name in ("verdict_only", "reconstruction"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: found {getattr(self, name)}, expected a share, 0 to 1")
        if self.verdict_only + self.reconstruction > 1:
            raise UserError(
                f"verdict_only, reconstruction: found {self.verdict_only} and {self.reconstruction}, expected at most "
                "1 together"
            )
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise UserError(f"near_duplicates: found {self.near_duplicates}, expected above 0, at most 1, or null")
        if self.rewrites < 1:
            raise UserError(f"rewrites: found {self.rewrites}, expected 1 or more")


@dataclass(frozen=True)
class WarmupReport:
    """Report of the warm-up synthesis."""

    pairs: int
    kept: int
    dropped: dict[str, int]
    """Number of dropped pairs by reason."""
    decontamination: dict[str, dict[str, int]] = field(default_factory=dict)
    """Number of questions of each evaluation set, and of pairs that it holds."""
    rewriting: dict[str, Any] = field(default_factory=dict)
    """If the teacher has rewritten the templates: how many rewrites it wrote, how many failed by reason, and how many
    prompts were asked in the template's own words."""
    cost: dict[str, float] = field(default_factory=dict)
    """Prompts and tokens of all answers of the teacher, and what they cost if the teacher has prices."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Number of examples by kind."""
    shortened: int = 0
    """Number of pairs that were asked about with shortened answers."""

    def __str__(self) -> str:
        text = f"{self.pairs} pairs: {self.kept} judgments kept"
        names = {VERDICT_ONLY: "as the verdict alone", RECONSTRUCTION: "as a reconstruction of the answers"}
        if others := list_counts({name: self.kinds.get(kind, 0) for kind, name in names.items()}):
            text += f", of these {others}"
        text += f"; dropped: {list_counts(self.dropped) or 'none'}"
        if self.shortened:
            text += f"; {self.shortened} pairs asked with shortened answers"
        text += list_held(self.decontamination)
        if self.rewriting:
            failed = sum(self.rewriting["failed"].values())
            text += f"; {self.rewriting['rewrites']} rewrites of templates, {failed} failed the check"
            text += f", {self.rewriting['prompts_not_rewritten']} prompts in a template's own words"
        return text


def list_counts(counts: Mapping[str, int]) -> str:
    """The counts above zero as text: `4 ties, 3 too long`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def count_shortened(prompts: Iterable[JudgePrompt]) -> int:
    """Number of pairs with a prompt that shows shortened answers."""
    return len({prompt.pair.id for prompt in prompts if prompt.shortened})


def list_held(decontamination: Mapping[str, Mapping[str, int]]) -> str:
    """How many pairs each evaluation set holds, as the end of a report; empty without sets."""
    if not decontamination:
        return ""
    held = {f"in {name}": of_set["pairs"] for name, of_set in decontamination.items()}
    return f"; pairs that evaluation sets hold: {list_counts(held) or 'none'}"


def synthesize_warmup(
    pairs: Sequence[PreferencePair],
    teacher: Teacher,
    templates: Templates,
    tokenizer: ChatTokenizer,
    journal: Path,
    *,
    max_prompt_tokens: int,
    settings: Warmup = Warmup(),
    seed: int = 0,
    shard: Shard | None = None,
) -> tuple[list[SFTExample], WarmupReport]:
    """Examples for the warm-up, at most one for each pair.

    Pairs whose question is in an evaluation set or almost like another one are dropped. A template, its wording and an
    order are drawn for each pair. A judgment is kept if its verdict is the label; with `both_orders` only if the
    teacher is right in the other order too. Then judgments are dropped at random until the set is balanced, and shares
    of the rest become examples of other kinds.

    Args:
        pairs: Labelled pairs; ties are dropped.
        teacher: Writes the judgments.
        templates: Judge prompts to draw from.
        tokenizer: Measures the prompts.
        journal: File that keeps the teacher's answers.
        max_prompt_tokens: Longest prompt.
        settings: How the judgments are asked for and chosen.
        seed: Seed of all draws.
        shard: The part of the questions to ask about. None: all.

    Raises:
        UserError: No judgment is kept, except in a shard; or a shard lacks the rewrites of the first one.
    """
    # All shards choose from all pairs, so that together they ask what an undivided run asks.
    usable, dropped, decontamination = _usable_pairs(pairs, settings, seed)
    usable = usable if shard is None else shard.part(usable)
    template_by_id = templates.load()
    rewrites = Rewrites()
    if settings.rewrite_prompts:
        if shard is not None and shard.number > 1 and not Journal(journal).settings("rewriter"):
            raise UserError(
                f"{journal}: shard {shard}: found no rewrites of the judge prompts, expected those of shard "
                f"1/{shard.count}, so that all shards ask in the same words; start shard 1 first and copy its journal "
                "here"
            )
        rewrites = rewrite_templates(template_by_id, teacher, settings.rewrites, journal, seed)
    numbers: dict[str, int | None] = {}

    def reword(template: Template, pair_id: str) -> Template:
        if settings.vary:
            template = vary(template, template_by_id, pair_id, templates.seed)
        template, numbers[pair_id] = rewrites.drawn(template, pair_id, seed)
        return template

    prompts, report = judge_prompts(
        usable, template_by_id, tokenizer, max_prompt_tokens, seed=templates.seed, reword=reword
    )
    dropped["too long"] = len(report.skipped)
    if not settings.both_orders:
        prompts = in_drawn_order(prompts, seed)

    answers: list[Generated] = [Generated("", "stop")] * len(prompts)
    # A journal that nothing was asked from does not keep the settings of the first try.
    asked = teacher.judgments(prompts, template_by_id, journal, seed) if prompts else iter(())
    for index, answer in track(asked, f"asking {teacher.name}", total=len(prompts)):
        answers[index] = answer
    right = _right_judgments(prompts, answers, settings.both_orders, dropped, seed)

    chosen, dropped["for balance of A and B"], dropped["for balance of length"] = choose_balanced(
        [prompt.pair for prompt, _ in right], settings.balance_labels, settings.balance_length, seed
    )
    if not chosen and shard is None:
        limit = (
            f"; a prompt may have {max_prompt_tokens} tokens, expected a --tokenizer of the model to be trained or a "
            "larger --max_prompt_tokens"
        )
        raise UserError(
            f"no judgment of {teacher.name} was kept, of {len(pairs)} pairs ({list_counts(dropped)})"
            f"{limit if dropped['too long'] else ''}{_all_failed(rewrites)}"
        )
    judged: list[Judged] = []
    for prompt, text in (right[index] for index in chosen):
        number = numbers[prompt.pair.id]
        more = {} if number is None else {"rewrite": f"{prompt.template} {number}"}
        meta = prompt.meta(teacher=teacher.name, kind=JUDGMENT, **more)
        judged.append((prompt, SFTExample(prompt.messages, text, prompt.pair.id, meta)))
    examples = replace_shares(
        judged,
        settings.verdict_only,
        settings.reconstruction,
        tokenizer,
        max_prompt_tokens,
        labels=settings.balance_labels,
        seed=seed,
    )
    return examples, WarmupReport(
        pairs=len(pairs),
        kept=len(examples),
        dropped=dict(dropped),
        decontamination=decontamination,
        rewriting=_rewriting(rewrites, prompts, numbers) if settings.rewrite_prompts else {},
        cost=_cost(teacher, len(prompts), [*rewrites.answers, *answers]),
        kinds=dict(sorted(Counter(example.meta["kind"] for example in examples).items())),
        shortened=count_shortened(prompts),
    )


def write_warmup_card(
    path: Path,
    examples: Sequence[SFTExample],
    report: WarmupReport,
    tokenizer: ChatTokenizer,
    name: str,
    settings: Mapping[str, Any],
) -> None:
    """Write the data card of a warm-up set.

    Args:
        path: File to write.
        examples: The examples of the data file.
        report: Report of their synthesis.
        tokenizer: Counts the tokens.
        name: Name of the tokenizer.
        settings: Settings of the command.
    """
    write_card(
        path,
        "Judgments for the warm-up",
        examples,
        tokenizer,
        tokenizer=name,
        summary=str(report),
        dropped={reason: count for reason, count in report.dropped.items() if count},
        cost=report.cost,
        settings=settings,
        pairs={"read": report.pairs, "shortened": report.shortened, "kept": report.kept},
        decontamination=report.decontamination,
        rewriting=report.rewriting,
    )


def _usable_pairs(
    pairs: Sequence[PreferencePair], settings: Warmup, seed: int
) -> tuple[list[PreferencePair], Counter[str], dict[str, dict[str, int]]]:
    """The pairs to ask about, the number of dropped ones by reason, and what each evaluation set holds."""
    dropped: Counter[str] = Counter()
    usable = [pair for pair in pairs if pair.label != "tie"]
    dropped["ties"] = len(pairs) - len(usable)
    clean, decontamination = drop_held(usable, read_evaluation_sets(settings.decontaminate))
    dropped["in evaluation sets"] = len(usable) - len(clean)
    if settings.near_duplicates is not None:
        clean, dropped["repeated"], dropped["with a question almost like another"] = drop_near_duplicates(
            clean, settings.near_duplicates, seed
        )
    return clean, dropped, decontamination


def _right_judgments(
    prompts: Sequence[JudgePrompt], answers: Sequence[Generated], both_orders: bool, dropped: Counter[str], seed: int
) -> list[tuple[JudgePrompt, str]]:
    """The prompts in their drawn order with the right judgments of them; the others are counted in `dropped`."""
    verdicts = [verdict.parse(answer.text) for answer in answers]
    right = {(p.pair.id, p.order): said == p.pair.label for p, said in zip(prompts, verdicts, strict=True)}
    kept = []
    for prompt, answer, said in zip(prompts, answers, verdicts, strict=True):
        pair, order = prompt.pair, prompt.order
        if order != drawn_order(pair.id, seed):
            continue
        other: Order = "ba" if order == "ab" else "ab"
        if answer.finish == "length":
            dropped["cut by the limit of tokens"] += 1
        elif said is None:
            dropped["without verdict"] += 1
        elif not right[pair.id, order]:
            dropped["wrong"] += 1
        elif both_orders and not right[pair.id, other]:
            dropped["wrong in the other order"] += 1
        else:
            kept.append((prompt, answer.text.strip()))
    return kept


def _all_failed(rewrites: Rewrites) -> str:
    """Words about rewrites of which none has passed the check; empty if there is one, or if none was asked for."""
    if not rewrites.answers or sum(rewrites.failed.values()) < len(rewrites.answers):
        return ""
    return f"; none of {len(rewrites.answers)} rewrites of the judge prompts passed ({list_counts(rewrites.failed)})"


def _rewriting(rewrites: Rewrites, prompts: Sequence[JudgePrompt], numbers: Mapping[str, int | None]) -> dict[str, Any]:
    """What became of the rewrites."""
    plain = sum(numbers[prompt.pair.id] is None for prompt in prompts)
    return {"rewrites": len(rewrites.answers), "failed": dict(rewrites.failed), "prompts_not_rewritten": plain}


def _cost(teacher: Teacher, prompts: int, answers: Sequence[Generated]) -> dict[str, float]:
    """Prompts and tokens of the answers, and their price if it is known."""
    tokens = sum(answer.prompt_tokens for answer in answers), sum(answer.new_tokens for answer in answers)
    price = teacher.price(*tokens)
    counts: dict[str, float] = {"judge_prompts": prompts, "prompt_tokens": tokens[0], "new_tokens": tokens[1]}
    return counts if price is None else {**counts, "spent": price}
