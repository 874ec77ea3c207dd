"""`judgelit synthesize warmup | enhancement | merge`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.commands import make_command, read_command
from judgelit.errors import UserError
from judgelit.generation.engine import Engine, EngineSpec, load_engine
from judgelit.generation.journal_file import Journal
from judgelit.generation.recorded import recorded_engine
from judgelit.judging.prompts import Templates
from judgelit.records.files import refuse_unknown_suffix, write_records
from judgelit.records.public_sources import describe_sets
from judgelit.records.public_sources.source import named_source
from judgelit.records.records import PreferencePair
from judgelit.records.shards import Shard
from judgelit.records.sources import Sources, read_pairs
from judgelit.runs.rounds import judge_of_round
from judgelit.synthesis.card import card_path
from judgelit.synthesis.decontamination import read_evaluation_sets
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from judgelit.synthesis.enhancement_report import write_enhancement_card
from judgelit.synthesis.shard_files import ShardFile, find_shards, journal_path, shard_path
from judgelit.synthesis.teachers import TaskTeacher, Teacher
from judgelit.synthesis.warmup import Warmup, synthesize_warmup, write_warmup_card


def warmup(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    teacher: Teacher = TaskTeacher(),  # noqa: B008 (it has no state)
    templates: Templates = Templates(),  # noqa: B008 (frozen)
    tokenizer: str = "nano",
    max_prompt_tokens: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    shard: str | None = None,
    **settings: Any,
) -> None:
    """Make the SFT set: a teacher's step-by-step judgments of labelled pairs, kept if they agree with the label.

    Each pair is shown in an order drawn at random. By default the set is balanced between A and B, and between better
    answers that are longer and shorter. What is dropped is counted. OUTPUT.card.md describes the set. After a kill, the
    same command continues and asks the teacher nothing twice.

    Args:
        output: File to write, .jsonl or .parquet; the journal of the teacher's answers is written beside it.
        pairs: Labelled pairs.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        teacher: Who judges: TaskTeacher, the worked judgments of the offline tasks; or EngineTeacher, a model.
        templates: Judge prompts, one drawn for each pair.
        tokenizer: The model to be trained; its tokenizer measures the prompts.
        max_prompt_tokens: Longest prompt; by default half of the model's context.
        limit: Use only the first pairs, this many.
        seed: Seed of all draws.
        shard: Ask only the questions of part I of N, as I/N, on this machine; `merge` puts the parts together.
        settings: The fields of `Warmup`.
    """
    refuse_unknown_suffix(Path(output))
    part, chosen = None if shard is None else Shard.parse(shard), Warmup(**settings)
    chat = ChatTokenizer.load(tokenizer)
    room = _room(max_prompt_tokens, chat.context // 2)
    examples, report = synthesize_warmup(
        _first(named_source(source, pairs), limit),
        teacher,
        templates,
        chat,
        journal_path(Path(output)),
        max_prompt_tokens=room,
        settings=chosen,
        seed=seed,
        shard=part,
    )
    write_records(Path(output), examples)
    used: dict[str, Any] = {"pairs": pairs, "source": source, "teacher": teacher.settings()}
    used |= {"templates": asdict(templates), "max_prompt_tokens": room, "limit": limit}
    used |= {} if part is None else {"shard": str(part)}
    card = card_path(Path(output))
    write_warmup_card(card, examples, report, chat, tokenizer, {**used, "seed": seed, **asdict(chosen)})
    print(f"{report}\nwritten to {output}; {card} describes it")


def enhancement(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    settings: Enhancement = Enhancement(),  # noqa: B008 (frozen)
    teacher: Teacher | None = None,
    templates: Templates = Templates(),  # noqa: B008 (frozen)
    max_prompt_tokens: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    round: int = 1,
    shard: str | None = None,
    decontaminate: dict[str, Sources] | Sources | None = None,
    **engine: Any,
) -> None:
    """Make the DPO set: pairs of a right and a wrong judgment of the same prompt, both sampled from the warm judge.

    Writes OUTPUT and OUTPUT.card.md, a card with the solve rates, lengths and cost. Dropped prompts are counted. After
    a kill, the same command continues and samples nothing twice.

    Args:
        output: File to write, .jsonl or .parquet; the journal of samples is written beside it.
        pairs: Labelled pairs.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        settings: How many judgments are sampled, and how they are sampled and paired.
        teacher: Who writes the right judgment of a prompt that the judge never gets right; see also settings.hint.
        templates: Judge prompts, one drawn for each pair. Default: those that the judge's folder keeps, or `rise`.
        max_prompt_tokens: Longest prompt; by default the model's context less settings.max_new_tokens.
        batch_size: Judgments generated at once by a model that is loaded here. Default: 64.
        limit: Use only the first pairs, this many.
        seed: Seed of all draws.
        round: Number of the round. If the model is the folder of `judgelit run`, round 1 samples from its judge after
            the warm-up, and each later round from its newest judge, which is then where DPO starts and its reference.
        shard: Sample only the questions of part I of N, as I/N, on this machine; `merge` puts the parts together.
        decontaminate: Evaluation sets by name, or one. Pairs are dropped whose question shares 13 words in a row with
            one of theirs, or is shorter and equal.
        engine: The fields of `EngineSpec`: the warm judge.
    """
    refuse_unknown_suffix(Path(output))
    part, spec = None if shard is None else Shard.parse(shard), EngineSpec(batch_size=batch_size, **engine)
    used, load = _first(named_source(source, pairs), limit), partial(load_engine, batch_size=64)
    _enhance(
        used,
        output,
        settings,
        teacher,
        templates,
        max_prompt_tokens,
        limit,
        seed,
        round,
        part,
        decontaminate,
        spec,
        load,
    )


def _enhance(
    pairs: Sequence[PreferencePair],
    output: str,
    settings: Enhancement,
    teacher: Teacher | None,
    templates: Templates,
    max_prompt_tokens: int | None,
    limit: int | None,
    seed: int,
    round: int,
    shard: Shard | None,
    decontaminate: dict[str, Sources] | Sources | None,
    spec: EngineSpec,
    load: Callable[[EngineSpec], Engine],
) -> None:
    """Make the DPO set of the pairs with the judge that `load` gives; the rest as in `enhancement`."""
    from judgelit.generation.loading import templates_of

    if spec.endpoint is None:
        spec = replace(spec, model=judge_of_round(spec.model, round))
    sets = read_evaluation_sets(decontaminate)  # before the model is loaded, which takes long
    chosen, judge = templates_of(templates, spec), load(spec)
    room = _room(max_prompt_tokens, judge.tokenizer.context - settings.max_new_tokens)
    examples, report = synthesize_enhancement(
        pairs,
        judge,
        chosen,
        journal_path(Path(output)),
        max_prompt_tokens=room,
        settings=settings,
        teacher=teacher,
        seed=seed,
        round=round,
        shard=shard,
        decontaminate=sets,
    )
    write_records(Path(output), examples)
    described = {
        "model": spec.model,
        "round": round,
        **asdict(settings),
        "teacher": None if teacher is None else teacher.settings(),
        "templates": {"names": list(chosen.load()), "seed": chosen.seed},
        "max_prompt_tokens": room,
        "limit": limit,
        "seed": seed,
        "decontaminate": decontaminate,
        **({} if shard is None else {"shard": str(shard)}),
    }
    card = card_path(Path(output))
    name = spec.requests.tokenizer or spec.model
    write_enhancement_card(card, examples, report, judge.tokenizer, name, described)
    print(f"{report}\nwritten to {output}; {card} describes it")


def merge(shards: str, output: str, pairs: Sources | None = None, trust_remote_code: bool = False) -> None:
    """Put the shards of one command together.

    Writes exactly the set that the same command writes without --shard, with its card. No model is asked, and no
    weights are read: the shards' journals, beside their outputs, have all answers. They are joined into the journal of
    OUTPUT.

    Args:
        shards: Pattern of the shards' outputs, such as 'out-*.jsonl'.
        output: File to write, .jsonl or .parquet.
        pairs: The labelled pairs, if they are not where the first shard has read them.
        trust_remote_code: Run the Python code that comes with the shards' model; its tokenizer is loaded.
    """
    refuse_unknown_suffix(Path(output))
    found = find_shards(shards)
    first, journal = found[0], journal_path(Path(output))
    if any(Path(output).absolute() == one.output.absolute() for one in found):
        raise UserError(f"output: found {output}, which is the output of a shard, expected another name")
    if first.runs_remote_code and not trust_remote_code:
        raise UserError(
            f"{first.path}: the shards were made with Python code that comes with their model; to run that code, add "
            "--trust_remote_code"
        )
    command = make_command(COMMANDS, first.command, {**first.settings, "output": output, "shard": None})
    arguments = command.arguments()
    if pairs is not None:
        arguments["pairs"] = pairs
    kept = [one.journal for one in found if one.journal.is_file()]
    for one in kept:
        Journal(journal).take(one)
    if arguments["teacher"] is not None:
        arguments["teacher"] = arguments["teacher"].from_journal(journal)
    if command.function is warmup:
        warmup(**arguments)
        return
    used = _first(named_source(arguments.pop("source"), arguments.pop("pairs")), arguments["limit"])
    spec = EngineSpec(**{field.name: arguments.pop(field.name) for field in fields(EngineSpec)})
    _enhance(used, **arguments, spec=spec, load=lambda spec: recorded_engine(spec, journal, "judge"))


COMMANDS: dict[str, Callable[..., None]] = {"warmup": warmup, "enhancement": enhancement, "merge": merge}
"""The functions that `judgelit synthesize` calls, by name."""


def main(argv: list[str]) -> None:
    """Run `judgelit synthesize`."""
    command = read_command(COMMANDS, argv, "judgelit synthesize", {"source": describe_sets()})
    settings = command.settings
    output, shard = Path(settings["output"]), settings.pop("shard", None)
    if shard is None:
        command.run()
        return
    del settings["output"]
    part, path = Shard.parse(shard), shard_path(output)
    path.unlink(missing_ok=True)
    command.run()
    journal = journal_path(output)
    answers = len(Journal(journal)) if journal.is_file() else 0
    ShardFile(path, command.name, part, settings, answers).write()


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
