"""Panels of a report: rows of intervals on an axis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from judgelit.evaluation.bias import ATTACKS
from judgelit.evaluation.bias.metrics import MEANINGS
from judgelit.evaluation.intervals import Estimate
from judgelit.report.figures import Figure, figure, low_end, main_metric, meaning, set_names
from judgelit.report.sources import Judge, votes_of

Rows = Sequence[tuple[int, Figure]]
"""The figure of each judge, by the judge's number."""


@dataclass(frozen=True)
class Group:
    """Rows of a panel under a heading."""

    heading: str
    rows: Rows
    meaning: str = ""
    """What the heading means, in a sentence."""


@dataclass(frozen=True)
class Panel:
    """Rows of intervals on one axis, in groups with a heading."""

    title: str
    shown: str
    """What the rows show: a sentence, or the name of a metric."""
    groups: Sequence[Group]
    meaning: str = ""
    """What the metric `shown` means, in a sentence."""
    votes: str = ""
    """Whose verdict is a majority of several votes."""
    low_end: float = 0.0
    """Lower end of the axis: 0 or -1."""
    link: str = ""
    """Place in the page of the judgments that the rows are about."""

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Marks of the axis: place in percent of its length, and text."""
        if self.low_end < 0:
            return [(0, "−100%"), (50, "0"), (100, "+100%")]
        return [(0, "0"), (50, "50%"), (100, "100%")]


def main_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The published figure of each set, judge by judge."""
    found = []
    for name in set_names(judges):
        metric, heading = main_metric(judges, name)
        rows = [(number, figure(metric, judge.figures[name][metric])) for number, judge in _with_set(judges, name)]
        found.append(Panel(name, heading, [Group("", rows)], _meaning(judges, name, metric), _votes(judges, name)))
    return found


def group_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The published figure of each category and subset, where a set has several.

    Where that figure means nothing inside a group, it is the first one that the benchmark shows of its groups.
    """
    found = []
    for name in set_names(judges):
        metric, heading = main_metric(judges, name, of_groups=True)
        of_set = [(number, judge.groups.get(name, {})) for number, judge in _with_set(judges, name)]
        for field in dict.fromkeys(field for _, groups in of_set for field in groups):
            names = dict.fromkeys(group for _, groups in of_set for group in groups.get(field, {}))
            by_group = [
                Group(
                    group,
                    [
                        (number, figure(metric, groups[field][group][metric]))
                        for number, groups in of_set
                        if metric in groups.get(field, {}).get(group, {})
                    ],
                )
                for group in names
            ]
            if len(by_group) > 1:
                explained = _meaning(judges, name, metric)
                found.append(Panel(f"{name}, by {field}", heading, by_group, explained, _votes(judges, name)))
    return found


def bias_panels(judges: Sequence[Judge]) -> list[Panel]:
    """Consistency, position bias and length bias of each set; those without a value are left out."""
    titles = {"consistency": "Consistency", "share_a": "Position: how often A", "length_bias": "Length"}
    found = []
    for metric, title in titles.items():
        groups = [
            Group(
                name,
                [
                    (number, figure(metric, judge.figures[name][metric]))
                    for number, judge in _with_set(judges, name)
                    # A benchmark that explains a metric of this name itself means another one.
                    if metric in judge.figures[name] and metric not in judge.sets[name].benchmark.meanings
                ],
            )
            for name in set_names(judges)
        ]
        groups = [group for group in groups if any(one.known for _, one in group.rows)]
        if groups:
            found.append(Panel(title, meaning(metric), groups, low_end=low_end(metric)))
    return found


def success_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The success of all attacks on each set."""
    found = []
    for name, attacks in _attacks(judges).items():
        groups = [
            Group(_words(attack), _rows(judges, name, attack, "success"), _title(attack))
            for attack, metrics in attacks.items()
            if "success" in metrics
        ]
        if groups:
            link = _link(judges, name, "any", fooled="1")
            found.append(Panel(f"Success of each attack, {name}", "", groups, link=link))
    return found


def attack_panels(judges: Sequence[Judge]) -> list[Panel]:
    """The figures of each attack, by set; a metric of an attack's form is left to the files."""
    found = []
    for name, attacks in _attacks(judges).items():
        for attack, metrics in attacks.items():
            lowest = min(map(low_end, metrics))
            groups = [
                Group(_words(metric), _rows(judges, name, attack, metric, lowest), MEANINGS.get(metric, ""))
                for metric in metrics
            ]
            link = _link(judges, name, attack)
            found.append(Panel(f"{_words(attack)}, {name}", _title(attack), groups, low_end=lowest, link=link))
    return found


def selective_panels(judges: Sequence[Judge]) -> dict[str, Panel]:
    """By set, the accuracy of each judge's most confident judgments."""
    found = {}
    for name in set_names(judges):
        of_set = [(number, judge.calibration[name]) for number, judge in enumerate(judges) if name in judge.calibration]
        shares = sorted({share for _, one in of_set for share in one.get("selective", {})}, key=float)
        groups = [
            Group(
                f"the most confident {float(share):.0%}",
                [
                    (number, _figure(one["selective"][share]))
                    for number, one in of_set
                    if share in one.get("selective", {})
                ],
            )
            for share in shares
        ]
        if groups:
            everything = [(number, _figure(one["accuracy"])) for number, one in of_set if "accuracy" in one]
            shown = "How often a judge is right if only its most confident judgments count."
            found[name] = Panel("The most confident judgments", shown, [*groups, Group("all", everything)])
    return found


def _figure(content: Mapping[str, float | None]) -> Figure:
    return Figure(Estimate.from_dict(content))


def _attacks(judges: Sequence[Judge]) -> dict[str, dict[str, list[str]]]:
    """By set and attack, the metrics that some judge has; without those of an attack's forms."""
    found: dict[str, dict[str, list[str]]] = {}
    for judge in judges:
        for name, attacks in judge.attacks.items():
            for attack, figures in attacks.items():
                metrics = found.setdefault(name, {}).setdefault(attack, [])
                metrics += [metric for metric in figures if "/" not in metric and metric not in metrics]
    return found


def _rows(judges: Sequence[Judge], name: str, attack: str, metric: str, lowest: float = 0.0) -> Rows:
    of_judges = [(number, judge.attacks.get(name, {}).get(attack, {})) for number, judge in enumerate(judges)]
    return [(number, Figure(figures[metric], lowest)) for number, figures in of_judges if metric in figures]


def _title(attack: str) -> str:
    """What an attack does, as a sentence."""
    title = ATTACKS[attack].title if attack in ATTACKS else ""
    return title and title[0].upper() + title[1:] + "."


def _link(judges: Sequence[Judge], name: str, attack: str, **more: str) -> str:
    """The judgments of attacked pairs; empty if the page has none of them."""
    known = {one for judge in judges for one in judge.attacked.get(name, {})}
    if not known or attack not in {"any", *known}:
        return ""
    return "#" + urlencode({"set": name, "attack": attack, **more}, quote_via=quote)


def _meaning(judges: Sequence[Judge], name: str, metric: str) -> str:
    of_set = next(judge.sets[name] for judge in judges if name in judge.sets)
    return meaning(metric, of_set.benchmark)


def _votes(judges: Sequence[Judge], name: str) -> str:
    """Whose verdict on a set is a majority; empty if there is none."""
    votes = {judge.name: votes_of(judge.sets[name]) for _, judge in _with_set(judges, name)}
    if len(set(votes.values())) == 1:
        (number,) = set(votes.values())
        return f"majority of {number} votes" if number > 1 else ""
    return "; ".join(f"{judge}: majority of {number} votes" for judge, number in votes.items() if number > 1)


def _with_set(judges: Sequence[Judge], name: str) -> Iterator[tuple[int, Judge]]:
    return ((number, judge) for number, judge in enumerate(judges) if name in judge.sets)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
