"""`judgelit judge`: label pairs with a judge."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.judged_folder import Questions, judge_into
from judgelit.evaluation.protocols.pairs import PAIRS
from judgelit.generation.engine import EngineSpec
from judgelit.judging.prompts import Templates
from judgelit.parsing import call
from judgelit.records.files import write_records
from judgelit.records.public_sources import describe_sets
from judgelit.records.public_sources.source import named_source
from judgelit.records.records import Judgment, PreferenceExample, PreferencePair, swap_label
from judgelit.records.sources import FileSource, Source, Sources, as_sources, read_pairs
from judgelit.runs.folder import locked

# Names of the two answers in the public forms, by whether the form has letters or numbers as labels.
_LETTERED = ({"answer_a", "answer_b"}, {"response_a", "response_b"}, {"response_A", "response_B"})
_NUMBERED = (
    {"output_1", "output_2"},
    {"response1", "response2"},
    {"response_1", "response_2"},
    {"response 1", "response 2"},
)


def label(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    seed: int = 0,
    stop_at_verdict: bool = True,
    limit: int | None = None,
    **engine: Any,
) -> None:
    """Label the pairs of a file with a judge, in both orders.

    Writes OUTPUT/judgments.jsonl (every critique with its verdict) and OUTPUT/preferences.jsonl: the pairs with the
    same winner in both orders, as prompt, chosen and rejected, ready to train a policy on. The pairs' own labels, if
    there are any, are not used. After a kill, the same command continues. A folder with results of another model, other
    pairs or other settings is refused.

    Args:
        output: Folder to write to.
        pairs: Pairs, with or without label.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        templates: Judge prompts to ask with. Default: those that the judge's folder keeps, or `rise`.
        max_new_tokens: Longest judgment, in tokens.
        seed: Seed of the engine.
        stop_at_verdict: End a critique with the line that says its verdict. Text after it takes time and is not read,
            unless it holds another verdict.
        limit: Label only the first pairs, this many.
        engine: The fields of `EngineSpec`.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    folder, spec = Path(output), EngineSpec(**engine)
    to_judge = read_pairs([without_label(one) for one in as_sources(named_source(source, pairs))], limit)
    with locked(folder):
        by_set, _ = judge_into(
            folder,
            spec,
            {"pairs": to_judge},
            Questions(PAIRS, templates, max_new_tokens, stop_at_verdict, seed),
            {"command": "judge", "limit": limit},
            results={"pairs": "judgments.jsonl"},
            last="preferences.jsonl",
        )
        judgments = by_set["pairs"]
        by_pair = judgments_by_pair(judgments)
        preferences = [example for pair in to_judge for example in agreed(pair, by_pair.get(pair.id, []))]
        write_records(folder / "preferences.jsonl", preferences)
    print(
        f"{len(preferences)} of {len(to_judge)} pairs have the same winner in both orders; {folder}/preferences.jsonl "
        f"and {folder}/judgments.jsonl written"
    )
    missing = sum(judgment.verdict is None for judgment in judgments)
    if missing:
        print(f"{missing} of {len(judgments)} judgments have no verdict")
    if missing == len(judgments):
        raise UserError(
            f"{spec.model}: found no verdict in any of {missing} judgments, expected [[A]] or [[B]] at the end; read "
            f"{folder}/judgments.jsonl, and raise --max_new_tokens if they are cut off"
        )


def without_label(source: Source) -> Source:
    """The source; if it reads files, their rows need no label."""
    return Unlabelled(**vars(source)) if type(source) is FileSource else source


class Unlabelled(FileSource):
    """Files of pairs that may lack a label. A placeholder is filled in, since the readers of pairs expect one."""

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of the files, each with a label."""
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


def judgments_by_pair(judgments: list[Judgment]) -> dict[str, list[Judgment]]:
    """The judgments of each pair, by its id."""
    by_pair: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_pair.setdefault(judgment.pair_id, []).append(judgment)
    return by_pair


def agreed(pair: PreferencePair, judgments: list[Judgment]) -> list[PreferenceExample]:
    """The pair as one preference if its judgments in both orders name the same winner, else nothing.

    Nothing also if the answers are equal or one of them is blank, since readers of preferences reject such rows.
    """
    winners = {
        judgment.verdict if judgment.order == "ab" or judgment.verdict is None else swap_label(judgment.verdict)
        for judgment in judgments
    }
    both = {judgment.order for judgment in judgments} == {"ab", "ba"}
    answers = {pair.answer_a, pair.answer_b}
    if not both or len(winners) != 1 or not winners <= {"A", "B"}:
        return []
    if len(answers) < 2 or not all(map(str.strip, answers)):
        return []
    winner = winners.pop()
    chosen, rejected = (pair.answer_a, pair.answer_b) if winner == "A" else (pair.answer_b, pair.answer_a)
    messages = (*pair.context, {"role": "user", "content": pair.question})
    meta = {"pair_id": pair.id, "question": pair.question_key, "judge": judgments[0].engine}
    return [PreferenceExample(messages, chosen, rejected, meta)]


def main(argv: list[str]) -> None:
    """Run `judgelit judge`."""
    call(label, argv, "judgelit judge", {"source": describe_sets()})
