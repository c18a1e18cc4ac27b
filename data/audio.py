"""Finds the audio files that would spoil a run, before it starts."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

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


def check_audio(paths: list[str], max_seconds: float = 10.0, cache_file: str | Path | None = None) -> dict[str, str]:
    """The faults of all files that have one, by path; in parallel, remembered by size and modification time.

    Args:
        cache_file: where verdicts are remembered; by default in the user's cache directory.
    """
    if cache_file is None:
        cache_file = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "audiolm", "audio_checks.json")
    cache_file = Path(cache_file)
    known = json.loads(cache_file.read_text()) if cache_file.is_file() else {}

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
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    part = cache_file.with_suffix(f".{os.getpid()}")  # a torn cache would stop the next run
    part.write_text(json.dumps({**known, **{key: fault for fault, key, _ in found if key}}))
    part.replace(cache_file)
    return {path: fault for path, (fault, _, _) in zip(paths, found) if fault}
