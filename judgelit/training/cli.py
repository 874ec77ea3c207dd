"""`judgelit fit | validate | test | predict`: LightningCLI with judgelit's modules, data and habits."""

import pickle
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar, ThroughputMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from judgelit.atomic import write_json
from judgelit.batches.datamodules import DPODataModule, SFTDataModule
from judgelit.batches.judge_datamodule import JudgeDataModule
from judgelit.errors import UserError, first_line
from judgelit.evaluation.callbacks import JudgeEvaluation, JudgmentWriter
from judgelit.parsing import OneLineErrors, raise_user_errors
from judgelit.runs.checkpoints import AtomicCheckpoints, mend, newest, swap_folders
from judgelit.runs.csv_log import RunLog
from judgelit.runs.exact_resume import CatchUp, ExactResume
from judgelit.runs.export import save_model
from judgelit.runs.folder import refuse_used_folder
from judgelit.runs.peak_memory import peak_memory
from judgelit.training.dpo import DPOModule
from judgelit.training.finetuning import FineTuningModule
from judgelit.training.fsdp import refuse_unknown
from judgelit.training.sft import SFTModule
from judgelit.training.stop_together import StopTogether

_WINDOW = 10
"""Micro-batches over which throughput is measured."""

# What is imported here can be named in a configuration without its module.
BY_SHORT_NAME = (DPODataModule, DPOModule, JudgeEvaluation, SFTDataModule, SFTModule)


class TrainingParser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with one-line errors."""


class SaveConfig(SaveConfigCallback):
    """Saves the whole resolved configuration as `config.yaml` in the run's folder."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save when `fit` begins; other commands change nothing in the folder of the run they look at."""
        if stage != "fit" or self.already_saved:
            return
        self.already_saved = True
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / "config.yaml", skip_unset=False, overwrite=True)


class LogLines(Callback):
    """A line every few seconds where no terminal shows a progress bar, so that a log file tells what goes on."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._last = 0.0
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._began = self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say where the run is, if the last line is old enough."""
        now = time.monotonic()
        if now - self._last < self.seconds or not trainer.is_global_zero:
            return
        self._last = now
        total = trainer.estimated_stepping_batches
        loss = trainer.callback_metrics.get("train/loss")
        shown = "" if loss is None else f", loss {float(loss):.4f}"
        print(f"step {trainer.global_step}/{total}{shown}, {now - self._began:.0f} s", flush=True)


class Throughput(ThroughputMonitor):
    """Logs examples and tokens a second, operations a second and, where the device's peak is known, the share of it.

    `items` are tokens of the examples, each with its own prompt, whether or not prompts are shared and rows padded.
    Totals go on where a checkpoint left them.
    """

    def __init__(self) -> None:
        super().__init__(
            batch_size_fn=lambda batch: len(batch.ids), length_fn=lambda batch: batch.tokens, window_size=_WINDOW
        )
        self._totals: dict[str, int] = {}

    def state_dict(self) -> dict[str, int]:
        """Totals at the end of the last optimizer step."""
        return self._totals

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from such totals."""
        self._totals = state_dict

    def _start(self, trainer: L.Trainer) -> None:
        super()._start(trainer)
        if trainer.state.stage == RunningStage.TRAINING:
            for name, value in self._totals.items():
                getattr(self, f"_{name}")[RunningStage.TRAINING] = value

    def _compute(self, trainer: L.Trainer, iter_num: int | None = None) -> None:
        # Lightning would send these to the loggers by themselves: a row of the CSV log beside each step's own.
        if trainer.state.stage == RunningStage.TRAINING:
            found = self._throughputs[RunningStage.TRAINING].compute()
            totals = {"batches": self._batches, "samples": self._samples, "lengths": self._lengths}
            self._totals = {name: of_stage[RunningStage.TRAINING] for name, of_stage in totals.items()}
            trainer.lightning_module.log_dict({f"train/{name}": float(value) for name, value in found.items()})


class LastStep(Callback):
    """Leaves `last.ckpt` at the last step: Lightning leaves it at the last multiple of `every_n_train_steps`."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save once more, while the trainer still knows where it is."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last is True and callback.last_model_path:
                trainer.save_checkpoint(callback.last_model_path, weights_only=False)


class TrainingCLI(LightningCLI):
    """What `judgelit fit` and its siblings run.

    The tokenizer is said once, as the model's `backbone.name_or_path`. A run leaves its folder
    (`trainer.default_root_dir`) with config.yaml, csv/, tensorboard/, checkpoints/, judgments/ and, once trained,
    model/: a Hugging Face folder, of the adapter alone for LoRA.
    """

    def __init__(self, args: ArgsType = None, run: bool = True) -> None:
        """Parse and run.

        Args:
            args: Arguments, of which the first names the command.
            run: False builds all that the arguments describe and runs nothing; there is no command then.
        """
        super().__init__(
            FineTuningModule,
            JudgeDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            parser_class=TrainingParser,
            parser_kwargs={"prog": "judgelit"},
            # The sampler of judgelit deals batches out to ranks itself.
            trainer_defaults={"use_distributed_sampler": False, "default_root_dir": "runs/fit"},
            seed_everything_default=0,
            # Automatic optimizers would ask for parameters before the model is built.
            auto_configure_optimizers=False,
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what model and data share."""
        parser.link_arguments("model.init_args.backbone.name_or_path", "data.init_args.tokenizer")
        parser.link_arguments("model.init_args.backbone.trust_remote_code", "data.init_args.trust_remote_code")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a list of arguments, be it the command line's or one of `judgelit run`'s stages."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def instantiate_classes(self) -> None:
        """Build model, data and trainer."""
        with raise_user_errors():
            super().instantiate_classes()
        for module, data in ((SFTModule, DPODataModule), (DPOModule, SFTDataModule)):
            if isinstance(self.model, module) and isinstance(self.datamodule, data):
                raise UserError(
                    f"data: found {type(self.datamodule).__name__} for {type(self.model).__name__}, expected "
                    f"{'SFTDataModule' if module is SFTModule else 'DPODataModule'}"
                )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer with loggers and progress where the user has not said otherwise."""
        trainer = self._get(self.config_init, "trainer")
        if trainer["accumulate_grad_batches"] < 1:
            raise UserError(
                f"trainer.accumulate_grad_batches: found {trainer['accumulate_grad_batches']}, expected 1 or more"
            )
        refuse_unknown(trainer["strategy"])
        root = Path(trainer["default_root_dir"])
        if root.exists() and not root.is_dir():
            raise UserError(f"trainer.default_root_dir {str(root)!r}: found a file, expected a folder")
        if self.subcommand == "fit" and not _within(self._get(self.config_init, "ckpt_path"), root):
            refuse_used_folder(
                root,
                "choose another folder with --trainer.default_root_dir, or continue that run with --ckpt_path last",
            )
        if trainer["logger"] is None or trainer["logger"] is True:
            kwargs["logger"] = (
                [TensorBoardLogger(root, name="tensorboard", version=""), RunLog(root)]
                if self.subcommand == "fit"
                else False
            )
        callbacks = [*_as_list(trainer["callbacks"]), JudgmentWriter(), LastStep()]
        resume = ExactResume()
        if self.subcommand == "fit":
            callbacks = [StopTogether(), resume, *callbacks]
        if self.subcommand == "fit" and trainer["logger"] is not False:
            callbacks.append(Throughput())
        if trainer["enable_checkpointing"] is not False and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            callbacks.append(ModelCheckpoint(save_last=True))
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                # Left to itself, Lightning would put checkpoints into the first logger's folder.
                callback.dirpath = str(root / "checkpoints")
        kwargs["callbacks"] = callbacks
        if trainer["enable_progress_bar"] is not False and not any(
            isinstance(callback, ProgressBar) for callback in kwargs["callbacks"]
        ):
            if sys.stderr.isatty():
                kwargs["callbacks"].append(RichProgressBar())
            else:
                kwargs["callbacks"].append(LogLines())
                kwargs["enable_progress_bar"] = False
        if self.subcommand == "fit":
            kwargs["callbacks"].append(CatchUp(resume))
        plugins = _as_list(trainer["plugins"])
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpoints()]
        try:
            made = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError) as error:
            raise UserError(f"trainer: {first_line(error)}") from error
        if isinstance(made.strategy, ModelParallelStrategy):
            swap_folders(made.strategy)
        return made

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        checkpoint = arguments.get("ckpt_path")
        if checkpoint == "last":
            checkpoint = self._last_checkpoint(subcommand)
        if checkpoint not in (None, "last", "best", "hpc", "registry") and not Path(checkpoint).exists():
            raise UserError(f"ckpt_path {str(checkpoint)!r}: no such file; expected a checkpoint, or `last`")
        shards = checkpoint is not None and Path(checkpoint).is_dir()
        if shards and not isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise UserError(
                f"ckpt_path {str(checkpoint)!r}: found a sharded checkpoint, expected a file; strategy FSDP2 "
                "(trainer.strategy.class_path: judgelit.training.fsdp.FSDP2) goes on from it, on one device too"
            )
        # A checkpoint is a pickle; nothing of judgelit's needs more than tensors and plain values from it.
        return {**arguments, "ckpt_path": checkpoint, "weights_only": arguments.get("weights_only") is not False}

    def _last_checkpoint(self, command: str) -> str | None:
        """The run's newest checkpoint; none: its first is still to come."""
        callbacks = self.trainer.checkpoint_callbacks
        folders = [str(callback.dirpath) for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        if command == "fit":
            rank_zero_only(mend)(folders)
        found = newest(folders)
        if found is None:
            where = f"no checkpoint in {', '.join(folders) or 'the run: checkpoints are switched off'}"
            if command != "fit":
                raise UserError(f"ckpt_path 'last': {where}; expected one of the run")
            if (model := Path(self.trainer.default_root_dir) / "model").exists():
                raise UserError(f"{model} is of a run that has ended, and there is {where}; choose another folder")
        _say(f"{where} yet: beginning anew" if found is None else f"continuing from {found}")
        return None if found is None else str(found)

    def after_fit(self) -> None:
        """Write the trained model as a Hugging Face folder, then `fit.json`, which says that the model is complete."""
        if self._get(self.config, "trainer")["fast_dev_run"]:
            return
        root = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            (root / "fit.json").unlink(missing_ok=True)
        if self.trainer.is_global_zero or self.model.sharding is not None:
            save_model(self.model.model, self.datamodule.tokenizer, root / "model")
        if self.trainer.is_global_zero:
            print(f"model written to {root / 'model'}")
            cost = {"tokens": self.model.tokens_seen, "peak_memory_bytes": peak_memory()}
            write_json(root / "fit.json", cost)


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


def _within(checkpoint: str | Path | None, root: Path) -> bool:
    """Whether a run that begins from `checkpoint` continues the one in `root`."""
    return checkpoint in ("last", "hpc") or (
        checkpoint is not None and root.resolve() in Path(checkpoint).resolve().parents
    )


def main(argv: list[str]) -> None:
    """Run one of the Trainer's commands; `argv` begins with its name."""
    try:
        TrainingCLI(argv)
    except (MisconfigurationException, pickle.UnpicklingError) as error:
        # Lightning's own word for settings that do not go together; and a checkpoint that is none.
        said = " ".join(str(error).split())[:400]
        advice = "; run it where there is a GPU, or with --trainer.accelerator cpu" if "gpu backend" in said else ""
        raise UserError(said + advice) from error


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
