"""Measure a model's general ability, and keep all that the figures are computed from."""

from collections.abc import Sequence
from pathlib import Path

from judgelit.atomic import write_text
from judgelit.errors import UserError
from judgelit.evaluation.general.instructions import Followed, Instructed, instruction_estimates
from judgelit.evaluation.general.loss import examples_loss, general_loss, read_examples, tokenize_examples
from judgelit.evaluation.general.settings import General
from judgelit.evaluation.intervals import Estimate
from judgelit.generation.engine import Engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.progress import track
from judgelit.records.records import SFTExample
from judgelit.records.unicode import dump_json

SET = "general"
"""The name under which results keep general ability, beside the sets of pairs."""
ANSWERS, LOSSES, TASKS = "general.answers.jsonl", "general.losses.jsonl", "general.harness.json"
"""Files that the figures can be recomputed from."""
PURPOSE = "general"
"""Purpose of the answers in a journal."""


def measure_general(engine: Engine, general: General, folder: Path) -> dict[str, Estimate]:
    """Measure a model's general ability, each figure with its 95% interval.

    After a kill, the same call continues: answers are in the folder's journal.sqlite, and losses and results of the
    harness's tasks are in files there.

    Args:
        engine: The model. An endpoint gives no log-probabilities of given texts, so its loss is left out.
        general: What is measured.
        folder: Where answers, losses and the harness's results are written.

    Returns:
        `general_loss`, in nats a token, if there are examples; the scores of `instruction_estimates`, if there are
        prompts; `<task>/<metric>` for each metric of the harness's tasks.

    Raises:
        UserError: The examples cannot be read, nothing fits the model's context, or the harness cannot run.
    """
    examples = None if general.examples is None else read_examples(general.examples, general.limit)
    return measure_examples(engine, general, examples, folder)


def measure_examples(
    engine: Engine, general: General, examples: list[SFTExample] | None, folder: Path
) -> dict[str, Estimate]:
    """`measure_general` with examples that were read before."""
    found: dict[str, Estimate] = {}
    if examples is not None and isinstance(engine, LocalEngine):
        rows = tokenize_examples(examples, engine.tokenizer)
        found["general_loss"] = general_loss(examples_loss(engine, rows, folder / LOSSES))
    elif examples is not None:
        print(f"{engine.name}: an endpoint gives no loss of given texts; general_loss is left out")
    if prompts := general.prompts():
        journaled = JournaledEngine(engine, folder / "journal.sqlite", PURPOSE)
        answers = answer_instructions(journaled, prompts, general.max_new_tokens)
        write_text(folder / ANSWERS, "".join(dump_json(answer.to_dict()) + "\n" for answer in answers))
        found |= instruction_estimates(answers)
    if general.harness:
        from judgelit.evaluation.general.harness import run_harness

        if not isinstance(engine, LocalEngine):
            raise UserError("general.harness: has no meaning with an endpoint, expected a model that is loaded here")
        found |= run_harness(engine, general.harness, general.limit, folder / TASKS)
    return found


def answer_instructions(
    engine: Engine, prompts: Sequence[Instructed], max_new_tokens: int, quiet: bool = False
) -> list[Followed]:
    """Greedy answers to prompts with instructions, checked, in the sequence of the prompts.

    Prompts that leave no room for an answer in the model's context are left out, and a line says how many.

    Args:
        engine: The model.
        prompts: What it is asked.
        max_new_tokens: Longest answer, in tokens.
        quiet: Allow that no prompt fits.

    Raises:
        UserError: No prompt fits.
    """
    room = engine.tokenizer.context - max_new_tokens
    asked = [prompt for prompt in prompts if engine.tokenizer.count(prompt.messages) <= room]
    if not asked and not quiet:
        raise UserError(
            f"general.max_new_tokens: found {max_new_tokens}, expected less: no prompt fits the {max(room, 0)} tokens "
            f"that remain of the model's {engine.tokenizer.context}"
        )
    if len(asked) < len(prompts):
        print(f"instructions: {len(prompts) - len(asked)} of {len(prompts)} prompts do not fit and are left out")
    # A verdict in an answer is nothing special here.
    sampling = Sampling(max_new_tokens, stop_at_verdict=False)
    found: dict[int, Followed] = {}
    answers = engine.answer([prompt.messages for prompt in asked], sampling)
    for index, (answer,) in track(answers, "instructions", total=len(asked)):
        found[index] = Followed.of(asked[index], answer, engine.name)
    return [found[index] for index in sorted(found)]
