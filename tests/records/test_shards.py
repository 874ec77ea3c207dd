import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judgelit.errors import UserError
from judgelit.records.shards import Shard
from tests.support import make_pair


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5), max_size=12), st.integers(1, 6))
def test_each_question_is_in_one_shard(questions: list[str], count: int) -> None:
    pairs = [make_pair(number, question=question) for number, question in enumerate(questions)]
    parts = [Shard(number, count).part(pairs) for number in range(1, count + 1)]
    assert sorted((pair for part in parts for pair in part), key=pairs.index) == pairs
    keys = [{pair.question_key for pair in part} for part in parts]
    assert sum(map(len, keys)) == len({pair.question_key for pair in pairs})
    # A shard does not depend on the other pairs, and an order of the answers is none of its business.
    assert all(Shard(at + 1, count).part([pair.swapped() for pair in part]) for at, part in enumerate(parts) if part)


def test_shards_are_of_similar_size() -> None:
    pairs = [make_pair(number) for number in range(2000)]
    assert all(abs(len(Shard(number, 4).part(pairs)) - 500) < 80 for number in (1, 2, 3, 4))


def test_a_shard_is_written_as_a_fraction() -> None:
    assert Shard.parse(" 2/16 ") == Shard(2, 16) and str(Shard(2, 16)) == "2/16"


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", "1.5/2"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^shard: found .*, expected I/N with I from 1 to N, such as 1/4$"):
        Shard.parse(text)
