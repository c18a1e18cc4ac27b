"""Opens a clip: a file of its own, a row of a Parquet shard, or the bytes of an audio file.

A clip is a path, or bytes, or `SHARD.parquet#ROW` as [`load_shards`] names it. `#ROW.1` is the
second clip of a row that holds its audio.
"""

import io
import os
import re
import unicodedata
from functools import lru_cache
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_SHARD_ROW = re.compile(r"(.+\.parquet)#([0-9]{1,18})(?:\.([0-9]))?")
Clip = str | bytes


def open_clip(clip: Clip) -> str | io.BytesIO:
    """Returns what soundfile reads: the path of a file, or its content.

    Raises:
        OSError: If a shard does not hold the clip.
    """
    if isinstance(clip, bytes):
        return io.BytesIO(clip)
    match = _SHARD_ROW.fullmatch(clip)
    if match is None:
        return clip
    path, row, position = match.groups(default="0")
    return io.BytesIO(_read_from_shard(path, int(row), int(position)))


def clip_audio(clip, seconds: float):
    """Returns what the feature extractor takes: a path, or samples and their rate in Hz.

    Samples and their rate are returned as they are. Of a clip that is not a file, the first
    seconds are read.
    """
    source = open_clip(clip) if isinstance(clip, (str, bytes)) else clip
    if not isinstance(source, io.BytesIO):
        return source
    # Imported here because a program without audio needs no transformers.
    from ..processing_audiolm import read_file

    return read_file(source, seconds)


def find_file(path: str) -> str:
    """Returns the path of a file whose name may have its accents in another Unicode form.

    macOS decomposes them (NFD), and most other systems keep them composed (NFC). The path of a file
    that does not exist is returned as it is.
    """
    if path.isascii() or os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    parent = find_file(folder) if folder not in ("", path) else folder
    for form in ("NFC", "NFD"):
        other = os.path.join(parent, unicodedata.normalize(form, name))
        if os.path.exists(other):
            return other
    return path


def clip_identity(clip: str) -> str:
    """Returns path, size and modification time of the file that holds a clip.

    Raises:
        OSError: If the file does not exist.
    """
    match = _SHARD_ROW.fullmatch(clip)
    file = match[1] if match else clip
    status = os.stat(file)
    return f"{os.path.abspath(file)}{clip[len(file) :]}|{status.st_size}|{status.st_mtime_ns}"


def describe_error(error: Exception) -> str:
    """Returns why a clip cannot be read. A clip without a path is called "it"."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return re.sub(r"<_io\.BytesIO object at \w+>", "it", message)


def _reader() -> tuple[int, int]:
    """Returns process and thread. A ParquetFile shared by two of them hangs or reads garbage."""
    return os.getpid(), get_ident()


@lru_cache(256)
def _open_shard(path: str, reader: tuple[int, int]) -> "pq.ParquetFile":
    # Imported here because only clips in shards need it.
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True)


@lru_cache(8)
def _read_audio(path: str, group: int, reader: tuple[int, int]) -> "pa.Array":
    # Arrow's own threads do not exist in a forked worker.
    table = _open_shard(path, reader).read_row_group(group, columns=["audio"], use_threads=False)
    return table["audio"].combine_chunks()


def _read_from_shard(path: str, row: int, position: int) -> bytes:
    try:
        # All row groups of a shard have the same size but the last, which is smaller.
        metadata = _open_shard(path, _reader()).metadata
        group, row_in_group = divmod(row, metadata.row_group(0).num_rows)
        audio = _read_audio(path, group, _reader())[row_in_group].as_py()
        content = (audio[position] if isinstance(audio, list) else audio)["bytes"]
    # Arrow's errors are ValueErrors, and it cannot count to some numbers.
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise OSError(f"{path}: no shard that holds the audio of row {row} ({error})") from error
    if not isinstance(content, bytes):
        raise OSError(f"{path}: row {row} holds no audio")
    return content
