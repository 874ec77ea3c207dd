"""`judgelit judge`: pairs in, a judge's labels and critiques out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from judgelit.evaluation.evaluate import prompts_for
from judgelit.evaluation.judgments import judge
from judgelit.generation.generate import Sampling
from judgelit.generation.journal import JournaledEngine
from judgelit.generation.local import LocalEngine
from judgelit.judging.prompts import Templates
from judgelit.models.backbone import trained_folder
from judgelit.parsing import call
from judgelit.records.files import write_records
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair, swap_label
from judgelit.records.sources import FileSource, Source, Sources, as_sources, read_pairs

# Fields of the two answers in the public forms, by whether their labels are letters or numbers.
_LETTERED = ({"answer_a", "answer_b"}, {"response_a", "response_b"}, {"response_A", "response_B"})
_NUMBERED = (
    {"output_1", "output_2"},
    {"response1", "response2"},
    {"response_1", "response_2"},
    {"response 1", "response 2"},
)


def label(
    model: str,
    pairs: Sources,
    output: str,
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    stop_at_verdict: bool = True,
) -> None:
    """Label the pairs of a file with a judge, in both orders.

    Writes OUTPUT/judgments.jsonl (every critique with its verdict) and OUTPUT/preferences.jsonl: the pairs on which
    both orders agree, as prompt, chosen and rejected, ready to train a policy on. A label that a pair may have plays
    no part in it. Killed and started again, it goes on where it was.

    Args:
        model: Hub name or Hugging Face folder, of a model or of a LoRA adapter.
        pairs: Pairs, with or without label.
        output: Folder to write to.
        templates: Judge prompts to ask with.
        max_new_tokens: Longest judgment, in tokens.
        batch_size: Judgments generated at once.
        dtype: The weights' dtype.
        seed: Seed of the engine.
        stop_at_verdict: End a critique with the line that says its verdict: what a model writes after it takes time and
            is not read, unless it goes on to another verdict.
    """
    folder = Path(output)
    to_judge = read_pairs([without_label(source) for source in as_sources(pairs)])
    local = LocalEngine.load(trained_folder(model, dtype), batch_size)
    engine = JournaledEngine(local, folder / "journal.sqlite")
    prompts = prompts_for(to_judge, "pairs", local.tokenizer, templates, max_new_tokens)
    judgments = judge(engine, prompts, Sampling(max_new_tokens, stop_at_verdict=stop_at_verdict), seed)
    write_records(folder / "judgments.jsonl", judgments)
    by_pair = judgments_of(judgments)
    preferences = [example for pair in to_judge for example in agreed(pair, by_pair.get(pair.id, []))]
    write_records(folder / "preferences.jsonl", preferences)
    print(
        f"{len(preferences)} of {len(to_judge)} pairs have the same winner in both orders; {folder}/preferences.jsonl "
        f"and {folder}/judgments.jsonl written"
    )


def without_label(source: Source) -> Source:
    """The source, whose rows need no label if it reads files."""
    return Unlabelled(**vars(source)) if type(source) is FileSource else source


class Unlabelled(FileSource):
    """Files of pairs that may lack a label; one that stands for any is filled in, for the judge is to find it."""

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The files' rows, each with a label."""
        return ((at, _with_label(row)) for at, row in super().rows())


def _with_label(row: dict[str, Any]) -> dict[str, Any]:
    fields = {name for name, value in row.items() if value is not None}
    if any(row.get(name) not in (None, "") for name in ("label", "winner")):
        return row
    if {"conversation_a", "conversation_b"} <= fields:
        return {**row, "winner": "tie"}
    if any(answers <= fields for answers in _LETTERED):
        return {**row, "label": "tie"}
    return {**row, "label": 1} if any(answers <= fields for answers in _NUMBERED) else row


def judgments_of(judgments: list[Judgment]) -> dict[str, list[Judgment]]:
    """Judgments by their pair."""
    by_pair: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_pair.setdefault(judgment.pair_id, []).append(judgment)
    return by_pair


def agreed(pair: PreferencePair, judgments: list[Judgment]) -> list[PreferenceExample]:
    """The pair as a preference if judgments in both orders name the same winner, else nothing.

    Nothing either if the answers are equal or one is blank: no reader of preferences takes such a one.
    """
    winners = {
        judgment.verdict if judgment.order == "ab" or judgment.verdict is None else swap_label(judgment.verdict)
        for judgment in judgments
    }
    both = {judgment.order for judgment in judgments} == {"ab", "ba"}
    answers = {pair.answer_a, pair.answer_b}
    if (
        not both
        or len(winners) != 1
        or not winners <= {"A", "B"}
        or len(answers) < 2
        or not all(map(str.strip, answers))
    ):
        return []
    winner = winners.pop()
    chosen, rejected = (pair.answer_a, pair.answer_b) if winner == "A" else (pair.answer_b, pair.answer_a)
    messages = (*pair.context, {"role": "user", "content": pair.question})
    meta = {"pair_id": pair.id, "question": pair.question_key, "judge": judgments[0].engine}
    return [PreferenceExample(messages, chosen, rejected, meta)]


def main(argv: list[str]) -> None:
    """Run `judgelit judge`."""
    call(label, argv, "judgelit judge")
