"""A journal of an engine's answers in SQLite, so that a killed run loses nothing and asks nothing twice."""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.engine import Engine
from judgelit.generation.sampling import Sampling
from judgelit.records.records import Message

_PATIENCE = 30
"""Seconds to wait for another process that writes to the same journal."""


class JournaledEngine:
    """An engine that writes each answer to a journal before it is used, and reads known answers from there.

    The key of an answer is a hash of the engine's identity, the conversation, the sampling and the seed.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        """Open the journal at `path`, or create it.

        Raises:
            UserError: The file is not a journal, is damaged or locked, or cannot be written.
        """
        self.engine = engine
        self.name = engine.name
        self.tokenizer = engine.tokenizer
        self.identity = engine.identity
        self._path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_PATIENCE)
            tables = {
                name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
            columns = [row[1] for row in self._connection.execute("PRAGMA table_info(answers)")]
            if tables and (tables != {"answers"} or columns != ["key", "texts"]):
                raise UserError(f"{path}: found a database of another program, expected a journal; move it away")
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, texts TEXT NOT NULL)")

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
                with self._errors(), self._connection:
                    self._connection.execute(
                        "INSERT OR IGNORE INTO answers VALUES (?, ?)", (keys[index], json.dumps(texts))
                    )
                for equal in unknown[keys[index]]:
                    yield equal, texts

    def _read(self, key: str) -> list[str] | None:
        with self._errors():
            row = self._connection.execute("SELECT texts FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            texts = json.loads(row[0])
        except (ValueError, TypeError):
            texts = None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise self._damaged("an answer is no list of texts")
        return texts

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors of the database as UserErrors. All answers that were written before are kept."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path.parent}: cannot be written to: {error.strerror or error}") from error
        except sqlite3.DatabaseError as error:
            said = str(error)
            if "locked" in said:
                raise UserError(
                    f"{self._path}: another process has locked it for {_PATIENCE} seconds; wait until it has ended, "
                    "then the same command continues"
                ) from error
            if any(words in said for words in ("full", "I/O", "readonly", "unable to open")):
                raise UserError(
                    f"{self._path}: cannot be written to: {said}; make room there, then the same command continues"
                ) from error
            raise self._damaged(said) from error

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"{self._path}: not a journal of judgelit, or a damaged one ({why}); move it away to start a new one"
        )


def _key(settings: dict[str, object], messages: Sequence[Message]) -> str:
    text = json.dumps({**settings, "messages": list(messages)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
