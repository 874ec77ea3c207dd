"""Compare an SFT step with TRL's SFTTrainer, on the same model, batches and loss: tokens a second and peak memory.

    python benchmarks/sft_step.py --model DIR --data FILE --steps 10 [--setting default|best|packed]

Full fine-tuning in float32 with torch's fused AdamW, loss on the completions only, batches of 8 random examples.
Settings:

    default  defaults of both sides (but no bf16 for TRL)
    best     no activation checkpointing; TRL then needs more than 11 GB for 8 examples
    packed   as `best`, and TRL packs a batch without padding (`padding_free`). On a CPU a mask separates the examples,
             so the result is exact, but each token is compared with all others, so only small batches can gain

Real tokens are those of prompts and completions, without padding. The second to last line is the claim about memory.
The last line is the claim about speed; it also gives the fraction of its floor (see `floor.py`) that each of our steps
reaches.
"""

from typing import Any

import side_by_side


def main() -> None:
    parser = side_by_side.argument_parser(__doc__)
    parser.add_argument("--setting", choices=["default", "best", "packed"], default="default")
    parser.set_defaults(batch=8)
    args = parser.parse_args()
    if args.role != "parent":
        side_by_side.run_worker(args, ours, theirs)
        return
    tokens = [sum(map(len, batch)) for batch in rows(args)[args.warmup :]]
    times, peaks, losses, reached = [], [], [], []
    for step, (mine, other) in enumerate(side_by_side.paired_steps(args.steps, args.warmup)):
        times.append([mine["seconds"] / tokens[step], other["seconds"] / tokens[step]])
        peaks.append([mine["peak_bytes"], other["peak_bytes"]])
        losses.append([mine["loss"], other["loss"]])
        reached.append(mine["floor"] / mine["seconds"])
        print(f"{tokens[step]} tokens: ours {mine}, theirs {other}", flush=True)
    what = f"SFT step against TRL's SFTTrainer, {args.setting} setting"
    side_by_side.print_claim(f"{what}: peak resident memory, ours / theirs", 0.6, peaks, smaller_is_better=True)
    speed = f"{what}: seconds a real token, theirs / ours"
    side_by_side.print_claim(
        speed, 1.5, times, smaller_is_better=False, tokens=tokens[: args.steps], losses=losses, floor_reached=reached
    )


def rows(args: Any) -> list[list[Any]]:
    """The batches as token ids."""
    from judgelit.batches.flat_batch import TokenizedCompletion
    from judgelit.batches.tokenizer import ChatTokenizer
    from judgelit.records.records import SFTExample
    from judgelit.records.sources import FileSource

    tokenizer = ChatTokenizer.load(args.model)
    examples = FileSource(args.data).read(SFTExample)
    made = [
        TokenizedCompletion(str(index), tokenizer.prompt_ids(row.messages), tokenizer.completion_ids(row.completion))
        for index, row in enumerate(examples)
    ]
    return side_by_side.random_batches(args.warmup + args.steps + 1, args.batch, made, args.seed)


def ours(turns: side_by_side.Turns, args: Any) -> None:
    """Train judgelit's SFTModule."""
    import torch
    from torch.utils.data import DataLoader

    from judgelit.batches.flat_batch import flatten_completions
    from judgelit.models.backbone import Backbone
    from judgelit.training.sft import SFTModule

    module = SFTModule(
        Backbone(args.model, activation_checkpointing=args.setting == "default"),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True),
    )
    side_by_side.fit_ours(turns, module, DataLoader(rows(args), batch_size=None, collate_fn=flatten_completions))


def theirs(turns: side_by_side.Turns, args: Any) -> None:
    """Train with TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    settings: dict[str, Any] = {"learning_rate": 1e-6}
    if args.setting != "default":
        settings |= {"gradient_checkpointing": False, "padding_free": args.setting == "packed"}
    side_by_side.fit_theirs(turns, SFTTrainer, SFTConfig, settings, args, trl_rows(rows(args)))


def trl_rows(batches: list[list[Any]]) -> list[dict[str, Any]]:
    """The rows of all batches in the form that TRL's collator expects; the loss ignores labels of -100."""
    flat = [row for batch in batches for row in batch]
    return [
        {"input_ids": [*row.prompt, *row.completion], "labels": [-100] * len(row.prompt) + list(row.completion)}
        for row in flat
    ]


if __name__ == "__main__":
    main()
