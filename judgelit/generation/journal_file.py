"""The file of a journal: an SQLite database of answers by key, and of the settings that they were made for."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judgelit.errors import UserError
from judgelit.generation.engine import Generated

_PATIENCE = 30
"""Seconds to wait for a database that another process has locked."""
_VERSION = 2
"""Version of the journal's format. Raise it when a journal of the former one can no longer be read."""
_TABLES = {"answers": ["key", "generated"], "settings": ["purpose", "settings"]}


class Journal:
    """The answers of engines by key, and the settings of each purpose."""

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`, or create it.

        Raises:
            UserError: The file is not a journal, is of another version, is damaged or locked, or cannot be written.
        """
        self.path = path
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=_PATIENCE)
            with self._connection:
                # One transaction: a process that opens the same new journal sees all of its tables or none.
                self._connection.execute("BEGIN IMMEDIATE")
                self._check_format()
                for table, (key, value) in _TABLES.items():
                    self._connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {table} ({key} TEXT PRIMARY KEY, {value} TEXT NOT NULL)"
                    )
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                # SQLite does not wait here. The process that holds the lock has opened the journal and sets this mode.
                if "locked" not in str(error):
                    raise

    def __len__(self) -> int:
        """Number of answers."""
        with self._errors():
            return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def read(self, key: str) -> list[Generated] | None:
        """The answer with this key, or None."""
        with self._errors():
            row = self._connection.execute("SELECT generated FROM answers WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else [Generated(**fields) for fields in json.loads(row[0])]
        except (ValueError, TypeError) as error:
            raise self._damaged("an answer is no list of texts") from error

    def write(self, key: str, answer: Sequence[Generated]) -> None:
        """Write an answer that is not there yet; it is on the disk when this returns."""
        with self._errors(), self._connection:
            self._connection.execute(
                "INSERT INTO answers VALUES (?, ?)", (key, json.dumps([asdict(text) for text in answer]))
            )

    def settings(self, purpose: str) -> dict[str, Any]:
        """The settings of a purpose; empty if nothing was asked for it."""
        with self._errors():
            row = self._connection.execute("SELECT settings FROM settings WHERE purpose = ?", (purpose,)).fetchone()
        try:
            return {} if row is None else dict(json.loads(row[0]))
        except (ValueError, TypeError) as error:
            raise self._damaged("its settings are no object") from error

    def keep_settings(self, purpose: str, settings: Mapping[str, Any]) -> None:
        """Keep the settings of a purpose, or compare them with those that the journal was made for.

        Raises:
            UserError: They differ.
        """
        with self._errors(), self._connection:
            self._connection.execute(
                "INSERT OR IGNORE INTO settings VALUES (?, ?)", (purpose, json.dumps(dict(settings)))
            )
        before = self.settings(purpose)
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self.path}: {purpose}: {name}: found answers for {before.get(name)!r}, expected {value!r}; "
                    "choose another output, or move the journal away to ask everything again"
                )

    def take(self, other: Path) -> None:
        """Copy the answers and the settings of another journal.

        Raises:
            UserError: The other file is not a journal of this version, was made for other settings than this one, or
                has another answer to the same prompt.
        """
        if not other.is_file():
            raise UserError(f"{other}: no such file, expected a journal")
        part = Journal(other)
        with part._errors():
            purposes = [purpose for (purpose,) in part._connection.execute("SELECT purpose FROM settings").fetchall()]
        for purpose in purposes:
            found = part.settings(purpose)
            for name, value in (self.settings(purpose) or found).items():
                if found.get(name) != value:
                    raise UserError(
                        f"{other}: {purpose}: {name}: found answers for {found.get(name)!r}, expected {value!r} as in "
                        f"{self.path}; join journals of one command alone"
                    )
            self.keep_settings(purpose, found)
        with self._errors(), part._errors(), self._connection:
            for key, generated in part._connection.execute("SELECT key, generated FROM answers"):
                self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, generated))
                row = self._connection.execute("SELECT generated FROM answers WHERE key = ?", (key,)).fetchone()
                if row[0] != generated:
                    raise UserError(
                        f"{other}: found another answer than {self.path} to the same prompt, expected that each prompt "
                        "is asked once; where all shards ask for rewrites of the judge prompts, start the others with "
                        "a copy of the first one's journal"
                    )

    @contextmanager
    def only_asker(self) -> Iterator[None]:
        """Wait until no other process asks through this journal, and keep others waiting inside the `with` block.

        The system releases the lock of a process that has been killed.
        """
        path = self.path.with_name(self.path.name + ".lock")
        with self._errors():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{self.path}: another process asks through this journal; waiting until it has ended", flush=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError:
                print(f"{self.path}: its file system has no locks; start no second process there", flush=True)
            yield
        finally:
            os.close(descriptor)

    def _check_format(self) -> None:
        """Refuse a database that is not a journal of this version."""
        tables = [name for (name,) in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {
            table: [row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")] for table in _TABLES
        }
        ((version,),) = self._connection.execute("PRAGMA user_version")
        if tables and (version or columns["answers"] == ["key", "texts"]) and version != _VERSION:
            raise UserError(
                f"{self.path}: found a journal of format {version or 1}, expected {_VERSION}; another version of "
                "judgelit made it: use that one, or move the file away to start a new journal"
            )
        if tables and columns != _TABLES:
            raise UserError(f"{self.path}: found a database of another program, expected a journal; move it away")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise errors of the database as UserErrors. All answers that were written before are kept."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path.parent}: cannot be written to: {error.strerror or error}") from error
        except sqlite3.DatabaseError as error:
            said = str(error)
            if "locked" in said:
                raise UserError(
                    f"{self.path}: another process has locked it for {_PATIENCE} seconds; wait until it has ended, "
                    "then the same command continues"
                ) from error
            if any(words in said for words in ("full", "I/O", "readonly", "unable to open")):
                raise UserError(
                    f"{self.path}: cannot be written to: {said}; make room there, then the same command continues"
                ) from error
            raise self._damaged(said) from error

    def _damaged(self, why: str) -> UserError:
        return UserError(
            f"{self.path}: not a journal of judgelit, or a damaged one ({why}); move it away to start a new one"
        )
