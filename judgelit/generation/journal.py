"""A journal of an engine's answers in SQLite, so that a killed run loses nothing and asks nothing twice."""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.engine import Engine
from judgelit.generation.sampling import Sampling
from judgelit.records.records import Message


class JournaledEngine:
    """An engine that writes each answer to a journal before it is used, and reads known answers from there.

    The key of an answer is a hash of the engine's identity, the conversation, the sampling and the seed.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        """Open the journal at `path`, or create it.

        Raises:
            UserError: The file is not a journal, or cannot be written.
        """
        self.engine = engine
        self.name = engine.name
        self.tokenizer = engine.tokenizer
        self.identity = engine.identity
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, texts TEXT NOT NULL)")
        except (OSError, sqlite3.OperationalError) as error:
            raise UserError(
                f"{path.parent}: cannot be written to: {getattr(error, 'strerror', None) or error}"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: not a journal of judgelit ({error}); move it away to start a new one") from error

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield (index, texts) for every conversation: first the known answers, then the engine's new ones."""
        settings = {"engine": self.identity, "sampling": asdict(sampling), "samples": samples, "seed": seed}
        keys = [_key(settings, messages) for messages in conversations]
        # Equal conversations share one answer.
        unknown: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            if index in done:
                continue
            if (texts := self._read(key)) is not None:
                yield index, texts
            else:
                unknown.setdefault(key, []).append(index)
        if not unknown:
            return
        to_ask = {indices[0] for indices in unknown.values()}
        not_asked = set(range(len(keys))) - to_ask
        for index, texts in self.engine.answer(conversations, sampling, samples=samples, seed=seed, done=not_asked):
            # Engines generate whole batches, so an answer may be known already; the first one is kept.
            if index in to_ask:
                to_ask.remove(index)
                with self._connection:
                    self._connection.execute(
                        "INSERT OR IGNORE INTO answers VALUES (?, ?)", (keys[index], json.dumps(texts))
                    )
                for equal in unknown[keys[index]]:
                    yield equal, texts

    def _read(self, key: str) -> list[str] | None:
        row = self._connection.execute("SELECT texts FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])


def _key(settings: dict[str, object], messages: Sequence[Message]) -> str:
    text = json.dumps({**settings, "messages": list(messages)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
