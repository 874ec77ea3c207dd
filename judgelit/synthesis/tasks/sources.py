"""Sources of training examples from verifiable tasks, without files or engines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from judgelit.errors import UserError
from judgelit.judging import verdict
from judgelit.judging.prompts import JudgePrompt, Templates, drawn_order
from judgelit.judging.template import draw_template
from judgelit.records.records import PreferenceExample, PreferencePair, Record, SFTExample, swap_label
from judgelit.records.sources import Source
from judgelit.synthesis.tasks.pairs import TaskPairs, worked_judgment
from judgelit.synthesis.teachers import TaskTeacher, glance

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class TaskJudgments(Source):
    """Judgments of tasks by the task teacher, for the warm-up."""

    tasks: TaskPairs
    """Tasks to judge."""
    templates: Templates = Templates()  # noqa: RUF009 (frozen)
    """Judge templates. Each pair draws one."""
    glance_rate: float = 0.0
    """Share of judgments with `brief` templates that the teacher guesses. Wrong guesses are left out."""
    short: bool = False
    """Write the working, a word or two on each answer and the verdict; otherwise whole sentences."""
    weight: float = 1.0
    """Passes over this source in one epoch."""
    tag: str = ""
    """Name under which training logs the loss of this source's examples apart, as loss/TAG."""

    def read(self, kind: type[R]) -> list[R]:
        """The judgments as SFTExample."""
        if kind is not SFTExample:
            raise UserError(f"task judgments are read as SFTExample, not as {kind.__name__}")
        prompts = list(_prompts(self.tasks, self.templates))
        teacher = TaskTeacher(self.glance_rate, self.short)
        # The task teacher asks no engine, so it needs no folder for a journal.
        answers = teacher.judgments(prompts, self.templates.load(), Path(), self.templates.seed)
        texts = {index: answer.text for index, answer in answers}
        examples = [
            SFTExample(prompt.messages, texts[index], prompt.pair.id, prompt.meta(teacher=teacher.name))
            for index, prompt in enumerate(prompts)
            if verdict.parse(texts[index]) == prompt.pair.label
        ]
        return cast(list[R], examples)


@dataclass(frozen=True)
class TaskPreferences(Source):
    """Worked judgments of tasks as chosen, guesses of the wrong answer as rejected."""

    tasks: TaskPairs
    """Tasks to judge."""
    templates: Templates = Templates()  # noqa: RUF009 (frozen)
    """Judge templates. Each pair draws one."""
    weight: float = 1.0
    """Passes over this source in one epoch."""
    tag: str = ""
    """Name under which training logs the loss of this source's examples apart, as loss/TAG."""

    def read(self, kind: type[R]) -> list[R]:
        """The judgments as PreferenceExample."""
        if kind is not PreferenceExample:
            raise UserError(f"task preferences are read as PreferenceExample, not as {kind.__name__}")
        examples = [
            PreferenceExample(
                prompt.messages,
                worked_judgment(prompt.pair),
                glance(swap_label(prompt.pair.label)),
                prompt.meta(judge=TaskTeacher.name),
            )
            for prompt in _prompts(self.tasks, self.templates)
        ]
        return cast(list[R], examples)


@dataclass(frozen=True)
class TaskAnswers(Source):
    """Questions of tasks with their right answers, for the first training of a policy."""

    tasks: TaskPairs
    """Tasks to answer."""
    weight: float = 1.0
    """Passes over this source in one epoch."""

    def read(self, kind: type[R]) -> list[R]:
        """The answers as SFTExample."""
        if kind is not SFTExample:
            raise UserError(f"task answers are read as SFTExample, not as {kind.__name__}")
        examples = []
        for pair in self.tasks.read(PreferencePair):
            question = ({"role": "user", "content": pair.question},)
            right = pair.answer_a if pair.label == "A" else pair.answer_b
            examples.append(SFTExample(question, right, pair.id, {"question": pair.question_key}))
        return cast(list[R], examples)


def _prompts(tasks: TaskPairs, templates: Templates) -> Iterator[JudgePrompt]:
    chosen = templates.load()
    for made in tasks.read(PreferencePair):
        order = drawn_order(made.id, templates.seed)
        pair = made.in_order(order)
        template = draw_template(chosen, pair.id, templates.seed)
        yield JudgePrompt(pair, order, template.id, template.render(pair))
