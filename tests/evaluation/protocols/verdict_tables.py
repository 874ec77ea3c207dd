"""Random verdicts for tests of benchmarks, and what they mean for a pair."""

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from judgelit.records.records import Judgment, PreferencePair

VERDICTS = ["A", "B", "tie", None]
Won = dict[tuple[str, str], str | None]
"""{(id, order): "right", "wrong", "tie" or None}."""


@st.composite
def tables(draw: st.DrawFn, pairs: Sequence[PreferencePair], complete: bool = False) -> tuple[list[Judgment], Won]:
    """Judgments in a random sequence, in both orders or (unless `complete`) in some, and what they say of each pair."""
    drawn = random.Random(draw(st.integers(0, 2**32)))
    judgments, won = [], {}
    for pair in pairs:
        orders = ["ab", "ba"] if complete or drawn.random() < 0.8 else drawn.choice([["ab"], ["ba"], []])
        for order in orders:
            verdict = drawn.choice(VERDICTS)
            judgments.append(Judgment(pair.id, ({"role": "user", "content": "?"},), "", verdict, order, "t", "e", 0))
            shown = pair.in_order(order)
            won[pair.id, order] = (
                verdict if verdict in ("tie", None) else "right" if verdict == shown.label else "wrong"
            )
    drawn.shuffle(judgments)
    return judgments, won
