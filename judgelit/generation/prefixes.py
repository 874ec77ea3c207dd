"""What prompts begin with in common, so that it is computed once."""

from collections.abc import Sequence
from itertools import pairwise

from judgelit.batches.flat_batch import Batch, TokenizedCompletion, flatten_completions

_WORTH = 16
"""Tokens in common below which to compute them twice is no loss."""


def flat_prompts(prompts: Sequence[Sequence[int]]) -> tuple[Batch, list[list[int]]]:
    """Prompts as a batch in which common beginnings stand once, and the places in its flat row of each one's tokens."""
    lengths = shared_prefixes(prompts)
    # The batch puts what shares a prefix together.
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for index, length in enumerate(lengths):
        by_prefix.setdefault(tuple(prompts[index][:length]), []).append(index)
    order = [index for indices in by_prefix.values() for index in indices]
    rows = [TokenizedCompletion("", prompts[i][: lengths[i]], prompts[i][lengths[i] :]) for i in order]
    batch = flatten_completions(rows)
    spans: list[list[int]] = [[] for _ in prompts]
    rests = (segment for segment in batch.segments if segment.prompt is not None)
    for index, rest in zip(order, rests, strict=True):
        prefix = batch.segments[rest.prompt or 0]
        spans[index] = [*range(prefix.start, prefix.stop), *range(rest.start, rest.stop)]
    return batch, spans


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Of each prompt, how many of its first tokens to compute once for all prompts that begin with them.

    The prompts are cut into runs of neighbours, each of which shares what all of it begins with, so that as few tokens
    as possible are left; a prompt that shares nothing is all prefix. Neighbours of a sorted list share the most.
    """
    common = [length if length >= _WORTH else 0 for length in map(_common, prompts, prompts[1:])]
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


def runs(prompts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[Sequence[int]]]:
    """Prompts in runs of about so many tokens, counting once what neighbours have in common; a longer one alone."""
    cuts, held = [0], 0
    for index, prompt in enumerate(prompts):
        own = len(prompt) - (_common(prompts[index - 1], prompt) if held else 0)
        if held and held + own > tokens:
            cuts.append(index)
            held, own = 0, len(prompt)
        held += own
    return [prompts[start:stop] for start, stop in pairwise([*cuts, len(prompts)])]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    differing = (index for index, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differing, min(len(one), len(other)))
