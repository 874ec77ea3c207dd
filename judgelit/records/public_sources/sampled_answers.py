"""MATH (Hendrycks et al. 2021) and GSM8K (Cobbe et al. 2021) with answers that any model has sampled.

A sampled answer is right if the file says so, or if its final answer equals the reference's. OpenAI's
`example_model_solutions.jsonl` of GSM8K is such a file.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from judgelit.records.conversations import read_answer
from judgelit.records.public_sources.final_answers import final_answer, same_answer
from judgelit.records.public_sources.public_set import PublicSet, Rated, WrongColumnsError
from judgelit.records.row_fields import Row, bad_field, text_field

_QUESTIONS = ("question", "problem", "prompt")
_LISTS = ("responses", "answers", "completions", "samples", "generations", "solutions", "outputs")
_SINGLE = ("response", "completion", "generation", "output", "prediction")
_TEXTS = ("solution", "response", "answer", "completion", "text", "content")
_REFERENCES = (
    "reference",
    "reference_answer",
    "ground_truth",
    "ground_truth_answer",
    "gold",
    "target",
    "answer",
    "solution",
)
_VERDICTS = ("is_correct", "correct")
_FORM = (
    "question or problem, sampled answers (a list responses, or one response a row; as texts, or as objects with "
    "solution and is_correct), and the reference (answer, solution or ground_truth) unless each has is_correct"
)


def _read(row: Row, at: str, name: str) -> Rated:
    """Read a question with its sampled answers, right or wrong."""
    meta = row.get("meta")
    filled = {
        **(meta if isinstance(meta, Mapping) else {}),
        **{key: value for key, value in row.items() if value is not None},
    }
    asked = next((key for key in _QUESTIONS if key in filled), None)
    samples = list(_samples(filled, at))
    if asked is None or not samples:
        raise WrongColumnsError(at, row, name, _FORM)
    prompt = filled[asked]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], Mapping):
        prompt = prompt[0].get("content")
    question = text_field({asked: prompt}, asked, at)
    reference = next((filled[key] for key in _REFERENCES if isinstance(filled.get(key), str | int | float)), None)
    wanted = None if reference is None else final_answer(str(reference), last_number=name == "gsm8k")
    if wanted is None and reference is not None and len(str(reference)) <= 100:
        wanted = str(reference)
    answers: list[tuple[str, bool]] = []
    for text, verdict in samples:
        if verdict is None:
            if wanted is None:
                raise WrongColumnsError(at, row, name, _FORM)
            given = final_answer(text, last_number=name == "gsm8k")
            if given is None:
                continue
            verdict = same_answer(given, wanted)
        answers.append((text, verdict))
    unfinished = len(samples) - len(answers)
    kept = {"category": text_field(filled, "type", at, default="math"), "subset": _text(filled.get("level"))}
    prompt = [{"role": "user", "content": question}]
    return Rated(prompt, answers, kept, left_out={"answers without a final answer": unfinished})


def _samples(row: Mapping[str, Any], at: str) -> Iterator[tuple[str, bool | None]]:
    """The texts of the sampled answers, and whether they are right, if the row says it."""
    for name in _LISTS:
        if isinstance(row.get(name), list):
            verdicts = next((row[key] for key in _VERDICTS if isinstance(row.get(key), list)), None)
            if verdicts is not None and len(verdicts) != len(row[name]):
                raise bad_field(at, "is_correct", verdicts, f"{len(row[name])} values, one for each of the {name}")
            for index, item in enumerate(row[name]):
                text, verdict = _sample(item, f"{name}[{index}]", at)
                yield text, verdict if verdicts is None else _verdict(verdicts[index], f"is_correct[{index}]", at)
            return
    for name, item in row.items():
        if isinstance(item, Mapping) and any(key in item for key in _VERDICTS):
            yield _sample(item, name, at)
    for name in _SINGLE:
        if isinstance(row.get(name), str):
            given = next((key for key in _VERDICTS if key in row), None)
            yield row[name], None if given is None else _verdict(row[given], given, at)
            return


def _sample(item: object, name: str, at: str) -> tuple[str, bool | None]:
    if not isinstance(item, Mapping) or "role" in item:
        return read_answer(item, name, at), None
    text = next((item[key] for key in _TEXTS if isinstance(item.get(key), str)), None)
    if text is None:
        raise bad_field(at, name, item, f"an object with {' or '.join(_TEXTS)}")
    given = next((key for key in _VERDICTS if item.get(key) is not None), None)
    return text, None if given is None else _verdict(item[given], f"{name}.{given}", at)


def _verdict(value: object, name: str, at: str) -> bool:
    if value not in (True, False):
        raise bad_field(at, name, value, "true or false")
    return bool(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


MATH = PublicSet(
    name="math",
    hub="",
    licence="MIT (the problems)",
    size="12,500 problems; as many answers as you sample",
    form=_FORM,
    read=partial(_read, name="math"),
    grouped=True,
)
GSM8K = PublicSet(
    name="gsm8k",
    hub="",
    licence="MIT (the questions, and OpenAI's example_model_solutions.jsonl)",
    size="8,792 questions; as many answers as you sample (OpenAI's file: 1,319 questions with 4 each)",
    form=f"{_FORM}; or OpenAI's example_model_solutions.jsonl",
    read=partial(_read, name="gsm8k"),
    grouped=True,
)
