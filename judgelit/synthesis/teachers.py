"""Teachers: the writers of the judgments of the warm-up set."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.generation.endpoint_tally import Tally
from judgelit.generation.engine import Engine, EngineSpec, Generated, load_engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.recorded import recorded_engine
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import JudgePrompt
from judgelit.judging.template import Template
from judgelit.records.records import Label
from judgelit.synthesis.tasks.pairs import worked_judgment


class Teacher(ABC):
    """Writes judgments of prompts. The caller checks whether they are right."""

    name: str

    def settings(self) -> dict[str, Any]:
        """What a data card says about the teacher."""
        return {"name": self.name}

    def price(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """What these tokens cost, in the currency of the teacher's prices; None if it has none."""
        return None

    @abstractmethod
    def judgments(
        self, prompts: Sequence[JudgePrompt], templates: Mapping[str, Template], journal: Path, seed: int
    ) -> Iterator[tuple[int, Generated]]:
        """Yield (index, judgment) for every prompt.

        Args:
            prompts: The prompts to judge.
            templates: The templates of the prompts, by id.
            journal: File in which a teacher keeps the answers that cost time or money.
            seed: Seed of all draws.
        """

    def from_journal(self, journal: Path) -> "Teacher":
        """This teacher, with the answers of a journal alone; one that asks no model stays as it is."""
        return self

    def close(self) -> None:  # noqa: B027 (most load nothing)
        """Release what the teacher has loaded. It is loaded again when it is asked again."""


class EngineTeacher(Teacher):
    """A model as teacher."""

    def __init__(
        self,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop_at_verdict: bool = Sampling.stop_at_verdict,
        **engine: Any,
    ) -> None:
        """Describe the teacher; it is loaded when it is first asked.

        Args:
            max_new_tokens: Longest judgment, in tokens.
            temperature: 0 is greedy.
            top_p: Sample from the smallest set of tokens that holds this probability.
            stop_at_verdict: End a judgment with the line that says its verdict.
            engine: The fields of `EngineSpec`.
        """
        self.sampling = Sampling(max_new_tokens, temperature, top_p, stop_at_verdict)
        self.spec = EngineSpec(**engine)
        self.name = self.spec.model

    def from_journal(self, journal: Path) -> "EngineTeacher":
        """This teacher, with the answers of a journal alone."""
        teacher = copy(self)
        teacher.engine = recorded_engine(self.spec, journal, "teacher")
        return teacher

    def settings(self) -> dict[str, Any]:
        """The model and how it is sampled."""
        return {**super().settings(), **asdict(self.sampling)}

    def price(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """What these tokens cost; None without an endpoint that has prices."""
        requests = self.spec.requests
        if requests.prompt_price is None and requests.completion_price is None:
            return None
        return round(Tally(requests).price(prompt_tokens, new_tokens), 6)

    @cached_property
    def engine(self) -> Engine:
        """The model, loaded once."""
        return load_engine(self.spec)

    def close(self) -> None:
        """Release the model."""
        self.__dict__.pop("engine", None)

    def judgments(
        self, prompts: Sequence[JudgePrompt], templates: Mapping[str, Template], journal: Path, seed: int
    ) -> Iterator[tuple[int, Generated]]:
        """Ask the model; each answer is kept in the journal."""
        engine = JournaledEngine(self.engine, journal, "teacher")
        conversations = [prompt.messages for prompt in prompts]
        for index, (answer,) in engine.answer(conversations, self.sampling, seed=seed):
            yield index, answer


class TaskTeacher(Teacher):
    """Writes the worked judgments of the offline tasks.

    Under templates of style `brief` this teacher can act as one in a hurry: it names a winner without looking, as a
    coin would, in a share `glance_rate` of its judgments.
    """

    name = "tasks"

    def __init__(self, glance_rate: float = 0.0, short: bool = False) -> None:
        """Set how often the teacher does not look, and how much it writes.

        Args:
            glance_rate: Share of judgments under `brief` templates that name a winner without looking.
            short: Write the working, a word or two on each answer and the verdict; otherwise whole sentences. A short
                judgment has about half as many tokens, which a small model learns sooner.
        """
        if not 0 <= glance_rate <= 1:
            raise UserError(f"glance_rate: found {glance_rate}, expected 0 to 1")
        self.glance_rate = glance_rate
        self.short = short

    def settings(self) -> dict[str, Any]:
        """The teacher, its share of glances and its form."""
        return {**super().settings(), "glance_rate": self.glance_rate, "short": self.short}

    def judgments(
        self, prompts: Sequence[JudgePrompt], templates: Mapping[str, Template], journal: Path, seed: int
    ) -> Iterator[tuple[int, Generated]]:
        """Work out each prompt's task, or glance at it; the journal is not used."""
        for index, prompt in enumerate(prompts):
            rng = random.Random(f"{seed}/{prompt.pair.id}/{prompt.order}/{prompt.template}")
            glances = templates[prompt.template].style == "brief" and rng.random() < self.glance_rate
            text = glance(rng.choice(("A", "B"))) if glances else worked_judgment(prompt.pair, self.short)
            yield index, Generated(text, "stop")


def glance(label: Label) -> str:
    """A judgment that gives no reasons."""
    return f"At a glance: [[{label}]]"
