"""Which parts of a corpus are trained on: by subtype, by question type, and so many rows of each clip."""

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from .reasonaqa import QUESTION_TYPES


def select_rows(
    rows: Dataset, subtypes: list[str] | None = None, question_types: list[str] | None = None,
    max_rows_per_clip: int | None = None, seed: int = 0,
) -> Dataset:  # fmt: skip
    """The rows of these subtypes and question types, and of each (first) clip at most so many, drawn by `seed`; in their order.

    Args:
        rows: of [`load_reasonaqa`]. subtypes: with or without their ".json". question_types: of `QUESTION_TYPES`.

    Raises:
        ValueError: if a name is not there, or no row is left.
    """
    kept = np.ones(len(rows), bool)
    for option, column, wanted in (("subtypes", "subtype", subtypes), ("question_types", "question_type", question_types)):
        if wanted:
            found = pc.replace_substring_regex(_column(rows, column), r"\.json$", "")
            wanted = [name.removesuffix(".json") for name in wanted]
            known = sorted(QUESTION_TYPES if option == "question_types" else pc.unique(found).to_pylist())
            if unknown := [name for name in wanted if name not in known]:
                raise ValueError(f"--{option} {' '.join(unknown)}: there are {', '.join(known)}")
            kept &= np.isin(found.to_numpy(zero_copy_only=False), wanted)
    chosen = np.flatnonzero(kept)
    if max_rows_per_clip:
        clips = _column(rows, "filepath1").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)[chosen]
        order = np.random.default_rng(seed).permutation(len(chosen))
        by_clip = order[np.argsort(clips[order], kind="stable")]  # rows of a clip beside each other, in a random order
        first = np.r_[0, np.flatnonzero(np.diff(clips[by_clip])) + 1] if len(by_clip) else np.zeros(0, int)
        rank = np.arange(len(by_clip)) - np.repeat(first, np.diff(np.r_[first, len(by_clip)]))
        chosen = chosen[np.sort(by_clip[rank < max_rows_per_clip])]
    if not len(chosen):
        raise ValueError("no row has the subtypes and question types that are asked for")
    return rows if len(chosen) == len(rows) else rows.select(chosen)


def _column(rows: Dataset, name: str):
    return rows.with_format("arrow")[:][name] if rows._indices is not None else rows.data.column(name)
