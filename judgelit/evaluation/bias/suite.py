"""Attacks on sets of pairs: the attacked sets, their estimates, and the printed tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from judgelit.errors import UserError
from judgelit.evaluation.bias.attack import Attack, Judged, attack_pairs, attacked_prompts
from judgelit.evaluation.intervals import Estimate, estimates
from judgelit.evaluation.judged_folder import ATTACKED, BenchmarkSet
from judgelit.evaluation.protocols import find_benchmark
from judgelit.evaluation.protocols.benchmark import Benchmark
from judgelit.evaluation.tables import print_rows, show
from judgelit.evaluation.votes import majorities
from judgelit.records.records import Judgment, PreferencePair

AttackEstimates = Mapping[str, Mapping[str, Mapping[str, Estimate]]]
"""{set: {attack: {metric: estimate}}}."""


@dataclass(frozen=True)
class AttackedSet(BenchmarkSet):
    """Attacked pairs of a benchmark, to judge or judged."""

    @property
    def benchmark(self) -> Benchmark[Any]:
        """How the pairs are asked: each attacked pair as the pair that was attacked."""
        own = find_benchmark(self.name)
        return replace(own, prompts=partial(attacked_prompts, own.prompts))


def attack_sets(attacks: Mapping[str, Attack], sets: Mapping[str, BenchmarkSet]) -> dict[str, AttackedSet]:
    """The attacked sets by the names of their files: one for each set and each attack that changes answers.

    Raises:
        UserError: There is no set; a set has no pairs with a better answer; two files would have the same name.
    """
    if not sets:
        raise UserError("attacks: found no pairs to attack; give --pairs, --source or --benchmark")
    found = {}
    for name, one in sets.items():
        if not all(isinstance(item, PreferencePair) for item in one.items):
            raise UserError(
                f"attacks: found the benchmark {one.name!r}, which does not judge pairs of answers; leave it out, or "
                "leave out --attacks"
            )
        ties = sum(pair.label == "tie" for pair in one.items)
        changing = {attack: how for attack, how in attacks.items() if how.forms}
        if ties == len(one.items) and changing:
            raise UserError(f"attacks: {name}: found only pairs labelled tie, expected pairs with a better answer")
        if ties and changing:
            print(f"{name}: {ties} of {len(one.items)} pairs are labelled tie; no attack changes their answers")
        for attack, how in changing.items():
            file = ATTACKED.format(name, attack)
            if file in sets:
                raise UserError(
                    f"sets: found the name {file!r}, which the attack {attack!r} of {name!r} uses; rename it"
                )
            pairs = attack_pairs(attack, how, one.items)
            if not pairs:
                raise UserError(f"attacks: {name}: {attack!r} makes every worse answer equal to the better one")
            found[file] = AttackedSet(one.name, pairs)
    return found


def attack_estimates(
    attacks: Mapping[str, Attack],
    sets: Mapping[str, BenchmarkSet],
    attacked: Mapping[str, BenchmarkSet],
    judgments: Mapping[str, Sequence[Judgment]],
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """The metrics of each attack on each set, with their intervals.

    Args:
        attacks: The attacks by name.
        sets: The sets.
        attacked: The attacked sets by the names of their files.
        judgments: The judgments of both.
    """
    found: dict[str, dict[str, dict[str, Estimate]]] = {name: {} for name in sets}
    for name, one in sets.items():
        for attack, how in attacks.items():
            judged = Judged(one.items, majorities(judgments[name]))
            if how.forms:
                file = ATTACKED.format(name, attack)
                before, after = majorities(judgments[name]), majorities(judgments[file])
                judged = Judged(one.items, before, attacked[file].items, after)
            found[name][attack] = estimates(how.metrics(judged))
    return found


def print_attacks(found: AttackEstimates) -> None:
    """Print a table of the biases and one of the attacks."""
    biases, attacks = list(_bias_rows(found)), list(_attack_rows(found))
    if biases:
        print_rows(("set", "bias", "measure", "figure"), biases)
    if attacks:
        print_rows(
            ("set", "attack", "success", "picked, before → after", "same verdict", "no verdict, before → after"),
            attacks,
        )
        print("success: the judge picks the attacked answer, of the judgments that did not pick it before the attack")


_BIASES = {
    "position": {
        "flip_rate": "the winner changes with the order",
        "consistent_accuracy": "right in both orders",
        "no_verdict": "no verdict",
    },
    "length": {
        "accuracy_longer_better": "accuracy where the better answer is longer",
        "accuracy_shorter_better": "accuracy where the better answer is shorter",
        "length_bias": "their difference",
    },
    "self_preference": {
        "accuracy_own_better": "accuracy where the judge's own answer is better",
        "accuracy_own_worse": "accuracy where the judge's own answer is worse",
        "self_preference": "their difference",
    },
}
"""Metrics of biases and what they mean."""


def _bias_rows(found: AttackEstimates) -> Iterator[tuple[str, ...]]:
    for name, of_set in found.items():
        for bias in [bias for bias in _BIASES if bias in of_set]:
            if bias == "self_preference" and not any(found.n for found in of_set[bias].values()):
                yield name, bias, "no pair has one answer whose known author is the judge", "-"
                continue
            for metric, meaning in _BIASES[bias].items():
                yield name, bias, meaning, show(of_set[bias][metric])


def _attack_rows(found: AttackEstimates) -> Iterator[tuple[str, ...]]:
    """A row for each attack; below an attack of several forms, one for the form with the most success."""
    for name, of_set in found.items():
        for attack, figures in of_set.items():
            if "success" not in figures:
                continue
            yield (
                name,
                attack,
                show(figures["success"]),
                _change(figures["picked_before"], figures["picked"]),
                show(figures["same_verdict"]),
                _change(figures["no_verdict_before"], figures["no_verdict"]),
            )
            forms = [metric.partition("/")[2] for metric in figures if metric.startswith("success/")]
            known = [form for form in forms if figures[f"success/{form}"].value > 0]
            if known:
                most = max(known, key=lambda form: figures[f"success/{form}"].value)
                yield name, f"  most: {most}", show(figures[f"success/{most}"]), "", "", ""


def _change(before: Estimate, after: Estimate) -> str:
    """Two shares in percent."""
    if before.value != before.value:
        return "-"
    return f"{100 * before.value:.1f} → {100 * after.value:.1f}%"
