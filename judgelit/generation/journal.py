"""A journal of an engine's answers in SQLite, so that a killed run loses nothing and asks nothing twice."""

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.generation.engine import Engine, Generated
from judgelit.generation.sampling import Sampling
from judgelit.records.records import Message

_PATIENCE = 30
"""Seconds to wait for a database that another process has locked."""
_VERSION = 2
"""Version of the journal's format. Raise it when a journal of the former one can no longer be read."""
_TABLES = {"answers": ["key", "generated"], "settings": ["purpose", "settings"]}


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
        self._path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_PATIENCE)
            self._check_format()
            self._connection.execute("PRAGMA journal_mode=WAL")
            with self._connection:
                for table, (key, value) in _TABLES.items():
                    self._connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {table} ({key} TEXT PRIMARY KEY, {value} TEXT NOT NULL)"
                    )
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    @property
    def made_from(self) -> Mapping[str, Any]:
        """What results record of the engine."""
        return self.engine.made_from

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
        self._check_settings(settings)
        keys = [_key(settings, messages) for messages in conversations]
        # Equal conversations share one answer.
        unknown: dict[str, list[int]] = {}
        for index, key in enumerate(keys):
            if index in done:
                continue
            if (answer := self._read(key)) is not None:
                yield index, answer
            else:
                unknown.setdefault(key, []).append(index)
        if not unknown:
            return
        with self._only_asker():
            # Another process may have asked while this one waited.
            for key in list(unknown):
                if (answer := self._read(key)) is not None:
                    yield from ((index, answer) for index in unknown.pop(key))
            to_ask = {indices[0] for indices in unknown.values()}
            not_asked = set(range(len(keys))) - to_ask
            for index, answer in self.engine.answer(
                conversations, sampling, samples=samples, seed=seed, done=not_asked
            ):
                # Engines generate whole batches, so an answer may be known already; the first one is kept.
                if index in to_ask:
                    to_ask.remove(index)
                    with self._errors(), self._connection:
                        self._connection.execute(
                            "INSERT INTO answers VALUES (?, ?)", (keys[index], json.dumps(list(map(asdict, answer))))
                        )
                    yield from ((equal, answer) for equal in unknown[keys[index]])

    def _read(self, key: str) -> list[Generated] | None:
        with self._errors():
            row = self._connection.execute("SELECT generated FROM answers WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else [Generated(**fields) for fields in json.loads(row[0])]
        except (ValueError, TypeError) as error:
            raise self._damaged("an answer is no list of texts") from error

    def _check_format(self) -> None:
        """Refuse a database that is not a journal of this version."""
        tables = [name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {
            table: [row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")] for table in _TABLES
        }
        ((version,),) = self._connection.execute("PRAGMA user_version")
        if tables and (version or columns["answers"] == ["key", "texts"]) and version != _VERSION:
            raise UserError(
                f"{self._path}: found a journal of format {version or 1}, expected {_VERSION}; another version of "
                "judgelit made it: use that one, or move the file away to start a new journal"
            )
        if tables and columns != _TABLES:
            raise UserError(f"{self._path}: found a database of another program, expected a journal; move it away")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Keep the settings of this purpose, or compare them with those that the journal was made for."""
        with self._errors(), self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO settings VALUES (?, ?)", (self.purpose, json.dumps(settings))
            )
            ((kept,),) = self._connection.execute(
                "SELECT settings FROM settings WHERE purpose = ?", (self.purpose,)
            ).fetchall()
        try:
            before = dict(json.loads(kept))
        except (ValueError, TypeError) as error:
            raise self._damaged("its settings are no object") from error
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self._path}: {self.purpose}: {name}: found answers for {before.get(name)!r}, expected "
                    f"{value!r}; choose another output, or move the journal away to ask everything again"
                )

    @contextmanager
    def _only_asker(self) -> Iterator[None]:
        """Wait until no other process asks through this journal, and keep others waiting inside the `with` block.

        The system releases the lock of a process that has been killed.
        """
        path = self._path.with_name(self._path.name + ".lock")
        with self._errors():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"{self._path}: another process asks through this journal; waiting until it has ended", flush=True
                )
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                print(f"{self._path}: its file system has no locks; start no second process there", flush=True)
            yield
        finally:
            os.close(descriptor)

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
