"""A second clip for each question, as Mellow's prompts expect."""

import random

from datasets import Dataset, List, Value


def first_clips(rows: Dataset) -> dict[str, str]:
    """The first clips of rows, by the names that the rows have for them."""
    return {name: of[0] for name, of in zip(rows["filepath1"], rows["audio"])}


def second_clips(rows: Dataset, seed: int, clips: dict[str, str] | None = None) -> Dataset:
    """The rows, where those about one clip have a second, another one of `clips`, drawn by `seed` and the first one's name.

    The published code draws one anew whenever it reads a row.

    Args:
        clips: by name; by default the first clips of these rows.

    Raises:
        ValueError: if there is one clip alone.
    """
    written, rows = (
        rows.format,
        rows.with_format(None),
    )  # what mends rows as they are read goes on doing so, once
    names, audio = rows["filepath1"], rows["audio"]
    clips = clips or first_clips(rows)
    known = sorted(clips)
    if len(known) < 2:
        raise ValueError("Mellow's questions are about two clips, and its rows have one alone")
    drawn = {}
    for at, name in enumerate(known):  # any two are as likely
        other = random.Random(f"{seed}|{name}").randrange(len(known) - 1)
        drawn[name] = clips[known[other + (other >= at)]]
    paired = [list(of) if len(of) == 2 else [of[0], drawn[name]] for name, of in zip(names, audio)]
    made = rows.remove_columns("audio").add_column("audio", paired, feature=List(Value("string")))
    return (
        made.with_transform(written["format_kwargs"]["transform"])
        if written["type"] == "custom"
        else made
    )
