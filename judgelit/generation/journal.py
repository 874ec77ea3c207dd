"""What an engine has answered, kept in SQLite before it is used: a kill loses nothing and nothing is asked twice."""

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from judgelit.errors import UserError
from judgelit.generation.engine import Engine
from judgelit.generation.generate import Sampling
from judgelit.records.records import Message


class JournaledEngine:
    """An engine whose answers are written down by what was asked: weights, conversation, sampling and seed."""

    def __init__(self, engine: Engine, path: Path) -> None:
        """Open the journal at `path`, or begin one.

        Raises:
            UserError: The file is no journal, or cannot be written.
        """
        self.engine = engine
        self.name = engine.name
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
            raise UserError(f"{path}: not a journal of judgelit ({error}); move it away to begin anew") from error

    def answer(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        samples: int = 1,
        seed: int = 0,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield (index, texts): first what is known, then what the engine had to be asked."""
        asked = {"engine": self.identity, "sampling": asdict(sampling), "samples": samples, "seed": seed}
        keys = [_key(asked, messages) for messages in conversations]
        # Conversations that ask the same share one answer.
        waiting: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            if index in done:
                continue
            if (texts := self._read(key)) is not None:
                yield index, texts
            else:
                waiting.setdefault(key, []).append(index)
        if not waiting:
            return
        to_ask = {indices[0] for indices in waiting.values()}
        rest = set(range(len(keys))) - to_ask
        for index, texts in self.engine.answer(conversations, sampling, samples=samples, seed=seed, done=rest):
            # Engines generate whole batches, so some of these may be known already; the first answer stands.
            if index in to_ask:
                to_ask.remove(index)
                with self._connection:
                    self._connection.execute(
                        "INSERT OR IGNORE INTO answers VALUES (?, ?)", (keys[index], json.dumps(texts))
                    )
                for twin in waiting[keys[index]]:
                    yield twin, texts

    def _read(self, key: str) -> list[str] | None:
        row = self._connection.execute("SELECT texts FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])


def _key(asked: dict[str, object], messages: Sequence[Message]) -> str:
    text = json.dumps({**asked, "messages": list(messages)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
