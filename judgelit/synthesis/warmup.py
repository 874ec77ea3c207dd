"""Preference pairs to the SFT set: a teacher's judgments, kept where they agree with the label, balanced."""

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
    """What became of the pairs."""

    pairs: int
    kept: int
    dropped: dict[str, int]
    templates: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} {why}" for why, count in self.dropped.items() if count)
        return f"{self.pairs} pairs: {self.kept} judgments kept; dropped: {dropped or 'none'}"


def synthesize_warmup(
    pairs: Sequence[PreferencePair],
    teacher: Teacher,
    templates: Templates,
    tokenizer: ChatTokenizer,
    journal: Path,
    *,
    max_prompt_tokens: int,
    both_orders: bool = False,
    seed: int = 0,
) -> tuple[list[SFTExample], WarmupReport]:
    """Judgments for the warm-up, at most one a pair.

    Each pair draws a template and an order. A judgment stays if its verdict is the label, with `both_orders` only if
    the teacher is right in the other order too. Then judgments are dropped at random until A and B, and better answers
    that are longer and shorter, are equally many.

    Raises:
        UserError: No judgment is left.
    """
    rng = random.Random(f"{seed}/warmup")
    chosen = templates.load()
    usable = [pair for pair in pairs if pair.label != "tie"]
    dropped = Counter({"ties": len(pairs) - len(usable)})
    prompts, report = judge_prompts(usable, chosen, tokenizer, max_prompt_tokens, seed=templates.seed)
    dropped["too long"] = len(report.skipped)
    if not both_orders:
        prompts = in_drawn_order(prompts, seed)

    texts: dict[int, str] = {}
    asked = teacher.judgments(prompts, chosen, journal, seed)
    for index, text in track(asked, f"asking {teacher.name}", total=len(prompts)):
        texts[index] = text
    verdicts = [verdict.parse(texts[index]) for index in range(len(prompts))]
    right = {(p.pair.id, p.order): found == p.pair.label for p, found in zip(prompts, verdicts, strict=True)}

    examples: list[tuple[JudgePrompt, SFTExample]] = []
    for index, prompt in enumerate(prompts):
        pair, order = prompt.pair, prompt.order
        if order != drawn_order(pair.id, seed):
            continue
        other: Order = "ba" if order == "ab" else "ab"
        if verdicts[index] is None:
            dropped["without verdict"] += 1
        elif not right[pair.id, order]:
            dropped["wrong"] += 1
        elif both_orders and not right[pair.id, other]:
            dropped["wrong in the other order"] += 1
        else:
            meta = prompt.meta(teacher=teacher.name)
            examples.append((prompt, SFTExample(prompt.messages, texts[index].strip(), pair.id, meta)))
    kept = _balance(examples, rng)
    dropped["for balance"] = len(examples) - len(kept)
    if not kept:
        counts = ", ".join(f"{number} {why}" for why, number in dropped.items() if number)
        raise UserError(f"no judgment of {teacher.name} is left of {len(pairs)} pairs ({counts})")
    by_template = Counter(str(example.meta["template"]) for example in kept)
    return kept, WarmupReport(len(pairs), len(kept), dict(dropped), dict(sorted(by_template.items())))


def _balance(examples: Sequence[tuple[JudgePrompt, SFTExample]], rng: random.Random) -> list[SFTExample]:
    """Equally many of each label within longer-better and shorter-better, and as many of the one as of the other."""
    cells: dict[tuple[str, int], list[int]] = {(label, side): [] for label in "AB" for side in (-1, 0, 1)}
    for index, (prompt, _) in enumerate(examples):
        pair = prompt.pair
        better, worse = pair.answer_a, pair.answer_b
        if pair.label == swap_label("A"):
            better, worse = worse, better
        side = (len(better) > len(worse)) - (len(better) < len(worse))
        cells[pair.label, side].append(index)
    unequal = min(len(cells[label, side]) for label in "AB" for side in (-1, 1))
    equal = min(len(cells[label, 0]) for label in "AB")
    kept: list[int] = []
    for (_, side), members in cells.items():
        kept += rng.sample(members, equal if side == 0 else unequal)
    return [examples[index][1] for index in sorted(kept)]
