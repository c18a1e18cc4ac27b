"""Finds missing and broken audio before a run, and measures clips for an audit of a corpus.

What the container of a file states is compared with the bytes that the file holds.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import soundfile
from datasets import Dataset, DatasetDict
from tqdm import tqdm

from ..processing_audiolm import find_mp3_tag, is_media, open_file, read_at
from ..runtime import UserError, write_text
from .audio_files import clip_identity, describe_error, open_clip
from .cache import JsonCache, cache_folder
from .reasonaqa import iterate_columns

logger = logging.getLogger(__name__)
VERSION = 3  # Version of the facts in the cache.
MAX_PEAK = 1.5  # A larger |sample| is no overshoot of a resampler but a broken file.
MAX_LOSSY_PEAK = 3.0  # Ogg and MP3 files of loud recordings decode to 1.7 and more.
LOSSY_FORMATS = ("OGG", "MP3", "MPEG")
SILENCE_PEAK = 1e-4  # -80 dB of full scale.
MIN_SECONDS = 0.5
# libsndfile's note on WAV, RF64, W64, AIFF and AU files whose header states other bytes than they
# hold. Programs that write to a pipe do not know them and state 0x7ffff024 and more.
OTHER_SIZE = re.compile(r"(?:riff|form|size) *: (\d+) \(should be (\d+)\)", re.I)
MIN_UNKNOWN_SIZE = 0x7F000000
MAX_OGG_PAGE = 65_307  # bytes
MAX_PADDING = 0.2  # s that a compressed file may state beyond its samples
AT_ONCE = 256  # Facts are saved after so many files.
# A LibsndfileError is a RuntimeError.
DECODING_ERRORS = (RuntimeError, OSError, ValueError, MemoryError, pa.ArrowException)


class ClipFacts(NamedTuple):
    """Facts of a clip. A clip with a `fault` cannot be used. Silent and short clips can."""

    fault: str | None = None
    seconds: float = 0.0  # of the whole file
    peak: float = 0.0  # largest |sample| of the seconds that are used, channels averaged
    digest: str | None = None  # of the samples that are used and their rate

    @property
    def kind(self) -> str:
        """Returns "sound" for a valid clip, or the name of its problem."""
        if self.fault is not None:
            kinds = {"missing": "missing", "NaN": "not finite", "samples up to": "too loud"}
            starts = (start for start in kinds if self.fault.startswith(start))
            return kinds.get(next(starts, ""), "unreadable")
        if self.peak < SILENCE_PEAK:
            return "silent"
        return "too short" if self.seconds < MIN_SECONDS else "sound"


def clip_facts(clip: str, max_seconds: float = 10.0) -> ClipFacts:
    """Reads the header of a file or a shard's row, and decodes the seconds that are used."""
    try:
        source = open_clip(clip)
        if isinstance(source, str) and os.path.exists(source) and not os.path.isfile(source):
            # Opening a pipe would wait for a writer.
            return ClipFacts("not readable as audio (no regular file)")
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as raw:
            return _decoded_facts(source, raw, max_seconds)
    except FileNotFoundError:
        return ClipFacts("missing")
    except DECODING_ERRORS as error:
        return ClipFacts(f"not readable as audio ({describe_error(error)})")


def _decoded_facts(source: str | BinaryIO, raw: BinaryIO, max_seconds: float) -> ClipFacts:
    if raw.read(1) == b"":
        return ClipFacts("empty file")
    is_lossy = is_media(read_at(raw, 0, 16))
    with open_file(source) as file:
        if file.frames == 0:
            return ClipFacts("no samples")
        is_lossy = is_lossy or file.format in LOSSY_FORMATS
        rate = file.samplerate
        seconds = file.frames / rate
        num_samples = min(file.frames, int(max_seconds * rate))
        samples = file.read(num_samples, dtype="float32", always_2d=True)
        truncation = find_truncation(raw, file)
    if len(samples) < num_samples:
        truncation = f"{len(samples)} of {num_samples} samples"
    if truncation:
        return ClipFacts(f"truncated: {truncation}", seconds)
    if not np.isfinite(samples).all():
        return ClipFacts("NaN or infinite samples", seconds)
    # A model gets the mean of the channels, which may cancel each other.
    peak = float(np.abs(samples.mean(1)).max())
    content = np.ascontiguousarray(samples)
    digest = hashlib.blake2b(content, digest_size=16, key=str(rate).encode()).hexdigest()
    max_peak = MAX_LOSSY_PEAK if is_lossy else MAX_PEAK
    fault = f"samples up to {peak:.1f}" if peak > max_peak else None
    return ClipFacts(fault, seconds, peak, digest)


def find_truncation(raw: BinaryIO, file: soundfile.SoundFile) -> str | None:
    """Returns what an open file lacks, such as "12 of 24 bytes".

    None means that it is complete, or that its container does not tell.
    """
    # Before `raw` is moved, which may be the stream that `file` reads from.
    if file.format == "FLAC":
        return None if _has_last_sample(file) else f"not all of its {file.frames} samples"
    size = raw.seek(0, os.SEEK_END)
    header = read_at(raw, 0, 16)
    if header[:4] == b"OggS":
        return None if _has_last_ogg_page(raw, size) else "its last page is missing"
    if is_media(header):
        import av  # the extra `media`, without which the file cannot be opened either

        with av.open(raw) as container:
            stated = (container.duration or 0) / av.time_base
        seconds = file.frames / file.samplerate
        is_short = seconds < stated - MAX_PADDING
        return f"{seconds:.1f} of {stated:.1f} s" if is_short else None
    tag = find_mp3_tag(raw)
    sizes = [(tag.end or 0, size)] if tag else OTHER_SIZE.findall(file.extra_info)
    for stated_size, actual_size in sizes:
        if int(actual_size) < int(stated_size) < MIN_UNKNOWN_SIZE:
            return f"{actual_size} of {stated_size} bytes"
    return None


def _has_last_sample(file: soundfile.SoundFile) -> bool:
    try:
        file.seek(-1, os.SEEK_END)
        return len(file.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _has_last_ogg_page(file: BinaryIO, size: int) -> bool:
    end = read_at(file, max(0, size - MAX_OGG_PAGE), -1)
    page = end[max(0, end.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    is_complete = len(page) >= 27 + len(segments) + sum(segments)
    return is_complete and bool(segments) and bool(page[5] & 4)


def inspect_clips(
    clips: list[str],
    max_seconds: float = 10.0,
    cache_file: str | Path | None = None,
    read_facts: Callable[[str, float], ClipFacts] = clip_facts,
) -> dict[str, ClipFacts]:
    """Returns the facts of all clips, by clip.

    Files are read in parallel. Facts are cached by path, size and modification time, also when
    the check is interrupted.

    Args:
        clips: Paths or rows of shards.
        max_seconds: Seconds that are used of a clip.
        cache_file: SQLite file of the cache. Default: in the user's cache folder.
        read_facts: Computes the facts of a clip from it and `max_seconds`.
    """
    facts: dict[str, ClipFacts] = {}
    keys: dict[str, str] = {}
    for clip in sorted(set(clips)):
        try:
            keys[clip] = f"{VERSION}|{clip_identity(clip)}|{max_seconds:g}"
        except (OSError, ValueError):  # A NUL in a name is a ValueError.
            facts[clip] = ClipFacts("missing")
    cache = JsonCache(cache_file or cache_folder() / "audio_checks.sqlite")
    cached: dict[str, Any] = cache.get(list(keys.values()))
    facts.update((clip, ClipFacts(*cached[key])) for clip, key in keys.items() if key in cached)
    new = [clip for clip in keys if clip not in facts]
    new_facts: dict[str, ClipFacts] = {}

    def inspect(clip: str) -> None:
        new_facts[clip] = read_facts(clip, max_seconds)

    with tqdm(total=len(new), desc="checking audio", unit="file", disable=None) as bar:
        for start in range(0, len(new), AT_ONCE):
            try:
                with ThreadPoolExecutor() as pool:
                    for _ in pool.map(inspect, new[start : start + AT_ONCE]):
                        bar.update()
            finally:
                # The pool has ended, so facts of files that were in progress at an interruption
                # are saved too.
                facts.update(new_facts)
                cache.put({keys[clip]: new_facts[clip] for clip in new_facts})
                new_facts.clear()
    return facts


def check_audio(
    paths: list[str], max_seconds: float = 10.0, cache_file: str | Path | None = None
) -> dict[str, str]:
    """Returns what is wrong with each clip that cannot be used. See [`inspect_clips`]."""
    facts = inspect_clips(paths, max_seconds, cache_file)
    return {path: clip.fault for path, clip in facts.items() if clip.fault}


def list_clips(splits: Iterable[Dataset]) -> list[str]:
    """Returns the distinct clips of all rows, in their order."""
    rows = chain.from_iterable(iterate_columns(split, "audio") for split in splits)
    return list(dict.fromkeys(chain.from_iterable(chain.from_iterable(rows))))


def drop_bad_audio(
    data: DatasetDict, seconds: float, on_bad_audio: str, output_dir: str | Path
) -> DatasetDict:
    """Drops the rows with unusable audio, and lists the faults in `output_dir`/bad_audio.txt.

    Args:
        data: Splits of `load_rows`.
        seconds: Seconds that are used of a clip.
        on_bad_audio: "error" or "skip".
        output_dir: Folder of the list.

    Raises:
        UserError: If there is a fault and `on_bad_audio` is "error", or if a split loses all rows.
    """
    faults = check_audio(list_clips(data.values()), seconds)
    if not faults:
        return data
    listing = Path(output_dir, "bad_audio.txt")
    listing.parent.mkdir(parents=True, exist_ok=True)
    write_text(listing, "".join(f"{path}\t{fault}\n" for path, fault in faults.items()))
    path, fault = next(iter(faults.items()))
    message = (
        f"{len(faults)} audio files cannot be used (first: {path}: {fault}). "
        f"{listing} lists them all"
    )
    if on_bad_audio == "error":
        raise UserError(f"{message}. Fix them, or pass --on_bad_audio skip.")
    usable = data.filter(lambda row: not any(path in faults for path in row["audio"]))
    num_dropped = {split: len(data[split]) - len(usable[split]) for split in data}
    logger.warning("%s. Rows dropped: %s", message, num_dropped)
    empty = [split for split, rows in usable.items() if len(rows) == 0]
    if empty:
        raise UserError(f"{message}. No row of {', '.join(empty)} is left.")
    return usable
