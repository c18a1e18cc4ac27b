"""Finds AudioCaps' clips by YouTube id, in whatever layout somebody has them."""

import logging
import os
import re
from pathlib import Path

logger = logging.getLogger(__name__)
REASONAQA_NAME = re.compile(r"Y([\w-]{11})\.wav")
# The first of these that exists is used.
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".webm", ".mp4", ".mkv")
FILE_NAME = r"([\w-]{11})(?:_(\d+(?:\.\d+)?)[\d._]*)?"


def youtube_id(stem: str) -> tuple[str, float | None] | None:
    """Returns the YouTube id and the start in s, if any, of a file name without extension.

    An id has 11 characters and may itself begin with Y or hold an underscore.

    >>> youtube_id("Yabcdefghijk_30.5_40"), youtube_id("noise")
    (('abcdefghijk', 30.5), None)
    """
    match = re.fullmatch("Y" + FILE_NAME, stem) or re.fullmatch(FILE_NAME, stem)
    return (match[1], float(match[2]) if match[2] else None) if match else None


def youtube_index(folder: str | Path) -> dict[str, str]:
    """Returns the audio file of each YouTube id in a folder and its subfolders.

    An id whose files start at different places of the video is left out with a warning.
    """
    files: dict[str, list[tuple[int, str]]] = {}
    starts: dict[str, set[float]] = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            stem, extension = os.path.splitext(name)
            identity = youtube_id(stem)
            if identity is not None and extension.lower() in EXTENSIONS:
                key, start = identity
                rank = EXTENSIONS.index(extension.lower())
                files.setdefault(key, []).append((rank, os.path.join(place, name)))
                starts.setdefault(key, set()).update({start} - {None})
    ambiguous = [key for key in files if len(starts[key]) > 1]
    if ambiguous:
        message = "%s: %d YouTube ids have files of different starts (such as %s) and are left out"
        logger.warning(message, folder, len(ambiguous), min(ambiguous))
    return {key: min(paths)[1] for key, paths in files.items() if key not in ambiguous}
