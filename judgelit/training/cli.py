"""`judgelit fit | validate | test | predict`: a LightningCLI with judgelit's modules, data, loggers and callbacks."""

import pickle
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from judgelit.atomic import write_json
from judgelit.batches.datamodules import DPODataModule, SFTDataModule
from judgelit.batches.judge_datamodule import JudgeDataModule
from judgelit.batches.tokenizer_files import NANO, tokenizer_folder
from judgelit.errors import UserError, first_line
from judgelit.evaluation.callbacks import JudgeEvaluation, JudgmentWriter
from judgelit.evaluation.general.callback import GeneralAbility
from judgelit.judging.kept_templates import KeptTemplates
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import choose_dtype
from judgelit.models.lora import loadable_adapter
from judgelit.parsing import OneLineErrors, raise_user_errors
from judgelit.runs.checkpoints import AtomicCheckpoints, swap_folders
from judgelit.runs.csv_log import RunLog
from judgelit.runs.dropped_checkpoints import DroppedCheckpoints
from judgelit.runs.exact_resume import CatchUp, ExactResume
from judgelit.runs.export import save_model
from judgelit.runs.folder import locked, refuse_used_folder
from judgelit.runs.model_card import model_card
from judgelit.runs.peak_memory import peak_memory
from judgelit.runs.run_settings import deciding_settings
from judgelit.runs.trained_run import TrainedRun
from judgelit.training.callbacks import (
    LastStep,
    LogLines,
    LogShortRuns,
    ModelLine,
    Padding,
    ProgressOnTerminal,
    SaveConfig,
    Throughput,
)
from judgelit.training.dpo import DPOModule
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.sft import SFTModule
from judgelit.training.starting_point import continues, find_checkpoint
from judgelit.training.stop_together import StopTogether
from judgelit.training.trainer_settings import as_list, check_trainer_settings, one_line, trainer_refusal

# A configuration may name an imported class without its module.
BY_SHORT_NAME = (DPODataModule, DPOModule, GeneralAbility, JudgeEvaluation, SFTDataModule, SFTModule)


_PURPOSE = {
    "fit": "Train a judge by SFT or DPO.",
    "validate": "Compute loss and judgments on the validation data.",
    "test": "Compute loss and judgments on the test data.",
    "predict": "Judge the pairs of data.judge and write the judgments.",
}


_REFUSED_WHILE_RUNNING = {
    "Early stopping conditioned on metric": "trainer.callbacks: EarlyStopping.monitor",
    "`val_check_interval`": "trainer.val_check_interval",
}
"""How Lightning's refusals of settings begin that it can only make while it runs, and the setting of each."""


class TrainingParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with one-line errors."""


class TrainingCLI(LightningCLI):
    """Parses a configuration, builds model, data and Trainer, and runs a command.

    A `fit` leaves in its run folder (`trainer.default_root_dir`): config.yaml, csv/, tensorboard/, checkpoints/,
    judgments/ and, when training has ended, model/: a Hugging Face folder, for LoRA of the adapter alone.
    """

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        """Parse, build and run.

        Args:
            args: Arguments; the first names the command.
            run: False builds all that the arguments describe and runs nothing. Then `args` has no command.
        """
        with ExitStack() as self._until_end:
            super().__init__(
                FineTuningModule,
                JudgeDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                parser_class=TrainingParser,
                parser_kwargs={"prog": "judgelit", **{command: _about(command) for command in self.subcommands()}},
                # judgelit's own sampler deals batches out to ranks.
                trainer_defaults={
                    "use_distributed_sampler": False,
                    "default_root_dir": "runs/fit",
                    "enable_model_summary": False,  # see `ModelLine`
                },
                seed_everything_default=0,
                # Automatic optimizers would ask for parameters before the model is built.
                auto_configure_optimizers=False,
                args=args,
                run=run,
            )

    def __deepcopy__(self, memo: Any) -> "TrainingCLI":
        """Return itself: the optimizer's maker refers to it, and Lightning's `WeightAveraging` copies the module."""
        return self

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Take the tokenizer's name from the adapter or the model, so that it is given once."""
        backbone = "model.init_args.backbone"
        parser.link_arguments(
            (f"{backbone}.name_or_path", f"{backbone}.adapter"), "data.init_args.tokenizer", tokenizer_folder
        )
        parser.link_arguments(f"{backbone}.name_or_path", "data.init_args.base")
        parser.link_arguments("model.init_args.backbone.trust_remote_code", "data.init_args.trust_remote_code")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a list of arguments; Lightning's method warns where the list is not that of the command line.

        Raises:
            UserError: A setting of the data is given that is taken from the model.
        """
        for argument in args if isinstance(args, list) else []:
            name = str(argument).partition("=")[0].replace(".init_args", "")
            if name in ("--data.tokenizer", "--data.base", "--data.trust_remote_code"):
                raise UserError(f"{name[2:]}: it is taken from model.backbone; leave it out, and set it there")
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Do nothing. Lightning would look for hyper-parameters in the checkpoint; judgelit saves none."""

    def before_instantiate_classes(self) -> None:
        """Replace the dtype `auto` by the chosen one, so that config.yaml says which one was used."""
        backbone = self._get(self.config, "model").init_args.backbone
        if backbone.dtype == "auto":
            uses_lora = backbone.lora is not None or backbone.adapter is not None
            backbone.dtype = choose_dtype(
                backbone.name_or_path, uses_lora, self._on_gpu(), backbone.trust_remote_code, backbone.adapter
            )

    def _on_gpu(self) -> bool:
        """Whether the run will train on a GPU."""
        accelerator = str(self._get(self.config, "trainer")["accelerator"])
        # Without a command, a configuration is only checked, on the CPU.
        is_free = accelerator == "auto" or self.subcommand is None
        return torch.cuda.is_available() if is_free else accelerator in ("gpu", "cuda", "mps")

    def _set_seed(self) -> None:
        """Seed all generators; Lightning's method raises ValueError for a seed that numpy does not take."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {first_line(error)}") from error

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer."""
        with raise_user_errors():
            super().instantiate_classes()
        for module, data in ((SFTModule, DPODataModule), (DPOModule, SFTDataModule)):
            if isinstance(self.model, module) and isinstance(self.datamodule, data):
                raise UserError(
                    f"data: found {type(self.datamodule).__name__} for {type(self.model).__name__}, expected "
                    f"{'SFTDataModule' if module is SFTModule else 'DPODataModule'}"
                )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the Trainer, with judgelit's loggers, callbacks and checkpoints where the user gives none."""
        settings = self._get(self.config_init, "trainer")
        check_trainer_settings(settings)
        if (adapter := self.model.backbone.adapter) is not None:
            # Otherwise a missing one is found after all data are read.
            loadable_adapter(adapter)
        self._claim_folder()
        loggers = settings["logger"]
        if loggers in (None, True):
            kwargs["logger"] = self._loggers()
        bar = settings["enable_progress_bar"] is not False
        kwargs["callbacks"] = self._callbacks(as_list(settings["callbacks"]), loggers is not False, bar)
        if settings["enable_checkpointing"] is not False:
            self._complete_checkpoints(kwargs["callbacks"])
        if any(isinstance(callback, LogLines) for callback in kwargs["callbacks"]):
            kwargs["enable_progress_bar"] = False
        plugins = as_list(settings["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpoints()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, ImportError, MisconfigurationException) as error:
            # Nothing of judgelit runs in the Trainer's constructor. An ImportError names a package that a precision or
            # a strategy needs.
            raise trainer_refusal(error) from error
        except TypeError as error:
            # The parser has checked all types but those within `devices`. Another TypeError is a bug.
            if "device" not in str(error).lower():
                raise
            raise trainer_refusal(error) from error
        if isinstance(trainer.strategy, ModelParallelStrategy):
            swap_folders(trainer.strategy)
        judges = any(isinstance(callback, JudgeEvaluation) for callback in kwargs["callbacks"])
        if self.subcommand in ("fit", "validate", "test") and self.datamodule.judge is not None and not judges:
            _say("data.judge: the pairs are not judged; add --trainer.callbacks+=JudgeEvaluation to judge them")
        return trainer

    @property
    def _root(self) -> Path:
        """The run folder."""
        return Path(self._get(self.config_init, "trainer")["default_root_dir"])

    def _claim_folder(self) -> None:
        """Take the run folder for this process.

        Raises:
            UserError: It is no folder, another process writes to it, or it holds another run.
        """
        root = self._root
        if root.exists() and not root.is_dir():
            raise UserError(f"trainer.default_root_dir {str(root)!r}: found a file, expected a folder")
        if self.subcommand == "fit" and getattr(rank_zero_only, "rank", 0) == 0:
            # The first process holds the lock for all ranks of the run.
            self._until_end.enter_context(locked(root, "--trainer.default_root_dir"))
        if self.subcommand == "fit" and not continues(self._get(self.config_init, "ckpt_path"), root):
            refuse_used_folder(
                root,
                "choose another folder with --trainer.default_root_dir, or continue that run with --ckpt_path last",
            )

    def _resolved_settings(self) -> dict[str, Any]:
        """The resolved configuration of the command, as plain values."""
        settings = self.config.get(str(self.subcommand), self.config)
        found: dict[str, Any] = yaml.safe_load(self._parser(self.subcommand).dump(settings, skip_none=False))
        return found

    def _loggers(self) -> Any:
        """TensorBoard and one CSV file for `fit`; the other commands log nothing."""
        if self.subcommand != "fit":
            return False
        return [TensorBoardLogger(self._root, name="tensorboard", version=""), RunLog(self._root)]

    def _callbacks(self, given: list[Callback], logs: bool, bar: bool) -> list[Callback]:
        """The user's callbacks among judgelit's own, in the order in which they must run.

        Args:
            given: The user's callbacks.
            logs: Whether anything is logged.
            bar: Whether progress is shown.
        """
        callbacks = [*given, JudgmentWriter(), LastStep()]
        if bar and not any(isinstance(callback, ProgressBar) for callback in given):
            callbacks.append(ProgressOnTerminal() if sys.stderr.isatty() else LogLines())
        if self.subcommand != "fit":
            return callbacks
        callbacks.append(ModelLine())
        if logs:
            # A step is counted before the user's callbacks are called: an interrupt may come in a measurement.
            callbacks = [LogShortRuns(), Throughput(), Padding(), *callbacks]
        # Exact resume prepares each step before all other callbacks, and catches up after them.
        resume = ExactResume(deciding_settings(self._resolved_settings()))
        dropped = DroppedCheckpoints(self._get(self.config_init, "ckpt_path") == "last")
        return [StopTogether(), resume, dropped, *callbacks, CatchUp(resume)]

    def _complete_checkpoints(self, callbacks: list[Callback]) -> None:
        """Add a checkpoint callback if there is none, and put checkpoints into the run folder."""
        if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
            callbacks.append(ModelCheckpoint(save_last=True))
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                # By default Lightning puts checkpoints into the first logger's folder.
                callback.dirpath = str(self._root / "checkpoints")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        checkpoint = find_checkpoint(arguments.get("ckpt_path"), subcommand, self.trainer, self._root)
        # A checkpoint is a pickle. judgelit needs nothing but tensors and plain values from it.
        return {**arguments, "ckpt_path": checkpoint, "weights_only": arguments.get("weights_only") is not False}

    def before_fit(self) -> None:
        """Receive signals, from before the other ranks start."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StopTogether):
                callback.end_at_once(self.trainer)

    def after_fit(self) -> None:
        """Write the trained model as a Hugging Face folder, then `fit.json`, which says that the model is complete."""
        if self._get(self.config, "trainer")["fast_dev_run"]:
            return
        root = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            (root / "fit.json").unlink(missing_ok=True)
        if self.trainer.is_global_zero or self.model.sharding is not None:
            prompts, card = self._judge_prompts(root), self._model_card(root)
            save_model(self.model.model, self.datamodule.tokenizer, root / "model", prompts, card)
        if self.trainer.is_global_zero:
            print(f"model written to {root / 'model'}")
            if self.model.backbone.uses_lora and self.model.backbone.name_or_path == NANO:
                print("it cannot be used: it is an adapter, and no file holds the random weights of the built-in model")
            cost = {"tokens": self.model.tokens_seen, "peak_memory_bytes": peak_memory()}
            write_json(root / "fit.json", cost)

    def _judge_prompts(self, root: Path) -> Templates | KeptTemplates | None:
        """The judge prompts to keep with the trained model; the model must not be lost if they cannot be read."""
        try:
            return TrainedRun.last_of(root).templates
        except UserError as error:
            _say(f"no judge prompts are kept with the model: {error}")
            return None

    def _model_card(self, root: Path) -> str | None:
        """The card of the trained model; None where a broken log would make it fail, since the model matters more."""
        steps = {"global_step": self.trainer.global_step, "tokens_seen": self.model.tokens_seen}
        try:
            return model_card(TrainedRun.last_of(root), steps, merged=False)
        except UserError as error:
            _say(f"no model card: {error}")
            return None


def _about(command: str) -> dict[str, str]:
    """Usage and description of a command; argparse's own usage would take a hundred lines."""
    return {
        "usage": f"judgelit {command} --config FILE [--key value ...]",
        "description": f"{_PURPOSE[command]} Every field can stand in the file of --config or on the command line. "
        f"Fields of the Trainer are below. Fields of the model: `judgelit {command} --model.help SFTModule` (or "
        f"DPOModule); those of the data: `judgelit {command} --data.help SFTDataModule` (or DPODataModule). "
        f"`judgelit {command} --config FILE --print_config` prints a whole configuration.",
    }


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str]) -> None:
    """Run one of the Trainer's commands; `argv` begins with its name."""
    try:
        TrainingCLI(argv)
    except (RuntimeError, ValueError) as error:
        said = one_line(error)
        key = next((key for beginning, key in _REFUSED_WHILE_RUNNING.items() if said.startswith(beginning)), None)
        if key is None:
            raise
        raise UserError(f"{key}: {said}") from error
    except pickle.UnpicklingError as error:
        raise UserError(one_line(error)) from error  # a file that is no checkpoint
    except MisconfigurationException as error:
        # Settings that exclude each other. But if a hook of judgelit has misused Lightning, that is a bug.
        if _raised_under_a_hook(error):
            raise
        raise UserError(one_line(error)) from error


def _raised_under_a_hook(error: Exception) -> bool:
    """Whether judgelit's own code is in the traceback, other than the command and the parser."""
    files = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    package = Path(__file__).parents[1]
    return any(package in file.parents for file in files - {package / "parsing.py", package / "cli.py", Path(__file__)})
