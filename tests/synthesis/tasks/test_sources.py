import pytest

from judgelit.errors import UserError
from judgelit.records.records import PreferenceExample, PreferencePair, SFTExample
from judgelit.synthesis.tasks.pairs import TaskPairs
from judgelit.synthesis.tasks.sources import TaskAnswers


def test_task_answers_are_right() -> None:
    tasks = TaskPairs(["sums"], [2, 3], 40, seed=3)
    examples = TaskAnswers(tasks).read(SFTExample)
    assert len(examples) == 40
    for example, pair in zip(examples, tasks.read(PreferencePair), strict=True):
        (turn,) = example.messages
        terms = map(int, turn["content"].removesuffix("=?").split("+"))
        assert turn["role"] == "user" and int(example.completion) == sum(terms)
        assert (example.pair_id, example.group) == (pair.id, pair.question_key)


def test_task_answers_are_sft_examples_alone() -> None:
    with pytest.raises(UserError, match="read as SFTExample, not as PreferenceExample"):
        TaskAnswers(TaskPairs(["sums"], [1], 2)).read(PreferenceExample)
