"""Common prefixes of prompts: each token is there, and the fewest tokens are computed."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from judgelit.generation import prefixes
from judgelit.generation.prefixes import flat_prompts, shared_prefixes, split_by_tokens

LONG = list(range(100, 140))
# Few different tokens and few different prefixes, so that prompts have long prefixes in common.
PROMPT = st.builds(
    lambda head, tail: [*head, *tail],
    st.sampled_from([[], LONG[:20], LONG, [*LONG[:20], 7, 8, 9] * 2]),
    st.lists(st.integers(0, 2), min_size=1, max_size=25),
)
PROMPTS = st.lists(PROMPT, min_size=1, max_size=7).map(sorted)


def common(prompts: list[list[int]]) -> int:
    """Length of the prefix of all prompts, 0 if it is too short to share."""
    length = 0
    while all(len(prompt) > length and prompt[length] == prompts[0][length] for prompt in prompts):
        length += 1
    return length if length >= prefixes.SHORTEST_PREFIX else 0


def fewest(prompts: list[list[int]]) -> int:
    """Fewest tokens of all ways to split the prompts into groups."""
    if not prompts:
        return 0
    costs = []
    for size in range(1, len(prompts) + 1):
        run = prompts[:size]
        costs.append(sum(map(len, run)) - (size - 1) * common(run) + fewest(prompts[size:]))
    return min(costs)


@given(PROMPTS)
def test_the_fewest_tokens_are_computed(prompts: list[list[int]]) -> None:
    lengths = shared_prefixes(prompts)
    cost = sum(len(prompt) - length for prompt, length in zip(prompts, lengths, strict=True))
    shared = [tuple(prompt[:length]) for prompt, length in zip(prompts, lengths, strict=True)]
    cost += sum(len(prefix) for prefix, after in pairwise([*shared, ()]) if prefix != after)
    assert cost <= fewest(prompts)


@given(PROMPTS)
def test_a_flat_batch_has_each_prompt_at_its_places(prompts: list[list[int]]) -> None:
    batch, spans = flat_prompts(prompts)
    for prompt, span in zip(prompts, spans, strict=True):
        assert batch.input_ids[span].tolist() == prompt
        assert batch.position_ids[span].tolist() == list(range(len(prompt)))
    assert sorted({place for span in spans for place in span}) == list(range(len(batch.input_ids)))


def test_a_small_example() -> None:
    head, question = LONG[:20], [1, 2, 3, 4]
    prompts = sorted([[*head, *question, 5], [*head, *question, 6, 6], [*head, 9], [7, 7]])
    assert shared_prefixes(prompts) == [2, 20, 20, 20]
    batch, spans = flat_prompts(prompts)
    assert batch.input_ids.tolist() == [7, 7, *head, *question, 5, *question, 6, 6, 9]
    assert spans[2] == [*range(2, 22), *range(27, 33)]


def test_a_longer_prefix_of_two_wins_if_it_saves_more() -> None:
    one, other = [*LONG, 1], [*LONG, 2]
    assert shared_prefixes([one, other]) == [40, 40]
    # Three that share 21 save more than two that share 40, and three that share 19 less.
    assert shared_prefixes([one, other, [*LONG[:21], 999]]) == [21, 21, 21]
    assert shared_prefixes([one, other, [*LONG[:19], 999]]) == [40, 40, 20]


def test_short_prefixes_are_not_shared() -> None:
    assert shared_prefixes([[1, 2, 3], [1, 2, 4]]) == [3, 3]


def test_equal_prompts_are_there_once() -> None:
    batch, spans = flat_prompts([LONG, LONG])
    assert batch.input_ids.tolist() == LONG
    assert spans == [list(range(40))] * 2


@given(PROMPTS, st.integers(1, 60))
def test_parts_have_all_prompts_and_at_most_so_many_tokens(prompts: list[list[int]], tokens: int) -> None:
    found = split_by_tokens(prompts, tokens)
    assert [prompt for run in found for prompt in run] == prompts
    for run in found:
        # The common prefix of neighbours counts once, as in a tree of all prefixes.
        shared = [
            next((i for i, (a, b) in enumerate(zip(*two, strict=False)) if a != b), min(map(len, two)))
            for two in pairwise(run)
        ]
        assert len(run) == 1 or sum(map(len, run)) - sum(shared) <= tokens
    for run, after in pairwise(found):
        assert sum(map(len, run)) + len(after[0]) > tokens


def test_the_common_prefix_of_a_part_counts_once() -> None:
    prompts = [[*LONG, 1, 1, 1], [*LONG, 2, 2], [*LONG, 3, 3]]
    assert split_by_tokens(prompts, 47) == [prompts]
    assert split_by_tokens(prompts, 46) == [prompts[:2], prompts[2:]]
    assert split_by_tokens(prompts, 10) == [prompts[:1], prompts[1:2], prompts[2:]]
