"""Judgments of sets of pairs in a folder, which takes the results of one judge, one set of pairs and one setting."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judgelit.atomic import write_json
from judgelit.errors import UserError
from judgelit.evaluation.general.measure import GeneralMeasurement
from judgelit.evaluation.judgments import judge, make_prompts
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.votes import refuse_equal_votes
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import Templates
from judgelit.judging.template import Template
from judgelit.records.files import write_records
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.records.unicode import dump_json

SETTINGS = "settings.json"
"""The file that says what the results in a folder are made from."""
RESULTS = "results.json"
"""The file of the metrics, which is written last."""
ITEMS = "{}.items.jsonl"
"""The file of a set's items: pairs in the order ab, or answer sets."""
JUDGMENTS = "{}.judgments.jsonl"
"""The file of a set's judgments."""
ATTACKED = "{}.{}"
"""The name of an attacked set in these files: the set's and the attack's."""
LEADERBOARD = "{}.leaderboard.json"
"""The file of a set's result in the form of its benchmark's leaderboard."""


@dataclass(frozen=True)
class BenchmarkSet:
    """Items of a benchmark, to judge or judged."""

    name: str
    """The benchmark's name in `BENCHMARKS`."""
    items: Sequence[Any]
    """Pairs in the order ab, or answer sets."""

    @property
    def benchmark(self) -> Benchmark[Any]:
        """How the items are asked and scored."""
        return find_benchmark(self.name)


@dataclass(frozen=True)
class Questions:
    """How sets are judged."""

    templates: Templates = Templates()  # noqa: RUF009 (frozen, so sharing the default is safe)
    """Judge prompts; if neither names nor a folder are given, those that the judge's folder keeps."""
    max_new_tokens: int = 1024
    stop_at_verdict: bool = True
    seed: int = 0
    votes: int = 1
    """Samples of each prompt; the majority counts."""
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        refuse_equal_votes(self.votes, self.temperature)
        for name, found, greedy in (("temperature", self.temperature, 0), ("top_p", self.top_p, 1)):
            if self.votes == 1 and found != greedy:
                raise UserError(
                    f"{name}: found {found} with a single greedy judgment of each prompt, expected {greedy}; set "
                    "--votes 5, or leave it out"
                )
        _ = self.sampling  # which refuses wrong values, before the folder is taken

    @property
    def sampling(self) -> Sampling:
        """How texts are sampled."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.stop_at_verdict)


@dataclass(frozen=True)
class JudgedFolder:
    """A folder that is ready for the results of one judge."""

    engine: JournaledEngine
    """The judge, with the folder's journal of answers."""
    templates: dict[str, Template]
    """The judge prompts by id."""
    template_seed: int
    """Seed of the draw of templates."""
    settings: dict[str, Any]
    """The content of SETTINGS, for the caller to write before the judge is asked."""


def open_folder(
    folder: Path, spec: EngineSpec, templates: Templates, settings: Mapping[str, Any], results: Collection[str]
) -> JudgedFolder:
    """Load a judge whose results go to a folder, unless the folder holds other results.

    Args:
        folder: The folder to write to.
        spec: The judge.
        templates: Judge prompts; if neither names nor a folder are given, those that the judge's folder keeps.
        settings: The settings that the results depend on, beside the judge and the templates.
        results: Names of the files that the caller will write.

    Raises:
        UserError: The folder holds other results, or the judge cannot be loaded.
    """
    from judgelit.generation.loading import templates_of

    chosen = templates_of(templates, spec)
    loaded = chosen.load()
    made_from = {
        "model": spec.model,
        "templates": {"names": list(loaded), "seed": chosen.seed, "texts": _fingerprint_templates(loaded)},
        **spec.result_settings(),
        **settings,
    }
    # Before the model is loaded, so that a used folder is refused at once.
    refuse_other_results(folder, made_from, results)
    engine = load_engine(spec)
    made_from |= engine.made_from
    refuse_other_results(folder, made_from, results)
    return JudgedFolder(JournaledEngine(engine, folder / "journal.sqlite"), loaded, chosen.seed, made_from)


def judge_into(
    folder: Path,
    spec: EngineSpec,
    sets: Mapping[str, BenchmarkSet],
    questions: Questions,
    settings: Mapping[str, Any],
    more: GeneralMeasurement | None = None,
    attacked: Mapping[str, BenchmarkSet] | None = None,
) -> tuple[dict[str, list[Judgment]], dict[str, Any]]:
    """Judge sets and write the items and the judgments of each set to files.

    SETTINGS in the folder records what the results are made from: the settings, and hashes of weights, templates and
    pairs. The journal of answers is there too, so that the same call continues after a kill. The caller writes RESULTS
    last.

    Args:
        folder: The folder to write to.
        spec: The judge.
        sets: What to judge, by the set's name.
        questions: How it is judged.
        settings: The command's other settings.
        more: General ability, measured once all are judged.
        attacked: Attacked sets, which are judged after the others. The same folder takes more attacks later, so they
            are no part of the settings that must be equal.

    Returns:
        The judgments of each set, and the content of SETTINGS.

    Raises:
        UserError: The folder holds other results, the judge cannot be loaded, or a set has no pair that fits.
    """
    asked = {
        "max_new_tokens": questions.max_new_tokens,
        "stop_at_verdict": questions.stop_at_verdict,
        "votes": questions.votes,
        "temperature": questions.temperature,
        "top_p": questions.top_p,
        "seed": questions.seed,
        **settings,
        "pairs": {name: fingerprint_records(of_set.items) for name, of_set in sets.items()},
    }
    unattacked, sets = sets, {**sets, **(attacked or {})}
    opened = open_folder(folder, spec, questions.templates, asked, written_files(sets))
    if attacked:
        opened.settings["attacks"] = {name: fingerprint_records(one.items) for name, one in attacked.items()}
    prompts = {
        name: make_prompts(
            of_set.benchmark,
            name,
            of_set.items,
            opened.engine.tokenizer,
            opened.templates,
            questions.max_new_tokens,
            opened.template_seed,
        )
        for name, of_set in sets.items()
    }
    if more is not None:
        more.prepare(opened.engine.engine)
    if attacked:
        beside = sum(len(prompts[name]) for name in unattacked)
        print(
            f"attacks: {sum(map(len, prompts.values())) - beside} judgments of attacked pairs, beside {beside} of pairs"
        )
    write_json(folder / SETTINGS, opened.settings)
    judgments = {}
    for name, of_set in sets.items():
        stops = questions.stop_at_verdict and of_set.benchmark.stops_at_verdict
        # A journal keeps the settings of each purpose, and some benchmarks read judgments to their end.
        may_stop = stops == questions.stop_at_verdict
        judgments[name] = judge(
            opened.engine if may_stop else opened.engine.for_purpose("judge to the end"),
            prompts[name],
            replace(questions.sampling, stop_at_verdict=stops),
            questions.seed,
            f"judging {name}",
            of_set.benchmark.verdict,
            questions.votes,
        )
        write_set(folder, name, of_set.items, judgments[name])
    if more is not None:
        more.measure(opened.engine.engine)
    return judgments, opened.settings


def written_files(names: Iterable[str]) -> list[str]:
    """The files that an evaluation of these sets writes."""
    return [*(file for name in names for file in (ITEMS.format(name), JUDGMENTS.format(name))), RESULTS]


def write_set(folder: Path, name: str, items: Sequence[Any], judgments: Sequence[Judgment]) -> None:
    """Write the items and the judgments of a set."""
    write_records(folder / ITEMS.format(name), items)
    write_records(folder / JUDGMENTS.format(name), judgments)


def refuse_other_results(folder: Path, settings: Mapping[str, Any], results: Collection[str]) -> None:
    """Refuse a folder for results that are made from these settings if it holds others.

    Raises:
        UserError: It holds results of other settings, or one of the files `results` without any settings.
    """
    path = folder / SETTINGS
    advice = "choose another folder with --output"
    if not path.exists():
        for name in results:
            if (folder / name).exists():
                raise UserError(f"{folder / name}: found results without {SETTINGS}, expected an unused name; {advice}")
        return
    try:
        there = flat_settings(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: found no settings as JSON, expected those of results; {advice}") from error
    for name, value in flat_settings(settings).items():
        if name not in there or there[name] != value:
            raise UserError(f"{path}: {name}: found {there.get(name, 'nothing')!r}, expected {value!r}; {advice}")


def fingerprint_records(records: Iterable[PreferencePair | AnswerSet | Judgment]) -> str:
    """A hash of pairs, answer sets or judgments, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(dump_json(record.to_dict()).encode() + b"\n")
    return digest.hexdigest()[:16]


def _fingerprint_templates(templates: Mapping[str, Template]) -> str:
    """A hash of templates, 16 hexadecimal digits."""
    return hashlib.sha256(repr(sorted(templates.items())).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
