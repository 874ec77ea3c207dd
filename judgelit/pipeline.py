"""`judgelit run`: the whole recipe as stages, each finished once and for all."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import Path_fr

from judgelit import __version__
from judgelit.atomic import write_json
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.evaluation.intervals import Estimate
from judgelit.evaluation.judgments import judge_pairs
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.evaluation.tables import print_table
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.journal import JournaledEngine
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import Backbone, trained_folder
from judgelit.parsing import OneLineErrors, raise_user_errors
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.sources import Source, Sources, as_sources, read_pairs
from judgelit.runs.export import export_run
from judgelit.runs.folder import claim_folder
from judgelit.runs.peak_memory import peak_memory, reset_peak_memory
from judgelit.runs.trained_run import find_run
from judgelit.synthesis.enhancement import Enhancement, synthesize_enhancement
from judgelit.synthesis.tasks.pairs import TaskPairs
from judgelit.synthesis.teachers import Teacher
from judgelit.synthesis.warmup import synthesize_warmup
from judgelit.training.cli import TrainingCLI


@dataclass(frozen=True)
class Recipe:
    """Preference pairs in, a trained judge with measured accuracy out."""

    output: str
    """Folder of the run."""
    train: Sources
    """Labelled pairs to learn from."""
    sets: dict[str, Sources]
    """Held-out pairs by name; questions that stand in them are left out of `train`."""
    teacher: Teacher
    """Who writes the judgments of the warm-up."""
    sft: Path_fr
    """Configuration of `judgelit fit` for the warm-up; its training data is this run's."""
    dpo: Path_fr
    """Configuration of `judgelit fit` for the enhancement; it starts from the warm judge."""
    templates: Templates = Templates()  # noqa: RUF009 (frozen)
    """Judge prompts, one drawn for each pair, in training and evaluation alike."""
    enhancement: Enhancement = Enhancement()  # noqa: RUF009 (frozen)
    """How the warm judge is sampled and its judgments are paired."""
    enhancement_pairs: int | None = None
    """Sample judgments of only the first pairs of `train`, this many."""
    max_new_tokens: int = 1024
    """Longest judgment in evaluation, in tokens."""
    batch_size: int = 64
    """Judgments generated at once."""
    seed: int = 0
    """Seed of everything: data made on the spot, weights from scratch, order, sampling."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise UserError("sets: found none, expected at least one set of held-out pairs")
        for name in ("enhancement_pairs", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: found {value}, expected 1 or more")


class Run:
    """A recipe at work in its folder. A stage that has ended has a `done.json`, and is never entered again."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.output)
        # Both configurations are parsed before anything is done: a mistake in the last must not cost the first.
        sft = TrainingCLI(self.fit_arguments("04-sft", recipe.sft, "02-warmup/sft.jsonl"), run=False)
        base: Any = sft.model.backbone
        self.start: Backbone = base
        self.tokenizer: ChatTokenizer = sft.datamodule.tokenizer
        policy = f"--model.init_args.backbone.name_or_path={self.start.name_or_path}"
        TrainingCLI([*self.fit_arguments("07-dpo", recipe.dpo, "06-enhancement/dpo.jsonl"), policy], run=False)
        self.cost: dict[str, dict[str, float]] = {}
        self.measured: dict[str, dict[str, list[Judgment]]] = {}
        self.pairs: dict[str, list[PreferencePair]] = {}

    def go(self) -> None:
        """All stages in order, then the table."""
        began = time.monotonic()
        self.stage("01-pairs", self.make_pairs)
        self.pairs = {name: read_pairs(str(self.path("01-pairs", f"{name}.jsonl"))) for name in self.recipe.sets}
        self.stage("02-warmup", self.make_warmup)
        self.evaluate("03-base", "base", self.start)
        self.stage("04-sft", self.train_sft)
        warm = self.trained("04-sft")
        self.evaluate("05-sft-judged", "sft", warm)
        self.stage("06-enhancement", lambda folder: self.make_enhancement(folder, warm))
        self.stage("07-dpo", lambda folder: self.train_dpo(folder, warm))
        judge = self.trained("07-dpo")
        self.evaluate("08-dpo-judged", "dpo", judge)
        self.stage("09-export", lambda _: self.export())
        self.write_results()
        self.report(time.monotonic() - began)

    def stage(self, name: str, work: Callable[[Path], int]) -> None:
        """Do `work` in the stage's folder unless it has been done; it returns how many tokens it went through."""
        folder = self.path(name)
        done = folder / "done.json"
        if done.exists():
            print(f"{name}: done before")
            self.cost[name] = json.loads(done.read_text(encoding="utf-8"))
            return
        print(f"{name}: begins", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        reset_peak_memory()
        began = time.monotonic()
        tokens = work(folder)
        seconds = round(time.monotonic() - began, 2)
        self.cost[name] = {"seconds": seconds, "tokens": tokens, "peak_memory_bytes": peak_memory()}
        write_json(done, self.cost[name])
        self.write_results()

    def make_pairs(self, folder: Path) -> int:
        """Read or make all pairs; what is held out is not trained on."""
        sets = {name: read_pairs(self.seeded(value)) for name, value in self.recipe.sets.items()}
        train = read_pairs(self.seeded(self.recipe.train))
        held_out = {pair.question_key for pairs in sets.values() for pair in pairs}
        kept = [pair for pair in train if pair.question_key not in held_out]
        if not kept:
            raise UserError(
                f"all {len(train)} training pairs ask questions that are held out; expected some that differ"
            )
        for name, pairs in {"train": kept, **sets}.items():
            write_records(folder / f"{name}.jsonl", pairs)
        counts = ", ".join(f"{len(pairs)} {name}" for name, pairs in sets.items())
        print(f"{len(kept)} training pairs ({len(train) - len(kept)} left out: their questions are held out); {counts}")
        return 0

    def make_warmup(self, folder: Path) -> int:
        """The SFT set."""
        tokenizer = self.tokenizer
        examples, report = synthesize_warmup(
            self.train_pairs(),
            self.recipe.teacher,
            self.recipe.templates,
            tokenizer,
            folder / "journal.sqlite",
            max_prompt_tokens=tokenizer.context - self.recipe.max_new_tokens,
            seed=self.recipe.seed,
        )
        write_records(folder / "sft.jsonl", examples)
        _write_card(folder / "README.md", "Judgments for the warm-up", str(report), report.templates)
        print(report)
        return sum(len(tokenizer.text_ids(example.completion)) for example in examples)

    def train_sft(self, folder: Path) -> int:
        """The warm-up."""
        return self.fit(folder, self.fit_arguments("04-sft", self.recipe.sft, "02-warmup/sft.jsonl"))

    def make_enhancement(self, folder: Path, warm: Backbone) -> int:
        """The DPO set, sampled from the warm judge."""
        judge = load_engine(self.engine_spec(warm), self.tokenizer)
        settings = self.recipe.enhancement
        examples, report = synthesize_enhancement(
            self.train_pairs()[: self.recipe.enhancement_pairs],
            judge,
            self.recipe.templates,
            folder / "journal.sqlite",
            max_prompt_tokens=judge.tokenizer.context - settings.sampling.max_new_tokens,
            settings=settings,
            seed=self.recipe.seed,
        )
        write_records(folder / "dpo.jsonl", examples)
        _write_card(folder / "README.md", "Judgments for the enhancement", str(report), {})
        print(report)
        return sum(
            len(judge.tokenizer.text_ids(text)) for example in examples for text in (example.chosen, example.rejected)
        )

    def train_dpo(self, folder: Path, warm: Backbone) -> int:
        """The enhancement, starting from the warm judge and held to it."""
        model = [f"--model.init_args.backbone.name_or_path={warm.name_or_path}"]
        if warm.adapter is not None:
            model.append(f"--model.init_args.backbone.adapter={warm.adapter}")
        return self.fit(folder, [*self.fit_arguments("07-dpo", self.recipe.dpo, "06-enhancement/dpo.jsonl"), *model])

    def fit(self, folder: Path, arguments: Sequence[str]) -> int:
        """`judgelit fit`, continued from its last checkpoint if it has begun before."""
        # A kill may have left a part of the model; it is written anew when training has ended.
        shutil.rmtree(folder / "model", ignore_errors=True)
        again = ["--ckpt_path=last"] if (folder / "checkpoints").exists() else []
        return TrainingCLI(["fit", *arguments, *again]).model.tokens_seen

    def fit_arguments(self, stage: str, config: Path_fr, train: str) -> list[str]:
        """What this run says to `judgelit fit` about a stage, beside its configuration."""
        return [
            f"--config={config.absolute}",
            f"--trainer.default_root_dir={self.path(stage)}",
            f"--seed_everything={self.recipe.seed}",
            f"--data.init_args.train={self.folder / 'stages' / train}",
            f"--data.init_args.seed={self.recipe.seed}",
            f"--data.init_args.cache={self.path(stage, 'cache')}",
        ]

    def trained(self, stage: str) -> Backbone:
        """The model that a stage of training has left, loaded as the first one was."""
        trained = trained_folder(str(self.path(stage, "model")), self.start.dtype)
        return replace(trained, attention=self.start.attention, trust_remote_code=self.start.trust_remote_code)

    def engine_spec(self, backbone: Backbone) -> EngineSpec:
        """How a model of this run is loaded to generate text."""
        return EngineSpec(
            backbone.adapter or backbone.name_or_path,
            backbone.dtype,
            quantization=backbone.quantization,
            attention=backbone.attention,
            batch_size=self.recipe.batch_size,
            trust_remote_code=backbone.trust_remote_code,
        )

    def evaluate(self, stage: str, name: str, backbone: Backbone) -> None:
        """Judge all sets, in both orders."""

        def work(folder: Path) -> int:
            local = load_engine(self.engine_spec(backbone), self.tokenizer)
            engine = JournaledEngine(local, folder / "journal.sqlite")
            found: dict[str, list[Judgment]] = {}
            for set_name, pairs in self.pairs.items():
                found[set_name] = judge_pairs(
                    engine, PAIRS, set_name, pairs, self.recipe.templates, self.recipe.max_new_tokens
                )
                write_records(folder / f"{set_name}.jsonl", found[set_name])
            self.measured[name] = found
            return sum(len(local.tokenizer.text_ids(one.text)) for by_set in found.values() for one in by_set)

        self.stage(stage, work)
        if name not in self.measured:
            self.measured[name] = {set_name: self.read_judgments(stage, set_name) for set_name in self.pairs}

    def read_judgments(self, stage: str, set_name: str) -> list[Judgment]:
        """What a stage of evaluation has written."""
        return [Judgment.from_dict(row, at) for at, row in read_rows(str(self.path(stage, f"{set_name}.jsonl")))]

    def export(self) -> int:
        """The trained judge as a Hugging Face folder of its own, an adapter merged into its base."""
        to = self.folder / "export"
        # A kill may have left one that this stage has not yet called done.
        shutil.rmtree(to, ignore_errors=True)
        export_run(find_run(self.path("07-dpo")), to, merge=True, tokenizer=self.tokenizer)
        return 0

    def write_results(self) -> None:
        """results.json as far as the run has come."""
        tables = self.tables()
        content = {
            "judgelit": __version__,
            "seed": self.recipe.seed,
            "stages": {
                stage: {name: {metric: value.to_dict() for metric, value in by.items()} for name, by in sets.items()}
                for stage, sets in tables.items()
            },
            "gains": [*self.gains("base", "sft"), *self.gains("sft", "dpo")],
            "cost": self.cost,
        }
        write_json(self.folder / "results.json", content)

    def tables(self) -> dict[str, dict[str, dict[str, Estimate]]]:
        """Metrics by stage and set."""
        return {
            stage: {name: PAIRS.estimates(self.pairs[name], judgments) for name, judgments in by_set.items()}
            for stage, by_set in self.measured.items()
            if by_set
        }

    def gains(self, before: str, after: str) -> list[dict[str, Any]]:
        """What every metric gained between two stages."""
        if not self.measured.get(before) or not self.measured.get(after):
            return []
        return [
            {"from": before, "to": after, "set": name, "metric": metric, **gain.to_dict()}
            for name in self.recipe.sets
            for metric, gain in PAIRS.gains(
                self.pairs[name], self.measured[before][name], self.measured[after][name]
            ).items()
        ]

    def report(self, seconds: float) -> None:
        """Say what came out and where it is."""
        print_table(self.tables(), PAIRS.shown)
        for gain in self.gains("sft", "dpo"):
            if gain["metric"] in ("accuracy", "consistent_accuracy"):
                print(
                    f"DPO over SFT, {gain['set']}, {gain['metric']}: {100 * gain['value']:+.1f} points "
                    f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
                )
        print(f"{seconds:.0f} s in this call; 95% bootstrap intervals over questions, both orders of each pair")
        print(f"results: {self.folder / 'results.json'}")
        print(f"judge:   {self.folder / 'export'} (a Hugging Face folder)")
        print(f"stages:  {self.folder / 'stages'} (data, judgments, logs, checkpoints)")

    def train_pairs(self) -> list[PreferencePair]:
        """The pairs to learn from."""
        return read_pairs(str(self.path("01-pairs", "train.jsonl")))

    def seeded(self, value: Sources) -> list[Source]:
        """Sources with the run's seed where they make data and name none."""
        return [
            replace(source, seed=self.recipe.seed) if isinstance(source, TaskPairs) and source.seed is None else source
            for source in as_sources(value)
        ]

    def path(self, stage: str, *more: str) -> Path:
        """A stage's folder, or a file in it."""
        return self.folder.joinpath("stages", stage, *more)


def main(argv: list[str]) -> None:
    """Run `judgelit run`."""
    parser = OneLineErrors(prog="judgelit run", description=Recipe.__doc__)
    parser.add_argument("--config", action="config", help="A YAML file, or the name of a shipped configuration.")
    parser.add_class_arguments(Recipe)
    parsed = parser.parse_args(argv)
    with raise_user_errors():
        settings = parser.instantiate(parsed)
    recipe = Recipe(**{item.name: settings[item.name] for item in fields(Recipe)})
    saved = {
        **yaml.safe_load(parser.dump(parsed)),
        # The two files stand beside the saved configuration, so that it runs again from there.
        "sft": "sft.yaml",
        "dpo": "dpo.yaml",
    }
    files = {
        "config.yaml": yaml.safe_dump(saved, sort_keys=False, allow_unicode=True),
        "sft.yaml": Path(recipe.sft.absolute).read_text(encoding="utf-8"),
        "dpo.yaml": Path(recipe.dpo.absolute).read_text(encoding="utf-8"),
    }
    run = Run(recipe)
    claim_folder(run.folder, files)
    run.go()


def _write_card(path: Path, title: str, report: str, templates: Mapping[str, int]) -> None:
    lines = [f"# {title}", "", f"Made by judgelit {__version__}. {report}"]
    if templates:
        lines += ["", "| template | judgments |", "|---|---|", *(f"| {name} | {n} |" for name, n in templates.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
