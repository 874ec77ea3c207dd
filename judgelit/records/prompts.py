"""Read the prompts that a policy is to answer, from data of any form."""

from judgelit.errors import UserError
from judgelit.records.records import PreferencePair, Prompt
from judgelit.records.sources import FileSource, Source, Sources, as_sources


def read_prompts(value: Sources) -> tuple[list[Prompt], int]:
    """The different prompts of some sources, and the number of repeated ones that were left out.

    A data set often has several rows for one prompt. The first one gives its id.

    Raises:
        UserError: Two different prompts have the same id, or a row has no prompt.
    """
    found: dict[tuple[tuple[str, str], ...], Prompt] = {}
    by_id: dict[str, Prompt] = {}
    repeated = 0
    for source in as_sources(value):
        for prompt in _prompts(source):
            if by_id.setdefault(prompt.id, prompt).messages != prompt.messages:
                raise UserError(
                    f"prompt id {prompt.id!r}: found two different prompts with this id, expected different ids"
                )
            turns = tuple((turn["role"], turn["content"]) for turn in prompt.messages)
            repeated += turns in found
            found.setdefault(turns, prompt)
    return list(found.values()), repeated


def _prompts(source: Source) -> list[Prompt]:
    """The prompts of a source; of one that makes pairs, such as TaskPairs, their questions."""
    if isinstance(source, FileSource):
        return source.read(Prompt)
    return [Prompt(pair.id, pair.question, pair.context) for pair in source.read(PreferencePair)]
