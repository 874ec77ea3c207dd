"""HelpSteer2-Preference (Wang et al. 2024, arXiv 2410.01257): which response people prefer, and how much."""

from judgelit.records.public_sources.public_set import PublicSet

HELPSTEER2 = PublicSet(
    name="helpsteer2",
    hub="nvidia/HelpSteer2",
    licence="CC-BY-4.0",
    size="9,125 pairs, of splits train and validation",
    form="prompt, response_1, response_2, preference_strength (-3 to 3; below 0: response 1 is better), split",
    columns=("prompt", "response_1", "response_2", "preference_strength"),
    files=dict.fromkeys(("train", "validation"), "preference/preference.jsonl.gz"),
    split_column="split",
)
