"""`judgelit synthesize warmup | enhancement`."""

from pathlib import Path
from typing import Any

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.judging.prompts import Templates
from judgelit.parsing import call
from judgelit.records.files import refuse_unknown_suffix, write_records
from judgelit.records.public_sources import describe_sets
from judgelit.records.public_sources.source import named_source
from judgelit.records.records import PreferencePair
from judgelit.records.sources import Sources, read_pairs
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from judgelit.synthesis.teachers import TaskTeacher, Teacher
from judgelit.synthesis.warmup import synthesize_warmup


def warmup(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    teacher: Teacher = TaskTeacher(),  # noqa: B008 (it has no state)
    templates: Templates = Templates(),  # noqa: B008 (frozen)
    tokenizer: str = "nano",
    max_prompt_tokens: int | None = None,
    both_orders: bool = False,
    balance_labels: bool = True,
    balance_length: bool = True,
    limit: int | None = None,
    seed: int = 0,
) -> None:
    """Make the SFT set: a teacher's step-by-step judgments of labelled pairs, kept if they agree with the label.

    Each pair is shown in an order drawn at random. By default the set is balanced between A and B, and between better
    answers that are longer and shorter. Dropped judgments are counted. After a kill, the same command continues and
    asks the teacher nothing twice.

    Args:
        output: File to write, .jsonl or .parquet; the journal of the teacher's answers is written beside it.
        pairs: Labelled pairs.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        teacher: Who judges: TaskTeacher, the worked judgments of the offline tasks; or EngineTeacher, a model.
        templates: Judge prompts, one drawn for each pair.
        tokenizer: The model to be trained; its tokenizer measures the prompts.
        max_prompt_tokens: Longest prompt; by default half of the model's context.
        both_orders: Keep a judgment only if the teacher is right in both orders.
        balance_labels: Drop judgments at random until as many have label A as B.
        balance_length: Drop judgments at random until as many have a longer better answer as a shorter one.
        limit: Use only the first pairs, this many.
        seed: Seed of all draws.
    """
    refuse_unknown_suffix(Path(output))
    chat = ChatTokenizer.load(tokenizer)
    examples, report = synthesize_warmup(
        _first(named_source(source, pairs), limit),
        teacher,
        templates,
        chat,
        _journal(output),
        max_prompt_tokens=_room(max_prompt_tokens, chat.context // 2),
        both_orders=both_orders,
        balance_labels=balance_labels,
        balance_length=balance_length,
        seed=seed,
    )
    write_records(Path(output), examples)
    print(f"{report}\nwritten to {output}")


def enhancement(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    settings: Enhancement = Enhancement(),  # noqa: B008 (frozen)
    teacher: Teacher | None = None,
    templates: Templates = Templates(),  # noqa: B008 (frozen)
    max_prompt_tokens: int | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    seed: int = 0,
    **engine: Any,
) -> None:
    """Make the DPO set: pairs of a right and a wrong judgment of the same prompt, both sampled from the warm judge.

    Dropped prompts are counted. After a kill, the same command continues and samples nothing twice.

    Args:
        output: File to write, .jsonl or .parquet; the journal of samples is written beside it.
        pairs: Labelled pairs.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        settings: How many judgments are sampled, and how they are sampled and paired.
        teacher: Who writes the right judgment of a prompt that the judge never gets right; none: such prompts are
            dropped.
        templates: Judge prompts, one drawn for each pair. Default: those that the judge's folder keeps, or `rise`.
        max_prompt_tokens: Longest prompt; by default the model's context less settings.max_new_tokens.
        batch_size: Judgments generated at once.
        limit: Use only the first pairs, this many.
        seed: Seed of all draws.
        engine: The fields of `EngineSpec`: the warm judge.
    """
    from judgelit.generation.loading import templates_of

    refuse_unknown_suffix(Path(output))
    spec = EngineSpec(batch_size=batch_size, **engine)
    used = _first(named_source(source, pairs), limit)
    chosen, judge = templates_of(templates, spec.model), load_engine(spec)
    examples, report = synthesize_enhancement(
        used,
        judge,
        chosen,
        _journal(output),
        max_prompt_tokens=_room(max_prompt_tokens, judge.tokenizer.context - settings.max_new_tokens),
        settings=settings,
        teacher=teacher,
        seed=seed,
    )
    write_records(Path(output), examples)
    print(f"{report}\nwritten to {output}")


def main(argv: list[str]) -> None:
    """Run `judgelit synthesize`."""
    call({"warmup": warmup, "enhancement": enhancement}, argv, "judgelit synthesize", {"source": describe_sets()})


def _journal(output: str) -> Path:
    """The file beside the output that keeps a model's answers."""
    return Path(output).with_name(Path(output).name + ".journal.sqlite")


def _first(pairs: Sources, limit: int | None) -> list[PreferencePair]:
    """The first `limit` pairs of the sources; None: all."""
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    return read_pairs(pairs, limit)


def _room(chosen: int | None, default: int) -> int:
    """Number of tokens that a prompt may have."""
    room = default if chosen is None else chosen
    if room < 1:
        advice = "; max_new_tokens leaves none of the context" if chosen is None else ""
        raise UserError(f"max_prompt_tokens: found {room}, expected 1 or more{advice}")
    return room
