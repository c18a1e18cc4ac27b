"""Synthesises sound events of twenty classes with numpy. Random parameters make no two alike.

Longer than 350 lines, because each class is a function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

SAMPLE_RATE = 24000  # Hz
EVENT_DB = -20.0  # loudest 50 ms of a near event of 0 dB gain
DISTANCE_DB = {"near": 0.0, "middle": -6.0, "far": -12.0}
# Hz. Air and ground absorb the treble first.
DISTANCE_CUTOFF = {"near": None, "middle": 5000.0, "far": 2000.0}
# Hits per second. A gap between the bands keeps "slow" and "fast" unambiguous, as with pitches.
TEMPO = {"slow": (1.5, 2.4), "fast": (4.8, 7.0)}
FADE_SAMPLES = 480
LEVEL_FRAME = 1200  # samples: 50 ms


@dataclass(frozen=True)
class Event:
    """One sound. A property that its class does not have is None."""

    name: str
    onset: float  # s
    duration: float  # s
    pitch: Any  # float, Hz
    tempo: Any  # float, hits per second
    glide: str | None  # "rising", "falling" or "steady" pitch
    gain_db: float
    distance: str  # "near", "middle" or "far"
    seed: int  # of timbre and jitter

    @property
    def level_db(self) -> float:
        """Returns the level of its loudest 50 ms, dB."""
        return EVENT_DB + self.gain_db + DISTANCE_DB[self.distance]

    @property
    def pitch_word(self) -> str | None:
        """Returns "high" or "low" for its class."""
        pitch_range = CLASSES[self.name].pitch if self.pitch else None
        if pitch_range is None:
            return None
        low, high = pitch_range
        return "high" if self.pitch > np.sqrt(low * high) else "low"

    @property
    def tempo_word(self) -> str | None:
        """Returns "fast" or "slow"."""
        if self.tempo is None:
            return None
        return "fast" if self.tempo >= TEMPO["fast"][0] else "slow"

    def synthesise(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the waveform, before its level and distance are applied."""
        return CLASSES[self.name].synthesise(self, samples, rng)


def render_event(event: Event) -> np.ndarray:
    """Returns the waveform of an event: float32 samples at `SAMPLE_RATE`, as loud as its level."""
    samples = int(event.duration * SAMPLE_RATE)
    rng = np.random.default_rng(event.seed)
    sound = event.synthesise(samples, rng).astype(np.float32)
    fade = min(samples // 4, FADE_SAMPLES)
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    cutoff = DISTANCE_CUTOFF[event.distance]
    if cutoff:
        sound = filter_band(sound, 0, cutoff, 1)
    frames = sound[: samples // LEVEL_FRAME * LEVEL_FRAME].reshape(-1, LEVEL_FRAME)
    loudest = np.sqrt(np.square(frames).mean(1).max())
    return sound * np.float32(10 ** (event.level_db / 20) / loudest)


# Building blocks, all of float32. Filters act on spectra.


def ramp(samples: int) -> np.ndarray:
    """Returns the numbers of the samples, from 0 on."""
    return np.arange(samples, dtype=np.float32)


def fft_size(samples: int) -> int:
    """Returns the next even length whose Fourier transform is quick."""
    return 2 * next_fast_len((samples + 1) // 2, real=True)


def bins_hertz(size: int) -> np.ndarray:
    """Returns the frequency of each bin of a real transform of `size` samples."""
    return np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32)


def band_gain(hertz: np.ndarray, low: float, high: float, order: int) -> np.ndarray:
    """Returns gains of a zero-phase Butterworth band-pass, `low` to `high` Hz, order 1, 2 or 4."""
    above = np.square(hertz / high)
    below = np.square(low / np.maximum(hertz, 1))
    for _ in range(order.bit_length() - 1):
        above = np.square(above)
        below = np.square(below)
    return 1 / np.sqrt((1 + above) * (1 + below))


def filter_band(sound: np.ndarray, low: float, high: float, order: int) -> np.ndarray:
    """Applies `band_gain` to a waveform, shape `(samples,)`."""
    size = fft_size(len(sound))
    spectrum = np.fft.rfft(sound, size) * band_gain(bins_hertz(size), low, high, order)
    return np.fft.irfft(spectrum, size).astype(np.float32)[: len(sound)]


def noise_spectrum(size: int, rng: np.random.Generator, level_db: float) -> np.ndarray:
    """Returns the transform of white noise with an RMS of `level_db`."""
    scale = np.float32(10 ** (level_db / 20) * np.sqrt(size / 2))
    parts = rng.standard_normal((size // 2 + 1, 2), np.float32) * scale
    return parts.view(np.complex64)[:, 0]


def noise(
    samples: int, rng: np.random.Generator, low: float, high: float, order: int = 2
) -> np.ndarray:
    """Returns noise of a band (Hz) with an RMS of 1."""
    size = fft_size(samples)
    gain = band_gain(bins_hertz(size), low, high, order)
    spectrum = noise_spectrum(size, rng, 0.0) * (gain / np.sqrt(np.square(gain).mean()))
    return np.fft.irfft(spectrum, size).astype(np.float32)[:samples]


def _decay(samples: int, seconds: float) -> np.ndarray:
    return np.exp(ramp(samples) * np.float32(-1 / (seconds * SAMPLE_RATE)))


def _sine(hertz: float, samples: int, phase: float = 0.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * ramp(samples) / SAMPLE_RATE + phase)


def _tone(hertz: np.ndarray | float, samples: int, weights: Sequence = (1.0,)) -> np.ndarray:
    """Sums harmonics. The frequency and each weight are numbers, or arrays with one per sample."""
    cycles = np.broadcast_to(np.asarray(hertz, np.float64), samples).cumsum() / SAMPLE_RATE
    phase = (2 * np.pi * (cycles % 1)).astype(np.float32)
    top = np.max(hertz)
    return sum(w * np.sin((k + 1) * phase) for k, w in enumerate(weights) if (k + 1) * top < 11000)


def _glide(event: Event, samples: int, octaves: float) -> np.ndarray:
    """Returns the frequency of each sample. The event's pitch is in the middle."""
    direction = {"rising": 1, "falling": -1, "steady": 0}[event.glide]
    return event.pitch * 2 ** (direction * octaves * np.linspace(-0.5, 0.5, samples))


def _repeat(
    event: Event, samples: int, rng: np.random.Generator, hit: Callable[[], np.ndarray]
) -> np.ndarray:
    """Puts a new `hit()` at each beat of the event's tempo, a little out of time."""
    sound = np.zeros(samples, np.float32)
    for k in range(int(event.duration * event.tempo - 0.25) + 1):
        start = int(max(0.0, k + rng.uniform(-0.06, 0.06)) / event.tempo * SAMPLE_RATE)
        part = hit()[: samples - start]
        sound[start : start + len(part)] += part * np.float32(rng.uniform(0.8, 1.0))
    return sound


def _jitter(rng: np.random.Generator, spread: float = 0.1) -> float:
    return float(rng.uniform(1 - spread, 1 + spread))


# One function per class. The order of random numbers is part of the corpus.


def _bell(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    tail = event.duration * rng.uniform(0.3, 0.45)
    sound = 0
    for ratio in (0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 2.66, 3.01, 4.1):
        weight = rng.uniform(0.3, 1.0)
        partial = _tone(event.pitch * ratio * _jitter(rng, 0.01), samples)
        sound = sound + weight * partial * _decay(samples, tail / np.sqrt(ratio + 0.5))
    return sound


def _siren(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    wail = 1 + 0.07 * _sine(rng.uniform(5, 7), samples)
    weights = [_jitter(rng, 0.4) / k for k in range(1, 9)]
    return _tone(_glide(event, samples, 1.3) * wail, samples, weights)


def _whistle(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    tone = _tone(_glide(event, samples, 0.9), samples, (1.0, 0.05))
    return tone + 0.15 * noise(samples, rng, event.pitch, 6000)


def _engine(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    hertz = _glide(event, samples, 1.0)
    firing = 1 + 0.5 * _tone(hertz / 2, samples)
    weights = [_jitter(rng, 0.7) / k**0.6 for k in range(1, 25)]
    return firing * (_tone(hertz, samples, weights) + 0.5 * noise(samples, rng, 100, 900))


def _alarm(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.5 / event.tempo * SAMPLE_RATE)
    edge = np.minimum(1, np.minimum(ramp(size), size - ramp(size)) / 100)
    beep = edge * _tone(event.pitch, size, (1, 0, 0.5, 0, 0.3))
    return _repeat(event, samples, rng, lambda: beep)


def _phone(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    seconds = ramp(samples) / SAMPLE_RATE
    trill = np.where(seconds * rng.uniform(18, 24) % 1 < 0.5, 1.0, 1.26)
    is_ringing = seconds % 0.6 < 0.4
    return is_ringing * _tone(event.pitch * trill, samples, (1, 0.5, 0.4, 0.2, 0.15))


def _bird(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.1 * SAMPLE_RATE)
    direction = rng.choice([-1, 1])

    def chirp() -> np.ndarray:
        sweep = 2 ** (direction * np.linspace(-0.4, 0.4, size))
        hertz = event.pitch * _jitter(rng, 0.05) * sweep
        return np.hanning(size) * _tone(hertz, size, (1, 0.15))

    return _repeat(event, samples, rng, chirp)


def _cricket(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.13 * SAMPLE_RATE)
    pulses = np.maximum(0, _sine(rng.uniform(28, 36), size))
    chirp = pulses * _tone(event.pitch, size)
    return _repeat(event, samples, rng, lambda: chirp)


def _dog(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(rng.uniform(0.13, 0.17) * SAMPLE_RATE)
    formant = rng.uniform(800, 1300)
    arch = 1 + 0.35 * np.sin(np.pi * np.linspace(0, 1, size))
    weights = [np.exp(-(((k * event.pitch - formant) / 600) ** 2)) + 0.15 for k in range(1, 14)]

    def bark() -> np.ndarray:
        hertz = event.pitch * _jitter(rng, 0.05) * arch
        voice = _tone(hertz, size, weights) + noise(size, rng, 500, 2500)
        return voice * _decay(size, 0.06) * np.minimum(1, ramp(size) / 300)

    return _repeat(event, samples, rng, bark)


def _cat(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    arch = np.sin(np.pi * np.linspace(0, 1, samples, dtype=np.float32))
    hertz = event.pitch * (0.85 + 0.3 * arch)
    formant = 700 * _jitter(rng) + 1500 * arch
    distances = [(k * hertz - formant) / 450 for k in range(1, 10)]
    weights = [np.exp(-(distance**2)).astype(np.float32) + 0.08 for distance in distances]
    return np.abs(arch) ** 0.7 * _tone(hertz, samples, weights)


def _knocks(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.12 * SAMPLE_RATE)
    modes = [hertz * _jitter(rng, 0.2) for hertz in (260, 540, 900)]
    wood = sum(_tone(hertz, size) * _decay(size, 0.015) for hertz in modes)
    hit = _decay(size, 0.004)
    return _repeat(event, samples, rng, lambda: wood + 2 * noise(size, rng, 200, 1500) * hit)


def _footsteps(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    heel = int(0.07 * SAMPLE_RATE)
    toe = int(0.06 * SAMPLE_RATE)
    gap = int(0.05 * SAMPLE_RATE)
    grit = rng.uniform(0.3, 0.6)

    def step() -> np.ndarray:
        sound = np.zeros(gap + toe, np.float32)
        sound[:heel] = noise(heel, rng, 60, 250) * _decay(heel, 0.02)
        sound[gap:] += grit * noise(toe, rng, 2500, 7000) * np.hanning(toe)
        return sound

    return _repeat(event, samples, rng, step)


def _drips(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.09 * SAMPLE_RATE)
    rise = 2 ** np.linspace(0, rng.uniform(0.7, 1.1), size)

    def drip() -> np.ndarray:
        return _decay(size, 0.022) * _tone(event.pitch * _jitter(rng, 0.06) * rise, size)

    return _repeat(event, samples, rng, drip)


def _drum(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.3 * SAMPLE_RATE)
    snap = rng.uniform(0.2, 0.5)
    skin = _tone(event.pitch * (1 + 1.2 * _decay(size, 0.03)), size, (1, 0.4, 0.15))

    def beat() -> np.ndarray:
        rattle = snap * noise(size, rng, 300, 3000) * _decay(size, 0.012)
        return _decay(size, 0.1) * skin + rattle

    return _repeat(event, samples, rng, beat)


def _clapping(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.1 * SAMPLE_RATE)
    centre = rng.uniform(1100, 1900)
    decay = _decay(size, 0.012)
    bursts = sum(np.roll(decay, delay) * (ramp(size) >= delay) for delay in (0, 130, 260))
    band = (centre * 0.8, centre * 1.5)
    return _repeat(event, samples, rng, lambda: bursts * noise(size, rng, *band, 4))


def _saw(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.85 / event.tempo * SAMPLE_RATE)
    teeth = 0.3 + np.maximum(0, _sine(rng.uniform(50, 80), size))
    stroke = teeth * np.hanning(size)
    top = 5000 * _jitter(rng, 0.3)
    return _repeat(event, samples, rng, lambda: stroke * noise(size, rng, 1500, top))


def _rain(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    drops = np.zeros(samples, np.float32)
    positions = rng.integers(0, samples, int(event.duration * rng.uniform(60, 120)))
    drops[positions] = rng.uniform(3, 15, len(positions))
    return noise(samples, rng, 1200, 9000, 1) + filter_band(drops, 2500, 8000, 1)


def _wind(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    cycles = rng.uniform(0.5, 1.0) * ramp(samples) / SAMPLE_RATE + rng.uniform()
    gust = 0.5 + 0.5 * np.sin(2 * np.pi * cycles)
    low = noise(samples, rng, 250, 450)
    return (0.3 + gust) * (low + gust * 1.2 * noise(samples, rng, 550, 800, 4))


def _thunder(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    crack = noise(samples, rng, 100, 4000, 1) * _decay(samples, 0.05)
    rolls = 1 + 0.8 * _sine(rng.uniform(2, 4), samples, rng.uniform(0, 6))
    return crack + rolls * noise(samples, rng, 30, 110) * _decay(samples, event.duration * 0.4)


def _glass(event: Event, samples: int, rng: np.random.Generator) -> np.ndarray:
    size = int(0.25 * SAMPLE_RATE)
    sound = 0.7 * noise(samples, rng, 3000, 10000) * _decay(samples, 0.03)
    for _ in range(18):
        start = int(min(rng.exponential(0.15), event.duration * 0.7) * SAMPLE_RATE)
        shard = _tone(rng.uniform(3000, 8500), size) * _decay(size, rng.uniform(0.02, 0.07))
        shard = shard[: samples - start] * np.float32(rng.uniform(0.2, 0.8))
        sound[start : start + size] += shard
    return sound


@dataclass(frozen=True)
class EventClass:
    """How a class sounds, and which properties its events have."""

    synthesise: Any = None  # takes an event, samples and a generator; None: excerpts of `files`
    pitch: tuple[float, float] | None = None  # range, Hz
    has_tempo: bool = False
    has_glide: bool = False
    files: tuple[str, ...] = ()  # recordings of the class


CLASSES = {
    "bell": EventClass(_bell, pitch=(350, 1400)),
    "siren": EventClass(_siren, pitch=(450, 1100), has_glide=True),
    "whistle": EventClass(_whistle, pitch=(1000, 2400), has_glide=True),
    "engine": EventClass(_engine, pitch=(45, 130), has_glide=True),
    "alarm": EventClass(_alarm, pitch=(1300, 2800), has_tempo=True),
    "phone": EventClass(_phone, pitch=(500, 1100)),
    "bird": EventClass(_bird, pitch=(1900, 3600), has_tempo=True),
    "cricket": EventClass(_cricket, pitch=(2700, 4200), has_tempo=True),
    "dog": EventClass(_dog, pitch=(240, 560), has_tempo=True),
    "cat": EventClass(_cat, pitch=(350, 750)),
    "knocks": EventClass(_knocks, has_tempo=True),
    "footsteps": EventClass(_footsteps, has_tempo=True),
    "drips": EventClass(_drips, pitch=(700, 1900), has_tempo=True),
    "drum": EventClass(_drum, pitch=(70, 180), has_tempo=True),
    "clapping": EventClass(_clapping, has_tempo=True),
    "saw": EventClass(_saw, has_tempo=True),
    "rain": EventClass(_rain),
    "wind": EventClass(_wind),
    "thunder": EventClass(_thunder),
    "glass": EventClass(_glass),
}
