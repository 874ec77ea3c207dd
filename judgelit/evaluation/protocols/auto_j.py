"""Auto-J's pairwise test set: 58 scenarios of real questions, ties included (Li et al. 2023, arXiv 2310.05470)."""

from collections.abc import Mapping, Sequence

import numpy as np

from judgelit.errors import UserError
from judgelit.evaluation.intervals import Mean, Metric
from judgelit.evaluation.metrics import Verdicts, pair_metrics
from judgelit.evaluation.protocols.benchmark import Benchmark, Published
from judgelit.evaluation.protocols.native import read_native
from judgelit.evaluation.protocols.row_places import RowNumbers, coded_label, file_of, number_of
from judgelit.records.conversations import read_answer
from judgelit.records.records import UNKNOWN, Judgment, Label, PreferencePair
from judgelit.records.row_fields import Row, text_field
from judgelit.records.sources import Sources

GROUPS = {
    "Summarization": "post_summarization text_summarization note_summarization",
    "Exam Questions": "math_reasoning solving_exam_question_with_math solving_exam_question_without_math",
    "Code": "code_simplification code_generation explaining_code code_correction_rewriting code_to_code_translation",
    "Rewriting": "text_simplification language_polishing instructional_rewriting text_correction paraphrasing",
    "Creative Writing": "writing_song_lyrics writing_social_media_post writing_blog_post writing_personal_essay "
    "creative_writing writing_advertisement writing_marketing_materials writing_presentation_script counterfactual",
    "Functional Writing": "writing_product_description writing_job_application writing_news_article writing_biography "
    "writing_email writing_legal_document writing_technical_document writing_scientific_paper functional_writing "
    "writing_cooking_recipe",
    "General Communication": "asking_how_to_question open_question analyzing_general explaining_general "
    "seeking_advice recommendation value_judgement verifying_fact chitchat roleplay planning brainstorming",
    "NLP Tasks": "ranking text_to_text_translation data_analysis classification_identification title_generation "
    "question_generation reading_comprehension keywords_extraction information_extraction topic_modeling others",
}
"""The scenarios of each group."""
_GROUP_OF = {scenario: group for group, scenarios in GROUPS.items() for scenario in scenarios.split()}
_CODES: dict[str, Label] = {"0": "A", "1": "B", "2": "tie"}
_UNREAD = "-1"
"""What the authors' parser says of a text without a verdict."""


def read(where: Sources, limit: int | None) -> list[PreferencePair]:
    """The pairs; the id is the number of the row in its file, the category the group of the scenario.

    The scenario is kept as the source.
    """
    numbers = RowNumbers()

    def pair(row: Row, at: str) -> list[PreferencePair]:
        scenario = text_field(row, "scenario", at)
        return [
            PreferencePair(
                id=str(numbers.next(at)),
                question=text_field(row, "prompt", at),
                answer_a=read_answer(row.get("response 1"), "response 1", at),
                answer_b=read_answer(row.get("response 2"), "response 2", at),
                label=coded_label(row, "label", at, _CODES),
                category=_GROUP_OF.get(scenario, scenario),
                source=scenario,
            )
        ]

    return read_native(where, limit, pair)


def metrics(pairs: Sequence[PreferencePair], judgments: Sequence[Judgment]) -> dict[str, Metric]:
    """Auto-J's agreement, which counts ties, and the usual metrics of pairs, among them its consistency."""
    verdicts = Verdicts.of(pairs, judgments)
    return {
        "agreement": agreement(verdicts),
        "agreement_one_order": agreement_one_order(verdicts),
        **pair_metrics(pairs, judgments),
    }


def agreement(verdicts: Verdicts) -> Metric:
    """Share of pairs, ties included, whose verdicts are the label in both orders."""
    ab, ba = verdicts.both_orders
    return [Mean(np.asarray(verdicts.right[ab] & verdicts.right[ba]), verdicts.question[ab])]


def agreement_one_order(verdicts: Verdicts) -> Metric:
    """Share of pairs, ties included, whose verdict in the order of the file is the label."""
    first = verdicts.order == 0
    return [Mean(verdicts.right[first], verdicts.question[first])]


def read_judgments(row: Row, at: str, pairs: Mapping[str, PreferencePair]) -> list[Judgment]:
    """The judgment in a row of a file of outputs, as the authors' `pairwise_eval.py` reads them.

    A row is `{"output": 0}`: 0 for the first answer shown, 1 for the second, 2 for a tie, -1 for no verdict. Row N is
    about pair N. A file with `exchange` in its name is about the swapped order.

    Args:
        row: A row.
        at: Its place, for error messages.
        pairs: The pairs by id, which are not needed.

    Raises:
        UserError: The output is invalid.
    """
    number, file = number_of(at), file_of(at)
    if not number:
        raise UserError(f"{at}: found no number of a row, expected a file with a row for each pair")
    none = str(row.get("output")).strip() == _UNREAD
    judgment = Judgment(
        pair_id=str(number),
        prompt=({"role": "user", "content": ""},),
        text="",
        verdict=None if none else coded_label(row, "output", at, _CODES),
        order="ba" if "exchange" in file.name else "ab",
        template=UNKNOWN,
        engine=UNKNOWN,
        seed=0,
    )
    return [judgment]


_LEADERBOARD = "agreement / consistency; the repository's leaderboard"

AUTO_J: Benchmark[PreferencePair] = Benchmark(
    title="Auto-J's pairwise test set, GAIR-NLP/auto-j",
    size="1,392 pairs of 58 scenarios, 24 each; ties included",
    licence="not stated in its repository",
    convention="Both orders. Agreement is the share of pairs whose verdict is the label in both orders; a pair "
    "labelled tie needs two ties. Consistency is the share of pairs with the same winner in both orders.",
    read=read,
    metrics=metrics,
    ties_count=True,
    shown={"agreement": "agreement", "consistency": "consistency", "no_verdict": "no verdict"},
    meanings={
        "agreement": "Share of pairs, those labelled tie included, whose verdicts equal the label in both orders.",
    },
    judgments=read_judgments,
    published=(
        Published("GPT-4", "62.28 / 86.28", _LEADERBOARD),
        Published("Auto-J 13B", "54.96 / 83.41", _LEADERBOARD),
        Published("LLaMA-2-70B-Chat", "46.12 / 69.90", _LEADERBOARD),
        Published("ChatGPT", "42.74 / 62.43", _LEADERBOARD),
        Published("PandaLM-7B", "39.44 / 66.88", _LEADERBOARD),
    ),
)
