"""Selects examples by subtype, question type and clip, and mixes them in given shares."""

import numpy as np
import pandas as pd
from datasets import Dataset

from ..runtime import UserError
from .reasonaqa import QUESTION_TYPES


def select_rows(
    rows: Dataset,
    subtypes: list[str] | None = None,
    question_types: list[str] | None = None,
    max_rows_per_clip: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Returns the rows of these subtypes and question types in their order.

    Args:
        rows: Rows of `load_rows`.
        subtypes: Subtypes with or without ".json". Default: all.
        question_types: Some of `QUESTION_TYPES`. Default: all.
        max_rows_per_clip: Draws at most this many rows with the same first clip.
        seed: Seed of the draw.

    Raises:
        UserError: A name does not exist, or no row is left.
    """
    is_selected = np.ones(len(rows), bool)
    if subtypes:
        names = [name.removesuffix(".json") for name in subtypes]
        values = _subtypes(rows)
        _check_names("--subtypes", names, set(values))
        is_selected &= np.isin(values, names)
    if question_types:
        _check_names("--question_types", question_types, set(QUESTION_TYPES))
        is_selected &= np.isin(_strings(rows, "question_type"), question_types)
    numbers = np.flatnonzero(is_selected)
    if max_rows_per_clip:
        numbers = _limit_per_clip(rows, numbers, max_rows_per_clip, seed)
    if not len(numbers):
        raise UserError("no row has these subtypes and question types")
    return rows if len(numbers) == len(rows) else rows.select(numbers)


def _check_names(option: str, names: list[str], existing: set[str]) -> None:
    unknown = [name for name in names if name not in existing]
    if unknown:
        raise UserError(f"{option} {' '.join(unknown)}: choose from {', '.join(sorted(existing))}")


def _limit_per_clip(rows: Dataset, numbers: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Draws at most `limit` of the row numbers for each first clip."""
    shuffled = np.random.default_rng(seed).permutation(len(numbers))
    clips = pd.Series(_strings(rows, "filepath1")[numbers[shuffled]])
    rank_in_clip = clips.groupby(clips).cumcount()
    return numbers[np.sort(shuffled[rank_in_clip < limit])]


def first_of_each_type(rows: Dataset, limit: int) -> dict[str, np.ndarray]:
    """Returns the numbers of the first `limit` rows of each question type that occurs."""
    types = _strings(rows, "question_type")
    numbers = {name: np.flatnonzero(types == name)[:limit] for name in QUESTION_TYPES}
    return {name: selected for name, selected in numbers.items() if len(selected)}


def mix_shares(mix: list[str]) -> dict[str, float]:
    """Parses `--mix caption=0.1,mcq=0.5` to the share of each part.

    Raises:
        UserError: If a share is no number between 0 and 1, or all sum to more than 1.
    """
    shares: dict[str, float] = {}
    for entry in filter(None, ",".join(mix).split(",")):
        name, _, text = entry.partition("=")
        try:
            share = float(text)
        except ValueError:
            raise UserError(f"--mix {entry}: expected PART=SHARE, such as caption=0.1") from None
        if not 0 <= share <= 1:
            raise UserError(f"--mix {entry}: expected a share between 0 and 1")
        shares[name.removesuffix(".json")] = share
    total = sum(shares.values())
    if total > 1 + 1e-9:
        raise UserError(f"--mix: the shares sum to {total:g}, more than 1")
    return shares


def mix_rows(rows: Dataset, mix: list[str], seed: int = 0) -> Dataset:
    """Returns as many rows as possible that have these shares, in their order.

    Rows are drawn without repetition. Parts that are not named share the rest as they do in `rows`.

    Args:
        rows: Rows of `load_rows`.
        mix: Shares as for `mix_shares`. A part is a question type or a subtype.
        seed: Seed of the draw.

    Raises:
        UserError: A part does not exist, two parts share rows, or no row can have these shares.
    """
    shares = mix_shares(mix)
    numbers_by_part = _split_parts(rows, list(shares))
    rest = 1 - sum(shares.values())
    if rest > 1e-9 and not len(numbers_by_part[-1]):
        raise UserError(f"--mix: the shares sum to {1 - rest:g}, and there are no other rows")
    parts = list(zip(numbers_by_part, [*shares.values(), rest]))
    size = min(len(numbers) / share for numbers, share in parts if share > 1e-9)
    rng = np.random.default_rng(seed)
    selected = [
        rng.permutation(numbers)[: round(size * share)] for numbers, share in parts if share > 1e-9
    ]
    return rows.select(np.sort(np.concatenate(selected)))


def _split_parts(rows: Dataset, names: list[str]) -> list[np.ndarray]:
    """Returns the row numbers of each part, and last those of no part."""
    types = _strings(rows, "question_type")
    subtypes = _subtypes(rows)
    part = np.full(len(rows), -1)
    for number, name in enumerate(names):
        is_inside = (types == name) | (subtypes == name)
        if not is_inside.any():
            raise UserError(f"--mix {name}: choose from {', '.join(sorted({*types, *subtypes}))}")
        if (other := part[is_inside].max()) >= 0:
            raise UserError(f"--mix {name}: {names[other]} has rows in common with it")
        part[is_inside] = number
    return [np.flatnonzero(part == number) for number in (*range(len(names)), -1)]


def _strings(rows: Dataset, name: str) -> np.ndarray:
    return rows.select_columns(name).to_pandas()[name].to_numpy(object)


def _subtypes(rows: Dataset) -> np.ndarray:
    return pd.Series(_strings(rows, "subtype")).str.removesuffix(".json").to_numpy(object)
