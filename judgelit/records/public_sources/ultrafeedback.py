"""UltraFeedback (Cui et al. 2023, arXiv 2310.01377): four completions of each instruction, scored by GPT-4.

`ultrafeedback` has the best completion and another one, as Zephyr was trained on; `ultrafeedback-scores` has all.
"""

from collections.abc import Mapping

from judgelit.records.public_sources.nectar import read_ranking
from judgelit.records.public_sources.public_set import PublicSet, Rated, WrongColumnsError
from judgelit.records.row_fields import Row

_PAIRS = "prompt, prompt_id, chosen and rejected (conversations), score_chosen, score_rejected"
_SCORES = "instruction, source, completions (a list of objects with response and overall_score)"


def _read(row: Row, at: str) -> Row | Rated:
    """Read either form."""
    completions = row.get("completions")
    if not isinstance(completions, list):
        if not {"chosen", "rejected"} <= row.keys():
            raise WrongColumnsError(at, row, "ultrafeedback", f"{_PAIRS}; or {_SCORES}")
        return row
    if not all(isinstance(one, Mapping) and "response" in one and "overall_score" in one for one in completions):
        raise WrongColumnsError(at, row, "ultrafeedback-scores", _SCORES)
    # The scores are those of the answer to the instruction alone; the system texts of the models are not judged.
    scored = {"instruction": row.get("instruction"), "source": row.get("source")}
    scores = [one["overall_score"] for one in completions]
    return read_ranking({**scored, "answers": [one["response"] for one in completions], "scores": scores}, at)


ULTRAFEEDBACK = PublicSet(
    name="ultrafeedback",
    hub="HuggingFaceH4/ultrafeedback_binarized",
    licence="MIT",
    size="61,135 pairs (test_prefs 2,000)",
    form=_PAIRS,
    read=_read,
    split="train_prefs",
)
ULTRAFEEDBACK_SCORES = PublicSet(
    name="ultrafeedback-scores",
    hub="openbmb/UltraFeedback",
    licence="MIT",
    size="63,967 instructions with 4 completions each, at most 383,802 pairs",
    form=_SCORES,
    read=_read,
)
