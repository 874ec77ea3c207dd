"""`judgelit synthesize warmup | enhancement`."""

from pathlib import Path

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.local import LocalEngine
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import trained_folder
from judgelit.parsing import call
from judgelit.records.files import write_records
from judgelit.records.sources import Sources, read_pairs
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from judgelit.synthesis.teachers import TaskTeacher, Teacher
from judgelit.synthesis.warmup import synthesize_warmup


def warmup(
    pairs: Sources,
    output: str,
    teacher: Teacher = TaskTeacher(),  # noqa: B008 (it has no state)
    templates: Templates = Templates(),  # noqa: B008
    tokenizer: str = "nano",
    max_prompt_tokens: int | None = None,
    both_orders: bool = False,
    seed: int = 0,
) -> None:
    """Make the SFT set: a teacher's step-by-step judgments of labelled pairs, kept where they agree with the label.

    Answers are shown in an order drawn for each pair; A and B, and longer and shorter better answers, are balanced.
    What was dropped is counted. Killed and started again, it asks the teacher nothing twice.

    Args:
        pairs: Labelled pairs.
        output: File to write, .jsonl or .parquet; the journal of the teacher's answers goes beside it.
        teacher: Who judges: the offline tasks' own worked judgments, or a model.
        templates: Judge prompts, one drawn for each pair.
        tokenizer: Tokenizer of the model to be trained, by which prompts are measured.
        max_prompt_tokens: Longest prompt; half of the model's context if not given.
        both_orders: Keep a judgment only if the teacher is right in both orders.
        seed: Seed of all draws.
    """
    chat = ChatTokenizer.load(tokenizer)
    examples, report = synthesize_warmup(
        read_pairs(pairs),
        teacher,
        templates,
        chat,
        _journal(output),
        max_prompt_tokens=_room(max_prompt_tokens, chat.context // 2),
        both_orders=both_orders,
        seed=seed,
    )
    write_records(Path(output), examples)
    print(f"{report}\nwritten to {output}")


def enhancement(
    pairs: Sources,
    model: str,
    output: str,
    settings: Enhancement = Enhancement(),  # noqa: B008
    teacher: Teacher | None = None,
    templates: Templates = Templates(),  # noqa: B008
    max_prompt_tokens: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Make the DPO set: of the warm judge's sampled judgments of a prompt, a right one preferred to a wrong one.

    What was dropped is counted. Killed and started again, it samples nothing twice.

    Args:
        pairs: Labelled pairs.
        model: The warm judge: hub name or Hugging Face folder, of a model or of a LoRA adapter.
        output: File to write, .jsonl or .parquet; the journal of samples goes beside it.
        settings: How many samples, how they are drawn and paired.
        teacher: Who writes the right judgment of a prompt that the judge never gets right; none: such prompts go.
        templates: Judge prompts, one drawn for each pair.
        max_prompt_tokens: Longest prompt; what settings.sampling.max_new_tokens leaves of the context if not given.
        batch_size: Judgments generated at once.
        seed: Seed of all draws.
    """
    judge = LocalEngine.load(trained_folder(model), batch_size)
    examples, report = synthesize_enhancement(
        read_pairs(pairs),
        judge,
        templates,
        judge.tokenizer,
        _journal(output),
        max_prompt_tokens=_room(max_prompt_tokens, judge.tokenizer.context - settings.sampling.max_new_tokens),
        settings=settings,
        teacher=teacher,
        seed=seed,
    )
    write_records(Path(output), examples)
    print(f"{report}\nwritten to {output}")


def main(argv: list[str]) -> None:
    """Run `judgelit synthesize`."""
    call({"warmup": warmup, "enhancement": enhancement}, argv, "judgelit synthesize")


def _journal(output: str) -> Path:
    return Path(output).with_name(Path(output).name + ".journal.sqlite")


def _room(asked: int | None, default: int) -> int:
    """Tokens that a prompt may take."""
    room = default if asked is None else asked
    if room < 1:
        advice = "; max_new_tokens leaves none of the context" if asked is None else ""
        raise UserError(f"max_prompt_tokens: found {room}, expected 1 or more{advice}")
    return room
