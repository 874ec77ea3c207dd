"""Who writes the judgments of the warm-up set: an engine, or the offline tasks themselves."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.generate import Sampling
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.local import LocalEngine
from judgelit.judging.prompts import JudgePrompt
from judgelit.judging.template import Template
from judgelit.models.backbone import Backbone
from judgelit.records.records import Label
from judgelit.synthesis.tasks.pairs import worked_judgment


class Teacher(ABC):
    """Writes judgments of prompts; whether they are right is checked by whoever asks."""

    name: str

    @abstractmethod
    def judgments(
        self, prompts: Sequence[JudgePrompt], templates: Mapping[str, Template], journal: Path, seed: int
    ) -> Iterator[tuple[int, str]]:
        """Yield (index, text) for every prompt; what costs something to ask is kept at `journal`."""


class EngineTeacher(Teacher):
    """A model on this machine as teacher."""

    def __init__(self, backbone: Backbone, sampling: Sampling, batch_size: int = 16) -> None:
        """Describe the teacher; it is loaded when first asked.

        Args:
            backbone: The model.
            sampling: Length, temperature, top-p.
            batch_size: Judgments generated at once.
        """
        self.backbone = backbone
        self.sampling = sampling
        self.batch_size = batch_size
        self.name = backbone.name_or_path

    def judgments(
        self, prompts: Sequence[JudgePrompt], templates: Mapping[str, Template], journal: Path, seed: int
    ) -> Iterator[tuple[int, str]]:
        """Ask the model, each answer kept in the journal."""
        engine = JournaledEngine(LocalEngine.load(self.backbone, self.batch_size), journal)
        conversations = [prompt.messages for prompt in prompts]
        for index, (text,) in engine.answer(conversations, self.sampling, seed=seed):
            yield index, text


class TaskTeacher(Teacher):
    """The offline tasks' own worked judgments.

    Under a template of style `brief` this teacher behaves as hurried ones do: it mostly names a winner at a glance,
    right no more often than a coin, and only now and then works the question out.
    """

    name = "tasks"

    def __init__(self, glance_rate: float = 0.0) -> None:
        """Set how hurried the teacher is.

        Args:
            glance_rate: Share of judgments under `brief` templates that are given at a glance.
        """
        if not 0 <= glance_rate <= 1:
            raise UserError(f"glance_rate: found {glance_rate}, expected 0 to 1")
        self.glance_rate = glance_rate

    def judgments(
        self, prompts: Sequence[JudgePrompt], templates: Mapping[str, Template], journal: Path, seed: int
    ) -> Iterator[tuple[int, str]]:
        """Work each prompt's task out, or glance at it; nothing is asked of anybody, so the journal stays as it is."""
        for index, prompt in enumerate(prompts):
            rng = random.Random(f"{seed}/{prompt.pair.id}/{prompt.order}/{prompt.template}")
            hurried = templates[prompt.template].style == "brief" and rng.random() < self.glance_rate
            yield index, glance(rng.choice(("A", "B"))) if hurried else worked_judgment(prompt.pair)


def glance(label: Label) -> str:
    """A judgment that names a winner without looking."""
    return f"At a glance: [[{label}]]"
