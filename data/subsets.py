"""Which parts of a corpus are trained on: by subtype, by question type, so many rows of each clip, and in which shares."""

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from .reasonaqa import QUESTION_TYPES


def select_rows(
    rows: Dataset,
    subtypes: list[str] | None = None,
    question_types: list[str] | None = None,
    max_rows_per_clip: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The rows of these subtypes and question types, and of each (first) clip at most so many, drawn by `seed`; in their order.

    Args:
        rows: of [`load_reasonaqa`]. subtypes: with or without their ".json". question_types: of `QUESTION_TYPES`.

    Raises:
        ValueError: if a name is not there, or no row is left.
    """
    kept = np.ones(len(rows), bool)
    for option, column, wanted in (
        ("subtypes", "subtype", subtypes),
        ("question_types", "question_type", question_types),
    ):
        if wanted:
            found = pc.replace_substring_regex(_column(rows, column), r"\.json$", "")
            wanted = [name.removesuffix(".json") for name in wanted]
            known = sorted(
                QUESTION_TYPES if option == "question_types" else pc.unique(found).to_pylist()
            )
            if unknown := [name for name in wanted if name not in known]:
                raise ValueError(f"--{option} {' '.join(unknown)}: there are {', '.join(known)}")
            kept &= np.isin(found.to_numpy(zero_copy_only=False), wanted)
    chosen = np.flatnonzero(kept)
    if max_rows_per_clip:
        clips = (
            _column(rows, "filepath1")
            .combine_chunks()
            .dictionary_encode()
            .indices.to_numpy(zero_copy_only=False)[chosen]
        )
        order = np.random.default_rng(seed).permutation(len(chosen))
        by_clip = order[
            np.argsort(clips[order], kind="stable")
        ]  # rows of a clip beside each other, in a random order
        first = (
            np.r_[0, np.flatnonzero(np.diff(clips[by_clip])) + 1]
            if len(by_clip)
            else np.zeros(0, int)
        )
        rank = np.arange(len(by_clip)) - np.repeat(first, np.diff(np.r_[first, len(by_clip)]))
        chosen = chosen[np.sort(by_clip[rank < max_rows_per_clip])]
    if not len(chosen):
        raise ValueError("no row has the subtypes and question types that are asked for")
    return rows if len(chosen) == len(rows) else rows.select(chosen)


def first_of_each_type(rows: Dataset, limit: int) -> dict[str, np.ndarray]:
    """Numbers of the first `limit` rows of each question type that is there."""
    kinds = _column(rows, "question_type").to_numpy(zero_copy_only=False)
    numbers = {kind: np.flatnonzero(kinds == kind)[:limit] for kind in QUESTION_TYPES}
    return {kind: found for kind, found in numbers.items() if len(found)}


def mix_shares(mix: list[str]) -> dict[str, float]:
    """What `--mix caption=0.1,mcq=0.5` says: the share of each part.

    Raises:
        ValueError: if it says something else, or the shares sum to more than 1.
    """
    shares: dict[str, float] = {}
    for word in (word for words in mix for word in words.split(",") if word):
        name, _, share = word.partition("=")
        try:
            shares[name.removesuffix(".json")] = float(share)
        except ValueError:
            raise ValueError(f"--mix {word}: PART=SHARE is wanted, such as caption=0.1") from None
        if not 0 <= float(share) <= 1:
            raise ValueError(f"--mix {word}: a share between 0 and 1 is wanted")
    if (total := sum(shares.values())) > 1 + 1e-9:
        raise ValueError(f"--mix: the shares sum to {total:g}, more than 1")
    return shares


def mix_rows(rows: Dataset, mix: list[str], seed: int = 0) -> Dataset:
    """The most rows that have these shares, none of them twice: each part is thinned out by `seed`; in their order.

    Args:
        mix: of [`mix_shares`]; a part is a question type or a subtype, and the parts that are not named share the rest as they
            do in `rows`.

    Raises:
        ValueError: if a part is not there, two parts have rows in common, or the shares leave no row.
    """
    shares = mix_shares(mix)
    kinds = _column(rows, "question_type").to_numpy(zero_copy_only=False)
    subtypes = pc.replace_substring_regex(_column(rows, "subtype"), r"\.json$", "").to_numpy(
        zero_copy_only=False
    )
    part = np.full(len(rows), -1)
    for number, name in enumerate(shares):
        inside = (kinds == name) | (subtypes == name)
        if not inside.any():
            raise ValueError(f"--mix {name}: there are {', '.join(sorted({*kinds, *subtypes}))}")
        if (part[inside] >= 0).any():
            raise ValueError(
                f"--mix {name}: its rows are in {list(shares)[part[inside].max()]} too"
            )
        part[inside] = number
    counts = [int((part == number).sum()) for number in range(len(shares))]
    wanted, counts = (
        [*shares.values(), 1 - sum(shares.values())],
        [*counts, int((part == -1).sum())],
    )
    if wanted[-1] > 1e-9 and not counts[-1]:
        raise ValueError(f"--mix: the shares sum to {1 - wanted[-1]:g}, and no other row is there")
    size = min(count / share for share, count in zip(wanted, counts) if share > 1e-9)
    draw, chosen = np.random.default_rng(seed), []
    for number, share in zip([*range(len(shares)), -1], wanted):
        inside = np.flatnonzero(part == number)
        chosen.append(
            draw.permutation(inside)[: round(size * share)] if share > 1e-9 else inside[:0]
        )
    return rows.select(np.sort(np.concatenate(chosen)))


def _column(rows: Dataset, name: str):
    return (
        rows.with_format("arrow")[:][name] if rows._indices is not None else rows.data.column(name)
    )
