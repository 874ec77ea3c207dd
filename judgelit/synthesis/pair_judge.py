"""Judgments of pairs as they come from an engine, in both orders, with several votes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from judgelit.evaluation.judgments import make_judgment
from judgelit.generation.engine import Engine
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import JudgePrompt, PromptReport, in_drawn_order, judge_prompts
from judgelit.judging.template import Template
from judgelit.records.records import Judgment, PreferencePair

AT_ONCE = 2000
"""Pairs whose prompts are in memory at once. An engine gets them in one call."""


@dataclass
class PairJudge:
    """Asks an engine about pairs, and counts what was asked."""

    engine: Engine
    templates: Mapping[str, Template]
    template_seed: int
    """Seed of the draws of templates and, in one order, of the order."""
    sampling: Sampling
    votes: int
    """Judgments of each pair in each order."""
    both_orders: bool
    """Judge each pair in both orders; otherwise in one, drawn at random."""
    seed: int
    """Seed of the engine."""
    room: int
    """Longest prompt, in tokens."""
    asked: int = field(default=0, init=False)
    """Prompts so far."""
    shortened: int = field(default=0, init=False)
    """Prompts so far with shortened answers."""
    skipped: list[str] = field(default_factory=list, init=False)
    """Ids of pairs so far that do not fit; see `PromptReport`."""

    @property
    def report(self) -> PromptReport:
        """What was asked so far."""
        return PromptReport(self.asked, self.shortened, tuple(self.skipped))

    def judge(self, pairs: Sequence[PreferencePair]) -> Iterator[tuple[int, list[Judgment]]]:
        """Yield (index, judgments) for every pair as soon as it is judged; none for a pair that is too long.

        The judgments in order ab come first, those of an order in the sequence of their samples.
        """
        for start in range(0, len(pairs), AT_ONCE):
            for index, judgments in self._judge(pairs[start : start + AT_ONCE]):
                yield start + index, judgments

    def _judge(self, pairs: Sequence[PreferencePair]) -> Iterator[tuple[int, list[Judgment]]]:
        prompts, report = judge_prompts(
            pairs, self.templates, self.engine.tokenizer, self.room, seed=self.template_seed
        )
        if not self.both_orders:
            prompts = in_drawn_order(prompts, self.template_seed)
        self.asked += len(prompts)
        self.shortened += report.shortened
        self.skipped += report.skipped
        index_of = {pair.id: index for index, pair in enumerate(pairs)}
        yield from ((index_of[pair_id], []) for pair_id in report.skipped)
        if not prompts:
            return
        answers = self.engine.answer(
            [prompt.messages for prompt in prompts], self.sampling, samples=self.votes, seed=self.seed
        )
        found: dict[str, dict[str, list[Judgment]]] = {}
        for number, of_prompt in answers:
            prompt: JudgePrompt = prompts[number]
            of_pair = found.setdefault(prompt.pair.id, {})
            of_pair[prompt.order] = [
                make_judgment(prompt, one, self.engine.name, self.seed, sample=number)
                for number, one in enumerate(of_prompt)
            ]
            if len(of_pair) == 1 + self.both_orders:
                del found[prompt.pair.id]
                yield index_of[prompt.pair.id], [one for order in sorted(of_pair) for one in of_pair[order]]
