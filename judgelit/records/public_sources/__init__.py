"""Public data sets by name. To add one, write a file that defines a `PublicSet` and add it to `SETS`."""

import difflib
import textwrap

from judgelit.errors import UserError
from judgelit.records.public_sources.helpsteer2 import HELPSTEER2
from judgelit.records.public_sources.helpsteer3 import HELPSTEER3
from judgelit.records.public_sources.hh_rlhf import HH_RLHF
from judgelit.records.public_sources.nectar import NECTAR
from judgelit.records.public_sources.offsetbias import OFFSETBIAS
from judgelit.records.public_sources.prm800k import PRM800K, PRM800K_MATH
from judgelit.records.public_sources.public_set import PublicSet
from judgelit.records.public_sources.sampled_answers import GSM8K, MATH
from judgelit.records.public_sources.skywork import SKYWORK
from judgelit.records.public_sources.ultrafeedback import ULTRAFEEDBACK, ULTRAFEEDBACK_SCORES
from judgelit.records.public_sources.wildguardmix import WILDGUARDMIX

SETS = (
    SKYWORK,
    HELPSTEER2,
    HELPSTEER3,
    OFFSETBIAS,
    WILDGUARDMIX,
    PRM800K,
    PRM800K_MATH,
    MATH,
    GSM8K,
    ULTRAFEEDBACK,
    ULTRAFEEDBACK_SCORES,
    HH_RLHF,
    NECTAR,
)


def find_set(name: str) -> PublicSet:
    """The public data set of this name, or of this name on the hub. Case, `-` and `_` do not matter.

    Raises:
        UserError: There is none.
    """
    wanted = _folded(name)
    for public in SETS:
        hub = _folded(public.hub)
        if wanted and wanted in (_folded(public.name), hub, hub.partition("/")[2]):
            return public
    names = [public.name for public in SETS]
    nearest = difflib.get_close_matches(wanted, names, n=1, cutoff=0)[0]
    raise UserError(
        f"source: found {name!r}, which does not exist; the nearest known one is {nearest!r}; "
        f"expected one of {', '.join(names)}"
    )


def describe_sets() -> str:
    """The list of public data sets, for the help of commands: name, size, licence, columns, name on the hub."""
    width = max(len(public.name) for public in SETS)
    lines = ["public data sets for --source (--pairs then names files with these columns):"]
    for public in SETS:
        where = f"hub: {public.hub}" if public.hub else "not on the hub; give files"
        texts = (f"{public.size}; licence: {public.licence}", f"columns: {public.form}", where)
        head = f"  {public.name:<{width}}  "
        for text in texts:
            lines += textwrap.wrap(text, 100, initial_indent=head, subsequent_indent=" " * (width + 6))
            head = " " * (width + 4)
    return "\n".join(lines)


def _folded(name: str) -> str:
    return name.casefold().replace("_", "-")
