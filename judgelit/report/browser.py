"""The judgments of a report as data for its page: each item once, and short rows that refer to it."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.votes import winner_of
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.records.unicode import dump_json
from judgelit.report.sources import Judge

_ESCAPED = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
RIGHT, WRONG, NO_VERDICT, OPEN = "right", "wrong", "none", "open"
"""Outcomes of a judgment. OPEN: nothing says which verdict is right, as with a pair labelled tie or a rating."""


def script_json(value: object) -> str:
    """`value` as JSON that can stand in a `<script>` of any page: no text in it can end the script."""
    return dump_json(value).translate(_ESCAPED)


def browser_data(judges: Sequence[Judge]) -> dict[str, Any]:
    """Items and judgments of all judges.

    Returns:
        `items` as objects, and `judgments` as rows: number of the judge, number of the item, order, verdict, outcome,
        whether the orders disagree (0 or 1), margin, finish, number of the sample, template, text.
    """
    items: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    judgments: list[list[Any]] = []
    for number, judge in enumerate(judges):
        for name, of_set in judge.sets.items():
            by_id = {item.id: item for item in of_set.items}
            apart = _inconsistent(by_id, of_set.judgments)
            for one in of_set.judgments:
                if (item := by_id.get(one.pair_id)) is None:
                    raise UserError(f"{judge.name}, {name}: pair {one.pair_id!r}: found a judgment of it, but no pair")
                shown = {"set": name, **_item(item)}
                # Two judges may have judged different items of the same id.
                key = json.dumps(shown, sort_keys=True)
                if key not in places:
                    places[key] = len(items)
                    items.append(shown)
                disagree = int((one.pair_id, one.sample) in apart)
                margin = one.margin if one.margin is not None and math.isfinite(one.margin) else None
                described = [margin, one.finish, one.sample, one.template, one.text]
                judgments.append(
                    [number, places[key], one.order, one.verdict, outcome(item, one), disagree, *described]
                )
    return {"items": items, "judgments": judgments}


def outcome(item: PreferencePair | AnswerSet, judgment: Judgment) -> str:
    """Whether a judgment is right."""
    if judgment.verdict is None:
        return NO_VERDICT
    if isinstance(item, PreferencePair):
        if item.label == "tie":
            return OPEN
        return RIGHT if winner_of(judgment) == item.label else WRONG
    if len(judgment.order) < 2 or not item.right:
        return OPEN
    if judgment.verdict == "tie":
        return WRONG
    answer = "abcdefghijklmnopqrstuvwxyz".index(judgment.order["ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(judgment.verdict)])
    return RIGHT if answer in item.right else WRONG


def _inconsistent(
    items: Mapping[str, PreferencePair | AnswerSet], judgments: Sequence[Judgment]
) -> set[tuple[str, int]]:
    """Pairs, with the number of the sample, whose judgments do not name the same winner in both orders."""
    winners: dict[tuple[str, int], dict[str, str | None]] = {}
    for one in judgments:
        if isinstance(items.get(one.pair_id), PreferencePair):
            winners.setdefault((one.pair_id, one.sample), {})[one.order] = winner_of(one)
    agree = {key: None not in found.values() and len(set(found.values())) == 1 for key, found in winners.items()}
    return {key for key, found in winners.items() if len(found) > 1 and not agree[key]}


def _item(item: PreferencePair | AnswerSet) -> dict[str, Any]:
    """An item as the page shows it; fields without a value are left out."""
    if isinstance(item, PreferencePair):
        judged: dict[str, Any] = {"answers": [item.answer_a, item.answer_b], "label": item.label}
    else:
        judged = {"answers": list(item.answers), "right": list(item.right)}
    described = {name: getattr(item, name) for name in ("category", "subset", "source", "context")}
    return {
        "id": item.id,
        "question": item.question,
        **judged,
        **{name: value for name, value in described.items() if value},
    }
