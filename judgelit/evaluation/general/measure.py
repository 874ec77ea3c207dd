"""Measure a model's general ability, and keep all that the figures are computed from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from judgelit.atomic import write_text
from judgelit.batches.flat_batch import TokenizedCompletion
from judgelit.errors import UserError
from judgelit.evaluation.general.instructions import Followed, Instructed, instruction_estimates
from judgelit.evaluation.general.loss import examples_loss, general_loss, read_examples, tokenize_examples
from judgelit.evaluation.general.settings import General
from judgelit.evaluation.intervals import Estimate
from judgelit.generation.engine import Engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.token_ids import PromptCounter
from judgelit.progress import track
from judgelit.records.unicode import dump_json

ANSWERS, LOSSES, TASKS = "general.answers.jsonl", "general.losses.jsonl", "general.harness.json"
"""Files that the figures can be recomputed from."""
PURPOSE = "general"
"""Purpose of the answers in a journal."""


class GeneralMeasurement:
    """General ability of a model, to be measured in a folder.

    After a kill, the same measurement continues: answers are in the folder's journal.sqlite, and losses and results of
    the harness's tasks are in files there.

    Args:
        general: What is measured.
        folder: Where answers, losses and the harness's results are written.

    Raises:
        UserError: The examples or the harness's tasks cannot be read.
    """

    def __init__(self, general: General, folder: Path) -> None:
        self.general, self.folder = general, folder
        self.found: dict[str, Estimate] = {}
        """What was measured: `general_loss`, in nats a token, if there are examples; the scores of
        `instruction_estimates`, if there are prompts; `<task>/<metric>` for each metric of the harness's tasks."""
        if general.harness:
            from judgelit.evaluation.general.harness import check_harness

            check_harness(general.harness)
        self._examples = None
        if general.examples is not None:
            self._examples = read_examples(general.examples, general.limit)
        self._rows: list[TokenizedCompletion] = []
        self._prompts = general.prompts()

    @property
    def made_from(self) -> dict[str, Any]:
        """What results record: the settings, with hashes of the examples and of the prompts."""
        return self.general.made_from(self._examples)

    def prepare(self, engine: Engine) -> None:
        """Leave out what does not fit the model's context. A line says how much that is.

        Raises:
            UserError: Nothing fits, or an endpoint cannot give what is measured.
        """
        if isinstance(engine, LocalEngine):
            if self._examples is not None:
                self._rows = tokenize_examples(self._examples, engine.tokenizer)
        elif self.general.harness:
            raise UserError("general.harness: has no meaning with an endpoint, expected a model that is loaded here")
        elif self._examples is not None:
            print(f"{engine.name}: an endpoint gives no loss of given texts, so general_loss is left out")
        if self._prompts:
            self._prompts = answerable(self._prompts, engine.tokenizer, self.general.max_new_tokens)

    def measure(self, engine: Engine) -> None:
        """Measure all that was prepared.

        Raises:
            UserError: A file cannot be written, or a task of the harness cannot run.
        """
        if self._rows:
            assert isinstance(engine, LocalEngine)
            self.found["general_loss"] = general_loss(examples_loss(engine, self._rows, self.folder / LOSSES))
        if self._prompts:
            journaled = JournaledEngine(engine, self.folder / "journal.sqlite", PURPOSE)
            answers = answer_instructions(journaled, self._prompts, self.general.max_new_tokens)
            write_text(self.folder / ANSWERS, "".join(dump_json(answer.to_dict()) + "\n" for answer in answers))
            self.found |= instruction_estimates(answers)
        if self.general.harness:
            from judgelit.evaluation.general.harness import run_harness

            assert isinstance(engine, LocalEngine)
            self.found |= run_harness(engine, self.general.harness, self.general.limit, self.folder / TASKS)


def measure_general(engine: Engine, general: General, folder: Path) -> dict[str, Estimate]:
    """Measure a model's general ability, each figure with its 95% interval; see `GeneralMeasurement`.

    An endpoint gives no log-probabilities of given texts, so its loss is left out.

    Raises:
        UserError: What is measured cannot be read, nothing of it fits the model's context, or the harness cannot run.
    """
    measurement = GeneralMeasurement(general, folder)
    measurement.prepare(engine)
    measurement.measure(engine)
    return measurement.found


def answer_instructions(engine: Engine, prompts: Sequence[Instructed], max_new_tokens: int) -> list[Followed]:
    """Greedy answers to prompts with instructions, checked, in the sequence of the prompts."""
    # A verdict in an answer is nothing special here.
    sampling = Sampling(max_new_tokens, stop_at_verdict=False)
    found: dict[int, Followed] = {}
    answers = engine.answer([prompt.messages for prompt in prompts], sampling)
    for index, (answer,) in track(answers, "instructions", total=len(prompts)):
        found[index] = Followed.of(prompts[index], answer, engine.name)
    return [found[index] for index in sorted(found)]


def answerable(prompts: Sequence[Instructed], tokenizer: PromptCounter, max_new_tokens: int) -> list[Instructed]:
    """The prompts that leave room for an answer in the model's context. A line says how many others there are.

    Raises:
        UserError: No prompt does.
    """
    room = tokenizer.context - max_new_tokens
    fitting = [prompt for prompt in prompts if tokenizer.count(prompt.messages) <= room]
    if not fitting:
        raise UserError(
            f"general.max_new_tokens: found {max_new_tokens}, expected less: no prompt fits the {max(room, 0)} tokens "
            f"that remain of the model's {tokenizer.context}"
        )
    if len(fitting) < len(prompts):
        rank_zero_only(print)(
            f"instructions: {len(prompts) - len(fitting)} of {len(prompts)} prompts do not fit and are left out"
        )
    return fitting
