"""`judgelit <command>`: the roof. Heavy imports happen inside the command that needs them."""

import os
import sys
from importlib import import_module

from judgelit.errors import UserError

COMMANDS = {
    "run": (
        "judgelit.pipeline",
        "the whole recipe: synthesise, SFT, sample, DPO, evaluate; continues where it stopped",
    ),
    "fit": ("judgelit.training.cli", "train a judge by SFT or DPO"),
    "validate": ("judgelit.training.cli", "loss and judgments on held-out data"),
    "test": ("judgelit.training.cli", "loss and judgments on test data"),
    "predict": ("judgelit.training.cli", "judge the pairs of a configuration and write the judgments"),
    "tasks": ("judgelit.synthesis.tasks.pairs", "make verifiable preference pairs, offline"),
    "synthesize": ("judgelit.synthesis.command", "make training sets of judgments: warmup (SFT) or enhancement (DPO)"),
    "evaluate": ("judgelit.evaluation.evaluate", "measure a judge on labelled pairs, in both orders"),
    "judge": ("judgelit.synthesis.label", "label the pairs of a file with a judge"),
    "plan": ("judgelit.planning.plan", "memory and time that a configuration needs, before a GPU is rented for it"),
    "export": ("judgelit.runs.export", "write what a run has trained as a Hugging Face folder"),
    "configs": ("judgelit.shipped_configs", "list the shipped configurations or copy one"),
}
# These share a module and read the command's name themselves.
_NAMED = {"fit", "validate", "test", "predict"}


def main(argv: list[str] | None = None) -> None:
    """Dispatch to a command; a user's mistake is one line on stderr and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_help(), flush=True)
            return
        if argv[0] == "--version":
            from judgelit import __version__

            print(f"judgelit {__version__}")
            return
        if argv[0] not in COMMANDS:
            raise UserError(_unknown(argv[0]))
        _settle()
        module, _ = COMMANDS[argv[0]]
        command, arguments = import_module(module).main, _find_configs(argv if argv[0] in _NAMED else argv[1:])
        command(arguments)
    except UserError as error:
        # In one piece: several processes may have something to say.
        sys.stderr.write(f"judgelit: error: {error}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:
        # Whoever read the output (`| head`) has seen enough; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning leaves with 1 after an interrupt, and with 0, as if all were done, where it was told to end.
        told = type(stop).__name__ == "SIGTERMException"
        if not told and not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        sys.stderr.write("judgelit: interrupted; the same command continues, `judgelit fit` with --ckpt_path last\n")
        raise SystemExit(143 if told else 130) from None


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


def _find_configs(argv: list[str]) -> list[str]:
    """The arguments with every `--config` that names a shipped configuration turned into its path."""
    from judgelit.shipped_configs import find

    found = list(argv)
    for index, argument in enumerate(found):
        if argument in ("--config", "-c") and index + 1 < len(found):
            found[index + 1] = find(found[index + 1])
        elif argument.startswith("--config="):
            found[index] = "--config=" + find(argument.removeprefix("--config="))
    return found


def _settle() -> None:
    """Set what must be set before the heavy imports, and keep what libraries say to themselves out of the terminal."""
    import logging
    import warnings

    # OpenMP's threads wait by spinning, which makes a small model many times slower on a machine that others use too.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_not_an_advert)
    # Advice on settings that judgelit has chosen on purpose.
    for about in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*litlogger.*",
        ".*treespec.*",
        ".*is_gradient_checkpointing.*",
        ".*gemm_4bit.*",
        ".*exists and is not empty.*",
        ".*log directory.*",
        ".*across ranks is zero.*",
        ".*torch.distributed is disabled.*",
    ):
        warnings.filterwarnings("ignore", message=about)


def _not_an_advert(record: object) -> bool:
    text = str(getattr(record, "msg", ""))
    return not any(part in text for part in ("litlogger", "litmodels", "Tip:", "TPU available", "stepping batches"))


if __name__ == "__main__":
    main()
