"""Prompts from data of every form."""

import json
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.records.prompts import read_prompts
from judgelit.records.records import Prompt
from judgelit.records.sources import FileSource, Mixture
from judgelit.synthesis.tasks.pairs import TaskPairs

USER = {"role": "user", "content": "Q"}
EARLIER = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
SYSTEM = {"role": "system", "content": "S"}
ANSWER = {"role": "assistant", "content": "x"}
SHAREGPT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "x"}]
OTHER = {"role": "assistant", "content": "y"}


def write(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"question": "Q"}, [USER]),
        ({"prompt": "Q"}, [USER]),
        ({"prompt": [USER]}, [USER]),
        ({"prompt": json.dumps([SYSTEM, USER])}, [SYSTEM, USER]),
        ({"prompt": "Q", "messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, [USER]),
        ({"instruction": "Q", "input": "", "output": "x"}, [USER]),
        ({"instruction": "Q", "input": "more"}, [{"role": "user", "content": "Q\n\nmore"}]),
        ({"instruction": "Q", "output": "x", "history": [["1", "2"]]}, [*EARLIER, USER]),
        ({"messages": [*EARLIER, USER]}, [*EARLIER, USER]),
        ({"messages": [*EARLIER, USER, ANSWER]}, [*EARLIER, USER]),
        ({"conversations": SHAREGPT, "system": "S"}, [SYSTEM, USER]),
        ({"messages": [USER], "completion": "x"}, [USER]),
        ({"prompt": "Q", "completion": "x", "label": False}, [USER]),
        ({"chosen": [*EARLIER, USER, ANSWER], "rejected": [*EARLIER, USER, OTHER]}, [*EARLIER, USER]),
        ({"chosen": "\n\nHuman: Q\n\nAssistant: x", "rejected": "\n\nHuman: Q\n\nAssistant: y"}, [USER]),
        ({"id": "1", "question": "Q", "answer_a": "x", "answer_b": "y"}, [USER]),
        ({"id": "1", "question": "Q", "answer_a": "x", "answer_b": "y", "context": [SYSTEM]}, [SYSTEM, USER]),
        ({"instruction": "Q", "output_1": "x", "output_2": "y", "label": 1}, [USER]),
        ({"conversation_a": [*EARLIER, USER, ANSWER], "conversation_b": [*EARLIER, USER, OTHER]}, [*EARLIER, USER]),
        ({"id": "1", "question": "Q", "answers": ["x", "y"]}, [USER]),
    ],
)  # fmt: skip
def test_the_prompt_of_every_form(tmp_path: Path, row: dict[str, Any], messages: list[dict[str, str]]) -> None:
    ((prompt,), _) = read_prompts(write(tmp_path, row))
    assert list(prompt.messages) == messages


def test_a_question_of_ours_is_not_taken_apart(tmp_path: Path) -> None:
    text = "Human: what?\n\nAssistant: that.\n\nHuman: and now?\n\nAssistant:"
    ((ours,), _) = read_prompts(write(tmp_path, {"id": "1", "question": text}))
    assert ours == Prompt("1", text)
    ((public,), _) = read_prompts(write(tmp_path, {"prompt": text}))
    assert [turn["content"] for turn in public.messages] == ["what?", "that.", "and now?"]


def test_prompts_are_read_once_and_repeated_ones_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {"id": "1", "question": "Q"}, {"id": "2", "question": "R"}, {"id": "3", "question": "Q"})
    other = write(tmp_path, {"prompt": "Q"}, {"prompt": "Q", "system": "S"}, name="other.jsonl")
    prompts, repeated = read_prompts(Mixture([path, FileSource(other)]))
    assert [(prompt.question, len(prompt.context)) for prompt in prompts] == [("Q", 0), ("R", 0), ("Q", 1)]
    assert [prompt.id for prompt in prompts[:2]] == ["1", "2"] and repeated == 2


def test_rows_without_an_id_get_one_that_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    found = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        prompts, _ = read_prompts(write(tmp_path / folder, {"prompt": "Q"}, {"prompt": "R"}))
        found.append([prompt.id for prompt in prompts])
    assert found[0] == found[1] and len(set(found[0])) == 2


def test_questions_of_tasks_are_prompts() -> None:
    prompts, repeated = read_prompts(TaskPairs(["sums"], [1], 10))
    assert len(prompts) == 10 and repeated == 0 and all(prompt.question.endswith("=?") for prompt in prompts)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"text": "Q"}], "rows.jsonl:1: found 'text', expected a prompt with the fields question, prompt"),
        ([{"prompt": " "}], "field 'prompt': found ' ', expected text that is not empty"),
        ([{"prompt": "Q", "tools": [{"name": "f"}]}], "field 'tools'"),
        ([{"messages": [SYSTEM]}], "the last turn is the system's, expected the user's"),
        ([{"messages": [ANSWER]}], "field 'messages'"),
        ([{"id": "1", "question": "Q"}, {"id": "1", "question": "R"}], "two different prompts with this id"),
        ([{"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, OTHER]}], "begin with different prompts"),
    ],
)
def test_a_row_without_a_prompt_is_refused(tmp_path: Path, rows: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(UserError) as error:
        read_prompts(write(tmp_path, *rows))
    assert complaint in str(error.value) and "\n" not in str(error.value)
