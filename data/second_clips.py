"""Pairs each clip with a second one, as Mellow's prompts expect."""

import random

from datasets import Dataset, List, Value

from ..runtime import UserError
from .reasonaqa import iterate_columns


def first_clips(rows: Dataset) -> dict[str, str]:
    """Returns the paths of the first clips by their names in the rows."""
    return {name: paths[0] for name, paths in iterate_columns(rows, "filepath1", "audio")}


def second_clips(rows: Dataset, seed: int, clips: dict[str, str] | None = None) -> Dataset:
    """Returns rows about two clips each. Those about one get a second one of `clips`.

    The draw depends on the seed and the first clip's name. The published code draws a new one
    whenever it reads a row.

    Args:
        rows: Rows of `load_rows`.
        seed: Seed of the draw.
        clips: Paths by name. They must include the first clips of `rows`, which are the default.

    Raises:
        UserError: There is only one clip.
    """
    plain_rows = rows.with_format(None)
    clips = clips or first_clips(plain_rows)
    names = sorted(clips)
    if len(names) < 2:
        raise UserError("Mellow's questions are about two clips, but the rows have only one clip")
    partners = {name: clips[_other_name(names, i, seed)] for i, name in enumerate(names)}
    pairs = [
        list(paths) if len(paths) == 2 else [paths[0], partners[name]]
        for name, paths in iterate_columns(plain_rows, "filepath1", "audio")
    ]
    paired = plain_rows.remove_columns("audio")
    paired = paired.add_column("audio", pairs, feature=List(Value("string")))
    # `with_format(None)` also removed a transform that fixes rows when they are read.
    if rows.format["type"] == "custom":
        return paired.with_transform(rows.format["format_kwargs"]["transform"])
    return paired


def _other_name(names: list[str], i: int, seed: int) -> str:
    """Returns any other name with equal probability."""
    other = random.Random(f"{seed}|{names[i]}").randrange(len(names) - 1)
    return names[other + 1] if other >= i else names[other]
