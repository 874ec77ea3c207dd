"""Rankings of several answers. Nectar (Zhu et al. 2023) ranks seven answers to each prompt by GPT-4."""

from judgelit.records.forms import ANSWERED, complete_prompt
from judgelit.records.public_sources.public_set import PublicSet, Rated, WrongColumnsError
from judgelit.records.row_fields import Row, bad_field

_FORM = "prompt, answers (a list of objects with answer and rank, or of texts beside a list ranks or scores)"


def read_ranking(row: Row, at: str) -> Rated:
    """Read a row with a list of answers and their ranks or scores.

    Raises:
        UserError: There is no such list, or a rank or score is no number.
    """
    filled = {name: value for name, value in row.items() if value is not None}
    found = next((one for form in ANSWERED.values() if (one := form(filled, at)) is not None), None)
    name = next((name for name in ("scores", "ranks") if found is not None and name in found.meta), None)
    if found is None or name is None:
        raise WrongColumnsError(at, row, "nectar", _FORM)
    values = found.meta[name]
    assert isinstance(values, list)
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise bad_field(at, f"{name}[{index}]", value, "a number")
    scores = values if name == "scores" else [-value for value in values]
    origin = row.get("source")
    origin = ", ".join(map(str, origin)) if isinstance(origin, list) else origin
    kept = {"source": origin, "category": origin} if isinstance(origin, str) and origin else {}
    given = row.get("id")
    identity = str(given) if isinstance(given, str | int) else ""
    prompt = complete_prompt(filled, found.prompt, at)
    return Rated(prompt, list(zip(found.answers, scores, strict=True)), kept, identity)


NECTAR = PublicSet(
    name="nectar",
    hub="berkeley-nest/Nectar",
    licence="Apache-2.0, if not used to compete with OpenAI",
    size="about 183,000 rankings of 7 answers, 3.8 million pairs",
    form=_FORM,
    read=read_ranking,
)
