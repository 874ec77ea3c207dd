"""HH-RLHF (Bai et al. 2022, arXiv 2204.05862): dialogues about helpfulness and harmlessness."""

from judgelit.records.public_sources.public_set import PublicSet

HH_RLHF = PublicSet(
    name="hh-rlhf",
    hub="Anthropic/hh-rlhf",
    licence="MIT",
    size="160,800 pairs (test 8,552)",
    form="chosen, rejected ('Human: ... Assistant: ...' dialogues that differ in the last answer)",
    columns=("chosen", "rejected"),
)
