"""Compare losses and gradients of the first optimizer steps with TRL's, from the same weights on the same batches.

    python benchmarks/parity.py --model DIR --data FILE --method dpo|sft [--steps 10] [--batch 2]

Full fine-tuning in float32, each side with its own trainer: AdamW at learning rate 1e-5 without weight decay, gradients
clipped to norm 1, each side's activation checkpointing. DPO uses the sigmoid loss at beta 0.1 and a frozen reference.
There are two runs:

    tied   TRL's model gets our weights before each step, so only the arithmetic of one step can differ
    free   the two sides train independently, so a difference in one step carries over to the next. AdamW divides a
           gradient by its size: where a gradient is nearly 0, a rounding error can become as large as the learning rate

Gradients are taken before clipping. Their relative difference is |ours - theirs| / |theirs| with Euclidean norms, over
the whole model and over the parameter that differs most. The last four lines are claims, each the largest difference
over the steps of a run: losses and gradients of the tied run, then losses and gradients of the free run.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import dpo_step
import sft_step
import side_by_side

STEPS = {"dpo": dpo_step, "sft": sft_step}
LEARNING_RATE = 1e-5


def main() -> None:
    parser = side_by_side.argument_parser(__doc__)
    parser.add_argument("--method", choices=list(STEPS), required=True)
    parser.add_argument("--exchange", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tied", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(steps=10, warmup=0, batch=2)
    args = parser.parse_args()
    if args.role != "parent":
        side_by_side.run_worker(args, ours, theirs)
        return
    for run in ("tied", "free"):
        losses, gradients = [], []
        for step in steps(args, run == "tied"):
            losses.append(step["loss"])
            gradients.append(step["gradient"])
            print(f"{run} {step}", flush=True)
        what = f"{args.method.upper()}, first {args.steps} steps against TRL's, {run}: largest relative difference of"
        worst = max(abs(mine - other) / abs(other) for mine, other in losses)
        claim(f"{what} the loss", worst, losses)
        worst = max(difference / norm for difference, norm in gradients)
        claim(f"{what} the gradient ([its difference, TRL's norm])", worst, gradients)


def claim(text: str, worst: float, pairs: list[list[float]]) -> None:
    side_by_side.print_claim(text, 1e-4, pairs, smaller_is_better=True, ratio=worst)


def steps(args: Any, tied: bool) -> Any:
    """Yield the comparison of each step of a run."""
    with tempfile.TemporaryDirectory() as folder:
        more = ["--exchange", folder, *["--tied"] * tied]
        for number, (mine, other) in enumerate(side_by_side.paired_steps(args.steps, args.warmup, *more)):
            files = [Path(folder) / f"{role}-{args.warmup + number}.pt" for role in ("ours", "theirs")]
            difference, norm, name, worst = compare(*files)
            for file in files:
                file.unlink()
            yield {
                "step": number,
                "loss": [mine["loss"], other["loss"]],
                "gradient": [difference, norm],
                "relative": difference / norm,
                "worst_parameter": [name, worst],
            }


def compare(ours: Path, theirs: Path) -> tuple[float, float, str, float]:
    """Compare two files of gradients.

    Returns the norm of the difference, the norm of their gradient, and the parameter that differs most: its name and
    relative difference.
    """
    import torch

    mine, other = (torch.load(path, mmap=True) for path in (ours, theirs))
    if mine.keys() != other.keys():
        raise SystemExit(f"trained parameters differ: {sorted(mine.keys() ^ other.keys())}")
    squares = {
        name: ((mine[name].double() - other[name].double()).square().sum(), other[name].double().square().sum())
        for name in other
    }
    difference, norm = (sum(parts).sqrt().item() for parts in zip(*squares.values(), strict=True))
    relative = {name: (part / whole).sqrt().item() for name, (part, whole) in squares.items()}
    worst = max(relative, key=lambda name: relative[name])
    return difference, norm, worst, relative[worst]


def ours(turns: side_by_side.Turns, args: Any) -> None:
    """Train judgelit's module. Write its gradients, and in a tied run its weights, to files."""
    import torch
    from torch.utils.data import DataLoader

    from judgelit.batches.datamodules import DPODataModule, SFTDataModule
    from judgelit.models.backbone import Backbone
    from judgelit.training.dpo import DPOModule
    from judgelit.training.sft import SFTModule

    kind, data = (DPOModule, DPODataModule) if args.method == "dpo" else (SFTModule, SFTDataModule)

    class Watched(kind):  # type: ignore[valid-type, misc]
        def configure_gradient_clipping(self, *clipping: Any, **more: Any) -> None:
            save(args.exchange / f"ours-{self.global_step}.pt", self.model, lambda weight: weight.grad)
            super().configure_gradient_clipping(*clipping, **more)

        def on_train_batch_end(self, *_: Any) -> None:
            if args.tied:
                save(args.exchange / f"weights-{self.global_step}.pt", self.model, lambda weight: weight.detach())

    module = Watched(
        Backbone(args.model),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
    )
    rows = STEPS[args.method].rows(args)
    side_by_side.fit_ours(turns, module, DataLoader(rows, batch_size=None, collate_fn=data.collate))


def theirs(turns: side_by_side.Turns, args: Any) -> None:
    """Train with TRL. Write its gradients to files, and in a tied run load our weights before each step."""
    import torch
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    kind, config = (DPOTrainer, DPOConfig) if args.method == "dpo" else (SFTTrainer, SFTConfig)

    class Watched(kind):  # type: ignore[valid-type, misc]
        def training_step(self, *step: Any, **more: Any) -> Any:
            number = self.state.global_step
            if args.tied and number:
                weights = args.exchange / f"weights-{number}.pt"
                with torch.no_grad():
                    for name, value in torch.load(weights).items():
                        self.model.get_parameter(name).copy_(value)
                weights.unlink()
            loss = super().training_step(*step, **more)
            save(args.exchange / f"theirs-{number}.pt", self.model, lambda weight: weight.grad)
            return loss

    step = STEPS[args.method]
    settings = {"learning_rate": LEARNING_RATE}
    side_by_side.fit_theirs(turns, Watched, config, settings, args, step.trl_rows(step.rows(args)))


def save(path: Path, model: Any, what: Any) -> None:
    import torch

    torch.save({name: what(weight) for name, weight in model.named_parameters()}, path)


if __name__ == "__main__":
    main()
