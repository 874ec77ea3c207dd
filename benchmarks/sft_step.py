"""An SFT step against TRL's SFTTrainer: the same model, batches and loss; real tokens a second and peak memory.

    python benchmarks/sft_step.py --model DIR --data FILE --steps 10 [--setting default|best|packed]

Full fine-tuning in float32, loss on the completions alone, batches of 8 random examples. `default`: both as they come
(but for TRL's bf16). `best`: both without activation checkpointing; 8 examples then take TRL more than 11 GB.
`packed`: the same, and TRL without padding (`padding_free`). That is exact on a CPU too, where a mask keeps the
examples of the packed row apart, but each token is then compared with all others, so at most small batches gain. Both
use torch's fused AdamW, TRL's default. Real tokens are those of prompts and completions, not padding. The last line is
the claim about speed, with the fraction of each step's floor (see `floor.py`) that is reached; the one before it, about
memory.
"""

from typing import Any

import duel


def main() -> None:
    parser = duel.parser(__doc__)
    parser.add_argument("--setting", choices=["default", "best", "packed"], default="default")
    parser.set_defaults(batch=8)
    args = parser.parse_args()
    if args.role != "referee":
        duel.take_part(args, ours, theirs)
        return
    tokens = [sum(map(len, batch)) for batch in rows(args)[args.warmup :]]
    times, peaks, losses, reached = [], [], [], []
    for step, (mine, other) in enumerate(duel.duel(args.steps, args.warmup)):
        times.append([mine["seconds"] / tokens[step], other["seconds"] / tokens[step]])
        peaks.append([mine["peak_bytes"], other["peak_bytes"]])
        losses.append([mine["loss"], other["loss"]])
        reached.append(mine["floor"] / mine["seconds"])
        print(f"{tokens[step]} tokens: ours {mine}, theirs {other}", flush=True)
    what = f"SFT step against TRL's SFTTrainer, {args.setting} setting"
    duel.claim(f"{what}: peak resident memory, ours / theirs", 0.6, peaks, smaller_is_better=True)
    speed = f"{what}: seconds a real token, theirs / ours"
    duel.claim(
        speed, 1.5, times, smaller_is_better=False, tokens=tokens[: args.steps], losses=losses, floor_reached=reached
    )


def rows(args: Any) -> list[list[Any]]:
    """The batches, as ids."""
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
    return duel.batches(args.warmup + args.steps + 1, args.batch, made, args.seed)


def ours(turns: duel.Turns, args: Any) -> None:
    """judgelit's SFTModule in Lightning's Trainer."""
    import torch
    from torch.utils.data import DataLoader

    from judgelit.batches.flat_batch import flatten_completions
    from judgelit.models.backbone import Backbone
    from judgelit.training.sft import SFTModule

    module = SFTModule(
        Backbone(args.model, activation_checkpointing=args.setting == "default"),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True),
    )
    duel.fit_ours(turns, module, DataLoader(rows(args), batch_size=None, collate_fn=flatten_completions))


def theirs(turns: duel.Turns, args: Any) -> None:
    """TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    settings: dict[str, Any] = {"learning_rate": 1e-6}
    if args.setting != "default":
        settings |= {"gradient_checkpointing": False, "padding_free": args.setting == "packed"}
    duel.fit_theirs(turns, SFTTrainer, SFTConfig, settings, args, as_theirs(rows(args)))


def as_theirs(batches: list[list[Any]]) -> list[dict[str, Any]]:
    """The rows of all batches as TRL's collator takes them: the loss leaves out labels of -100."""
    flat = [row for batch in batches for row in batch]
    return [
        {"input_ids": [*row.prompt, *row.completion], "labels": [-100] * len(row.prompt) + list(row.completion)}
        for row in flat
    ]


if __name__ == "__main__":
    main()
