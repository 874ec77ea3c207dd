"""HelpSteer3-Preference (Wang et al. 2025, arXiv 2505.11475): general, STEM, code and multilingual conversations."""

from judgelit.records.public_sources.public_set import PublicSet
from judgelit.records.row_fields import Row


def _read(row: Row, at: str) -> Row:
    return {
        "messages": row["context"],
        "response_1": row["response1"],
        "response_2": row["response2"],
        "preference_strength": row["overall_preference"],
        "category": row.get("domain"),
        "subset": row.get("language"),
    }


HELPSTEER3 = PublicSet(
    name="helpsteer3",
    hub="nvidia/HelpSteer3",
    licence="CC-BY-4.0",
    size="38,459 pairs (validation 2,017)",
    form="context (a conversation), response1, response2, overall_preference (-3 to 3), domain, language",
    columns=("context", "response1", "response2", "overall_preference"),
    read=_read,
    config="preference",
)
