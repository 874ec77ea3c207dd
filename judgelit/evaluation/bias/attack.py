"""What an attack is: it changes the worse answer of a pair, and its metrics say what the judge makes of that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args

from judgelit.evaluation.intervals import Metric
from judgelit.evaluation.protocols.benchmark import MakePrompts
from judgelit.judging.prompts import PromptReport
from judgelit.records.records import Judgment, Order, PreferencePair, swap_label

ORDERS: tuple[Order, ...] = get_args(Order)


class Target(NamedTuple):
    """The worse answer of a pair, which a form changes."""

    answer: str
    better: str
    """The other answer, which stays the same."""
    letter: str
    """The verdict that names the worse answer where the judge sees it: A if it stands first, or B."""


Form = Callable[[Target], str]
"""Makes the attacked text of a worse answer."""


class Judged(NamedTuple):
    """Pairs and attacked pairs with a judge's judgments of both; pairs are in the order ab."""

    pairs: Sequence[PreferencePair]
    before: Sequence[Judgment]
    """The judgments of `pairs`."""
    attacked: Sequence[PreferencePair] = ()
    after: Sequence[Judgment] = ()
    """The judgments of `attacked`."""


@dataclass(frozen=True)
class Attack:
    """An attack, or a bias that the judgments of the pairs themselves show."""

    title: str
    """What it does, in a few words."""
    metrics: Callable[[Judged], Mapping[str, Metric]]
    forms: Mapping[str, Form] = field(default_factory=dict)
    """The forms of the attack by name (letters, digits and `_`). Each pair is attacked in each form. None: no answer is
    changed."""


class AttackedId(NamedTuple):
    """The parts of an attacked pair's id, such as `forged_verdict.analysis.ba/p1`."""

    attack: str
    form: str
    order: Order | None
    """The order in which the pair is shown, if the text of the attack depends on it."""
    pair: str
    """The id of the pair that was attacked."""

    @classmethod
    def of(cls, text: str) -> "AttackedId":
        """The parts of an id."""
        head, _, pair = text.partition("/")
        attack, form, *orders = head.split(".")
        order: Order | None = None if not orders else "ab" if orders[0] == "ab" else "ba"
        return cls(attack, form, order, pair)

    def __str__(self) -> str:
        return ".".join(filter(None, self[:3])) + f"/{self.pair}"


def attack_pairs(name: str, attack: Attack, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The attacked pairs: for each form and pair one, or one for each order if the text depends on the order.

    Label, question and the better answer stay the same. Pairs labelled tie have no worse answer and are left out, and
    so are those whose attacked answer would equal the better one.

    Args:
        name: The attack's name, which becomes part of the ids.
        attack: The attack.
        pairs: The pairs, in the order ab.
    """
    return [one for form in attack.forms for pair in pairs for one in _attacked(name, form, attack.forms[form], pair)]


def worse_letter(pair: PreferencePair, order: Order) -> str:
    """The verdict that names the worse answer of a pair with a winner, as it is shown in an order."""
    return swap_label(pair.in_order(order).label)


def attacked_prompts(
    make: MakePrompts, items: Sequence[PreferencePair], *args: Any, **more: Any
) -> tuple[list[Any], PromptReport]:
    """The prompts of attacked pairs, made by the function that makes those of the pairs.

    Each attacked pair is asked with the template of the pair that was attacked, since a template is drawn by the id.

    Args:
        make: Makes the prompts of pairs; see `Benchmark.prompts`.
        items: The attacked pairs.
        args: The arguments of `make`.
        more: The keyword arguments of `make`.
    """
    groups: dict[tuple[str, str, Order | None], list[PreferencePair]] = {}
    for item in items:
        known = AttackedId.of(item.id)
        groups.setdefault(known[:3], []).append(replace(item, id=known.pair))
    prompts: list[Any] = []
    shortened, skipped = 0, []
    for (attack, form, order), pairs in groups.items():
        orders = {} if order is None else {"orders": (order,)}
        made, report = make(pairs, *args, **more, **orders)
        ids = {pair.id: str(AttackedId(attack, form, order, pair.id)) for pair in pairs}
        prompts += [replace(prompt, pair=replace(prompt.pair, id=ids[prompt.pair.id])) for prompt in made]
        shortened += report.shortened
        skipped += [ids[pair_id] for pair_id in report.skipped]
    return prompts, PromptReport(len(prompts), shortened, tuple(skipped))


def _attacked(name: str, form_name: str, form: Form, pair: PreferencePair) -> Iterator[PreferencePair]:
    """The attacked pairs of a pair in one form, in the order ab."""
    if pair.label == "tie":
        return
    better, worse = (pair.answer_a, pair.answer_b) if pair.label == "A" else (pair.answer_b, pair.answer_a)
    texts = {order: form(Target(worse, better, worse_letter(pair, order))) for order in ORDERS}
    if better.strip() in [text.strip() for text in texts.values()]:
        return
    field_name = "answer_b" if pair.label == "A" else "answer_a"
    orders: tuple[Order | None, ...] = (None,) if len(set(texts.values())) == 1 else ORDERS
    for order in orders:
        changes: dict[str, Any] = {field_name: texts[order or "ab"]}
        yield replace(pair, id=str(AttackedId(name, form_name, order, pair.id)), **changes)
