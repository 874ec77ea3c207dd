"""The warm-up (SFT) set: a teacher's judgments of labelled pairs, filtered by the label and balanced."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.judging import verdict
from judgelit.judging.prompts import JudgePrompt, Templates, drawn_order, in_drawn_order, judge_prompts
from judgelit.progress import track
from judgelit.records.records import Order, PreferencePair, SFTExample, swap_label
from judgelit.synthesis.teachers import Teacher


@dataclass(frozen=True)
class WarmupReport:
    """Report of the warm-up synthesis."""

    pairs: int
    kept: int
    dropped: dict[str, int]
    """Number of dropped pairs by reason."""
    templates: dict[str, int] = field(default_factory=dict)
    """Number of kept judgments by template."""

    def __str__(self) -> str:
        return f"{self.pairs} pairs: {self.kept} judgments kept; dropped: {list_counts(self.dropped) or 'none'}"


def list_counts(counts: dict[str, int]) -> str:
    """The counts above zero as text: `4 ties, 3 too long`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)


def synthesize_warmup(
    pairs: Sequence[PreferencePair],
    teacher: Teacher,
    templates: Templates,
    tokenizer: ChatTokenizer,
    journal: Path,
    *,
    max_prompt_tokens: int,
    both_orders: bool = False,
    balance_labels: bool = True,
    balance_length: bool = True,
    seed: int = 0,
) -> tuple[list[SFTExample], WarmupReport]:
    """Judgments for the warm-up, at most one for each pair.

    A template and an order are drawn for each pair. A judgment is kept if its verdict is the label; with `both_orders`
    only if the teacher is right in the other order too. Then judgments are dropped at random until the set is balanced,
    unless that is switched off.

    Args:
        pairs: Labelled pairs; ties are dropped.
        teacher: Writes the judgments.
        templates: Judge prompts to draw from.
        tokenizer: Measures the prompts.
        journal: File that keeps the teacher's answers.
        max_prompt_tokens: Longest prompt.
        both_orders: Ask the teacher in both orders.
        balance_labels: Keep as many judgments with label A as with B.
        balance_length: Keep as many judgments with a longer better answer as with a shorter one.
        seed: Seed of all draws.

    Raises:
        UserError: No judgment is kept.
    """
    rng = random.Random(f"{seed}/warmup")
    template_by_id = templates.load()
    usable = [pair for pair in pairs if pair.label != "tie"]
    dropped = Counter({"ties": len(pairs) - len(usable)})
    prompts, report = judge_prompts(usable, template_by_id, tokenizer, max_prompt_tokens, seed=templates.seed)
    dropped["too long"] = len(report.skipped)
    if not both_orders:
        prompts = in_drawn_order(prompts, seed)

    texts = [""] * len(prompts)
    answers = teacher.judgments(prompts, template_by_id, journal, seed)
    for index, answer in track(answers, f"asking {teacher.name}", total=len(prompts)):
        texts[index] = answer.text
    verdicts = [verdict.parse(text) for text in texts]
    right = {(p.pair.id, p.order): said == p.pair.label for p, said in zip(prompts, verdicts, strict=True)}

    correct: list[tuple[JudgePrompt, SFTExample]] = []
    for prompt, text, said in zip(prompts, texts, verdicts, strict=True):
        pair, order = prompt.pair, prompt.order
        if order != drawn_order(pair.id, seed):
            continue
        other: Order = "ba" if order == "ab" else "ab"
        if said is None:
            dropped["without verdict"] += 1
        elif not right[pair.id, order]:
            dropped["wrong"] += 1
        elif both_orders and not right[pair.id, other]:
            dropped["wrong in the other order"] += 1
        else:
            meta = prompt.meta(teacher=teacher.name)
            correct.append((prompt, SFTExample(prompt.messages, text.strip(), pair.id, meta)))
    kept, dropped["for balance of A and B"], dropped["for balance of length"] = _balance(
        correct, balance_labels, balance_length, rng
    )
    if not kept:
        raise UserError(f"no judgment of {teacher.name} was kept, of {len(pairs)} pairs ({list_counts(dropped)})")
    by_template = Counter(str(example.meta["template"]) for example in kept)
    return kept, WarmupReport(len(pairs), len(kept), dict(dropped), dict(sorted(by_template.items())))


def _balance(
    examples: Sequence[tuple[JudgePrompt, SFTExample]], labels: bool, length: bool, rng: random.Random
) -> tuple[list[SFTExample], int, int]:
    """A random choice of the examples with equal numbers, and how many were dropped for each balance.

    Args:
        examples: Prompts and right judgments.
        labels: Keep as many with label A as with B, for longer, shorter and equally long better answers alike.
        length: Keep as many with a longer better answer as with a shorter one.
        rng: Draws the choice.

    Returns:
        The chosen examples, in their sequence; the number dropped for the balance of labels; and for that of length.
    """
    groups: dict[tuple[str, int], list[int]] = {
        (label, side): [] for label in ("AB" if labels else " ") for side in (-1, 0, 1)
    }
    for index, (prompt, _) in enumerate(examples):
        pair = prompt.pair
        better, worse = pair.answer_a, pair.answer_b
        if pair.label == swap_label("A"):
            better, worse = worse, better
        side = (len(better) > len(worse)) - (len(better) < len(worse))
        groups[pair.label if labels else " ", side].append(index)
    sizes = {side: min(len(members) for (_, of), members in groups.items() if of == side) for side in (-1, 0, 1)}
    before_length = sum(sizes[side] for _, side in groups)
    if length:
        sizes[-1] = sizes[1] = min(sizes[-1], sizes[1])
    kept: list[int] = []
    for (_, side), members in groups.items():
        kept += rng.sample(members, sizes[side])
    return [examples[index][1] for index in sorted(kept)], len(examples) - before_length, before_length - len(kept)
