"""Compares what the container of an audio file states with the bytes that the file holds."""

import os
from typing import BinaryIO

from ..processing_audiolm import find_mp3_tag, is_media, read_at

# Programs that write to a pipe do not know the size. sox writes 0x7ffff024, arecord 0x80000024,
# FFmpeg 0xffffffff.
MIN_UNKNOWN_SIZE = 0x7F000000
MAX_OGG_PAGE = 65_307  # bytes


def find_truncation(file: BinaryIO) -> str | None:
    """Returns what an open file lacks, such as "12 of 24 bytes".

    None means that it is complete, or that its container does not tell. FLAC states its samples.
    """
    size = file.seek(0, os.SEEK_END)
    header = read_at(file, 0, 28)
    if header[:4] == b"OggS":
        return None if _has_last_ogg_page(file, size) else "its last page is missing"
    tag = find_mp3_tag(file)
    stated = _stated_size(header) if tag is None else tag.end
    return f"{size} of {stated} bytes" if stated and size < stated else None


def _stated_size(header: bytes) -> int | None:
    """Returns the bytes that WAV, AIFF, AU, W64 or RF64 state, or None."""
    little = [int.from_bytes(header[i : i + 4], "little") for i in range(0, 28, 4)]
    big = [int.from_bytes(header[i : i + 4], "big") for i in range(0, 28, 4)]
    match header[:4]:
        case b"RIFF" if little[1] < MIN_UNKNOWN_SIZE:
            return 8 + little[1]
        case b"FORM" if big[1] < MIN_UNKNOWN_SIZE:
            return 8 + big[1]
        case b".snd" if big[2] < MIN_UNKNOWN_SIZE:
            return big[1] + big[2]  # header and samples
        case b"riff":
            return little[4] + (little[5] << 32)
        case b"RF64" if header[12:16] == b"ds64" and little[6] < MIN_UNKNOWN_SIZE:
            return 8 + little[5] + (little[6] << 32)
    return None


def _has_last_ogg_page(file: BinaryIO, size: int) -> bool:
    end = read_at(file, max(0, size - MAX_OGG_PAGE), -1)
    page = end[max(0, end.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    is_complete = len(page) >= 27 + len(segments) + sum(segments)
    return is_complete and bool(segments) and bool(page[5] & 4)


def media_seconds(file: BinaryIO) -> float:
    """Returns how long an MP4, WebM or other file of FFmpeg's states to be, or 0."""
    if not is_media(read_at(file, 0, 16)):
        return 0.0
    import av  # the extra `media`, without which the file cannot be opened either

    with av.open(file) as container:
        seconds = (container.duration or 0) / av.time_base
    file.seek(0)
    return seconds
