"""The judgments of a report as data for its page: each item once, and short rows that refer to it."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.bias.attack import AttackedId, Judged
from judgelit.evaluation.bias.metrics import outcomes
from judgelit.evaluation.saved import SavedSet
from judgelit.evaluation.votes import has_votes, majorities, winner_of
from judgelit.records.records import AnswerSet, Judgment, PreferencePair
from judgelit.records.unicode import dump_json
from judgelit.report.sources import Judge

_ESCAPED = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
RIGHT, WRONG, NO_VERDICT, OPEN = "right", "wrong", "none", "open"
"""Outcomes of a judgment. OPEN: nothing says which verdict is right, as with a rating, or a pair labelled tie unless
the benchmark's ties count."""
MOST_ATTACKED = 20_000
"""Most judgments of attacked pairs in a page. There are often thirty times as many as of the pairs themselves."""


def script_json(value: object) -> str:
    """`value` as JSON that can stand in a `<script>` of any page: no text in it can end the script."""
    return dump_json(value).translate(_ESCAPED)


def browser_data(judges: Sequence[Judge]) -> dict[str, Any]:
    """Items and judgments of all judges.

    Returns:
        `items`: objects. That of an attacked pair has its `attack`, the number of the item `of` that was attacked, and
        only the fields and answers that differ from that item's.
        `judgments`: rows of number of the judge, number of the item, order, verdict, outcome, whether the orders
        disagree (0 or 1), whether an attack has succeeded (0 or 1), margin, finish, number of the sample, template,
        text.
        `majorities`: of prompts with several samples, rows of number of the judge, number of the item, order, verdict,
        outcome.
        `left_out`: number of judgments of attacked pairs beyond MOST_ATTACKED, which are no rows.
    """
    found = _Rows()
    attacked_sets = sum(len(judge.attacked) for judge in judges)
    for number, judge in enumerate(judges):
        for name, of_set in judge.sets.items():
            where = f"{judge.name}, {name}"
            found.add(number, name, of_set, where)
            attacks = judge.attacked.get(name, {})
            kept = _first_pairs(of_set, attacks, MOST_ATTACKED // max(attacked_sets, 1))
            for attack, attacked in attacks.items():
                shown = [one for one in attacked.judgments if AttackedId.of(one.pair_id).pair in kept]
                found.left_out += len(attacked.judgments) - len(shown)
                found.add(number, name, replace(attacked, judgments=shown), f"{where}, {attack}", attack, of_set)
    return {name: getattr(found, name) for name in ("items", "judgments", "majorities", "left_out")}


class _Rows:
    """The content of `browser_data`, which grows set by set."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.judgments: list[list[Any]] = []
        self.majorities: list[list[Any]] = []
        self.left_out = 0
        self._places: dict[str, int] = {}

    def add(
        self, judge: int, name: str, of_set: SavedSet, where: str, attack: str = "", before: SavedSet | None = None
    ) -> None:
        """Add the judgments of a set and what they are about.

        Args:
            judge: Number of the judge.
            name: Name of the set; of attacked pairs, that of the set that was attacked.
            of_set: The items and the judgments.
            where: The set, for error messages.
            attack: The attack, if the pairs are attacked.
            before: The set that was attacked.

        Raises:
            UserError: A judgment is about no item, or an attacked pair belongs to no pair.
        """
        items = {item.id: item for item in of_set.items}
        plain = {item.id: item for item in before.items} if before else {}
        places: dict[str, int] = {}
        for pair_id in dict.fromkeys(one.pair_id for one in of_set.judgments):
            attacked = plain.get(AttackedId.of(pair_id).pair) if before else None
            if pair_id not in items or (before and attacked is None):
                raise UserError(f"{where}: pair {pair_id!r}: found a judgment of it, but no pair")
            places[pair_id] = self._place(name, items[pair_id], attack, attacked)
        counted = majorities(of_set.judgments)
        apart = _inconsistent(items, counted)

        def said(one: Judgment) -> list[Any]:
            """What a judgment is about and what it says."""
            found = outcome(items[one.pair_id], one, of_set.benchmark.ties_count)
            return [judge, places[one.pair_id], one.order, one.verdict, found]

        fooled = _fooled(before, of_set.items, counted) if before else set()
        for one in of_set.judgments:
            margin = one.margin if one.margin is not None and math.isfinite(one.margin) else None
            marks = [int(one.pair_id in apart), int((one.pair_id, one.order) in fooled)]
            described = [*marks, margin, one.finish, one.sample, one.template, one.text]
            self.judgments.append([*said(one), *described])
        if has_votes(of_set.judgments):
            self.majorities += [said(one) for one in counted]

    def _place(self, name: str, item: Any, attack: str = "", attacked: Any = None) -> int:
        """The number of an item, which becomes one of `items` if it is new."""
        shown = {"set": name, **_item(item)}
        if attacked is not None:
            place = self._place(name, attacked)
            plain = self.items[place]
            answers = zip(shown["answers"], plain["answers"], strict=True)
            shown = {field: value for field, value in shown.items() if plain.get(field) != value}
            shown |= {"attack": attack, "of": place, "answers": [None if one == old else one for one, old in answers]}
        # Two judges may have judged different items of the same id.
        key = json.dumps(shown, sort_keys=True)
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(shown)
        return self._places[key]


def _first_pairs(of_set: SavedSet, attacks: Mapping[str, SavedSet], most: int) -> set[str]:
    """The ids of the first pairs of a set, as many as have `most` judgments of attacked pairs together."""
    of_pair = Counter(AttackedId.of(one.pair_id).pair for found in attacks.values() for one in found.judgments)
    kept, total = set(), 0
    for item in of_set.items:
        total += of_pair[item.id]
        if total > most:
            break
        kept.add(item.id)
    return kept


def _fooled(before: SavedSet, items: Sequence[Any], counted: Sequence[Judgment]) -> set[tuple[str, str]]:
    """Attacked pairs, with the order, whose attacked answer the judge picks and did not pick before."""
    found = outcomes(Judged(before.items, majorities(before.judgments), items, counted))
    return {(one.attacked, one.order) for one in found if one.picked and not one.picked_before}


def outcome(item: PreferencePair | AnswerSet, judgment: Judgment, ties_count: bool = False) -> str:
    """Whether a judgment is right.

    Args:
        item: What was judged.
        judgment: The judgment.
        ties_count: Whether a tie is right about a pair labelled tie; see `Benchmark`.
    """
    if judgment.verdict is None:
        return NO_VERDICT
    if isinstance(item, PreferencePair):
        if item.label == "tie" and not ties_count:
            return OPEN
        return RIGHT if winner_of(judgment) == item.label else WRONG
    if len(judgment.order) < 2 or not item.right:
        return OPEN
    if judgment.verdict == "tie":
        return WRONG
    answer = "abcdefghijklmnopqrstuvwxyz".index(judgment.order["ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(judgment.verdict)])
    return RIGHT if answer in item.right else WRONG


def _inconsistent(items: Mapping[str, PreferencePair | AnswerSet], counted: Sequence[Judgment]) -> set[str]:
    """The ids of the pairs whose judgments, one in each order, do not name the same winner."""
    winners: dict[str, dict[str, str | None]] = {}
    for one in counted:
        if isinstance(items.get(one.pair_id), PreferencePair):
            winners.setdefault(one.pair_id, {})[one.order] = winner_of(one)
    agree = {pair: None not in found.values() and len(set(found.values())) == 1 for pair, found in winners.items()}
    return {pair for pair, found in winners.items() if len(found) > 1 and not agree[pair]}


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
