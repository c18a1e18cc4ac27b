"""Where a clip's audio is: in a file of its own, in a row of a Parquet shard, or in memory.

A clip is a path; or `SHARD.parquet#ROW` (`#ROW.1` for the second clip of a row that holds its audio), as [`load_shards`] names
them; or the bytes of an audio file.
"""

import io
import os
import re
from bisect import bisect_right
from functools import lru_cache
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_IN_SHARD = re.compile(r"(.+\.parquet)#([0-9]{1,18})(?:\.([0-9]))?")
Clip = str | bytes


def open_clip(clip: Clip) -> str | io.BytesIO:
    """What soundfile reads: the path of a file, or its content."""
    if isinstance(clip, bytes):
        return io.BytesIO(clip)
    inside = _IN_SHARD.fullmatch(clip)
    return (
        io.BytesIO(_from_shard(inside[1], int(inside[2]), int(inside[3] or 0))) if inside else clip
    )


def clip_audio(clip, seconds: float):
    """What the feature extractor takes: a path, or samples and their rate in Hz, as which a clip may also be given."""
    source = open_clip(clip) if isinstance(clip, (str, bytes)) else clip
    if not isinstance(source, io.BytesIO):
        return source
    from ..processing_audiolm import (
        read_file,
    )  # here, so that who needs no audio needs no transformers

    return read_file(source, seconds)


def clip_identity(clip: str) -> str:
    """Path, size and modification time of the file that holds a clip.

    Raises:
        OSError: if it is not there.
    """
    inside = _IN_SHARD.fullmatch(clip)
    file = inside[1] if inside else clip
    status = os.stat(file)
    return f"{os.path.abspath(file)}{clip[len(file) :]}|{status.st_size}|{status.st_mtime_ns}"


def _reader() -> tuple[int, int]:
    """Process and thread: a ParquetFile that two of them share hangs or tears."""
    return os.getpid(), get_ident()


@lru_cache(256)
def _shard(path: str, reader: tuple[int, int]) -> tuple["pq.ParquetFile", list[int]]:
    """A shard and the first row of each of its row groups."""
    import pyarrow.parquet as pq  # here, since only clips in shards need it

    file = pq.ParquetFile(path, memory_map=True)
    starts = [0]
    for group in range(file.num_row_groups):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return file, starts


@lru_cache(8)
def _audio_of_group(path: str, group: int, reader: tuple[int, int]):
    # use_threads: Arrow's are not there in a forked worker
    return (
        _shard(path, reader)[0]
        .read_row_group(group, columns=["audio"], use_threads=False)["audio"]
        .combine_chunks()
    )


def _from_shard(path: str, row: int, which: int) -> bytes:
    try:
        _, starts = _shard(path, _reader())
        group = bisect_right(starts, row) - 1
        audio = _audio_of_group(path, group, _reader())[row - starts[group]].as_py()
        content = (audio[which] if isinstance(audio, list) else audio)["bytes"]
    except (LookupError, TypeError, ValueError) as error:  # ValueError: Arrow's too
        raise OSError(f"{path}: no shard that holds the audio of row {row} ({error})") from error
    if not isinstance(content, bytes):
        raise OSError(f"{path}: no audio is in row {row}")
    return content
