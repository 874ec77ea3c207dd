"""Leave out pairs whose question is also in an evaluation set.

A question shares a word 13-gram with one of the set (Brown et al. 2020, arXiv 2005.14165, appendix C), or it is shorter
and equals one. Case, punctuation and spacing do not matter; in scripts without spaces, such as Chinese, each character
is a word. Only what users say is compared: neither answers nor the turns of assistants.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.records.reading import read_record
from judgelit.records.records import PreferencePair, SFTExample
from judgelit.records.sources import FileSource, Source, Sources, as_sources
from judgelit.synthesis.question_words import conversation_text, ngrams, words

SIZE = 13
"""Words of an n-gram."""
_QUESTIONS = ("question", "instruction", "prompt", "problem", "query", "input")
"""Fields that hold the question in rows of no known form, the first one first."""


@dataclass(frozen=True)
class EvaluationSet:
    """The questions of an evaluation set."""

    questions: int
    """Number of questions."""
    ngrams: frozenset[int]
    """Hashes of their word 13-grams."""
    short: frozenset[tuple[str, ...]]
    """Words and signs of the questions with fewer words."""

    @classmethod
    def of(cls, texts: Sequence[str], questions: int | None = None) -> "EvaluationSet":
        """The set of these texts, which are `questions` questions; by default each is one."""
        distinct = sorted(set(texts))
        short = {tuple(words(text, signs=True)) for text in distinct if len(words(text)) < SIZE}
        grams = frozenset(gram for text in distinct for gram in ngrams(words(text), SIZE))
        return cls(len(distinct) if questions is None else questions, grams, frozenset(short - {()}))

    @classmethod
    def of_pairs(cls, pairs: Sequence[PreferencePair]) -> "EvaluationSet":
        """The set of the questions of pairs."""
        return cls.of([conversation_text(pair, user_only=True) for pair in pairs])

    def holds(self, text: str) -> bool:
        """Whether a question is in the set, or shares a 13-gram with one that is."""
        tokens = words(text)
        if len(tokens) < SIZE:
            return tuple(words(text, signs=True)) in self.short
        return any(gram in self.ngrams for gram in ngrams(tokens, SIZE))


def decontaminate(
    pairs: Sequence[PreferencePair], sets: Mapping[str, EvaluationSet]
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs whose question is in none of the sets, and how many pairs each set holds.

    A pair that several sets hold is counted in each.
    """
    holders = {
        key: [name for name, of_set in sets.items() if of_set.holds(text)]
        for key, text in {pair.question_key: conversation_text(pair, user_only=True) for pair in pairs}.items()
    }
    found = dict.fromkeys(sets, 0)
    for pair in pairs:
        for name in holders[pair.question_key]:
            found[name] += 1
    return [pair for pair in pairs if not holders[pair.question_key]], found


def drop_held(
    pairs: Sequence[PreferencePair], sets: Mapping[str, EvaluationSet]
) -> tuple[list[PreferencePair], dict[str, dict[str, int]]]:
    """The pairs whose question is in none of the sets; and the number of each set's questions and of pairs it holds."""
    kept, found = decontaminate(pairs, sets)
    return kept, {name: {"questions": of_set.questions, "pairs": found[name]} for name, of_set in sets.items()}


def read_evaluation_sets(named: dict[str, Sources] | Sources | None) -> dict[str, EvaluationSet]:
    """Read evaluation sets, by name. A file without a name gets that of the file.

    Raises:
        UserError: A set cannot be read or has no question.
    """
    if named is None:
        return {}
    if isinstance(named, str):
        named = {re.sub(r"[^\w-]+", "-", Path(named).name.split(".")[0]).strip("-") or "evaluation": named}
    elif isinstance(named, Source):
        named = {type(named).__name__: named}
    sets = {}
    for name, value in named.items():
        rows = [texts for source in as_sources(value) for texts in _questions(source)]
        sets[name] = EvaluationSet.of([text for texts in rows for text in texts], len(rows))
        if not sets[name].ngrams and not sets[name].short:
            raise UserError(f"decontaminate.{name}: found no question, expected an evaluation set")
    return sets


def _questions(source: Source) -> Iterator[list[str]]:
    """Yield the question of each row of a source, in all its forms. The rows need no label, and no answers."""
    if type(source) is not FileSource:
        yield from ([conversation_text(pair, user_only=True)] for pair in source.read(PreferencePair))
        return
    for number, (at, row) in enumerate(source.rows(), 1):
        if source.limit is not None and number > source.limit:
            return
        texts = list(_of_row(row, at))
        if not texts:
            raise UserError(
                f"{at}: found {', '.join(map(repr, row)) or 'nothing'}, expected a row of pairs or examples, or one of "
                f"the fields {', '.join(_QUESTIONS)}"
            )
        yield texts


def _of_row(row: Mapping[str, Any], at: str) -> Iterator[str]:
    try:
        yield conversation_text(read_record(row, at, PreferencePair, at), user_only=True)
        return
    except UserError:
        pass
    try:
        example = read_record(row, at, SFTExample, at)
        yield "\n".join(turn["content"] for turn in example.messages if turn["role"] == "user")
        return
    except UserError:
        pass
    name = next((name for name in _QUESTIONS if isinstance(row.get(name), str) and row[name].strip()), None)
    if name is None:
        return
    yield row[name]
    # Self-Instruct has several inputs for an instruction, Alpaca's form one.
    instances = row.get("instances")
    for instance in [row, *(instances if isinstance(instances, list) else [])]:
        if name != "input" and isinstance(instance, Mapping) and isinstance(instance.get("input"), str):
            yield f"{row[name]}\n{instance['input']}"
