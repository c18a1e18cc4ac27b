"""Finds the audio files that would spoil a run, before it starts."""

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from datasets import DatasetDict
from tqdm import tqdm

logger = logging.getLogger(__name__)
LOUDEST = 1.5  # |x| beyond it is no overshoot of a resampler but a broken file


def audio_fault(path: str, max_seconds: float = 10.0) -> str | None:
    """What is wrong with a file, or None. Decodes the seconds that are used, at most `max_seconds`."""
    file = Path(path)
    if not file.is_file():
        return "missing"
    if not file.stat().st_size:
        return "empty file"
    try:
        with soundfile.SoundFile(path) as sound:
            if not sound.frames:
                return "no samples"
            with file.open("rb") as raw:
                head = raw.read(8)
            stated = int.from_bytes(head[4:8], "little") + 8
            if head[:4] == b"RIFF" and file.stat().st_size < stated < 2**32 - 1:
                return f"truncated: {file.stat().st_size} of {stated} bytes"
            wanted = min(sound.frames, int(max_seconds * sound.samplerate))
            samples = sound.read(wanted, dtype="float32")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return f"not readable as audio ({error})"
    if len(samples) < wanted:
        return f"truncated: {len(samples)} of {wanted} samples"
    if not np.isfinite(samples).all():
        return "NaN or infinite samples"
    peak = float(np.abs(samples).max())
    return f"samples up to {peak:.1f}" if peak > LOUDEST else None


def _write_whole(file: Path, text: str) -> None:
    """Writes a file that several processes may write at once: it is there whole or as it was."""
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.replace(file)


def check_audio(paths: list[str], max_seconds: float = 10.0, cache_file: str | Path | None = None) -> dict[str, str]:
    """The faults of all files that have one, by path; in parallel, remembered by size and modification time.

    Args:
        cache_file: where verdicts are remembered; by default in the user's cache directory.
    """
    if cache_file is None:
        cache_file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "audiolm", "audio_checks.json")
    cache_file = Path(cache_file)
    try:
        known = json.loads(cache_file.read_text())
    except (OSError, ValueError):  # absent or torn: all is looked at again
        known = {}
    known = known if isinstance(known, dict) else {}

    def verdict(path):
        try:
            status = os.stat(path)
        except OSError:
            return "missing", None, None
        key = f"{Path(path).resolve()}|{status.st_size}|{status.st_mtime_ns}|{max_seconds}"
        return (known[key] if key in known else audio_fault(path, max_seconds)), key, path

    paths = sorted(set(paths))
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(verdict, paths), total=len(paths), desc="checking audio", unit="file", disable=None))
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(cache_file, json.dumps({**known, **{key: fault for fault, key, _ in found if key}}))
    except OSError as error:
        logger.warning("%s cannot be written (%s); the next run checks all audio again", cache_file, error)
    return {path: fault for path, (fault, _, _) in zip(paths, found) if fault}


def sound_rows(data: DatasetDict, seconds: float, on_bad_audio: str, output_dir: str | Path) -> DatasetDict:
    """The rows whose audio is there and whole; the faults are counted, named and written to `output_dir`/bad_audio.txt.

    Raises:
        ValueError: if there is a fault and `on_bad_audio` is "error", or if no row of a split is left.
    """
    faults = check_audio([path for split in data.values() for row in split["audio"] for path in row], seconds)
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
