"""Common prefixes of prompts, so that each is computed once."""

from collections.abc import Sequence
from itertools import pairwise

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions

SHORTEST_PREFIX = 16
"""Shorter common prefixes, in tokens, are computed once for each prompt, since sharing them saves too little."""


def flat_prompts(prompts: Sequence[Sequence[int]]) -> tuple[Batch, list[list[int]]]:
    """Prompts as a flat batch of T tokens in which common prefixes occur once.

    Args:
        prompts: Ids of each prompt, sorted.

    Returns:
        The batch; for each prompt the places of its tokens in the batch, between 0 and T.
    """
    lengths = shared_prefixes(prompts)
    # The batch puts prompts with the same prefix together.
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for index, length in enumerate(lengths):
        by_prefix.setdefault(tuple(prompts[index][:length]), []).append(index)
    sequence = [index for indices in by_prefix.values() for index in indices]
    rows = [TokenizedCompletion("", prompts[i][: lengths[i]], prompts[i][lengths[i] :]) for i in sequence]
    batch = flatten_completions(rows)
    places: list[list[int]] = [[] for _ in prompts]
    rests = (segment for segment in batch.segments if segment.prompt is not None)
    for index, rest in zip(sequence, rests, strict=True):
        prefix = batch.segments[rest.prompt or 0]
        places[index] = [*range(prefix.start, prefix.stop), *range(rest.start, rest.stop)]
    return batch, places


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The number of tokens of each prompt that belong to the prefix that it shares with its neighbours.

    The prompts are split into groups of neighbours. A group shares the common prefix of all its prompts. The split
    minimises the number of tokens to compute, by dynamic programming over the end of the last group. A prompt alone in
    its group counts as prefix only.

    Args:
        prompts: Ids of each prompt, sorted, so that neighbours share the most.
    """
    common = [length if length >= SHORTEST_PREFIX else 0 for length in map(_common_length, prompts, prompts[1:])]
    saved, starts = [0], [0]
    for stop in range(1, len(prompts) + 1):
        best, start, prefix = saved[stop - 1], stop - 1, len(prompts[stop - 1])
        for earlier in range(stop - 2, -1, -1):
            prefix = min(prefix, common[earlier])
            if prefix == 0:
                break
            gain = saved[earlier] + (stop - earlier - 1) * prefix
            if gain > best:
                best, start = gain, earlier
        saved.append(best)
        starts.append(start)
    lengths: list[int] = []
    stop = len(prompts)
    while stop:
        start = starts[stop]
        lengths += [min(common[start : stop - 1], default=len(prompts[start]))] * (stop - start)
        stop = start
    return lengths[::-1]


def split_by_tokens(prompts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[Sequence[int]]]:
    """Prompts in parts of at most `tokens` tokens, common prefixes of neighbours counted once.

    A prompt that is longer is a part alone.
    """
    cuts, held = [0], 0
    for index, prompt in enumerate(prompts):
        new = len(prompt) - (_common_length(prompts[index - 1], prompt) if held else 0)
        if held and held + new > tokens:
            cuts.append(index)
            held, new = 0, len(prompt)
        held += new
    return [prompts[start:stop] for start, stop in pairwise([*cuts, len(prompts)])]


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix, in tokens."""
    differing = (index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differing, min(len(one), len(other)))
