"""Command lines as text, and what a run wrote about itself."""

import json
import shlex
from pathlib import Path


def options(text: str) -> list[str]:
    """The arguments of a command line."""
    return shlex.split(text)


def log_history(folder: Path) -> list[dict]:
    """The entries that a run logged."""
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def logged_values(folder: Path, name: str) -> list[float]:
    """The values of one name, such as `loss`, in the order in which they were logged."""
    return [float(entry[name]) for entry in log_history(folder) if name in entry]
