"""AudioCaps' clips in whatever layout somebody has them: found by YouTube id in an index of the folder."""

import logging
import os
import re
from pathlib import Path

logger = logging.getLogger(__name__)
NAME = re.compile(r"Y([\w-]{11})\.wav")  # as ReasonAQA names them
EXTENSIONS = (
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".m4a",
    ".aac",
    ".webm",
    ".mp4",
    ".mkv",
)  # the first one there counts


def youtube_id(name: str) -> tuple[str, float | None] | None:
    """The YouTube id, and the start in the video if it is told, of a file name without its extension; None if it has no id.

    `Y<id>`, `<id>`, `<id>_<start>` and `<id>_<start>_<end>` are understood.

    An id has 11 characters and may itself begin with Y or hold "_".
    """
    for prefix in ("Y", ""):
        if found := re.fullmatch(prefix + r"([\w-]{11})(?:_(\d+(?:\.\d+)?)[\d._]*)?", name):
            return found[1], found[2] and float(found[2])
    return None


def youtube_index(folder: str | Path) -> dict[str, str]:
    """The audio file of each YouTube id in a folder and the folders in it.

    Where an id has several files, the first extension of `EXTENSIONS` counts, then the alphabet. An id whose files start at
    different places of the video is left out, with a warning: nothing tells which of them is meant.
    """
    files: dict[str, list[tuple[int, str, float | None]]] = {}
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link back
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in EXTENSIONS and (found := youtube_id(stem)):
                path = os.path.join(place, name)
                files.setdefault(found[0], []).append(
                    (EXTENSIONS.index(extension.lower()), path, found[1])
                )
    several = {
        key for key, found in files.items() if len({start for *_, start in found} - {None}) > 1
    }
    if several:
        logger.warning(
            "%s: %d YouTube ids have files of different starts (such as %s) and are left out",
            folder,
            len(several),
            min(several),
        )
    return {
        key: min(found, key=lambda file: file[:2])[1]
        for key, found in files.items()
        if key not in several
    }
