"""Skywork-Reward-Preference-80K v0.2 (Liu et al. 2024, arXiv 2410.18451), without the prompts of RewardBench."""

from judgelit.records.public_sources.public_set import PublicSet
from judgelit.records.row_fields import Row


def _read(row: Row, at: str) -> Row:
    return {**row, "category": row.get("source")}


SKYWORK = PublicSet(
    name="skywork",
    hub="Skywork/Skywork-Reward-Preference-80K-v0.2",
    licence="none stated; of its parts CC-BY-4.0, BSD-3-Clause, ODC-BY, Llama 3 and 3.1",
    size="77,016 pairs",
    form="chosen and rejected (conversations), source",
    columns=("chosen", "rejected"),
    read=_read,
)
