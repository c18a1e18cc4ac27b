"""What is remembered from run to run, in the user's cache directory: always something that can be found out again."""

import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)
AT_ONCE = 500  # keys in a question to the database


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/audiolm`, by default `~/.cache/audiolm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audiolm")


class Remembered:
    """JSON values by key in an SQLite file, which several processes may use at once.

    A file that is torn is made anew; one that cannot be read or written is done without, with a warning.
    """

    def __init__(self, file: str | Path):
        self.file, self._database = Path(file), None
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.file, timeout=30)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS known (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )

    def _failed(self, error: Exception) -> None:
        database, self._database = self._database, None
        if database and type(error) is sqlite3.DatabaseError:  # not a database, or a torn one
            database.close()
            try:
                self.file.unlink(missing_ok=True)
                self._open()
                return
            except (sqlite3.Error, OSError) as again:
                error, self._database = again, None
        logger.warning(
            "%s cannot be used (%s); the next run finds out again what it would hold",
            self.file,
            error,
        )

    def get(self, keys: list[str]) -> dict[str, object]:
        """The values of those keys that are known."""
        found: dict[str, object] = {}
        for start in range(0, len(keys) if self._database else 0, AT_ONCE):
            part = keys[start : start + AT_ONCE]
            asked = f"SELECT key, value FROM known WHERE key IN ({','.join('?' * len(part))})"
            try:
                found.update(
                    (key, json.loads(value)) for key, value in self._database.execute(asked, part)
                )
            except (sqlite3.Error, ValueError) as error:
                self._failed(error)
                break
        return found

    def put(self, values: Mapping[str, object]) -> None:
        """Remembers values; when this returns, they outlive the process."""
        if not self._database or not values:
            return
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO known VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._failed(error)
