"""Find AudioCaps' clips by YouTube id, in whatever layout somebody has them."""

import logging
import os
import re
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)
REASONAQA_NAME = re.compile(r"Y([\w-]{11})\.wav")
# The first of these that exists is used.
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".webm", ".mp4", ".mkv")
FILE_NAME = r"([\w-]{11})(?:_(\d+(?:\.\d+)?)[\d._]*)?"


class ClipFile(NamedTuple):
    """An audio file of a video: rank of its extension, path, and start in the video in s."""

    rank: int
    path: str
    start: float | None


def youtube_id(stem: str) -> tuple[str, float | None] | None:
    """Returns the YouTube id and the start in s, if any, of a file name without extension.

    An id has 11 characters and may itself begin with Y or hold an underscore.

    >>> youtube_id("Yabcdefghijk_30.5_40"), youtube_id("noise")
    (('abcdefghijk', 30.5), None)
    """
    match = re.fullmatch("Y" + FILE_NAME, stem) or re.fullmatch(FILE_NAME, stem)
    if match is None:
        return None
    return match[1], float(match[2]) if match[2] else None


def youtube_index(folder: str | Path) -> dict[str, str]:
    """Returns the audio file of each YouTube id in a folder and its subfolders.

    An id whose files start at different places of the video is left out with a warning.
    """
    files: dict[str, list[ClipFile]] = {}
    visited: set[str] = set()
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real_place = os.path.realpath(place)
        if real_place in visited:  # a link back
            subfolders.clear()
            continue
        visited.add(real_place)
        for name in names:
            stem, extension = os.path.splitext(name)
            identity = youtube_id(stem) if extension.lower() in EXTENSIONS else None
            if identity is not None:
                rank = EXTENSIONS.index(extension.lower())
                clip = ClipFile(rank, os.path.join(place, name), identity[1])
                files.setdefault(identity[0], []).append(clip)
    ambiguous = [key for key, clips in files.items() if len({c.start for c in clips} - {None}) > 1]
    if ambiguous:
        message = "%s: %d YouTube ids have files of different starts (such as %s) and are left out"
        logger.warning(message, folder, len(ambiguous), min(ambiguous))
    return {key: min(clips).path for key, clips in files.items() if key not in ambiguous}
