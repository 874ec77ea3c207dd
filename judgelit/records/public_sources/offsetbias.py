"""OffsetBias (Park et al. 2024, arXiv 2407.06551): pairs whose worse answer is the one that biased judges prefer."""

from judgelit.records.public_sources.public_set import PublicSet

OFFSETBIAS = PublicSet(
    name="offsetbias",
    hub="NCSOFT/offsetbias",
    licence="BSD-3-Clause",
    size="8,504 pairs",
    form="instruction, output_1, output_2, label (1 or 2)",
    columns=("instruction", "output_1", "output_2", "label"),
)
