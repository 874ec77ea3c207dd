"""`judgelit judge`: pairs in, a judge's labels and critiques out."""

from pathlib import Path
from typing import Literal

from judgelit.data.datamodules import Sources
from judgelit.data.files import write_records
from judgelit.data.judging import Templates, judge_prompts
from judgelit.data.records import Judgment, PreferenceExample, PreferencePair, swap_label
from judgelit.engines.journal import Journaled
from judgelit.engines.local import LocalEngine
from judgelit.errors import UserError
from judgelit.evaluation.evaluate import read_pairs
from judgelit.evaluation.judging import judge
from judgelit.modules.backbone import trained_folder
from judgelit.modules.generation import Sampling
from judgelit.parsing import call


def label(
    model: str,
    pairs: Sources,
    output: str,
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
) -> None:
    """Label the pairs of a file with a judge, in both orders.

    Writes OUTPUT/judgments.jsonl (every critique with its verdict) and OUTPUT/preferences.jsonl: the pairs on which both
    orders agree, as prompt, chosen and rejected, ready to train a policy on. Labels that the pairs may have are not
    looked at. Killed and started again, it goes on where it was.

    Args:
        model: Hub name or Hugging Face folder, of a model or of a LoRA adapter.
        pairs: Pairs, with or without label.
        output: Folder to write to.
        templates: Judge prompts to ask with.
        max_new_tokens: Longest judgment, in tokens.
        batch_size: Judgments generated at once.
        dtype: The weights' dtype.
        seed: Seed of the engine.
    """
    folder = Path(output)
    to_judge = read_pairs(pairs)
    local = LocalEngine.load(trained_folder(model, dtype), batch_size)
    engine = Journaled(local, folder / "journal.sqlite")
    room = local.tokenizer.context - max_new_tokens
    prompts, report = judge_prompts(to_judge, templates.load(), local.tokenizer, room, seed=templates.seed)
    print(report)
    if not prompts:
        raise UserError(f"no pair fits the {room} tokens left for a judge prompt")
    judgments = judge(engine, prompts, Sampling(max_new_tokens), seed)
    write_records(folder / "judgments.jsonl", judgments)
    preferences = [example for pair in to_judge for example in agreed(pair, judgments_of(judgments).get(pair.id, []))]
    write_records(folder / "preferences.jsonl", preferences)
    print(
        f"{len(preferences)} of {len(to_judge)} pairs have the same winner in both orders; {folder}/preferences.jsonl "
        f"and {folder}/judgments.jsonl written"
    )


def judgments_of(judgments: list[Judgment]) -> dict[str, list[Judgment]]:
    """Judgments by their pair."""
    by_pair: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_pair.setdefault(judgment.pair_id, []).append(judgment)
    return by_pair


def agreed(pair: PreferencePair, judgments: list[Judgment]) -> list[PreferenceExample]:
    """The pair as a preference if every judgment names the same winner, else nothing."""
    winners = {
        judgment.verdict if judgment.order == "ab" or judgment.verdict is None else swap_label(judgment.verdict)
        for judgment in judgments
    }
    if len(winners) != 1 or not winners <= {"A", "B"} or pair.answer_a == pair.answer_b:
        return []
    winner = winners.pop()
    chosen, rejected = (pair.answer_a, pair.answer_b) if winner == "A" else (pair.answer_b, pair.answer_a)
    messages = (*pair.context, {"role": "user", "content": pair.question})
    meta = {"pair_id": pair.id, "question": pair.question_key, "judge": judgments[0].engine}
    return [PreferenceExample(messages, chosen, rejected, meta)]


def main(argv: list[str]) -> None:
    """Run `judgelit judge`."""
    call(label, argv, "judgelit judge")
