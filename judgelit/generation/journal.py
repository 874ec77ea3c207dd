"""A journal of an engine's answers, so that a killed run loses nothing and asks nothing twice."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from judgelit.generation.engine import Engine, Generated
from judgelit.generation.journal_file import Journal
from judgelit.generation.sampling import Sampling
from judgelit.records.row_fields import Message


class JournaledEngine:
    """An engine that writes each answer to a journal before it is used, and reads known answers from there.

    The key of an answer is a hash of the engine's identity, the conversation, the sampling, the number of samples and
    the seed. The journal keeps the settings of each purpose and refuses others, since a changed setting would ask
    everything again.

    Several processes may use one journal. One of them asks at a time; another one waits, then reads its answers.
    """

    def __init__(self, engine: Engine, path: Path, purpose: str = "judge") -> None:
        """Open the journal at `path`, or create it.

        Args:
            engine: Generates the answers that are not known.
            path: The file.
            purpose: What the answers are for, such as `judge` or `teacher`. Each purpose has its own settings.

        Raises:
            UserError: The file is not a journal, is of another version, is damaged or locked, or cannot be written.
        """
        self.engine = engine
        self.purpose = purpose
        self.name = engine.name
        self.tokenizer = engine.tokenizer
        self.identity = engine.identity
        self._journal = Journal(path)

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What results record of the engine."""
        return self.engine.made_from

    def for_purpose(self, purpose: str) -> "JournaledEngine":
        """The same engine and journal for another purpose, with settings of its own."""
        return JournaledEngine(self.engine, self._journal.path, purpose)

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[Generated]]]:
        """Yield (index, texts) for every conversation: first the known answers, then the engine's new ones.

        Raises:
            UserError: The journal was made for other settings, is damaged, or cannot be written.
        """
        settings = {"engine": self.identity, **asdict(sampling), "samples": samples, "seed": seed}
        self._journal.keep_settings(self.purpose, settings)
        keys = [_key(settings, messages) for messages in conversations]
        # Equal conversations share one answer.
        unknown: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            if index not in done:
                unknown.setdefault(key, []).append(index)
        for key in list(unknown):
            if (answer := self._journal.read(key)) is not None:
                yield from _shared(answer, unknown.pop(key))
        if not unknown:
            return
        with self._journal.only_asker():
            # Another process may have asked while this one waited.
            for key in list(unknown):
                if (answer := self._journal.read(key)) is not None:
                    yield from _shared(answer, unknown.pop(key))
            to_ask = {indices[0] for indices in unknown.values()}
            not_asked = set(range(len(keys))) - to_ask
            for index, answer in self.engine.answer(
                conversations, sampling, samples=samples, seed=seed, done=not_asked
            ):
                # Engines generate whole batches, so an answer may be known already; the first one is kept.
                if index in to_ask:
                    to_ask.remove(index)
                    self._journal.write(keys[index], answer)
                    yield from _shared(answer, unknown[keys[index]])


def _shared(answer: list[Generated], indices: Sequence[int]) -> Iterator[tuple[int, list[Generated]]]:
    """Yield the answer of equal conversations for each of them; its tokens count once."""
    yield indices[0], answer
    yield from ((index, [replace(one, prompt_tokens=0, new_tokens=0) for one in answer]) for index in indices[1:])


def _key(settings: dict[str, object], messages: Sequence[Message]) -> str:
    text = json.dumps({**settings, "messages": list(messages)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
