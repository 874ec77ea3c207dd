"""Common beginnings of prompts: nothing lost, nothing computed twice that need not be."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from judgelit.generation import prefixes
from judgelit.generation.prefixes import flat_prompts, runs, shared_prefixes

LONG = list(range(100, 140))
# Few different tokens and few different beginnings, so that much is in common.
PROMPT = st.builds(
    lambda head, tail: [*head, *tail],
    st.sampled_from([[], LONG[:20], LONG, [*LONG[:20], 7, 8, 9] * 2]),
    st.lists(st.integers(0, 2), min_size=1, max_size=25),
)
PROMPTS = st.lists(PROMPT, min_size=1, max_size=7).map(sorted)


def common(prompts: list[list[int]]) -> int:
    """Tokens that all begin with, as far as it is worth while."""
    length = 0
    while all(len(prompt) > length and prompt[length] == prompts[0][length] for prompt in prompts):
        length += 1
    return length if length >= prefixes._WORTH else 0


def fewest(prompts: list[list[int]]) -> int:
    """Tokens left by the best of all ways to cut the prompts into runs."""
    if not prompts:
        return 0
    costs = []
    for size in range(1, len(prompts) + 1):
        run = prompts[:size]
        costs.append(sum(map(len, run)) - (size - 1) * common(run) + fewest(prompts[size:]))
    return min(costs)


@given(PROMPTS)
def test_as_few_tokens_are_left_as_runs_can_leave(prompts: list[list[int]]) -> None:
    lengths = shared_prefixes(prompts)
    cost = sum(len(prompt) - length for prompt, length in zip(prompts, lengths, strict=True))
    shared = [tuple(prompt[:length]) for prompt, length in zip(prompts, lengths, strict=True)]
    cost += sum(len(prefix) for prefix, after in pairwise([*shared, ()]) if prefix != after)
    assert cost <= fewest(prompts)


@given(PROMPTS)
def test_a_row_holds_each_prompt_in_its_places(prompts: list[list[int]]) -> None:
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


def test_what_two_have_in_common_besides_is_shared_where_it_is_more() -> None:
    one, other = [*LONG, 1], [*LONG, 2]
    assert shared_prefixes([one, other]) == [40, 40]
    # Three that share 21 save more than two that share 40, and three that share 19 less.
    assert shared_prefixes([one, other, [*LONG[:21], 999]]) == [21, 21, 21]
    assert shared_prefixes([one, other, [*LONG[:19], 999]]) == [40, 40, 20]


def test_little_in_common_is_not_shared() -> None:
    assert shared_prefixes([[1, 2, 3], [1, 2, 4]]) == [3, 3]


def test_equal_prompts_stand_once() -> None:
    batch, spans = flat_prompts([LONG, LONG])
    assert batch.input_ids.tolist() == LONG
    assert spans == [list(range(40))] * 2


@given(PROMPTS, st.integers(1, 60))
def test_runs_are_all_prompts_within_the_budget(prompts: list[list[int]], tokens: int) -> None:
    found = runs(prompts, tokens)
    assert [prompt for run in found for prompt in run] == prompts
    for run in found:
        # What neighbours have in common counts once, as it would in a tree of all prefixes.
        shared = [
            next((i for i, (a, b) in enumerate(zip(*two, strict=False)) if a != b), min(map(len, two)))
            for two in pairwise(run)
        ]
        assert len(run) == 1 or sum(map(len, run)) - sum(shared) <= tokens
    for run, after in pairwise(found):
        assert sum(map(len, run)) + len(after[0]) > tokens


def test_what_a_run_has_in_common_counts_once() -> None:
    prompts = [[*LONG, 1, 1, 1], [*LONG, 2, 2], [*LONG, 3, 3]]
    assert runs(prompts, 47) == [prompts]
    assert runs(prompts, 46) == [prompts[:2], prompts[2:]]
    assert runs(prompts, 10) == [prompts[:1], prompts[1:2], prompts[2:]]
