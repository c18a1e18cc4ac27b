"""Labelled clips for linear probes, and their folds."""

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from ..data.audio_files import find_file
from ..runtime import UserError

LABEL_COLUMNS = ("label", "category", "target")
# ESC-50's file names: fold, recording, take, class.
ESC_NAME = re.compile(r"(\d+)-(\d+)-[A-Z](?:-(\d+))?\.(?:wav|ogg|flac|mp3)")


class Fold(NamedTuple):
    """One test of a probe, as indices of clips."""

    name: str
    train: np.ndarray
    validation: np.ndarray  # the part of `train` on which C is chosen
    test: np.ndarray


def find_labelled_clips(
    audio_dir: str,
    labels: str | None = None,
    label_column: str | None = None,
    num_folds: int | None = None,
) -> tuple[list[dict], str]:
    """Finds the clips with their labels, groups and folds. ESC-50 has a CSV of its own.

    Returns:
        Clips with `filename`, `label`, `audio` (the path in a list), `group`, and `fold` or `split`
        if they are given. And where the folds come from: "fold", "split", "--folds" or "ESC".

    Raises:
        UserError: If labels are wrong, or the folds are given twice or not at all.
    """
    folder = Path(audio_dir)
    esc_labels = folder / "meta" / "esc50.csv"
    if labels:
        clips = read_labels(labels, label_column)
    elif esc_labels.is_file():
        clips = read_labels(esc_labels, label_column or "category")
        folder = folder / "audio"
    else:
        raise UserError(f"{esc_labels}: file not found. Give the labels with --labels")
    names = [ESC_NAME.fullmatch(Path(clip["filename"]).name) for clip in clips]
    origins = [name for name in ("fold", "split") if name in clips[0]]
    if num_folds:
        origins.append("--folds")
    if len(origins) > 1:
        raise UserError(f"{' and '.join(origins)} both say which clips to test: give one of them")
    if not origins and not all(names):
        raise UserError(
            f"{labels} has neither a column fold nor split: add one, or draw folds with --folds 5"
        )
    for clip, name in zip(clips, names):
        clip.setdefault("group", name[2] if name else clip["filename"])
        if name and not origins:
            clip["fold"] = name[1]
        clip["audio"] = [find_file(str(folder / clip["filename"]))]
    return clips, origins[0] if origins and labels else "ESC"


def read_labels(path: str | Path, label_column: str | None = None) -> list[dict]:
    """Reads a CSV of labels: `filename`, `label` and, if present, `fold`, `split` and `group`.

    Raises:
        UserError: If it cannot be read, a column or a value is missing, or a clip has two labels or
            folds.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV ({error})") from error
    label = label_column or next((name for name in LABEL_COLUMNS if name in columns), "label")
    for name in ("filename", label):
        if name not in columns:
            listed = ", ".join(columns) or "none"
            raise UserError(f"{path} has no column {name!r}. Its columns: {listed}")
    column_of = {"filename": "filename", "label": label}
    column_of |= {name: name for name in ("fold", "split", "group") if name in columns}
    clips: dict[str, dict] = {}
    for line, row in rows:
        clip = _read_clip(row, column_of, f"{path} line {line}")
        earlier = clips.setdefault(clip["filename"], clip)
        for name, value in clip.items():
            if value != earlier[name]:
                raise UserError(
                    f"{path} line {line}: {clip['filename']} occurs twice, with "
                    f"{column_of[name]} {earlier[name]!r} and {value!r}"
                )
    if not clips:
        raise UserError(f"{path} has no rows")
    return list(clips.values())


def _read_clip(row: dict, column_of: dict[str, str], where: str) -> dict[str, str]:
    if None in row:
        raise UserError(f"{where}: more values than columns. Quote values with a comma")
    clip = {name: (row[column] or "").strip() for name, column in column_of.items()}
    for name, value in clip.items():
        if not value:
            raise UserError(f"{where}: {column_of[name]} is empty")
    return clip


def build_folds(clips: list[dict], count: int | None, seed: int) -> tuple[np.ndarray, list[Fold]]:
    """Returns the labels, shape `(clips,)`, and the folds: drawn ones if there is a count.

    Raises:
        UserError: If there is one class, a class has one clip, or the folds are impossible.
    """
    labels = _column(clips, "label")
    groups = _column(clips, "group")
    class_sizes = Counter(labels)
    if len(class_sizes) < 2:
        raise UserError(f"all clips have the label {labels[0]!r}: expected two classes or more")
    for name, size in class_sizes.items():
        if size == 1:
            raise UserError(f"class {name!r} has one clip: none is left to test on")
    if "split" in clips[0]:
        return labels, one_split(labels, _column(clips, "split"), groups, seed)
    folds = draw_folds(labels, groups, count, seed) if count else _column(clips, "fold")
    return labels, cross_validation(labels, folds, groups, seed)


def _column(clips: Iterable[dict], name: str) -> np.ndarray:
    # Elements of object arrays stay plain strings.
    return np.array([clip[name] for clip in clips], dtype=object)


def draw_folds(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws the fold of each clip, "1" to `count`. Folds share classes evenly, and no group.

    Raises:
        UserError: If there are fewer groups than folds, or fewer clips of a class.
    """
    smallest, size = min(Counter(labels).items(), key=lambda item: item[1])
    num_groups = len(set(groups))
    if count > min(size, num_groups):
        raise UserError(
            f"--folds {count}: class {smallest!r} has {size} clips, and there are {num_groups} "
            "groups"
        )
    folds = np.empty(len(labels), dtype=object)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(splitter.split(labels, labels, groups), 1):
        folds[test] = str(number)
    return folds


def cross_validation(
    labels: np.ndarray, folds: np.ndarray, groups: np.ndarray, seed: int
) -> list[Fold]:
    """Tests each fold after training on the others. C is chosen on the next fold.

    Raises:
        UserError: If there is one fold, or a class is in one fold only.
    """
    # Fold 10 comes after fold 9.
    names = sorted(set(folds), key=lambda name: (len(name), name))
    if len(names) < 2:
        raise UserError(f"all clips are in fold {names[0]}: expected two folds or more")
    for label in sorted(set(labels)):
        folds_of_class = set(folds[labels == label])
        if len(folds_of_class) < 2:
            raise UserError(
                f"class {label!r} is in fold {folds_of_class.pop()} only: no other fold can train "
                "for it"
            )
    result = []
    for name, next_name in zip(names, names[1:] + names[:1]):
        train = np.flatnonzero(folds != name)
        validation = np.flatnonzero(folds == next_name)
        # With two folds, or a rare class, the rest would lack a class.
        if set(labels[np.setdiff1d(train, validation)]) != set(labels[train]):
            validation = train[hold_out(labels[train], groups[train], seed)]
        result.append(Fold(name, train, validation, np.flatnonzero(folds == name)))
    return result


def one_split(labels: np.ndarray, splits: np.ndarray, groups: np.ndarray, seed: int) -> list[Fold]:
    """Tests the split "test" after training on "train" and "val". C is chosen on "val".

    Without "val" it is chosen on a part of "train".

    Raises:
        UserError: If a split has another name, train or test is missing, or a class of "test" is
            not in "train".
    """
    for name in sorted(set(splits) - {"train", "val", "test"}):
        raise UserError(f"split {name!r} is none of train, val, test")
    for name in sorted({"train", "test"} - set(splits)):
        raise UserError(f"no clip is in the split {name}")
    train = np.flatnonzero(splits != "test")
    validation = np.flatnonzero(splits == "val")
    test = np.flatnonzero(splits == "test")
    for name in sorted(set(labels[test]) - set(labels[splits == "train"])):
        raise UserError(f"class {name!r} is in the split test, but not in train")
    if not len(validation):
        validation = train[hold_out(labels[train], groups[train], seed)]
    return [Fold("test", train, validation, test)]


def hold_out(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Returns indices of about a fifth of the clips, or none if a class has only one clip."""
    count = min(5, *Counter(labels).values(), len(set(groups)))
    if count < 2:
        return np.array([], dtype=int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    _, held_out = next(splitter.split(labels, labels, groups))
    return held_out
