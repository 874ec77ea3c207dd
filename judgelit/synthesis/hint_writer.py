"""Judgments that are written for prompts which the judge never gets right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from judgelit.generation.engine import Engine, Generated
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging import verdict
from judgelit.judging.prompts import JudgePrompt
from judgelit.judging.template import Template
from judgelit.progress import track
from judgelit.records.records import Label, Order, swap_label
from judgelit.synthesis.hints import hint_prompt, mentions_hint
from judgelit.synthesis.teachers import Teacher

Hint = Literal["none", "right", "both"]
Key = tuple[str, Order]
"""A prompt: the id of its pair, and the order of the answers."""


def prompt_key(prompt: JudgePrompt) -> Key:
    """The key of a prompt."""
    return prompt.pair.id, prompt.order


@dataclass(frozen=True)
class Written:
    """Written judgments, and why some prompts have none."""

    right: dict[Key, list[str]] = field(default_factory=dict)
    """Different right judgments of a prompt."""
    wrong: dict[Key, list[str]] = field(default_factory=dict)
    """Different wrong ones; only with the hint `both`."""
    failures: dict[Key, str] = field(default_factory=dict)
    """Why nothing could be written for a prompt."""
    answers: list[Generated] = field(default_factory=list)
    """All answers of the writer."""


@dataclass(frozen=True)
class HintWriter:
    """Writes right judgments, and wrong ones if told to."""

    judge: Engine
    """The warm judge; it writes if there is no teacher and a hint."""
    teacher: Teacher | None
    hint: Hint
    """Whether the writer is shown the label, and whether it also writes the wrong judgment."""
    templates: Mapping[str, Template]
    """The templates by id."""
    max_prompt_tokens: int
    """Longest prompt, the hint included."""
    sampling: Sampling
    """How the judge writes; a teacher has its own sampling."""
    samples: int
    """Judgments that the judge writes for each prompt; a teacher writes one."""
    journal: Path
    """File that keeps the answers."""
    seed: int

    @property
    def name(self) -> str:
        """The names of those who wrote an example: the judge, and the teacher if it wrote the right judgment."""
        return self.judge.name if self.teacher is None else f"{self.judge.name}, right one by {self.teacher.name}"

    def write(self, prompts: Sequence[JudgePrompt]) -> Written:
        """Write judgments of the prompts. Those with another verdict, and those that mention the hint, are left out."""
        written = Written()
        if self.teacher is not None or self.hint != "none":
            written.right.update(self._with_verdict(prompts, written, "never right"))
        if self.hint == "both":
            done = [prompt for prompt in prompts if prompt_key(prompt) in written.right]
            written.wrong.update(self._with_verdict(done, written, "no wrong one with the hint", wrong=True))
            for prompt in done:
                if prompt_key(prompt) not in written.wrong:
                    del written.right[prompt_key(prompt)]
        return written

    def _with_verdict(
        self, prompts: Sequence[JudgePrompt], written: Written, failure: str, wrong: bool = False
    ) -> dict[Key, list[str]]:
        """The writer's judgments with the right verdict, or the wrong one, by prompt."""
        asked: list[JudgePrompt] = []
        labels: list[Label] = []
        for prompt in prompts:
            label = swap_label(prompt.pair.label) if wrong else prompt.pair.label
            hinted = prompt if self.hint == "none" else self._hinted(prompt, label)
            if hinted is None:
                written.failures[prompt_key(prompt)] = "too long with the hint"
            else:
                asked.append(hinted)
                labels.append(label)
        found = {}
        for place, answers in self._ask(asked):
            key = prompt_key(asked[place])
            written.answers.extend(answers)
            # A text that the limit of tokens has cut would teach to end there.
            texts = [answer.text.strip() for answer in answers if answer.finish != "length"]
            said = [text for text in dict.fromkeys(texts) if verdict.parse(text) == labels[place]]
            kept = [text for text in said if self.hint == "none" or not mentions_hint(text)]
            if kept:
                found[key] = kept
            else:
                written.failures[key] = "mentions the hint" if said else failure
        return found

    def _hinted(self, prompt: JudgePrompt, label: Label) -> JudgePrompt | None:
        return hint_prompt(prompt, label, self.templates, self.judge.tokenizer, self.max_prompt_tokens)

    def _ask(self, prompts: Sequence[JudgePrompt]) -> Iterator[tuple[int, list[Generated]]]:
        """Yield (index, judgments) for every prompt."""
        if not prompts:
            return
        if self.teacher is not None:
            judgments = self.teacher.judgments(prompts, self.templates, self.journal, self.seed)
            for index, answer in track(judgments, f"asking {self.teacher.name}", total=len(prompts)):
                yield index, [answer]
            return
        judge = JournaledEngine(self.judge, self.journal, "hint")
        conversations = [prompt.messages for prompt in prompts]
        answers = judge.answer(conversations, self.sampling, samples=self.samples, seed=self.seed)
        yield from track(answers, "writing judgments with a hint", total=len(prompts))
