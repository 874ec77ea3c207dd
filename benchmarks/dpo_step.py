"""A DPO step against TRL's DPOTrainer: the same model, pairs, batches and loss; time and peak memory.

    python benchmarks/dpo_step.py --model DIR --data FILE --steps 5 [--setting default|best]

Full fine-tuning in float32. `default`: TRL as it comes (but for its bf16), both with a frozen reference model. `best`:
TRL's fastest setting (reference computed before training, no gradient checkpointing), ours with `precomputed`.
The last line is the claim about time; the one before it, about memory.
"""

from typing import Any

import duel


def main() -> None:
    parser = duel.parser(__doc__)
    parser.add_argument("--setting", choices=["default", "best"], default="default")
    args = parser.parse_args()
    if args.role == "referee":
        times, peaks, losses = [], [], []
        for mine, other in duel.duel(args.steps, args.warmup):
            times.append([mine["seconds"], other["seconds"]])
            peaks.append([mine["peak_bytes"], other["peak_bytes"]])
            losses.append([mine["loss"], other["loss"]])
            print(f"ours {mine}, theirs {other}", flush=True)
        what = f"DPO step against TRL's DPOTrainer, {args.setting} setting"
        duel.claim(f"{what}: peak resident memory, ours / theirs", 0.5, peaks, smaller_is_better=True)
        goal = 3.0 if args.setting == "default" else 2.0
        duel.claim(f"{what}: time, theirs / ours", goal, times, smaller_is_better=False, losses=losses)
        return
    import torch

    torch.set_num_threads(args.threads)
    (ours if args.role == "ours" else theirs)(duel.Turns(), args)


def rows(args: Any) -> list[list[Any]]:
    """The batches, as ids."""
    from judgelit.data.datamodules import tokenize_preference
    from judgelit.data.records import PreferenceExample
    from judgelit.data.sources import FileSource
    from judgelit.data.tokenization import ChatTokenizer

    tokenizer = ChatTokenizer.load(args.model)
    examples = FileSource(args.data).read(PreferenceExample)
    made = [tokenize_preference(example, str(index), tokenizer) for index, example in enumerate(examples)]
    return duel.batches(args.warmup + args.steps + 1, args.batch, made, args.seed)


def ours(turns: duel.Turns, args: Any) -> None:
    """judgelit's DPOModule in Lightning's Trainer."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader

    from judgelit.data.layout import flatten_preferences
    from judgelit.modules.backbone import Backbone
    from judgelit.modules.dpo import DPOModule

    module = DPOModule(
        Backbone(args.model),
        optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0, fused=True),
    )
    loader = DataLoader(rows(args), batch_size=None, collate_fn=flatten_preferences)

    class Step(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            turns.begin()

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            turns.end(loss=float(trainer.callback_metrics["train/loss"]))

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Step()],
    )
    trainer.fit(module, loader)


def theirs(turns: duel.Turns, args: Any) -> None:
    """TRL's DPOTrainer."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    flat = [row for batch in rows(args) for row in batch]
    dataset = Dataset.from_list(
        [{"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected} for row in flat]
    )
    best = {"precompute_ref_log_probs": True, "gradient_checkpointing": False} if args.setting == "best" else {}

    class SameIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

        def training_step(self, *step: Any, **more: Any) -> Any:
            loss = super().training_step(*step, **more)
            self.last_loss = float(loss)
            return loss

    class Step(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end(loss=trainer.last_loss)

    with tempfile.TemporaryDirectory() as folder:
        trainer = SameIds(
            args.model,
            args=DPOConfig(
                folder,
                bf16=False,
                learning_rate=1e-6,
                lr_scheduler_type="constant",
                per_device_train_batch_size=args.batch,
                train_sampling_strategy="sequential",
                max_steps=args.warmup + args.steps + 1,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                **best,
            ),
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(args.model),
            callbacks=[Step()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
