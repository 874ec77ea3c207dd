"""The recipe as stages in order. A stage that has ended is not run again."""

import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import Path_fr

from judgelit.atomic import write_json, write_text
from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError, first_line
from judgelit.evaluation.general.measure import GeneralMeasurement, measure_general
from judgelit.evaluation.intervals import Estimate, as_json
from judgelit.evaluation.judgments import judge_pairs
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.generation.engine import Engine
from judgelit.generation.journal import JournaledEngine
from judgelit.models.backbone import Backbone, trained_folder
from judgelit.pipeline.engines import judge_engine
from judgelit.pipeline.fit import check_fit, free_gpu_memory, run_fit, trainer_device
from judgelit.pipeline.recipe import GENERAL_DATA, TRAIN, Recipe
from judgelit.pipeline.results import Results
from judgelit.pipeline.stages import DONE, Cost, count_cost, end_stage, ended_stage
from judgelit.records.files import read_rows, write_records
from judgelit.records.records import Judgment, PreferencePair, SFTExample
from judgelit.records.sources import FileSource, Source, Sources, as_sources, read_pairs
from judgelit.report.page import write_report
from judgelit.runs.export import export_run
from judgelit.runs.folder import holds_something
from judgelit.runs.trained_run import find_run
from judgelit.synthesis.decontamination import SIZE, EvaluationSet, decontaminate, read_evaluation_sets
from judgelit.synthesis.enhancement import synthesize_enhancement
from judgelit.synthesis.enhancement_report import write_enhancement_card
from judgelit.synthesis.tasks.pairs import TaskPairs
from judgelit.synthesis.warmup import synthesize_warmup, write_warmup_card
from judgelit.training.cli import TrainingCLI

GENERAL = "general.json"
"""File of a stage with the model's general ability."""
REPORT = "report.html"
"""The page of the run."""
DECIDES = {
    # The file of the SFT also names the base model and its tokenizer.
    **dict.fromkeys(("teacher", "warmup", "warmup_pairs", "sft.yaml"), "02-warmup"),
    **dict.fromkeys(("enhancement", "enhancement_pairs"), "06-enhancement"),
    "dpo.yaml": "07-dpo",
}
"""The first stage that a setting, or a configuration of a fit, decides. All others decide all stages.
`deciding_settings` says which settings decide nothing."""
_EXPORT_BEGUN = "begun"
"""File that says that the folder `export` is this run's."""


class Run:
    """A recipe and its folder.

    Args:
        recipe: The settings.

    Raises:
        UserError: One of the two configurations of `judgelit fit` is wrong. Nothing has been written then.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.output)
        self.results = Results(self.folder / "results.json", recipe.seed)
        # Both configurations are checked before the first stage: a mistake in the second must not cost the first.
        sft = self.check(recipe.sft, self.sft_arguments())
        base: Any = sft.model.backbone
        self.base: Backbone = base
        self.tokenizer: ChatTokenizer = sft.datamodule.tokenizer
        dpo = self.check(recipe.dpo, self.dpo_arguments(self.base))
        self.warmup_room = self.prompt_room("02-warmup", "max_new_tokens", recipe.max_new_tokens, recipe.sft, sft)
        self.enhancement_room = self.prompt_room(
            "06-enhancement", "enhancement.max_new_tokens", recipe.enhancement.max_new_tokens, recipe.dpo, dpo
        )
        if recipe.general is not None:
            GeneralMeasurement(recipe.general, self.folder)  # reads what it will measure with

    def go(self) -> None:
        """Run all stages, then print the results."""
        began = time.monotonic()
        # Found now, and not after hours of training.
        self.refuse_other_export()
        self.stage("01-pairs", self.make_pairs)
        self.stage("02-warmup", self.make_warmup)
        self.evaluate("03-base", "base", self.base)
        self.stage("04-sft", self.train_sft)
        warm = self.trained("04-sft")
        self.evaluate("05-sft-judged", "sft", warm)
        self.stage("06-enhancement", lambda folder: self.make_enhancement(folder, warm))
        self.stage("07-dpo", lambda folder: self.train_dpo(folder, warm))
        self.evaluate("08-dpo-judged", "dpo", self.trained("07-dpo"))
        self.stage("09-export", self.export)
        self.results.write()
        self.results.print()
        print(f"this call took {time.monotonic() - began:.0f} s")
        print(f"results: {self.results.path}")
        print(f"judge:   {self.exported} (a Hugging Face folder)")
        print(f"stages:  {self.folder / 'stages'} (data, judgments, logs, checkpoints)")
        self.report()

    def report(self) -> None:
        """Write the page of this run. The run has succeeded, whether or not the page can be made."""
        try:
            write_report([self.folder], self.folder / REPORT)
            print(f"report:  {self.folder / REPORT} (open it in a browser)")
        except Exception as error:
            print(f"report:  not written ({first_line(error)}); judgelit report {self.folder} tries again")

    def stage(self, name: str, work: Callable[[Path], Cost]) -> bool:
        """Do `work` in the stage's folder and return True, or return False if its `done.json` is there."""
        folder = self.path(name)
        if (cost := ended_stage(folder)) is not None:
            print(f"{name}: done before")
            self.results.cost[name] = cost
            return False
        print(f"{name}: begins", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with count_cost(folder) as so_far:
            cost = work(folder)
            self.results.cost[name] = {**so_far(), **cost}
        end_stage(folder, self.results.cost[name])
        self.results.write()
        return True

    def make_pairs(self, folder: Path) -> Cost:
        """Read or generate all pairs. Pairs with a held-out question, or one almost like it, are not trained on."""
        sets = {name: read_pairs(self.seeded(value)) for name, value in self.recipe.sets.items()}
        train = read_pairs(self.seeded(self.recipe.train))
        held_out = {pair.question_key for pairs in sets.values() for pair in pairs}
        kept = [pair for pair in train if pair.question_key not in held_out]
        counts = [f"{len(train) - len(kept)} left out: their questions are held out"]
        if self.recipe.decontaminate:
            kept, found = decontaminate(kept, {name: EvaluationSet.of_pairs(pairs) for name, pairs in sets.items()})
            counts += [f"{count} share {SIZE} words with a question of {name}" for name, count in found.items()]
        if not kept:
            raise UserError(f"train: the questions of all {len(train)} pairs are held out; expected some that are not")
        for name, pairs in {TRAIN: kept, **sets}.items():
            write_records(folder / f"{name}.jsonl", pairs)
        held = ", ".join(f"{len(pairs)} {name}" for name, pairs in sets.items())
        print(f"{len(kept)} training pairs ({', '.join(counts)}); {held}")
        if self.recipe.general_data is not None:
            general = FileSource(self.recipe.general_data).read(SFTExample)
            write_records(self.general_data, general)
            print(f"{len(general)} general examples")
        return {"tokens": 0}

    def make_warmup(self, folder: Path) -> Cost:
        """Make the SFT set from the teacher's judgments."""
        pairs = self.warmup_pairs()
        write_records(folder / "pairs.jsonl", pairs)
        try:
            examples, report = synthesize_warmup(
                pairs,
                self.recipe.teacher,
                self.recipe.templates,
                self.tokenizer,
                folder / "journal.sqlite",
                max_prompt_tokens=self.warmup_room,
                settings=self.recipe.warmup,
                seed=self.recipe.seed,
            )
        finally:
            # The fits and the servers of later stages need the memory of a teacher that was loaded here.
            self.recipe.teacher.close()
            free_gpu_memory()
        write_records(folder / "sft.jsonl", examples)
        settings = {"teacher": self.recipe.teacher.settings(), "seed": self.recipe.seed, **asdict(self.recipe.warmup)}
        name = self.base.name_or_path
        write_warmup_card(folder / "README.md", examples, report, self.tokenizer, name, settings)
        print(report)
        return self.tokens_in(example.completion for example in examples)

    def train_sft(self, folder: Path) -> Cost:
        """Warm up by SFT."""
        return run_fit("04-sft", folder, self.sft_arguments())

    def make_enhancement(self, folder: Path, warm: Backbone) -> Cost:
        """Make the DPO set from judgments that are sampled from the warm judge."""
        settings, held_out = self.recipe.enhancement, self.recipe.warmup.decontaminate
        pairs, sets = self.enhancement_pairs(), read_evaluation_sets(held_out)
        write_records(folder / "pairs.jsonl", pairs)
        with self.engine(warm, folder) as judge:
            examples, report = synthesize_enhancement(
                pairs,
                judge,
                self.recipe.templates,
                folder / "journal.sqlite",
                # A server may have a shorter context than the model.
                max_prompt_tokens=min(judge.tokenizer.context - settings.max_new_tokens, self.enhancement_room),
                settings=settings,
                seed=self.recipe.seed,
                decontaminate=sets,
            )
        write_records(folder / "dpo.jsonl", examples)
        described = {"seed": self.recipe.seed, **asdict(settings), "decontaminate": held_out}
        write_enhancement_card(folder / "README.md", examples, report, self.tokenizer, warm.name_or_path, described)
        print(report)
        return self.tokens_in(text for example in examples for text in (example.chosen, example.rejected))

    def train_dpo(self, folder: Path, warm: Backbone) -> Cost:
        """Enhance the warm judge by DPO; it is also the reference."""
        return run_fit("07-dpo", folder, self.dpo_arguments(warm))

    def evaluate(self, stage: str, judge: str, backbone: Backbone) -> None:
        """Judge all held-out sets in both orders, and measure the model's general ability."""

        def work(folder: Path) -> Cost:
            texts: list[str] = []
            with self.engine(backbone, folder) as judge:
                engine = JournaledEngine(judge, folder / "journal.sqlite")
                for name in self.recipe.sets:
                    judgments = judge_pairs(
                        engine, PAIRS, name, self.pairs(name), self.recipe.templates, self.recipe.max_new_tokens
                    )
                    write_records(folder / f"{name}.jsonl", judgments)
                    texts += [judgment.text for judgment in judgments]
                if self.recipe.general is not None:
                    measured = measure_general(judge, self.recipe.general, folder)
                    write_json(folder / GENERAL, as_json(measured))
            return self.tokens_in(texts)

        is_new = self.stage(stage, work)
        for name in self.recipe.sets:
            rows = read_rows(str(self.path(stage, f"{name}.jsonl")))
            judgments = [Judgment.from_dict(row, line) for line, row in rows]
            self.results.add(judge, name, self.pairs(name), judgments)
        if self.recipe.general is not None:
            measured = json.loads(self.path(stage, GENERAL).read_text(encoding="utf-8"))
            self.results.add_general(judge, {metric: Estimate.from_dict(found) for metric, found in measured.items()})
        if is_new:
            self.results.write()

    def export(self, folder: Path) -> Cost:
        """Write the trained judge as a Hugging Face folder, with an adapter merged into its base."""
        begun = folder / _EXPORT_BEGUN
        # The export appears when it is complete. If the run was killed before the stage's end, it is there already.
        if not (begun.exists() and self.exported.exists()):
            self.refuse_other_export()
            write_text(begun, "")
            trusts = self.base.trust_remote_code
            export_run(
                find_run(self.path("07-dpo")),
                self.exported,
                merge=True,
                tokenizer=self.tokenizer,
                trust_remote_code=trusts,
            )
        return {"tokens": 0}

    @property
    def exported(self) -> Path:
        """The folder of the trained judge."""
        return self.folder / "export"

    def refuse_other_export(self) -> None:
        """Check that nothing stands where the judge will be exported to.

        Raises:
            UserError: There is something that this run has not made.
        """
        made = any(self.path("09-export", name).exists() for name in (_EXPORT_BEGUN, DONE))
        if not made and holds_something(self.exported):
            raise UserError(
                f"{self.exported}: found files that this run has not made, expected room for the trained judge; move "
                "them away and run the same command"
            )

    def fit_arguments(self, stage: str, config: Path_fr, train: Path) -> list[str]:
        """Arguments of `judgelit fit`: its configuration, and what this run sets."""
        return [
            f"--config={config.absolute}",
            f"--trainer.default_root_dir={self.path(stage)}",
            f"--seed_everything={self.recipe.seed}",
            f"--data.init_args.train={train}",
            f"--data.init_args.seed={self.recipe.seed}",
            f"--data.init_args.cache={self.path(stage, 'cache')}",
            *([] if self.recipe.general_data is None else [f"--data.init_args.general={self.general_data}"]),
            *trainer_device(self.recipe.device),
        ]

    def sft_arguments(self) -> list[str]:
        """Arguments of the warm-up's fit."""
        arguments = self.fit_arguments("04-sft", self.recipe.sft, self.path("02-warmup", "sft.jsonl"))
        if self.recipe.model is not None:
            arguments.append(f"--model.init_args.backbone.name_or_path={self.recipe.model}")
        return arguments

    def check(self, config: Path_fr, arguments: list[str]) -> TrainingCLI:
        """Build what a fit would build, and name its file if something is wrong.

        Raises:
            UserError: A setting is wrong.
        """
        try:
            checked = check_fit(arguments)
            checked.datamodule.max_length  # noqa: B018 (refuses one that is longer than the context)
            return checked
        except UserError as error:
            advice = "; give the model with --model" if "model.backbone.name_or_path" in str(error) else ""
            raise UserError(f"{config.relative}: {error}{advice}") from error

    def prompt_room(self, stage: str, setting: str, max_new_tokens: int, config: Path_fr, fit: TrainingCLI) -> int:
        """Most tokens of a prompt whose longest judgment, with its end of turn, still fits what a fit trains on.

        Args:
            stage: The stage that makes the prompts.
            setting: The setting that says how long a judgment is.
            max_new_tokens: Its value.
            config: The fit's configuration.
            fit: What was built from it.

        Raises:
            UserError: There is no room, and the stage has still to make prompts.
        """
        longest, context = fit.datamodule.max_length, fit.datamodule.tokenizer.context
        room = longest - max_new_tokens - 1
        if room < 1 and not self.path(stage, DONE).exists():
            what, advice = ("", "raise it, or ") if longest < context else (", the context of the model", "")
            raise UserError(
                f"{config.relative}: data.max_length: found {longest}{what}, expected more than a judgment, which has "
                f"up to {max_new_tokens} tokens, with its prompt; {advice}lower {setting}"
            )
        return room

    def dpo_arguments(self, start: Backbone) -> list[str]:
        """Arguments of the enhancement's fit, which starts from the model or adapter of `start`."""
        data = self.path("06-enhancement", "dpo.jsonl")
        arguments = self.fit_arguments("07-dpo", self.recipe.dpo, data)
        arguments.append(f"--model.init_args.backbone.name_or_path={start.name_or_path}")
        # The configuration may name the adapter of a warm-up that was run alone.
        arguments.append(f"--model.init_args.backbone.adapter={start.adapter or 'null'}")
        return arguments

    def trained(self, stage: str) -> Backbone:
        """The model that a stage has trained, with the base's dtype and attention."""
        trained = trained_folder(str(self.path(stage, "model")), self.base.dtype)
        return replace(trained, attention=self.base.attention, trust_remote_code=self.base.trust_remote_code)

    def engine(self, backbone: Backbone, folder: Path) -> AbstractContextManager[Engine]:
        """An engine for a judge, with this run's tokenizer; a server's output goes to the stage's folder."""
        return judge_engine(self.recipe, backbone, self.tokenizer, folder / "server.log")

    def pairs(self, name: str) -> list[PreferencePair]:
        """Pairs of the first stage: `train`, or a held-out set."""
        return read_pairs(str(self.path("01-pairs", f"{name}.jsonl")))

    def warmup_pairs(self) -> list[PreferencePair]:
        """The pairs that the teacher judges, in their sequence."""
        pairs = self.pairs(TRAIN)
        drawn = self.drawn("warmup", pairs, self.recipe.warmup_pairs or len(pairs))
        return [pair for pair in pairs if pair.id in drawn]

    def enhancement_pairs(self) -> list[PreferencePair]:
        """The pairs whose judgments are sampled, in their sequence."""
        pairs, judged = self.pairs(TRAIN), {pair.id for pair in self.warmup_pairs()}
        count = self.recipe.enhancement_pairs or len(pairs)
        drawn = self.drawn("enhancement", [pair for pair in pairs if pair.id not in judged], count)
        drawn |= self.drawn("enhancement", [pair for pair in pairs if pair.id in judged], count - len(drawn))
        return [pair for pair in pairs if pair.id in drawn]

    def drawn(self, stage: str, pairs: list[PreferencePair], count: int) -> set[str]:
        """Ids of `count` pairs at random, or of all of them if there are fewer."""
        # Not of the first ones: a mixture has its sources one after the other.
        return {pair.id for pair in random.Random(f"{self.recipe.seed}/{stage}").sample(pairs, min(count, len(pairs)))}

    @property
    def general_data(self) -> Path:
        """File of the general examples that are mixed with the training data."""
        return self.path("01-pairs", f"{GENERAL_DATA}.jsonl")

    def seeded(self, value: Sources) -> list[Source]:
        """Sources; those that generate pairs and name no seed get the run's."""
        return [
            replace(source, seed=self.recipe.seed) if isinstance(source, TaskPairs) and source.seed is None else source
            for source in as_sources(value)
        ]

    def tokens_in(self, texts: Any) -> Cost:
        """Number of tokens in all texts."""
        return {"tokens": sum(len(self.tokenizer.text_ids(text)) for text in texts)}

    def path(self, stage: str, *more: str) -> Path:
        """A stage's folder, or a file in it."""
        return self.folder.joinpath("stages", stage, *more)
