"""Fingerprints that find copies of a recording: re-encoded, shifted, softer or resampled.

A fingerprint has a code of 32 bits for every 23 ms. A bit says whether the difference of two
neighbouring frequency bands grows. Copies differ in some 10 % of the bits, and other recordings in
half of them. Source: Haitsma and Kalker, A Highly Robust Audio Fingerprinting System, ISMIR 2002.
"""

from collections.abc import Mapping, Sequence
from math import gcd

import numpy as np
from scipy.signal import resample_poly

from ...processing_audiolm import open_file
from ..audio_check import DECODING_ERRORS, ClipFacts, inspect_clips
from ..audio_files import open_clip
from ..cache import cache_folder

RATE = 5500  # Hz
WINDOW = 2048  # samples
HOP = 128  # samples
BAND_LIMITS = (300, 2000)  # Hz
NUM_BANDS = 33
QUIET = 1e-6  # share of the loudest frame's power below which a frame has no code
MIN_CODES = 40  # in which two recordings are compared, 0.9 s
MAX_BIT_ERRORS = 0.25  # share
MAX_OCCURRENCES = 200  # of a code that says something about a recording


def _band_matrix() -> np.ndarray:
    """Returns which frequencies each band adds up, shape `(frequencies, bands)`."""
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    edges = np.geomspace(*BAND_LIMITS, NUM_BANDS + 1)
    return ((frequencies >= edges[:-1]) & (frequencies < edges[1:])).astype(np.float32)


BANDS = _band_matrix()


def fingerprint(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns the codes of a recording, shape `(frames,)`, of 32 bits. A quiet frame has 0.

    Args:
        samples: Shape `(samples,)` or `(samples, channels)`.
        rate: In Hz.
    """
    if samples.ndim > 1:
        samples = samples.mean(1)
    divisor = gcd(RATE, rate)
    samples = resample_poly(samples, RATE // divisor, rate // divisor).astype(np.float32)
    samples = np.pad(samples, (0, max(0, WINDOW + HOP - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32))) ** 2 @ BANDS
    loudness = power.sum(1)[1:]
    grows = np.diff(np.diff(power, axis=1), axis=0) > 0
    codes = np.packbits(grows, axis=1).view(">u4")[:, 0].astype(np.uint32)
    return np.where(loudness > QUIET * loudness.max(initial=0), codes, 0)


def fingerprint_clip(clip: str, max_seconds: float) -> ClipFacts:
    """Returns facts whose `digest` is the fingerprint in hexadecimal digits."""
    try:
        with open_file(open_clip(clip)) as file:
            count = min(file.frames, int(max_seconds * file.samplerate))
            samples = file.read(count, dtype="float32", always_2d=True)
            codes = fingerprint(np.nan_to_num(samples), file.samplerate)
    except DECODING_ERRORS as error:
        return ClipFacts(f"not readable as audio ({error})")
    return ClipFacts(digest=codes.astype(">u4").tobytes().hex())


def fingerprint_clips(clips: Sequence[str], max_seconds: float = 10.0) -> dict[str, np.ndarray]:
    """Returns the fingerprints of the readable clips. They are cached as `inspect_clips` does."""
    cache_file = cache_folder() / "fingerprints.sqlite"
    facts = inspect_clips(list(clips), max_seconds, cache_file, read_facts=fingerprint_clip)
    return {
        clip: np.frombuffer(bytes.fromhex(fact.digest), ">u4").astype(np.uint32)
        for clip, fact in facts.items()
        if fact.digest
    }


class FingerprintIndex:
    """Recordings among which copies are looked for.

    Attributes:
        names: Of the recordings.
    """

    def __init__(self, fingerprints: Mapping[str, np.ndarray]):
        self.names = list(fingerprints)
        self.codes = [fingerprints[name] for name in self.names]
        lengths = [len(codes) for codes in self.codes]
        recordings = np.repeat(np.arange(len(self.names)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths] or [np.zeros(0, int)])
        values = np.concatenate(self.codes or [np.zeros(0, np.uint32)])
        order = np.argsort(values, kind="stable")
        self.values = values[order]
        self.recordings, self.positions = recordings[order], positions[order]

    def find_copy(self, codes: np.ndarray) -> str | None:
        """Returns the name of a recording that is a copy of one with these codes, or None."""
        places = np.flatnonzero(codes)
        low = np.searchsorted(self.values, codes[places], "left")
        high = np.searchsorted(self.values, codes[places], "right")
        is_telling = high - low <= MAX_OCCURRENCES
        candidates = set()
        for place, start, stop in zip(places[is_telling], low[is_telling], high[is_telling]):
            shifts = self.positions[start:stop] - place
            candidates.update(zip(self.recordings[start:stop].tolist(), shifts.tolist()))
        for number, shift in sorted(candidates):
            if are_copies(self.codes[number], codes, shift):
                return self.names[number]
        return None


def are_copies(first: np.ndarray, second: np.ndarray, shift: int) -> bool:
    """Returns whether two fingerprints are of one recording, if `second` starts `shift` later."""
    start, stop = max(0, shift), min(len(first), len(second) + shift)
    if stop - start < MIN_CODES:
        return False
    pair = np.stack([first[start:stop], second[start - shift : stop - shift]])
    pair = pair[:, (pair != 0).all(0)]
    if len(np.unique(pair[0])) < MIN_CODES:
        return False
    errors = np.unpackbits((pair[0] ^ pair[1]).view(np.uint8)).mean()
    return bool(errors <= MAX_BIT_ERRORS)
