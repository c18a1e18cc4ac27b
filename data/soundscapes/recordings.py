"""Reads a table of labelled recordings, whose excerpts take the place of synthesised events."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import resample_poly

from ...processing_audiolm import open_file
from ...runtime import UserError, explain_errors, read_table
from .events import FADE_SAMPLES, SAMPLE_RATE, Event, EventClass

logger = logging.getLogger(__name__)
NUM_FOLDS = 5  # where the table has none; the last but one is for validation, the last for testing
MAX_SECONDS = 60  # of a recording that are searched for its loudest part
MIN_CLASSES = 5  # a question with four options, and one that names another sound


@dataclass(frozen=True)
class Excerpt(Event):
    """The loudest part of a recording."""

    path: str

    def synthesise(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the part of most energy, with zeros after a recording that is shorter.

        Raises:
            UserError: If the recording cannot be read or is silent.
        """
        message = f"{self.path}: not readable as audio"
        with (
            explain_errors(message, OSError, ValueError, RuntimeError),
            open_file(self.path) as file,
        ):
            rate = file.samplerate
            recording = file.read(MAX_SECONDS * rate, dtype="float32", always_2d=True).mean(1)
        sound = resample_poly(
            _loudest_part(recording, samples * rate // SAMPLE_RATE), SAMPLE_RATE, rate
        )
        if not 0 < np.square(sound).sum() < np.inf:
            raise UserError(f"{self.path}: silent, or not finite. Remove it from the table.")
        sound = np.pad(sound, (0, max(0, samples - len(sound))))[:samples]
        fade = min(samples // 4, FADE_SAMPLES)
        sound[:fade] *= np.linspace(0, 1, fade, dtype=np.float32)
        return sound


def _loudest_part(sound: np.ndarray, samples: int) -> np.ndarray:
    energy = np.concatenate([[0.0], np.square(sound, dtype=np.float64).cumsum()])
    if len(sound) <= samples:
        return sound
    start = int((energy[samples:] - energy[:-samples]).argmax())
    return sound[start : start + samples]


@dataclass(frozen=True)
class RecordingTable:
    """A CSV file with a row for each recording, its folder, and the names of the columns.

    Attributes:
        csv: Path of the table.
        audio_dir: Folder of the files. A file may have another suffix than in the table.
        label: Column of the class. An underscore becomes a space.
        file: Column of the file name.
        fold: Column of the fold. Default: folds are drawn, with each class in all of them.
        group: Column of what recordings share that must stay in one split, such as their source.
    """

    csv: str
    audio_dir: str
    label: str
    file: str = "filename"
    fold: str | None = None
    group: str | None = None


def read_recordings(table: RecordingTable, seed: int) -> dict[str, dict[str, EventClass]]:
    """Returns the classes of each split with their files. Splits share no fold and no group.

    Args:
        table: The recordings.
        seed: Seed of the folds, if the table has none.

    Raises:
        UserError: If the table cannot be read, or lacks a column, a file, folds or classes.
    """
    rows = _read_rows(table)
    if table.fold is None:
        rows["fold"] = _draw_folds(rows, seed)
    folds = sorted(set(rows["fold"]), key=lambda fold: (len(fold), fold))
    if len(folds) < 3:
        raise UserError(f"{table.csv}: {len(folds)} folds, expected at least 3")
    folds_by_split = {"test": folds[-1:], "val": folds[-2:-1], "train": folds[:-2]}
    parts = {}
    for split, names in folds_by_split.items():
        part = rows[rows["fold"].isin(names)]
        is_shared = part["group"].isin(set().union(*(other["group"] for other in parts.values())))
        if is_shared.any():
            message = "%s: %d recordings of a group of another split are not used"
            logger.warning(message, split, is_shared.sum())
        parts[split] = part[~is_shared]
    complete = sorted(set.intersection(*(set(part["label"]) for part in parts.values())))
    if len(complete) < MIN_CLASSES:
        raise UserError(
            f"{table.csv}: {len(complete)} classes have recordings for training, validation and "
            f"testing, expected at least {MIN_CLASSES}"
        )
    left_out = sorted(set(rows["label"]) - set(complete))
    if left_out:
        logger.warning("classes without recordings in each split: %s", ", ".join(left_out))
    classes = {}
    for split, part in parts.items():
        paths = part.groupby("label")["path"].agg(tuple)
        classes[split] = {name: EventClass(files=paths[name]) for name in complete}
    return classes


def _read_rows(table: RecordingTable) -> pd.DataFrame:
    """Returns `label`, `path`, `fold` and `group` of each recording."""
    columns = filter(None, (table.label, table.file, table.fold, table.group))
    source = read_table(table.csv, *columns)
    labels = source[table.label].str.replace("_", " ").str.strip()
    wrong = labels[~labels.str.fullmatch(r"[\w' -]+")]
    if len(wrong):
        raise UserError(
            f"{table.csv}: label {wrong.iloc[0]!r}. Labels become words of questions: use "
            "letters, digits, spaces, _ and - only."
        )
    return pd.DataFrame(
        {
            "label": labels,
            "path": _find_files(Path(table.audio_dir), source[table.file]),
            "fold": source[table.fold] if table.fold else "",
            "group": source[table.group] if table.group else source[table.file],
        }
    )


def _find_files(folder: Path, names: pd.Series) -> list[str]:
    paths_by_stem = {path.relative_to(folder).with_suffix(""): path for path in folder.rglob("*.*")}
    paths = []
    for name in names:
        path = folder / name
        if not path.is_file():
            path = paths_by_stem.get(Path(name).with_suffix(""))
        if path is None:
            raise UserError(f"{folder / name}: file not found")
        paths.append(str(path))
    return paths


def _draw_folds(rows: pd.DataFrame, seed: int) -> list[str]:
    """Draws a fold for each group, so that the groups of each class are spread evenly."""
    rng = np.random.default_rng(seed)
    label_by_group = dict(zip(rows["group"], rows["label"]))
    groups = sorted(label_by_group, key=lambda group: (label_by_group[group], rng.random()))
    fold_by_group = {group: str(number % NUM_FOLDS) for number, group in enumerate(groups)}
    return [fold_by_group[group] for group in rows["group"]]
