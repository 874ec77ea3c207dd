"""Bias and attacks: what changes a judge's verdict although the better answer stays the better one.

To add an attack, write forms in a file and add a line to `ATTACKS`.
"""

import difflib

from judgelit.errors import UserError
from judgelit.evaluation.bias.attack import Attack
from judgelit.evaluation.bias.content_free import MASTER_KEYS, NULL_ANSWER, PADDING
from judgelit.evaluation.bias.injected import FORGED_TURN, FORGED_VERDICT, INJECTION
from judgelit.evaluation.bias.metrics import attack_metrics, length_metrics, position_metrics, self_preference_metrics
from judgelit.evaluation.bias.style import STYLE

ATTACKS: dict[str, Attack] = {
    "position": Attack("the answers swap places", position_metrics),
    "length": Attack("the better answer is the longer or the shorter one", length_metrics),
    "self_preference": Attack("the judge has written one of the answers", self_preference_metrics),
    "padding": Attack("empty sentences make the worse answer the longer one", attack_metrics, PADDING),
    "style": Attack("the worse answer gets another style", attack_metrics, STYLE),
    "master_key": Attack("a text without content replaces the worse answer", attack_metrics, MASTER_KEYS),
    "null_answer": Attack("one polite text replaces every worse answer", attack_metrics, NULL_ANSWER),
    "injection": Attack("the worse answer speaks to the judge", attack_metrics, INJECTION),
    "forged_turn": Attack("the worse answer forges a turn of the judge", attack_metrics, FORGED_TURN),
    "forged_verdict": Attack("the worse answer ends with a verdict for itself", attack_metrics, FORGED_VERDICT),
}
"""Attacks by name. The first three change no answer: the judgments of the pairs themselves show these biases."""


def find_attacks(names: str | list[str]) -> dict[str, Attack]:
    """The attacks of these names, or `all`.

    Raises:
        UserError: There is none of a name, or no name.
    """
    if names == "all":
        return ATTACKS
    chosen = [names] if isinstance(names, str) else names
    if not chosen:
        raise UserError("attacks: found an empty list, expected names of attacks, or `all`")
    for name in chosen:
        if name.startswith("["):
            raise UserError(
                f"attacks: found {name!r}, expected a list of names; `null` is YAML's word for nothing, the attack is "
                "`null_answer`"
            )
        if name not in ATTACKS:
            nearest = difflib.get_close_matches(name.lower(), ATTACKS, n=1, cutoff=0)[0]
            raise UserError(
                f"attacks: found {name!r}, which does not exist; the nearest known one is {nearest!r}; "
                f"choose `all` or some of {', '.join(ATTACKS)}"
            )
    return {name: ATTACKS[name] for name in dict.fromkeys(chosen)}
