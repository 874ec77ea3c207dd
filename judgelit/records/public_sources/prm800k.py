"""PRM800K, phase 2 (Lightman et al. 2023, arXiv 2305.20050): solutions of MATH problems whose steps people rated.

The steps of a solution are joined. It is right if it ends in the right answer and no step is wrong. `prm800k-math` also
has the solution of the MATH data set as a right one, as the recipe of RISE-Judge (arXiv 2502.11689) pairs them.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from judgelit.records.public_sources.public_set import PublicSet, Rated, WrongColumnsError
from judgelit.records.row_fields import Row, bad_field, text_field

_FORM = (
    "question (problem, and for whole wrong solutions pre_generated_steps), label (steps with completions of text and "
    "rating, chosen_completion; finish_reason)"
)


def _read(row: Row, at: str) -> Rated | str:
    question, label = row["question"], row["label"]
    if not isinstance(question, Mapping) or not isinstance(label, Mapping) or not isinstance(label.get("steps"), list):
        raise WrongColumnsError(at, row, "prm800k", _FORM)
    prompt = [{"role": "user", "content": text_field(question, "problem", at)}]
    reason = label.get("finish_reason")
    if reason not in ("solution", "found_error"):
        return "solutions that were not rated to their end"
    steps = [_chosen(step, f"label.steps[{index}]", at) for index, step in enumerate(label["steps"])]
    if any(rating is None for _, rating in steps):
        return "solutions with an unrated step"
    right = reason == "solution" and all(rating >= 0 for _, rating in steps if rating is not None)
    # The rating of a wrong solution stops at its first error; a cut solution would be known by its length.
    texts = [text for text, _ in steps] if right else _generated(question) or [text for text, _ in steps]
    return Rated(prompt, [("\n".join(texts), right)], {"category": "math"})


def _read_with_reference(row: Row, at: str) -> Rated | str:
    found = _read(row, at)
    reference = row["question"].get("ground_truth_solution")
    if isinstance(found, Rated) and isinstance(reference, str) and reference.strip():
        return found._replace(answers=[*found.answers, (reference, True)])
    return found


def _chosen(step: Any, name: str, at: str) -> tuple[str, float | None]:
    """Text and rating of the completion with which a solution went on, or that ended it."""
    completions = step.get("completions") if isinstance(step, Mapping) else None
    if not isinstance(completions, Sequence) or isinstance(completions, str):
        raise bad_field(at, f"{name}.completions", completions, "a list of objects with text and rating")
    chosen, human = step.get("chosen_completion"), step.get("human_completion")
    if chosen is None and isinstance(human, Mapping) and isinstance(human.get("text"), str):
        return human["text"], 1  # People wrote a right step where all completions were wrong.
    index = 0 if chosen is None else chosen
    if isinstance(index, float) and index.is_integer():
        index = int(index)
    if not isinstance(index, int) or not 0 <= index < len(completions) or not isinstance(completions[index], Mapping):
        raise bad_field(at, f"{name}.chosen_completion", chosen, f"one of {len(completions)} completions")
    rating = completions[index].get("rating")
    if rating is not None and not isinstance(rating, int | float):
        raise bad_field(at, f"{name}.completions[{index}].rating", rating, "a number")
    return text_field(completions[index], "text", f"{at}: {name}.completions[{index}]"), rating


def _generated(question: Mapping[str, Any]) -> list[str]:
    """The steps of the whole solution, or none. Some rows hold them as text of a list."""
    steps = question.get("pre_generated_steps")
    for decode in (json.loads, ast.literal_eval):
        if isinstance(steps, str):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                steps = decode(steps)
    return steps if isinstance(steps, list) and all(isinstance(step, str) for step in steps) else []


PRM800K = PublicSet(
    name="prm800k",
    hub="tasksource/PRM800K",
    licence="MIT",
    size="97,782 solutions of phase 2 (test 2,762)",
    form=_FORM,
    columns=("question", "label"),
    read=_read,
    grouped=True,
    files={"train": "phase2_train.jsonl", "test": "phase2_test.jsonl"},
)
PRM800K_MATH = PublicSet(
    name="prm800k-math",
    hub=PRM800K.hub,
    licence=PRM800K.licence,
    size="the same, and the solution of each problem in MATH",
    form="the same, with ground_truth_solution in question",
    columns=PRM800K.columns,
    read=_read_with_reference,
    grouped=True,
    files=PRM800K.files,
)
