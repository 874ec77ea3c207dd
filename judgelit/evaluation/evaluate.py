"""`judgelit evaluate`: measure a judge on labelled pairs and its general ability, and keep every text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judgelit import __version__
from judgelit.atomic import write_json
from judgelit.commands import call
from judgelit.errors import UserError
from judgelit.evaluation.bias import find_attacks
from judgelit.evaluation.bias.suite import AttackEstimates, attack_estimates, attack_sets, print_attacks
from judgelit.evaluation.calibration import calibrate
from judgelit.evaluation.compare import compare_with, read_other
from judgelit.evaluation.general.measure import GeneralMeasurement
from judgelit.evaluation.general.settings import General
from judgelit.evaluation.intervals import as_json
from judgelit.evaluation.judged_folder import (
    LEADERBOARD,
    RESULTS,
    SETTINGS,
    BenchmarkSet,
    Questions,
    fingerprint_records,
    judge_into,
    refuse_other_results,
    write_set,
    written_files,
)
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.protocols.benchmark import GROUPS, Benchmark
from judgelit.evaluation.protocols.listing import describe_benchmarks
from judgelit.evaluation.saved import SavedResults, read_judgments
from judgelit.evaluation.sets import read_sets
from judgelit.evaluation.tables import print_general, print_table
from judgelit.evaluation.votes import describe_votes, has_votes, majorities, vote_shares
from judgelit.generation.engine import EngineSpec
from judgelit.judging.prompts import Templates
from judgelit.records.public_sources import describe_sets
from judgelit.records.records import UNKNOWN, Judgment
from judgelit.records.sources import Sources
from judgelit.runs.folder import locked


def evaluate(
    output: str,
    model: str | None = None,
    benchmark: str | list[str] = "pairs",
    pairs: Sources | None = None,
    source: str | None = None,
    sets: dict[str, Sources] | None = None,
    judgments: str | None = None,
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    stop_at_verdict: bool = True,
    votes: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    limit: int | None = None,
    shard: str | None = None,
    seed: int = 0,
    general: General | None = None,
    against: str | None = None,
    attacks: str | list[str] | None = None,
    **engine: Any,
) -> None:
    """Measure a judge on benchmarks or labelled pairs, in both orders; with --general its general ability.

    Writes OUTPUT/results.json, and for each set one JSONL line for each pair and for each judgment, from which every
    number can be recomputed; for RewardBench also SET.leaderboard.json, in its leaderboard's form. After a kill, the
    same command continues. A folder with results of another model, other pairs or other settings is refused. Pairs
    labelled tie are left out of accuracy and counted as `ties`. `judgelit evaluate --list` shows the benchmarks.

    Args:
        output: Folder to write to.
        model: Hub name; Hugging Face folder, of a model or of a LoRA adapter; the folder of a run, or a checkpoint in
            it; or `nano`, the built-in small model. With an endpoint: the model's name there. With `judgments`: the
            name to write beside the results.
        benchmark: Name of a benchmark, or several: `[rewardbench, judgebench]`. `judgelit evaluate --list` shows all.
            `pairs` takes labelled pairs of any source. `FILE.py:NAME` is one that a Python file of yours defines.
        pairs: The benchmark's files in its own form, or labelled pairs: a file, folder, glob or hub name, or a source
            by class_path. Default: the benchmark is read from the hub.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        sets: Several sets of pairs by name, usually in a `--config` file; in place of `pairs`. With several benchmarks:
            the files of each by the benchmark's name.
        judgments: Judgments that were made elsewhere, in place of a model: judgelit's own, or result files in the
            benchmark's own form. A file, folder or glob pattern.
        templates: Judge prompts to ask with. Default: those that the judge's folder keeps, or `rise`.
        max_new_tokens: Longest judgment, in tokens.
        stop_at_verdict: End a judgment with the line that says its verdict. Text after it takes time and is not read,
            unless it holds another verdict.
        votes: Judgments of each prompt; the majority counts. By default one, greedily.
        temperature: Temperature of several votes, such as 0.7.
        top_p: Sample votes from the smallest set of tokens that holds this probability.
        limit: Judge only the first pairs of each set, this many.
        shard: Judge only this part of the questions, such as 1/4 on the first of four machines. Then give the judgments
            of all parts to one command with `--judgments 'PATTERN'`.
        seed: Seed of the engine.
        general: Measure general ability, beside judging or alone. `--general` measures instructions that a program can
            check; `--general.examples FILE` also the loss on held-out general examples.
        against: Folder of another judge's results, of the same sets and pairs, to compare with: gains, McNemar's test,
            flips. The same command with another one, or with none, asks nothing again.
        attacks: Attack the judge: change the worse answer of each pair and judge again. `--attacks` makes all attacks,
            `--attacks '[injection, style]'` some of them: position, length, self_preference, padding, style,
            master_key, null_answer, injection, forged_turn, forged_verdict. All together ask about 30 times as often
            as the pairs alone. More attacks may be added to the same folder.
        engine: The fields of `EngineSpec`.
    """
    folder = Path(output)
    alone = general is not None and benchmark == "pairs" and pairs is None and source is None and sets is None
    read = {} if alone else read_sets(benchmark, pairs, source, sets, limit, shard)
    other = None if against is None else read_other(Path(against), folder, read)
    questions = Questions(templates, max_new_tokens, stop_at_verdict, seed, votes, temperature, top_p)
    chosen_attacks = {} if attacks is None else find_attacks(attacks)
    _refuse_attacks_beside(attacks, judgments, shard)
    attacked = attack_sets(chosen_attacks, read) if chosen_attacks else {}
    described = {
        "command": "evaluate",
        "benchmarks": {name: of_set.name for name, of_set in read.items()},
        "limit": limit,
        "shard": shard,
    }
    with locked(folder):
        if judgments is not None:
            _refuse_beside_judgments(general, questions, engine)
            named, found, settings = _take_judgments(folder, judgments, read, model, described)
            _write_and_print(folder, named, settings, read, found, None, {}, other)
            return
        if model is None:
            raise UserError("missing --model, or --judgments with judgments that were made elsewhere")
        spec = EngineSpec(model, **engine)
        if general is not None and general.harness and spec.endpoint is not None:
            raise UserError("general.harness: has no meaning with an endpoint, expected a model that is loaded here")
        more = None if general is None else GeneralMeasurement(general, folder)
        described |= {} if more is None else {"general": more.made_from}
        found, settings = judge_into(folder, spec, read, questions, described, more, attacked)
        of_attacks = attack_estimates(chosen_attacks, read, attacked, found) if chosen_attacks else {}
        _write_and_print(folder, model, settings, read, found, more, of_attacks, other)


def _write_and_print(
    folder: Path,
    model: str,
    settings: Mapping[str, Any],
    sets: Mapping[str, BenchmarkSet],
    judgments: Mapping[str, Sequence[Judgment]],
    more: GeneralMeasurement | None,
    attacks: AttackEstimates,
    other: SavedResults | None,
) -> None:
    """Compute the results, write them and print their tables."""
    estimates = {name: one.benchmark.estimates(one.items, judgments[name]) for name, one in sets.items()}
    groups = {name: one.benchmark.estimates_by_group(one.items, judgments[name]) for name, one in sets.items()}
    content = {
        "judgelit": __version__,
        "model": model,
        "settings": settings,
        "benchmarks": {name: one.name for name, one in sets.items()},
        "sets": as_json(estimates),
        "groups": as_json(groups),
    }
    if more is not None:
        content["general"] = as_json(more.found)
    if attacks:
        content["attacks"] = as_json(attacks)
    votes = {name: vote_shares(one.items, judgments[name]) for name, one in sets.items() if has_votes(judgments[name])}
    found = {name: calibrate(one.items, judgments[name]) for name, one in sets.items()}
    calibrations = {name: one for name, one in found.items() if one is not None}
    if votes:
        content["votes"] = as_json(votes)
    if calibrations:
        content["calibration"] = {name: one.to_dict() for name, one in calibrations.items()}
    for name, one in sets.items():
        if (export := one.benchmark.export) is not None:
            write_json(folder / LEADERBOARD.format(name), export(model, one.items, majorities(judgments[name])))
    write_json(folder / RESULTS, content)
    for benchmark in dict.fromkeys(one.name for one in sets.values()):
        of_benchmark = [name for name, one in sets.items() if one.name == benchmark]
        _print_judged(model, find_benchmark(benchmark), of_benchmark, estimates, groups)
    print_attacks(attacks)
    for name, shares in votes.items():
        print(f"{name}: {describe_votes(shares)}")
    for name, calibration in calibrations.items():
        print(f"{name}: {calibration}")
    if other is not None:
        # The results stand already, whether or not the judges can be compared.
        compared = compare_with(other, sets, judgments, settings)
        write_json(folder / RESULTS, {**content, "against": compared.to_dict()})
        compared.print()
    if more is not None:
        print_general({model: more.found})
    texts = [*(["judgments"] if sets else []), *(["general ability's texts and losses"] if more else [])]
    print(f"{' and '.join([*texts, RESULTS])} are in {folder}; judgelit report {folder} makes a page of them")


def _print_judged(model: str, benchmark: Benchmark[Any], names: Sequence[str], estimates: Any, groups: Any) -> None:
    """Print the tables of a benchmark's sets and of their groups."""
    print_table({model: {name: estimates[name] for name in names}}, benchmark.shown)
    for field in GROUPS:
        by_group = {f"{name}, {group}": found for name in names for group, found in groups[name].get(field, {}).items()}
        if len(by_group) > len(names):
            print(f"by {field}:")
            print_table({model: by_group}, benchmark.shown_groups or benchmark.shown)


def _take_judgments(
    folder: Path, path: str, sets: Mapping[str, BenchmarkSet], model: str | None, settings: Mapping[str, Any]
) -> tuple[str, dict[str, list[Judgment]], dict[str, Any]]:
    """Read judgments that were made elsewhere and write them to a folder, with the settings.

    Returns:
        The judge: the given name, else the engine of all judgments, else the file. The judgments; the settings.

    Raises:
        UserError: There are several sets, the judgments do not fit, or the folder holds other results.
    """
    if len(sets) != 1:
        raise UserError(f"judgments: found {len(sets)} sets beside them, expected the one that they are about")
    ((name, of_set),) = sets.items()
    found = read_judgments(path, of_set.benchmark, of_set.items)
    engines = {one.engine for one in found} - {UNKNOWN}
    named = model or (engines.pop() if len(engines) == 1 else "") or Path(path).name
    made_from = {
        **settings,
        "model": named,
        "pairs": {name: fingerprint_records(of_set.items)},
        "judgments": fingerprint_records(found),
    }
    refuse_other_results(folder, made_from, written_files(sets))
    write_json(folder / SETTINGS, made_from)
    write_set(folder, name, of_set.items, found)
    return named, {name: found}, made_from


def _refuse_beside_judgments(general: General | None, questions: Questions, engine: Mapping[str, Any]) -> None:
    changed = [one for one in vars(questions) if getattr(questions, one) != getattr(Questions(), one)]
    changed += EngineSpec("judgments", **engine).changed()
    for option in [*(["general"] if general is not None else []), *changed]:
        raise UserError(f"{option}: has no meaning with judgments that were made elsewhere; leave it out")


def _refuse_attacks_beside(attacks: object, judgments: str | None, shard: str | None) -> None:
    if attacks is not None and judgments is not None:
        raise UserError("attacks: has no meaning with judgments that were made elsewhere; leave it out")
    if attacks is not None and shard is not None:
        raise UserError("attacks: found beside shard, expected all pairs, since attacks of parts are not put together")


def main(argv: list[str]) -> None:
    """Run `judgelit evaluate`."""
    if "--list" in argv:
        print(describe_benchmarks())
        return
    # `--general` alone stands for all its defaults, and `--attacks` alone for all attacks.
    others = [one for one in argv if one.startswith("--general.")]
    argv = _with_value(argv, "--general", [] if others else ["--general={}"])
    argv = _with_value(argv, "--attacks", ["--attacks=all"])
    call(evaluate, argv, "judgelit evaluate", {"source": describe_sets()})


def _with_value(argv: list[str], option: str, instead: list[str]) -> list[str]:
    """The arguments, with others in place of an option that has no value."""
    for place, one in enumerate(argv):
        if one == option and (place + 1 == len(argv) or argv[place + 1].startswith("--")):
            return [*argv[:place], *instead, *argv[place + 1 :]]
    return argv
