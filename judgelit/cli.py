"""`judgelit COMMAND`: the table of commands. A command's module, and all that is slow to import, is imported last."""

import os
import sys
from importlib import import_module
from typing import NoReturn

from judgelit.console import keep_working_without_output, output_failure, printable
from judgelit.errors import UserError, out_of_memory, system_error

COMMANDS = {
    "run": (
        "judgelit.pipeline.command",
        "the whole recipe: synthesise, SFT, sample, DPO, evaluate; continues where it stopped",
    ),
    "fit": ("judgelit.training.cli", "train a judge by SFT or DPO"),
    "validate": ("judgelit.training.cli", "loss and judgments on held-out data"),
    "test": ("judgelit.training.cli", "loss and judgments on test data"),
    "predict": ("judgelit.training.cli", "judge the pairs of a configuration and write the judgments"),
    "tasks": ("judgelit.synthesis.tasks.pairs", "make verifiable preference pairs, offline"),
    "synthesize": (
        "judgelit.synthesis.command",
        "make training sets of judgments: warmup (SFT), enhancement (DPO); merge shards",
    ),
    "evaluate": ("judgelit.evaluation.evaluate", "measure a judge on labelled pairs, in both orders"),
    "answer": ("judgelit.generation.answers", "sample answers to prompts from a policy"),
    "judge": ("judgelit.synthesis.label", "label pairs with a judge, or rank the answers to each question"),
    "report": ("judgelit.report.command", "write one HTML page of a run or of results, with every judgment"),
    "plan": ("judgelit.planning.plan", "estimate memory and time of a configuration, without a GPU"),
    "export": ("judgelit.runs.export", "write the trained model of a run as a Hugging Face folder"),
    "configs": ("judgelit.shipped_configs", "list the shipped configurations or copy one"),
}
"""Name of each command, with the module whose `main(arguments)` runs it and a line of help."""

_MAX_LINE = 2000
"""Characters of an error's line; of a longer one, such as a list of a thousand columns, the middle is left out."""

TRAINER_COMMANDS = {"fit", "validate", "test", "predict"}
"""Commands whose `main` also gets the command's name, as first argument."""


def main(argv: list[str] | None = None) -> None:
    """Run a command.

    Exit codes: 0 if it succeeds; 2 after a `UserError` or a system's error such as a full disk, which is printed as one
    line; 130 after an interrupt and 143 after SIGTERM; 1 after an error of judgelit itself, with a traceback. If
    standard output fails, the command works on to its end. Then the code is 2, or 1 if nobody reads the output.
    """
    keep_working_without_output()
    argv = sys.argv[1:] if argv is None else argv
    if os.environ.pop("JUDGELIT_END_WITH_STDIN", None):
        _end_with_stdin()
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_help(), flush=True)
        elif argv[0] == "--version":
            from judgelit import __version__

            print(f"judgelit {__version__}")
        else:
            _run(argv)
    except UserError as error:
        _refuse(str(error))
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns an interrupt into SystemExit(1), and SIGTERM into a SystemExit with code 0.
        is_sigterm = type(stop).__name__ == "SIGTERMException"
        is_interrupt = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        if not is_sigterm and not is_interrupt:
            if isinstance(stop, SystemExit) and not stop.code:
                _check_output()
            raise
        sys.stderr.write("judgelit: interrupted; the same command continues, `judgelit fit` with --ckpt_path last\n")
        raise SystemExit(143 if is_sigterm else 130) from None
    except Exception as error:
        if (said := out_of_memory(error)) is not None:
            _refuse(f"{said}; {_saves_memory(argv[0])}")
        if (line := system_error(error)) is None:
            raise
        _refuse(line)
    _check_output()


def _refuse(line: str) -> NoReturn:
    # One call of write: the lines of several processes must not mix.
    if len(line) > _MAX_LINE:
        line = f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 2 :]}"
    sys.stderr.write(f"judgelit: error: {printable(line)}\n")
    raise SystemExit(2) from None


def _check_output() -> None:
    """End with an error if not all that was printed could be written."""
    failure = output_failure()
    if isinstance(failure, BrokenPipeError):
        # The reader, such as `| head`, has read enough.
        raise SystemExit(1) from None
    if failure is not None:
        _refuse(f"standard output: {failure.strerror}; what the command writes to files is complete")


def _saves_memory(command: str) -> str:
    """Which settings to change when memory runs out in a command."""
    if command in TRAINER_COMMANDS:
        return (
            "halve data.tokens_per_batch or data.batch_size (and double trainer.accumulate_grad_batches), then "
            "data.max_length; `judgelit plan` with the same options and --gpu-memory says what other settings save"
        )
    if command == "run":
        return (
            "choose a smaller batch_size (the teacher's is teacher.batch_size), and the same command continues; or "
            "begin another run with a smaller max_new_tokens, or with quantization nf4 in the file of --sft"
        )
    return "choose a smaller batch_size, then a smaller max_new_tokens, dtype bfloat16 or quantization nf4"


def _run(argv: list[str]) -> None:
    command, arguments = argv[0], argv[1:]
    if command not in COMMANDS:
        raise UserError(_unknown(command))
    _configure_libraries()
    module, _ = COMMANDS[command]
    if any(argument in ("-h", "--help") or argument.split("=")[0].endswith(".help") for argument in arguments):
        _import_public_classes()
    options = ("--config", "-c", "--sft", "--dpo") if command == "run" else ("--config", "-c")
    import_module(module).main(_find_configs(argv if command in TRAINER_COMMANDS else arguments, options))


def _import_public_classes() -> None:
    """Import every class of the package, since the help of a setting lists the classes that are imported."""
    import judgelit

    for name in judgelit.__all__:
        getattr(judgelit, name)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: judgelit COMMAND [options]",
            "",
            "Train and use generative judges: models that compare two answers and reason to a verdict.",
            "",
            "commands:",
            *lines,
            "",
            "judgelit COMMAND --help explains a command; --config takes a file or a name of judgelit configs list.",
        ]
    )


def _unknown(command: str) -> str:
    import difflib

    close = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"unknown command {command!r}" + (f"; did you mean {close[0]!r}?" if close else "; see judgelit --help")


def _find_configs(argv: list[str], options: tuple[str, ...]) -> list[str]:
    """Replace the name of a shipped configuration after one of these options by its path."""
    from judgelit.shipped_configs import find

    found = list(argv)
    for index, argument in enumerate(found):
        option, equals, value = argument.partition("=")
        if argument in options and index + 1 < len(found):
            found[index + 1] = find(found[index + 1])
        elif equals and option in options:
            found[index] = f"{option}={find(value)}"
    return found


def _end_with_stdin() -> None:
    """Kill this process and the ranks and workers that it has started as soon as standard input closes.

    `judgelit run` starts `judgelit fit` so. It holds the other end of the pipe, which the system closes when `run`
    dies, by SIGKILL too. Without this, the fit would train on beside that of a restarted run.
    """
    import signal
    import threading

    def wait_and_kill() -> None:
        while os.read(0, 1):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_and_kill, daemon=True).start()


def _configure_libraries() -> None:
    """Set environment variables that libraries read on import, and silence messages that would mislead a user."""
    import logging
    import warnings

    # By default OpenMP's threads wait in a busy loop: with other programs on the machine, many times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_wanted)
    # These advise against what judgelit has chosen on purpose, or tell of what a user cannot change.
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*litlogger.*",
        ".*treespec.*",
        ".*is_gradient_checkpointing.*",
        ".*gemm_4bit.*",
        ".*FLOPs not found.*",
        ".*exists and is not empty.*",
        ".*log directory.*",
        ".*across ranks is zero.*",
        ".*torch.distributed is disabled.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _is_wanted(record: object) -> bool:
    """Whether a log record of Lightning is more than an advertisement or a tip."""
    text = str(getattr(record, "msg", ""))
    return not any(part in text for part in ("litlogger", "litmodels", "Tip:", "TPU available", "stepping batches"))


if __name__ == "__main__":
    main()
