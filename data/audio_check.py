"""What is in audio files: the faults that would spoil a run, found before it starts, and facts for a check of the corpus."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import soundfile
from datasets import DatasetDict
from tqdm import tqdm

from ..processing_audiolm import open_file
from .audio_files import clip_identity, open_clip
from .cache import Remembered, cache_folder

logger = logging.getLogger(__name__)
VERSION = 1  # of what is found out about a file
LOUDEST = 1.5  # |x| beyond it is no overshoot of a resampler but a broken file
SILENT = 1e-4  # |x| below it everywhere, -80 dB of full scale, is silence
SHORTEST = 0.5  # seconds; less of a recording tells nothing that a question is about
AT_ONCE = 256  # files whose facts are remembered together


class ClipFacts(NamedTuple):
    """What is known of a file. A `fault` keeps it from being used; a silent or short clip is used unless it is left out.

    Attributes:
        fault: what is wrong, or None. seconds: length of the whole file. peak: largest |x| of the seconds that are used.
        digest: of the samples that are used and their rate: equal for equal audio, whatever the file is called.
    """

    fault: str | None = None
    seconds: float = 0.0
    peak: float = 0.0
    digest: str | None = None

    @property
    def kind(self) -> str:
        """ "sound", or what is the matter: "missing", "unreadable", "not finite", "too loud", "silent", "too short"."""
        if self.fault is None:
            return (
                "silent"
                if self.peak < SILENT
                else "too short"
                if self.seconds < SHORTEST
                else "sound"
            )
        named = {"missing": "missing", "NaN": "not finite", "samples up to": "too loud"}
        return next(
            (kind for start, kind in named.items() if self.fault.startswith(start)), "unreadable"
        )


def clip_facts(clip: str, max_seconds: float = 10.0) -> ClipFacts:
    """Facts of a clip. Its header is read first; decoded are the seconds that are used, at most `max_seconds`."""
    try:
        source = open_clip(clip)
        if isinstance(source, str) and os.path.exists(source) and not os.path.isfile(source):
            return ClipFacts(
                "not readable as audio (no regular file)"
            )  # a pipe would be waited for
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as raw:
            size, head = raw.seek(0, os.SEEK_END), raw.seek(0) or raw.read(8)
            raw.seek(0)
            if not size:
                return ClipFacts("empty file")
            with open_file(source) as sound:
                if not sound.frames:
                    return ClipFacts("no samples")
                seconds, rate = sound.frames / sound.samplerate, sound.samplerate
                stated = int.from_bytes(head[4:8], "little") + 8
                if head[:4] == b"RIFF" and size < stated < 2**32 - 1:
                    return ClipFacts(f"truncated: {size} of {stated} bytes", seconds)
                wanted = min(sound.frames, int(max_seconds * rate))
                samples = sound.read(wanted, dtype="float32")
    except FileNotFoundError:
        return ClipFacts("missing")
    except (
        soundfile.LibsndfileError,
        RuntimeError,
        OSError,
        ValueError,
        MemoryError,
        pa.ArrowException,
    ) as error:
        return ClipFacts(f"not readable as audio ({error})")
    if len(samples) < wanted:
        return ClipFacts(f"truncated: {len(samples)} of {wanted} samples", seconds)
    if not np.isfinite(samples).all():
        return ClipFacts("NaN or infinite samples", seconds)
    peak = float(np.abs(samples).max())
    digest = hashlib.blake2b(
        np.ascontiguousarray(samples), digest_size=16, key=str(rate).encode()
    ).hexdigest()
    return ClipFacts(f"samples up to {peak:.1f}" if peak > LOUDEST else None, seconds, peak, digest)


def inspect_clips(
    clips: list[str],
    max_seconds: float = 10.0,
    cache_file: str | Path | None = None,
    look: Callable = clip_facts,
) -> dict[str, ClipFacts]:
    """Facts of all clips, by clip; in parallel, remembered by size and modification time, also when it is interrupted.

    Args:
        clips: paths, or clips of a converted data set. cache_file: by default in the user's cache directory.
    """
    facts: dict[str, ClipFacts] = {}
    keys: dict[str, str] = {}
    for clip in sorted(set(clips)):
        try:
            keys[clip] = f"{VERSION}|{clip_identity(clip)}|{max_seconds:g}"
        except (OSError, ValueError):  # ValueError: a NUL in its name
            facts[clip] = ClipFacts("missing")
    known = Remembered(cache_file or cache_folder() / "audio_checks.sqlite")
    found = known.get(list(keys.values()))
    facts.update((clip, ClipFacts(*found[key])) for clip, key in keys.items() if key in found)
    unknown = [clip for clip in keys if clip not in facts]
    new: dict[str, ClipFacts] = {}  # found, but not remembered yet

    def find(clip: str) -> None:
        new[clip] = look(clip, max_seconds)

    def remember() -> None:
        ready = dict(new)
        facts.update(ready)
        known.put({keys[clip]: fact for clip, fact in ready.items()})
        for clip in ready:
            del new[clip]

    bar = tqdm(
        total=len(unknown), desc="checking audio", unit="file", disable=None if unknown else True
    )
    try:
        with ThreadPoolExecutor() as pool, bar:
            for _ in _in_parallel(pool, find, unknown):
                bar.update()
                if len(new) >= AT_ONCE:
                    remember()
    finally:  # the pool has ended: what was under way at an interruption is there too
        remember()
    return facts


def _in_parallel(pool: ThreadPoolExecutor, find: Callable, clips: list[str]) -> Iterator[None]:
    """Comes back for each clip; few are under way at once, so that an interruption ends it soon."""
    waiting, left = set(), iter(clips)
    while True:
        waiting |= {
            pool.submit(find, clip) for clip in islice(left, 4 * pool._max_workers - len(waiting))
        }
        if not waiting:
            return
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def check_audio(
    paths: list[str], max_seconds: float = 10.0, cache_file: str | Path | None = None
) -> dict[str, str]:
    """The faults of all clips that have one, by clip."""
    return {
        path: facts.fault
        for path, facts in inspect_clips(paths, max_seconds, cache_file).items()
        if facts.fault
    }


def _write_whole(file: Path, text: str) -> None:
    """Writes a file that several processes may write at once: it is there whole or as it was."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(file)


def drop_bad_audio(
    data: DatasetDict, seconds: float, on_bad_audio: str, output_dir: str | Path
) -> DatasetDict:
    """The rows whose audio is there and whole; the faults are counted, named and written to `output_dir`/bad_audio.txt.

    Raises:
        ValueError: if there is a fault and `on_bad_audio` is "error", or if no row of a split is left.
    """
    faults = check_audio(
        [path for split in data.values() for row in split["audio"] for path in row], seconds
    )
    if not faults:
        return data
    listing = Path(output_dir, "bad_audio.txt")
    listing.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(listing, "".join(f"{path}\t{fault}\n" for path, fault in faults.items()))
    path, fault = next(iter(faults.items()))
    message = f"{len(faults)} audio files cannot be used (first: {path}: {fault}); all are listed in {listing}"
    if on_bad_audio == "error":
        raise ValueError(f"{message}. Mend them, or give --on_bad_audio skip.")
    kept = data.filter(lambda row: not any(p in faults for p in row["audio"]))
    logger.warning("%s; rows left out: %s", message, {s: len(data[s]) - len(kept[s]) for s in data})
    if empty := [split for split in kept if not len(kept[split])]:
        raise ValueError(f"{message}; no row of {', '.join(empty)} is left")
    return kept
