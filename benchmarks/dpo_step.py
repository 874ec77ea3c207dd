"""Compare a DPO step with TRL's DPOTrainer, on the same model, batches and loss: time and peak memory.

    python benchmarks/dpo_step.py --model DIR --data FILE --steps 5 [--setting default|best]

Full fine-tuning in float32 with torch's fused AdamW. Settings:

    default  defaults of both sides (but no bf16 for TRL): a frozen reference model, activation checkpointing
    best     reference computed before training, no activation checkpointing

The second to last line is the claim about memory. The last line is the claim about time; it also gives the fraction of
its floor (see `floor.py`) that each of our steps reaches.
"""

import tempfile
from pathlib import Path
from typing import Any

import side_by_side


def main() -> None:
    parser = side_by_side.argument_parser(__doc__)
    parser.add_argument("--setting", choices=["default", "best"], default="default")
    args = parser.parse_args()
    if args.role != "parent":
        side_by_side.run_worker(args, ours, theirs)
        return
    times, peaks, losses, reached = [], [], [], []
    for mine, other in side_by_side.paired_steps(args.steps, args.warmup):
        times.append([mine["seconds"], other["seconds"]])
        peaks.append([mine["peak_bytes"], other["peak_bytes"]])
        losses.append([mine["loss"], other["loss"]])
        reached.append(mine["floor"] / mine["seconds"])
        print(f"ours {mine}, theirs {other}", flush=True)
    what = f"DPO step against TRL's DPOTrainer, {args.setting} setting"
    side_by_side.print_claim(f"{what}: peak resident memory, ours / theirs", 0.5, peaks, smaller_is_better=True)
    goal = 3.0 if args.setting == "default" else 2.0
    side_by_side.print_claim(
        f"{what}: time, theirs / ours", goal, times, smaller_is_better=False, losses=losses, floor_reached=reached
    )


def examples(args: Any) -> list[list[Any]]:
    """The batches as records."""
    from judgelit.records.records import PreferenceExample
    from judgelit.records.sources import FileSource

    found = FileSource(args.data).read(PreferenceExample)
    return side_by_side.random_batches(args.warmup + args.steps + 1, args.batch, found, args.seed)


def rows(args: Any) -> list[list[Any]]:
    """The batches as token ids."""
    from judgelit.batches.flat_batch import TokenizedPreference
    from judgelit.batches.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(args.model)

    def tokenize(example: Any) -> TokenizedPreference:
        completions = map(tokenizer.completion_ids, (example.chosen, example.rejected))
        return TokenizedPreference("", tokenizer.prompt_ids(example.messages), *completions)

    return [[tokenize(example) for example in batch] for batch in examples(args)]


def ours(turns: side_by_side.Turns, args: Any) -> None:
    """Train judgelit's DPOModule on its DPODataModule."""
    import torch
    from torch.utils.data import DataLoader

    from judgelit.batches.datamodules import DPODataModule
    from judgelit.models.backbone import Backbone
    from judgelit.records.files import write_records
    from judgelit.training.dpo import DPOModule

    class SameBatches(DPODataModule):
        def train_dataloader(self) -> DataLoader:
            super().train_dataloader()
            rows = self.rows("train")
            batches = torch.arange(len(rows)).split(args.batch)
            return DataLoader(rows, batch_sampler=[batch.tolist() for batch in batches], collate_fn=self.collate)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_records(file, [example for batch in examples(args) for example in batch])
        module = DPOModule(
            Backbone(args.model, activation_checkpointing=args.setting == "default"),
            reference="auto" if args.setting == "default" else "precomputed",
            optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True),
        )
        side_by_side.fit_ours(turns, module, SameBatches(args.model, str(file), cache=folder))


def theirs(turns: side_by_side.Turns, args: Any) -> None:
    """Train with TRL's DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    settings: dict[str, Any] = {"learning_rate": 1e-6}
    if args.setting == "best":
        settings |= {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
    side_by_side.fit_theirs(turns, DPOTrainer, DPOConfig, settings, args, trl_rows(rows(args)))


def trl_rows(batches: list[list[Any]]) -> list[dict[str, Any]]:
    """The rows of all batches in the form that TRL's collator expects."""
    flat = [row for batch in batches for row in batch]
    return [{"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected} for row in flat]


if __name__ == "__main__":
    main()
