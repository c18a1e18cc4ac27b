"""A persistent key-value cache in `~/.cache/audiolm`. It is safe to delete."""

import json
import logging
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)
KEYS_PER_QUERY = 500
ABOUT_FILE = "about.json"  # in each folder of a feature cache: what its clips were encoded with


def cache_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/audiolm`. Default: `~/.cache/audiolm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "audiolm")


def choose_feature_cache(option: str | None) -> str | None:
    """Returns the folder that `--feature_cache` means. `none` means none, None the default."""
    return None if option == "none" else option or str(cache_folder() / "features")


class JsonCache:
    """JSON values by key in an SQLite file. Several processes may use it at once.

    A corrupt file is replaced by an empty one. If the file cannot be used, the cache is empty and
    logs a warning.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self._database: sqlite3.Connection | None = None
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._recover(error)

    def get(self, keys: list[str]) -> dict[str, object]:
        """Returns the values of those keys that are in the cache."""
        values: dict[str, object] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            if not self._database:
                break
            part = keys[start : start + KEYS_PER_QUERY]
            placeholders = ",".join("?" * len(part))
            query = f"SELECT key, value FROM entries WHERE key IN ({placeholders})"
            try:
                for key, value in self._database.execute(query, part):
                    values[key] = json.loads(value)
            except (sqlite3.Error, ValueError) as error:
                self._recover(error)
        return values

    def put(self, values: Mapping[str, object]) -> None:
        """Saves values. They outlive the process when this returns."""
        if not self._database:
            return
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._recover(error)

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.file, timeout=30)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )

    def _recover(self, error: Exception) -> None:
        """Replaces a corrupt file, or stops using the file."""
        database, self._database = self._database, None
        # SQLite raises this class, and not a subclass, for a file that is no intact database.
        if database and type(error) is sqlite3.DatabaseError:
            database.close()
            try:
                self.file.unlink(missing_ok=True)
                self._open()
                return
            except (sqlite3.Error, OSError) as second_error:
                self._database, error = None, second_error
        logger.warning("%s: the cache cannot be used (%s)", self.file, error)
