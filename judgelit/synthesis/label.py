"""`judgelit judge`: label pairs with a judge, or rank the answers to each question."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from judgelit.atomic import write_json
from judgelit.errors import UserError
from judgelit.evaluation.judged_folder import SETTINGS, fingerprint_records, open_folder
from judgelit.evaluation.judgments import prompt_room
from judgelit.evaluation.votes import refuse_equal_votes
from judgelit.generation.engine import EngineSpec
from judgelit.generation.sampling import Sampling
from judgelit.judging.prompts import Templates
from judgelit.parsing import OneLineErrors, raise_user_errors
from judgelit.records.growing_file import GrowingFile
from judgelit.records.public_sources import describe_sets
from judgelit.records.public_sources.source import named_source
from judgelit.records.records import AnswerSet
from judgelit.records.sources import FileSource, Source, Sources, as_sources, read_pairs
from judgelit.runs.folder import locked
from judgelit.synthesis.label_report import LabelReport
from judgelit.synthesis.labelling import Preferences, label_pairs, rank_answers
from judgelit.synthesis.pair_judge import PairJudge
from judgelit.synthesis.preferences import has_several
from judgelit.synthesis.tournament import Schedule

_SUMMARY = "Label pairs with a judge, or rank the answers to each question."
Form = Literal["verdicts", "preferences"]
_FORM_HELP = (
    "What to write beside judgments.jsonl: `verdicts` (verdicts.jsonl, a line for each pair or question) or "
    "`preferences` (preferences.jsonl: prompt, chosen and rejected, ready to train a policy on). Default: both. "
    "The same command with another form asks nothing again."
)
# Names of the two answers in the public forms, by whether the form has letters or numbers as labels.
_LETTERED = ({"answer_a", "answer_b"}, {"response_a", "response_b"}, {"response_A", "response_B"})
_NUMBERED = (
    {"output_1", "output_2"},
    {"response1", "response2"},
    {"response_1", "response_2"},
    {"response 1", "response 2"},
)


def label(
    output: str,
    pairs: Sources | None = None,
    source: str | None = None,
    answers: Sources | None = None,
    form: Form | None = None,
    preferences: Preferences = "best_worst",
    tournament: Literal["full", "swiss"] = "full",
    rounds: int | None = None,
    votes: int = 1,
    both_orders: bool = True,
    templates: Templates = Templates(),  # noqa: B008 (frozen, so sharing the default is safe)
    max_new_tokens: int = 1024,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop_at_verdict: bool = True,
    limit: int | None = None,
    seed: int = 0,
    **engine: Any,
) -> None:
    """Label pairs with a judge, or rank the answers to each question.

    Writes OUTPUT/judgments.jsonl (every critique with its verdict), OUTPUT/verdicts.jsonl (one line for each pair or
    question: verdict or ranking, confidence, critique) and OUTPUT/preferences.jsonl (prompt, chosen and rejected, ready
    to train a policy on, of pairs with the same winner in both orders). Lines are added as they come, to
    NAME.partial.jsonl; the complete file has the sequence of the input. The pairs' own labels, if there are any, are
    not used. After a kill, the same command continues. A folder with results of another model, other pairs or other
    settings is refused.

    Args:
        output: Folder to write to.
        pairs: Pairs, with or without label.
        source: Name of a public data set, which is read from the hub, or from `pairs` in its own form. The names are
            listed below.
        answers: Questions with any number of answers each, to be ranked; in place of `pairs`.
        form: What to write, verdicts or preferences; both if none is given.
        preferences: Of ranked answers: the best against the worst of each question, or all judged pairs that have the
            same winner in both orders.
        tournament: Which of the ranked answers are compared: `full` (each with each other one) or `swiss` (in each
            round those of about the same score), which needs fewer pairs for many answers.
        rounds: Rounds of a swiss tournament. Default: the logarithm of the number of answers to base 2, rounded up,
            plus 1.
        votes: Judgments of each pair in each order, at a temperature above 0; the majority counts.
        both_orders: Judge each pair in both orders; otherwise in one, drawn at random.
        templates: Judge prompts to ask with. Default: those that the judge's folder keeps, or `rise`.
        max_new_tokens: Longest judgment, in tokens.
        temperature: 0 is greedy.
        top_p: Sample from the smallest set of tokens that holds this probability.
        stop_at_verdict: End a critique with the line that says its verdict. Text after it takes time and is not read,
            unless it holds another verdict.
        limit: Label only the first pairs or questions, this many.
        seed: Seed of the engine, of the first round of a swiss tournament, and of the bootstrap.
        engine: The fields of `EngineSpec`.
    """
    spec, sampling = EngineSpec(**engine), Sampling(max_new_tokens, temperature, top_p, stop_at_verdict)
    schedule = Schedule(tournament, rounds)
    _refuse_senseless(limit, votes, temperature, schedule, ranks=answers is not None)
    if answers is None and pairs is None and source is None:
        raise UserError("missing --pairs, --source or --answers")
    if answers is not None and not (pairs is None and source is None):
        raise UserError("answers: found pairs or a source beside it, expected one of them; leave the other out")
    to_judge, to_rank, name = [], [], "pairs" if answers is None else "answers"
    if answers is None:
        to_judge = read_pairs([without_label(one) for one in as_sources(named_source(source, pairs))], limit)
    else:
        to_rank = read_answer_sets(answers, limit)
    settings = {
        "command": "judge",
        "limit": limit,
        **asdict(sampling),
        "seed": seed,
        "votes": votes,
        "both_orders": both_orders,
        "tournament": asdict(schedule),
        name: fingerprint_records([*to_judge, *to_rank]),
    }
    folder = Path(output)
    files = ["judgments.jsonl", *(f"{one}.jsonl" for one in get_args(Form) if form in (None, one))]
    report = LabelReport(both_orders, ranks=answers is not None)
    with locked(folder):
        opened = open_folder(folder, spec, templates, settings, files)
        room = prompt_room(opened.engine.tokenizer, max_new_tokens)
        write_json(folder / SETTINGS, opened.settings)
        judge = PairJudge(
            opened.engine, opened.templates, opened.template_seed, sampling, votes, both_orders, seed, room
        )
        labels = rank_answers(judge, to_rank, schedule, preferences) if to_rank else label_pairs(judge, to_judge)
        with ExitStack() as stack:
            growing = [stack.enter_context(GrowingFile(folder / file)) for file in files]
            for index, one in labels:
                report.add(one)
                rows = {
                    "judgments.jsonl": [judgment.to_dict() for judgment in one.judgments],
                    "verdicts.jsonl": [one.line],
                    "preferences.jsonl": [found.to_dict() for found in one.preferences if not isinstance(found, str)],
                }
                for file in growing:
                    file.add(index, rows[file.path.name])
            if not judge.asked:
                # The folder stays free for other settings.
                for path in (folder / SETTINGS, *(file.partial for file in growing)):
                    path.unlink()
                raise UserError(f"{name}: no pair fits the {room} tokens left for a judge prompt ({judge.report})")
            for file in growing:
                file.complete()
    if judge.skipped or judge.shortened:
        print(f"{name}: {judge.report}")
    print(report)
    if form != "verdicts":
        print(report.of_preferences())
    print(f"{', '.join(files)} are in {folder}")
    if report.missing == report.judgments:
        raise UserError(
            f"{spec.model}: found no verdict in any of {report.missing} judgments, expected [[A]] or [[B]] at the end; "
            f"read {folder}/judgments.jsonl, and raise --max_new_tokens if they are cut off"
        )


def _refuse_senseless(
    limit: int | None,
    votes: int,
    temperature: float,
    schedule: Schedule,
    ranks: bool,
) -> None:
    """Raise UserError for settings that make no sense together."""
    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected 1 or more")
    refuse_equal_votes(votes, temperature)
    if not ranks and schedule != Schedule():
        raise UserError(f"tournament: found {schedule.kind} for pairs, expected it with --answers only")


def read_answer_sets(value: Sources, limit: int | None) -> list[AnswerSet]:
    """The answer sets of some sources, or the first `limit` of them.

    Raises:
        UserError: Two of them have the same id.
    """
    read = (answers for source in as_sources(value) for _, answers in source.stream(AnswerSet))
    found = list(islice(read, limit))
    repeated = [name for name, count in Counter(answers.id for answers in found).items() if count > 1]
    if repeated:
        raise UserError(f"answers id {repeated[0]!r}: found two questions with this id, expected different ids")
    if not any(has_several(answers) for answers in found):
        raise UserError("answers: found no question with two different answers that are not blank, expected some")
    return found


def without_label(source: Source) -> Source:
    """The source; if it reads files, their rows need no label."""
    return Unlabelled(**vars(source)) if type(source) is FileSource else source


class Unlabelled(FileSource):
    """Files of pairs that may lack a label. A placeholder is filled in, since the readers of pairs expect one."""

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows of the files, each with a label."""
        return ((at, _with_label(row)) for at, row in super().rows())


def _with_label(row: dict[str, Any]) -> dict[str, Any]:
    fields = {name for name, value in row.items() if value is not None}
    if any(row.get(name) not in (None, "") for name in ("label", "winner")):
        return row
    if {"conversation_a", "conversation_b"} <= fields:
        return {**row, "winner": "tie"}
    if any(answers <= fields for answers in _LETTERED):
        return {**row, "label": "tie"}
    return {**row, "label": 1} if any(answers <= fields for answers in _NUMBERED) else row


def main(argv: list[str]) -> None:
    """Run `judgelit judge`."""
    # A parameter cannot have the name `as`, so this option is added by hand.
    with_notes = type("Parser", (OneLineErrors,), {"notes": {"source": describe_sets()}})
    parser = with_notes(prog="judgelit judge", description=_SUMMARY)
    with raise_user_errors():
        parser.add_argument("--config", action="config", help="Path to a configuration file.")
        parser.add_argument("--as", type=Form | None, help=_FORM_HELP)
        parser.add_function_arguments(label, as_group=False, sub_configs=True, skip={"form"})
        settings = parser.instantiate(parser.parse_args(argv)).as_dict()
        settings.pop("config")
        label(form=settings.pop("as"), **settings)
