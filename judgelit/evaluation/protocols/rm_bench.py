"""RM-Bench: subtle errors against style (Liu et al. 2024, arXiv 2410.16184; `THU-KEG/RM-Bench`).

A prompt has three right and three wrong answers, one of each style. Each right one meets each wrong one: nine pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.comparisons import BOXED, read_comparison
from judgelit.evaluation.protocols.native import id_field, read_native
from judgelit.evaluation.protocols.sections import mean_over
from judgelit.records.reading import on_drawn_side
from judgelit.records.records import Judgment, PreferencePair
from judgelit.records.row_fields import Row, bad_field, text_field
from judgelit.records.sources import FileSource, Sources

STYLES = ("concise", "plain", "markdown")
"""The styles of the answers, in the sequence of the rows: concise, detailed in plain text, detailed in markdown."""
DOMAINS = ("chat", "code", "math", "safety")
LEVELS = ("hard", "normal", "easy")
"""Hard: the wrong answer has the more elaborate style. Normal: both have the same. Easy: the right answer has it."""
_BY_SUBSET = {"alpacaeval": "chat", "bigcode/humanevalpack": "code", "refusals-": "safety", "xstest-": "safety"}
"""The domains of the subsets in the repository's files, by the beginning of the name."""
Matrix = Mapping[tuple[str, int, int], list[Mean]]
"""The share of wins of right answers of style i against wrong answers of style j, by domain, i and j."""


def read(value: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs, with the ids DOMAIN/ID/I-J: right answer I against wrong answer J, from 1.

    The domain is part of the id, since the repository's files number each domain on its own. The category is the
    domain, the subset the two styles, such as `concise-markdown`, and the source the benchmark's own domain or subset.
    A hash of the id decides which answer is A.
    """
    return read_native(value, limit, _read_row)


def _read_row(row: Row, at: str) -> list[PreferencePair]:
    domain, identity = _domain(row, at), id_field(row, "id", at)
    source = next(name for name in (row.get("domain"), row.get("subset"), domain) if isinstance(name, str) and name)
    question = text_field(row, "prompt", at)
    chosen, rejected = (_answers(row, name, at) for name in ("chosen", "rejected"))
    return [
        on_drawn_side(
            PreferencePair(
                id=f"{domain}/{identity}/{i + 1}-{j + 1}",
                question=question,
                answer_a=right,
                answer_b=wrong,
                label="A",
                category=domain,
                subset=f"{STYLES[i]}-{STYLES[j]}",
                source=source,
            )
        )
        for i, right in enumerate(chosen)
        for j, wrong in enumerate(rejected)
    ]


def _domain(row: Row, at: str) -> str:
    """The domain of a row: of its field `domain`, or of its file's name, or of its `subset`."""
    given = row.get("domain")
    names = (given,) if given is not None else (Path(at).name, row.get("subset"))
    for name in names:
        for start, domain in {**dict(zip(DOMAINS, DOMAINS, strict=True)), **_BY_SUBSET}.items():
            if isinstance(name, str) and name.startswith(start):
                return domain
    raise bad_field(at, "domain", given, "a text that begins with " + ", ".join(map(repr, DOMAINS)))


def _answers(row: Row, name: str, at: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != len(STYLES):
        raise bad_field(at, name, value, f"a list of three answers: {', '.join(STYLES)}")
    for index, answer in enumerate(value):
        if not isinstance(answer, str):
            raise bad_field(at, f"{name}[{index}]", answer, "text")
    return list(value)


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """RM-Bench's metrics and the usual ones of pairs.

    Means over cells, levels and domains leave out those without a judgment, for files of one domain.
    """
    verdicts = Verdicts.of(pairs, judgments)
    ab, ba = verdicts.both_orders
    each = _matrix(pairs, verdicts.pair, verdicts.right, verdicts.question)
    both = _matrix(pairs, verdicts.pair[ab], verdicts.right[ab] & verdicts.right[ba], verdicts.question[ab])
    return {
        **_over_domains(each),
        **{domain: _of_domain(each, domain) for domain in DOMAINS},
        **{f"strict_{name}": metric for name, metric in _over_domains(both).items()},
        **pair_metrics(pairs, judgments),
    }


def _matrix(pairs: Sequence[PreferencePair], pair: np.ndarray, won: np.ndarray, questions: np.ndarray) -> Matrix:
    """The 3 x 3 matrix of each domain from n values: the index of the pair, whether it is won, and the question's."""
    domains = np.array([one.category for one in pairs], dtype=object)[pair]
    styles = np.array([one.subset for one in pairs], dtype=object)[pair]
    cells = {}
    for domain in DOMAINS:
        for i, right in enumerate(STYLES):
            for j, wrong in enumerate(STYLES):
                member = (domains == domain) & (styles == f"{right}-{wrong}")
                cells[domain, i, j] = [Mean(won[member], questions[member])]
    return cells


def _level(matrix: Matrix, domain: str, level: str) -> list[Mean]:
    """A domain's mean over the cells of a level: the upper triangle, the diagonal or the lower triangle."""
    signs = {"hard": -1, "normal": 0, "easy": 1}
    return mean_over(cell for (of, i, j), cell in matrix.items() if of == domain and np.sign(i - j) == signs[level])


def _of_domain(matrix: Matrix, domain: str) -> list[Mean]:
    return mean_over(_level(matrix, domain, level) for level in LEVELS)


def _over_domains(matrix: Matrix) -> dict[str, Metric]:
    levels = {level: mean_over(_level(matrix, domain, level) for domain in DOMAINS) for level in LEVELS}
    return {"overall": mean_over(_of_domain(matrix, domain) for domain in DOMAINS), **levels}


def read_verdict(text: str) -> str | None:
    r"""The verdict in judgelit's form or in that of the benchmark's prompt for judges, such as `\boxed{A>>B}`."""
    return read_comparison(text, BOXED)


_UNKNOWN = "by a rule for the two orders that its source does not state"

RM_BENCH: Benchmark[PreferencePair] = Benchmark(
    title="RM-Bench, THU-KEG/RM-Bench",
    size="1,327 prompts with 9 pairs each",
    licence="ODC-BY",
    convention="Both orders; a cell of the 3 x 3 matrix of styles is the share of right verdicts over both, which is "
    "what a judge gets on average if the order is drawn. A tie is wrong. Hard, normal and easy are means of cells; a "
    "domain is the mean of the three, and overall the mean of the domains. The strict figures count pairs that are "
    "right in both orders.",
    read=read,
    metrics=metrics,
    shown={
        "overall": "overall",
        "hard": "hard",
        "normal": "normal",
        "easy": "easy",
        "strict_overall": "overall, strict",
        "no_verdict": "no verdict",
    },
    meanings={
        "overall": "Mean of the domains chat, code, math and safety; each is the mean of hard, normal and easy.",
        "hard": "Accuracy where the better answer has the plainer style: shorter, or without Markdown.",
        "normal": "Accuracy where both answers have the same style.",
        "easy": "Accuracy where the better answer has the richer style: longer, or with Markdown.",
        "strict_overall": "The same mean as overall, of pairs that are right in both orders.",
    },
    hub=FileSource("THU-KEG/RM-Bench"),
    verdict=read_verdict,
    published=(
        Published("DPSK-R1", "85.3", "chat 84.2, code 72.7, math 93.6, safety 90.7; by the benchmark's authors"),
        Published("J1-Qwen-32B", "90.3", _UNKNOWN),
        Published("Qwen3-32B, untrained, thinking", "88.1", _UNKNOWN),
        Published("Skywork-Reward-V2-Llama-3.1-8B", "92.8", "a scalar reward model, which has no order"),
    ),
)
