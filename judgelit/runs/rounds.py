"""The judge from which a round of enhancement samples."""

from pathlib import Path

from judgelit.errors import UserError
from judgelit.runs.trained_run import TrainedRun


def judge_of_round(model: str, round: int) -> str:
    """The name of the judge that a round samples from.

    In the folder of `judgelit run`, round 1 samples from the judge after the warm-up (SFT), and each later round from
    the newest judge after an enhancement (DPO). Any other model is the judge itself.

    Args:
        model: A model as in `EngineSpec.model`.
        round: Number of the round, from 1.

    Raises:
        UserError: The number is below 1, or `model` is the folder of a run that has not ended this training.
    """
    if round < 1:
        raise UserError(f"round: found {round}, expected 1 or more")
    folder, stages = Path(model), Path(model) / "stages"
    if not (folder / "config.yaml").is_file() or not stages.is_dir():
        return model
    method = "SFT" if round == 1 else "DPO"
    ended = [stage for stage in sorted(stages.iterdir()) if (stage / "done.json").is_file()]
    trained = [stage for stage in ended if _method(stage) == method]
    if not trained:
        others = "" if round == 1 else "; round 1 samples from the judge after the warm-up"
        raise UserError(
            f"round: found {round}, but {model} has no stage that has ended with a judge trained by {method}; continue "
            f"the run, or name another judge with --model{others}"
        )
    return str(trained[-1])


def _method(stage: Path) -> str | None:
    """How a stage has trained its judge; None if it has trained none."""
    run = TrainedRun.last_of(stage) if (stage / "config.yaml").is_file() else None
    return run.method if run is not None and run.checkpoint.exists() else None
