import json
import os
from pathlib import Path
from typing import Any

import pytest

from judgelit.errors import UserError
from judgelit.records.records import PreferencePair
from judgelit.records.sources import FileSource, read_pairs
from judgelit.synthesis.decontamination import EvaluationSet, decontaminate, read_evaluation_sets
from judgelit.synthesis.tasks.pairs import TaskPairs
from tests.support import make_pair

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
SHARED = Path(os.environ.get("JUDGELIT_SHARED", Path(__file__).parents[3] / "shared")) / "data"


def held(question: str, *evaluation: str) -> bool:
    return EvaluationSet.of(evaluation).holds(question)


def test_thirteen_words_in_common_are_too_many() -> None:
    assert held(f"Now {THIRTEEN} and more", f"Say: {THIRTEEN}!")
    assert held(THIRTEEN.upper().replace(" ", ",\n"), THIRTEEN)
    assert not held(f"Now {THIRTEEN.replace('seven', 'six')} and more", f"Say: {THIRTEEN}!")
    # Twelve in common, in longer questions.
    twelve = THIRTEEN.removesuffix(" thirteen")
    assert not held(f"{twelve} x", f"{twelve} y")


def test_shorter_questions_must_be_equal() -> None:
    assert held("  What is  2+3 ?", "what is 2+3")
    assert not held("What is 2-3?", "What is 2+3?")
    assert not held("What is 2+3, please?", "What is 2+3?")
    assert not held("?", "?") and not held("", "!")


def test_chinese_is_compared_by_characters() -> None:
    thirteen = "请解释天空为什么是蓝色的啊"
    assert held(f"老师，{thirteen}谢谢", f"问：{thirteen}！")
    assert not held("老师，请解释大海为什么是蓝色的啊", f"问：{thirteen}！")
    assert held("你好吗？", "你好吗") and not held("你好吗", "你好")


def test_earlier_turns_count_and_answers_do_not() -> None:
    sets = {"one": EvaluationSet.of([THIRTEEN])}
    earlier = ({"role": "user", "content": THIRTEEN}, {"role": "assistant", "content": "Well."})
    said = ({"role": "user", "content": "Hm."}, {"role": "assistant", "content": THIRTEEN})
    pairs = [
        PreferencePair("asked", "And now?", "a", "b", "A", context=earlier),
        PreferencePair("said", "And now?", "a", "b", "A", context=said),
        PreferencePair("answered", "And now?", THIRTEEN, "b", "A"),
    ]
    kept, found = decontaminate(pairs, sets)
    assert ([pair.id for pair in kept], found) == (["said", "answered"], {"one": 1})


def test_each_set_counts_what_it_holds() -> None:
    sets = {name: EvaluationSet.of(texts) for name, texts in {"a": ["x y", "z"], "b": ["X, y?"], "c": ["w"]}.items()}
    pairs = [make_pair(1, question="x y"), make_pair(2, question="z"), make_pair(3, question="x Y!"), make_pair(4)]
    kept, found = decontaminate(pairs, sets)
    assert (kept, found) == ([pairs[3]], {"a": 3, "b": 2, "c": 0})


ROWS: list[dict[str, Any]] = [
    {"question": "What is it?", "answer_a": "x", "answer_b": "y", "label": "A", "id": "1"},
    {"input": "What is it?", "output_1": "x", "output_2": "y", "label": 1},
    {"instruction": "What is it?", "input": "", "response1": "x", "response2": "y", "annotator1": 1},
    {"prompt": "What is it?", "chosen": "x", "rejected": "y"},
    {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "x"}]},
    {"instruction": "What is it?", "instances": [{"input": "No.", "output": "x"}]},
    {"problem": "What is it?"},
    # No pair to compare, but a question.
    {"question": "What is it?", "answer_a": "x", "answer_b": "x", "label": "A", "id": "1"},
]


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_many_forms_have_a_question(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "My set.v1.jsonl"
    path.write_text(json.dumps(row))
    ((name, found),) = read_evaluation_sets(str(path)).items()
    assert name == "My-set" and found.holds("what is IT?") and not found.holds("What was it?")


def test_an_instruction_is_read_with_its_inputs(tmp_path: Path) -> None:
    row = {"instruction": "Translate to French.", "instances": [{"input": "Good day", "output": "x"}]}
    (tmp_path / "seed.jsonl").write_text(json.dumps(row))
    found = read_evaluation_sets({"seed": str(tmp_path / "seed.jsonl")})["seed"]
    assert found.holds("Translate to French. Good day") and found.holds("translate to French")


def test_generated_pairs_are_a_set_too() -> None:
    tasks = TaskPairs(["sums"], [2], 5)
    sets = read_evaluation_sets({"held_out": tasks})
    assert sets["held_out"].holds(tasks.read(PreferencePair)[0].question)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1}', r"set\.jsonl:1: found 'a', expected a row of pairs or examples, or one of the fields question,"),
        ('{"question": "?"}', r"decontaminate\.mine: found no question, expected an evaluation set"),
        ("", "found no rows"),
    ],
)
def test_a_set_without_questions_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "set.jsonl").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_evaluation_sets({"mine": str(tmp_path / "set.jsonl")})


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no public data at {SHARED}; JUDGELIT_SHARED names its parent folder")
def test_self_instruct_overlaps_pandalm_and_llmbar() -> None:
    sets = read_evaluation_sets({"self_instruct": str(SHARED / "train/self_instruct/*.jsonl")})
    assert sets["self_instruct"].questions == 175 + 252
    pandalm = read_pairs(FileSource(str(SHARED / "train/pandalm/testset-v1.json"), skip_invalid=True))
    kept, found = decontaminate(pandalm, sets)
    assert len(kept) <= 1 and found["self_instruct"] == len(pandalm) - len(kept), "its questions come from there"
    llmbar = read_pairs(str(SHARED / "eval/llmbar/**/dataset.json"))
    kept, found = decontaminate(llmbar, sets)
    assert 0 < found["self_instruct"] < 10 and len(kept) == len(llmbar) - found["self_instruct"]
    sets = read_evaluation_sets({"llmbar": str(SHARED / "eval/llmbar/**/dataset.json")})
    assert decontaminate(llmbar, sets) == ([], {"llmbar": len(llmbar)})
