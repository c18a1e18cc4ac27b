"""The user's cache folder, which is safe to delete, and a key-value cache in it."""

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

    If the file cannot be used, a warning says so, and the cache lasts as long as the object.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._open(self.file)
        except (sqlite3.Error, OSError) as error:
            self._replace(error)

    def get(self, keys: list[str]) -> dict[str, object]:
        """Returns the values of those keys that are in the cache."""
        values: dict[str, object] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            part = keys[start : start + KEYS_PER_QUERY]
            placeholders = ",".join("?" * len(part))
            query = f"SELECT key, value FROM entries WHERE key IN ({placeholders})"
            try:
                rows = self._database.execute(query, part).fetchall()
                values.update((key, json.loads(value)) for key, value in rows)
            except (sqlite3.Error, ValueError) as error:
                self._replace(error)
        return values

    def put(self, values: Mapping[str, object]) -> None:
        """Saves values. They outlive the process when this returns."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._replace(error)

    def _open(self, file: Path | str) -> None:
        self._database = sqlite3.connect(file, timeout=30)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )

    def _replace(self, error: Exception) -> None:
        logger.warning("%s: the cache cannot be used (%s). Delete the file.", self.file, error)
        self._open(":memory:")
