"""LLMBar: does the judge prefer the answer that follows the instruction (Zeng et al. 2023, arXiv 2310.07641).

The repository `princeton-nlp/LLMBar` also has files in the same form of other sets: MT-Bench, LLMEval2 and FairEval,
without ties, and case studies.
"""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from judgelit.errors import UserError
from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.native import read_native
from judgelit.evaluation.protocols.row_places import RowNumbers, coded_label, file_of
from judgelit.evaluation.protocols.two_orders import mean_of_orders
from judgelit.records.records import UNKNOWN, Finish, Judgment, Label, PreferencePair, swap_label
from judgelit.records.row_fields import Row, bad_field, text_field
from judgelit.records.sources import FileSource, Mixture, Sources, as_sources

_LABELS: dict[str, Label] = {"1": "A", "2": "B"}
_FILE = "dataset.json"
"""The file of a subset, in a folder of the subset's name."""
_RESULTS = "evaluators"
"""The folder beside it that has the authors' result files: evaluators/MODEL/PROMPT/result.json."""
_SWAPS = {"ab": "swap = False", "ba": "swap = True"}


def read(where: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs, with the ids SUBSET/NUMBER: the number of the row in its file, from 1.

    The subset is the name of the folder of a file `dataset.json`, and otherwise the file's name. A folder without data
    files means the `dataset.json` of each folder in it, at any depth.

    Raises:
        UserError: A row cannot be read, or two subsets have the same name and different pairs.
    """
    numbers = RowNumbers()

    def pair(row: Row, at: str) -> list[PreferencePair]:
        return [_pair(row, at, f"{_subset(at)}/{numbers.next(at)}")]

    return read_native(Mixture([_with_folders(source) for source in as_sources(where)]), limit, pair)


def _with_folders(source: Any) -> Any:
    """The source; of a folder that has files in its folders only, the files `dataset.json` in them."""
    path = Path(source.path).expanduser() if isinstance(source, FileSource) else None
    if path is None or not path.is_dir() or any(file.is_file() and file.suffix == ".json" for file in path.iterdir()):
        return source
    return replace(source, path=f"{glob.escape(str(path))}/**/{_FILE}") if any(path.rglob(_FILE)) else source


def _subset(at: str) -> str:
    file = file_of(at)
    if _RESULTS in file.parts:
        return file.parts[file.parts.index(_RESULTS) - 1]
    return file.resolve().parent.name if file.name == _FILE else file.stem


def _pair(row: Row, at: str, identity: str) -> PreferencePair:
    return PreferencePair(
        id=identity,
        question=text_field(row, "input", at),
        answer_a=text_field(row, "output_1", at, empty=True),
        answer_b=text_field(row, "output_2", at, empty=True),
        label=coded_label(row, "label", at, _LABELS),
        subset=identity.rpartition("/")[0],
    )


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """The usual metrics of pairs, LLMBar's accuracy, and its agreement of the two orders."""
    verdicts = Verdicts.of(pairs, judgments)
    return {**pair_metrics(pairs, judgments), "accuracy": mean_of_orders(verdicts), "agreement": agreement(verdicts)}


def agreement(verdicts: Verdicts) -> Metric:
    """Share of pairs with two equal verdicts. As in the authors' scorer, two judgments without a verdict are equal."""
    ab, ba = verdicts.both_orders
    return [Mean(np.asarray(verdicts.winner[ab] == verdicts.winner[ba]), verdicts.question[ab])]


def read_judgments(row: Row, at: str, pairs: Mapping[str, PreferencePair]) -> list[Judgment]:
    """The judgments in a row of the authors' result files, one in each order.

    A row is a pair with the field `results`, whose last item holds `swap = False` and `swap = True`: the winner, "1",
    "2" or null, counted as in the row in both orders, and the text. The pair is the one of the row's subset with the
    row's texts.

    Args:
        row: A row.
        at: Its place, for error messages.
        pairs: The pairs by id.

    Raises:
        UserError: A field is missing or invalid, or no pair has this text.
    """
    pair = _find(row, at, pairs)
    found = row.get("results")
    last = found[-1] if isinstance(found, Sequence) and not isinstance(found, str) and found else None
    if not isinstance(last, Mapping) or not all(isinstance(last.get(swap), Mapping) for swap in _SWAPS.values()):
        raise bad_field(at, "results", found, f"a list that ends with {' and '.join(map(repr, _SWAPS.values()))}")
    return [_judgment(last[swap], f"results[-1][{swap!r}]", at, pair.id, order) for order, swap in _SWAPS.items()]


def _find(row: Row, at: str, pairs: Mapping[str, PreferencePair]) -> PreferencePair:
    """The pair of a row of a result file."""
    read = _pair(row, at, f"{_subset(at)}/0")
    texts = read.question, read.answer_a, read.answer_b, read.label
    for pair in pairs.values():
        if (pair.question, pair.answer_a, pair.answer_b, pair.label) == texts and pair.subset == read.subset:
            return pair
    raise UserError(
        f"{at}: found no pair of subset {read.subset!r} with this input, outputs and label among the {len(pairs)} that "
        "were read"
    )


def _judgment(one: Mapping[str, Any], name: str, at: str, pair_id: str, order: str) -> Judgment:
    winner = one.get("winner")
    verdict = None if winner is None else coded_label({f"{name}.winner": winner}, f"{name}.winner", at, _LABELS)
    if verdict is not None and order == "ba":
        verdict = swap_label(verdict)
    completion = one.get("completion")
    text, finish = completion if isinstance(completion, Sequence) and len(completion) == 2 else ("", None)
    parts = file_of(at).parts
    engine = "/".join(parts[parts.index(_RESULTS) + 1 : -1]) if _RESULTS in parts else UNKNOWN
    return Judgment(
        pair_id,
        ({"role": "user", "content": ""},),
        text if isinstance(text, str) else "",
        verdict,
        order,
        template=engine,
        engine=engine,
        seed=0,
        finish=finish if finish in get_args(Finish) else None,
    )


_BY_SUBSET = "Natural / Neighbor / GPTInst / GPTOut / Manual; from the authors' result files"

LLMBAR: Benchmark[PreferencePair] = Benchmark(
    title="LLMBar, princeton-nlp/LLMBar",
    size="419 pairs: Natural 100, Adversarial 319 (Neighbor 134, GPTInst 92, GPTOut 47, Manual 46)",
    licence="MIT",
    convention="Both orders. Accuracy is the mean of the accuracies of the two orders; the authors report it for each "
    "subset. Agreement is the share of pairs with the same winner in both orders. The repository's files of MT-Bench, "
    "LLMEval2 and FairEval have the same form.",
    read=read,
    metrics=metrics,
    shown={
        "accuracy": "accuracy",
        "agreement": "agreement",
        "consistent_accuracy": "right in both orders",
        "no_verdict": "no verdict",
    },
    meanings={
        "accuracy": "Mean of the two orders of the share of right judgments; a tie or no verdict is wrong.",
        "agreement": "Share of pairs with the same verdict in both orders; two judgments without a verdict agree.",
    },
    judgments=read_judgments,
    published=(
        Published("GPT-4, prompt with rules (Vanilla)", "95.5 / 78.7 / 86.4 / 77.7 / 80.4", _BY_SUBSET),
        Published("LLaMA2-70B-Chat, the same", "80.5 / 24.6 / 30.4 / 56.4 / 37.0", _BY_SUBSET),
        Published("ChatGPT, the same", "81.5 / 19.4 / 26.6 / 41.5 / 34.8", _BY_SUBSET),
    ),
)
