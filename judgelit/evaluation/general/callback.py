"""Callback that measures general ability during training."""

from pathlib import Path

import lightning as L
import torch

from judgelit.atomic import write_text
from judgelit.batches.flat_batch import TokenizedCompletion, flatten_completions
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.evaluation.general.instructions import Followed, Instructed, instruction_estimates
from judgelit.evaluation.general.loss import (
    general_loss,
    in_batches,
    read_examples,
    score_batches,
    tokenize_examples,
)
from judgelit.evaluation.general.measure import answer_instructions, answerable
from judgelit.evaluation.general.settings import NAME, General, InstructionSet
from judgelit.evaluation.intervals import Estimate
from judgelit.evaluation.periodic import PeriodicMeasurement, gather, model_name, moment
from judgelit.evaluation.tables import show_general
from judgelit.generation.local import LocalEngine
from judgelit.likelihood.logprobs import Scorer
from judgelit.models.lockstep import in_lockstep
from judgelit.models.lora import without_adapter
from judgelit.records.sources import Sources
from judgelit.records.unicode import dump_json


class GeneralAbility(PeriodicMeasurement):
    """Measures what training a judge does to general ability: the loss on held-out general examples and instructions.

    Metrics are logged as `general/<metric>`, so `ModelCheckpoint(monitor="general/general_loss")` or EarlyStopping can
    use them. Checked answers to instructions are written to `general/` in the run's folder: `step<N>.jsonl` during
    `fit`, `validate.jsonl` or `test.jsonl` by the other commands.
    """

    def __init__(
        self,
        examples: Sources | None = None,
        instructions: InstructionSet = "none",
        limit: int | None = None,
        max_new_tokens: int = 512,
        batch_size: int = 16,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        at_epoch_end: bool = False,
    ) -> None:
        """Choose what is measured, and when.

        Args:
            examples: Held-out general examples, prompts with completions in any public form, whose loss is measured.
            instructions: Prompts with instructions that a program can check: `builtin`, 96 prompts of judgelit's own,
                or `none`.
            limit: Use only the first examples and prompts, this many.
            max_new_tokens: Longest answer to a prompt of `instructions`, in tokens.
            batch_size: Answers generated at once.
            every_n_steps: Measure each time this many optimizer steps have been made.
            at_start: Measure before the first step.
            at_end: Measure after the last step.
            at_epoch_end: Measure after the last step of each epoch.
        """
        super().__init__(every_n_steps, at_start, at_end, at_epoch_end)
        if batch_size < 1:
            raise UserError(f"batch_size: found {batch_size}, expected 1 or more")
        self.general = General(examples, instructions, limit, max_new_tokens)
        self.batch_size = batch_size
        self._rows: list[TokenizedCompletion] | None = None
        self._prompts: list[Instructed] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the examples before training begins, so that a mistake in them is found early."""
        if stage == "predict" or self._rows is not None:
            return
        tokenizer = _tokenizer(trainer)
        self._rows, prompts = [], self.general.prompts()
        if prompts:
            self._prompts = answerable(prompts, tokenizer, self.general.max_new_tokens)
        if self.general.examples is not None:
            self._rows = tokenize_examples(read_examples(self.general.examples, self.general.limit), tokenizer)

    def measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the loss and the instructions. Each rank takes its share, and each example counts once."""
        found: dict[str, Estimate] = {}
        if self._rows:
            found["general_loss"] = self._loss(trainer, pl_module, self._rows)
        if self._prompts:
            engine = LocalEngine(
                pl_module.model,  # type: ignore[arg-type]
                _tokenizer(trainer),
                model_name(trainer, pl_module),
                self.batch_size,
            )
            with in_lockstep(without_adapter(pl_module.model)):  # type: ignore[arg-type]
                of_rank = self._prompts[trainer.global_rank :: trainer.world_size]
                answers = answer_instructions(engine, of_rank, self.general.max_new_tokens)
            by_id = {answer.id: answer for answer in gather(answers)}
            answers = [by_id[prompt.id] for prompt in self._prompts]
            if trainer.is_global_zero:
                _write(Path(trainer.default_root_dir) / NAME / f"{moment(trainer)}.jsonl", answers)
            found |= instruction_estimates(answers)
        self.log_metrics(trainer, {f"{NAME}/{metric}": estimate.value for metric, estimate in found.items()})
        if trainer.is_global_zero:
            shown = ", ".join(f"{metric} {show_general(metric, found[metric])}" for metric in found if metric in _SHOWN)
            print(f"{moment(trainer)}, general: {shown}")

    def _loss(self, trainer: L.Trainer, pl_module: L.LightningModule, rows: list[TokenizedCompletion]) -> Estimate:
        """The loss over the examples of all ranks."""
        scorer: Scorer = pl_module.policy  # type: ignore[assignment]
        batches = in_batches(rows)
        # All ranks must choose the layout together, and so not within the lockstep.
        with torch.no_grad():
            scorer.layout(flatten_completions(batches[0]).to(pl_module.device))
        with in_lockstep(without_adapter(pl_module.model)):  # type: ignore[arg-type]
            of_rank = batches[trainer.global_rank :: trainer.world_size]
            losses = [one for found in score_batches(scorer, of_rank, pl_module.device) for one in found]
        by_key = {one.key: one for one in gather(losses)}
        return general_loss([by_key[row.id] for row in rows])


_SHOWN = ("general_loss", "instructions", "instructions_cut")
"""The metrics of the printed line; loggers get all."""


def _tokenizer(trainer: L.Trainer) -> ChatTokenizer:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(getattr(data, "tokenizer", None), ChatTokenizer):
        raise UserError(
            "GeneralAbility: found a Trainer without one of judgelit's data modules, expected it, since its tokenizer "
            "reads the examples"
        )
    return data.tokenizer  # type: ignore[union-attr]


def _write(path: Path, answers: list[Followed]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(dump_json(answer.to_dict()) + "\n" for answer in answers))
    except OSError as error:
        raise UserError(f"{path}: cannot be written to: {error.strerror or error}") from error
