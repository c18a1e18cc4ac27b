"""Twenty classes of synthetic sound events, each with random parameters, so that no two are alike; numpy alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 24000  # Hz
EVENT_DB = -20.0  # loudest 50 ms of a near event of 0 dB gain
DISTANCE_DB = {"near": 0.0, "middle": -6.0, "far": -12.0}
DISTANCE_CUTOFF = {
    "near": None,
    "middle": 5000.0,
    "far": 2000.0,
}  # Hz; air and ground take the treble first
# Two bands of each, with a gap between them, so that "slow" or "high" is never a matter of taste.
TEMPO = {"slow": (1.5, 2.4), "fast": (4.8, 7.0)}  # hits/s


@dataclass(frozen=True)
class Event:
    """One sound: times in s, pitch in Hz, tempo in hits/s; None where its class has no such property."""

    name: str
    onset: float
    duration: float
    pitch: float | None
    tempo: float | None
    glide: str | None  # "rising", "falling" or "steady" pitch
    gain_db: float
    distance: str  # "near", "middle" or "far"
    seed: int  # of timbre and jitter

    @property
    def level_db(self) -> float:
        """Level of its loudest 50 ms, dB."""
        return EVENT_DB + self.gain_db + DISTANCE_DB[self.distance]

    @property
    def pitch_word(self) -> str | None:
        """ "high" or "low" for its class."""
        low_high = CLASSES[self.name].pitch
        return (
            None
            if self.pitch is None
            else "high"
            if self.pitch > np.sqrt(low_high[0] * low_high[1])
            else "low"
        )

    @property
    def tempo_word(self) -> str | None:
        return None if self.tempo is None else "fast" if self.tempo >= TEMPO["fast"][0] else "slow"


@dataclass(frozen=True)
class EventClass:
    render: Callable[[Event, int, np.random.Generator], np.ndarray]
    pitch: tuple[float, float] | None = None  # Hz
    has_tempo: bool = False
    has_glide: bool = False


def render_event(event: Event) -> np.ndarray:
    samples = int(event.duration * SAMPLE_RATE)
    random = np.random.default_rng(event.seed)
    sound = CLASSES[event.name].render(event, samples, random).astype(np.float32)
    fade = min(samples // 4, 480)
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    if cutoff := DISTANCE_CUTOFF[event.distance]:
        sound = filtered(sound, 0, cutoff, 1)
    frames = sound[: samples // 1200 * 1200].reshape(-1, 1200)
    return sound * np.float32(
        10 ** (event.level_db / 20) / np.sqrt(np.square(frames).mean(1).max())
    )


# Building blocks: all of float32, and filters act on spectra.


def ramp(samples: int) -> np.ndarray:
    return np.arange(samples, dtype=np.float32)


# Even lengths without a prime factor over 5, whose transform is quick.
_FFT_SIZES = np.unique(
    [2 * 2**a * 3**b * 5**c for a in range(17) for b in range(11) for c in range(8)]
)


def fft_size(samples: int) -> int:
    return int(_FFT_SIZES[np.searchsorted(_FFT_SIZES, samples)])


def bins_hertz(size: int) -> np.ndarray:
    return np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32)


def band_gain(hertz: np.ndarray, low: float, high: float, order: int) -> np.ndarray:
    """Magnitude of a Butterworth band-pass without its phase, which falls off by order times 6 dB/octave; order 1, 2 or 4."""
    above, below = np.square(hertz / high), np.square(low / np.maximum(hertz, 1))
    for _ in range(order.bit_length() - 1):
        above, below = np.square(above), np.square(below)
    return 1 / np.sqrt((1 + above) * (1 + below))


def filtered(sound: np.ndarray, low: float, high: float, order: int) -> np.ndarray:
    size = fft_size(len(sound))
    spectrum = np.fft.rfft(sound, size) * band_gain(bins_hertz(size), low, high, order)
    return np.fft.irfft(spectrum, size).astype(np.float32)[: len(sound)]


def noise_spectrum(size: int, random: np.random.Generator, level_db: float) -> np.ndarray:
    """Transform of white noise of an RMS of `level_db`."""
    parts = random.standard_normal((size // 2 + 1, 2), np.float32) * np.float32(
        10 ** (level_db / 20) * np.sqrt(size / 2)
    )
    return parts.view(np.complex64)[:, 0]


def noise(
    samples: int, random: np.random.Generator, low: float, high: float, order: int = 2
) -> np.ndarray:
    """Noise of a band (Hz), with an RMS of 1."""
    size = fft_size(samples)
    gain = band_gain(bins_hertz(size), low, high, order)
    spectrum = noise_spectrum(size, random, 0.0) * (gain / np.sqrt(np.square(gain).mean()))
    return np.fft.irfft(spectrum, size).astype(np.float32)[:samples]


def _decay(samples: int, seconds: float) -> np.ndarray:
    return np.exp(ramp(samples) * np.float32(-1 / (seconds * SAMPLE_RATE)))


def _tone(hertz: np.ndarray | float, samples: int, weights: Sequence = (1.0,)) -> np.ndarray:
    """Harmonics of a frequency, fixed or of each sample; weights (numbers, or arrays of samples) from the first on."""
    cycles = np.broadcast_to(np.asarray(hertz, np.float64), samples).cumsum() / SAMPLE_RATE
    phase = (2 * np.pi * (cycles % 1)).astype(np.float32)
    top = np.max(hertz)
    return sum(w * np.sin((k + 1) * phase) for k, w in enumerate(weights) if (k + 1) * top < 11000)


def _glide(event: Event, samples: int, octaves: float) -> np.ndarray:
    """Frequency of each sample, its pitch in the middle."""
    direction = {"rising": 1, "falling": -1, "steady": 0}[event.glide]
    return event.pitch * 2 ** (direction * octaves * np.linspace(-0.5, 0.5, samples))


def _hits(
    event: Event, samples: int, random: np.random.Generator, hit: Callable[[], np.ndarray]
) -> np.ndarray:
    """A new `hit()` at each beat of the event's tempo, a little out of time."""
    sound = np.zeros(samples, np.float32)
    for k in range(int(event.duration * event.tempo - 0.25) + 1):
        start = int(max(0.0, k + random.uniform(-0.06, 0.06)) / event.tempo * SAMPLE_RATE)
        one = hit()[: samples - start]
        sound[start : start + len(one)] += one * np.float32(random.uniform(0.8, 1.0))
    return sound


def _jitter(random: np.random.Generator, spread: float = 0.1) -> float:
    return float(random.uniform(1 - spread, 1 + spread))


# One function for each class.


def _bell(event, samples, random):
    ratios = (0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 2.66, 3.01, 4.1)
    tail = event.duration * random.uniform(0.3, 0.45)
    return sum(
        random.uniform(0.3, 1.0)
        * _tone(event.pitch * r * _jitter(random, 0.01), samples)
        * _decay(samples, tail / np.sqrt(r + 0.5))
        for r in ratios
    )


def _siren(event, samples, random):
    wail = 1 + 0.07 * np.sin(2 * np.pi * random.uniform(5, 7) * ramp(samples) / SAMPLE_RATE)
    return _tone(
        _glide(event, samples, 1.3) * wail, samples, [_jitter(random, 0.4) / k for k in range(1, 9)]
    )


def _whistle(event, samples, random):
    return _tone(_glide(event, samples, 0.9), samples, (1.0, 0.05)) + 0.15 * noise(
        samples, random, event.pitch, 6000
    )


def _engine(event, samples, random):
    hertz = _glide(event, samples, 1.0)
    firing, weights = (
        1 + 0.5 * _tone(hertz / 2, samples),
        [_jitter(random, 0.7) / k**0.6 for k in range(1, 25)],
    )
    return firing * (_tone(hertz, samples, weights) + 0.5 * noise(samples, random, 100, 900))


def _alarm(event, samples, random):
    beep = int(0.5 / event.tempo * SAMPLE_RATE)
    edge = np.minimum(1, np.minimum(ramp(beep), beep - ramp(beep)) / 100)
    return _hits(
        event, samples, random, lambda: edge * _tone(event.pitch, beep, (1, 0, 0.5, 0, 0.3))
    )


def _phone(event, samples, random):
    seconds = ramp(samples) / SAMPLE_RATE
    trill = np.where(seconds * random.uniform(18, 24) % 1 < 0.5, 1.0, 1.26)
    ringing = seconds % 0.6 < 0.4
    return ringing * _tone(event.pitch * trill, samples, (1, 0.5, 0.4, 0.2, 0.15))


def _bird(event, samples, random):
    size, up = int(0.1 * SAMPLE_RATE), random.choice([-1, 1])
    return _hits(
        event,
        samples,
        random,
        lambda: (
            np.hanning(size)
            * _tone(
                event.pitch * _jitter(random, 0.05) * 2 ** (up * np.linspace(-0.4, 0.4, size)),
                size,
                (1, 0.15),
            )
        ),
    )


def _cricket(event, samples, random):
    size, rate = int(0.13 * SAMPLE_RATE), random.uniform(28, 36)
    pulses = np.maximum(0, np.sin(2 * np.pi * rate * ramp(size) / SAMPLE_RATE))
    return _hits(event, samples, random, lambda: pulses * _tone(event.pitch, size))


def _dog(event, samples, random):
    size, formant = int(random.uniform(0.13, 0.17) * SAMPLE_RATE), random.uniform(800, 1300)

    def bark():
        hertz = (
            event.pitch
            * _jitter(random, 0.05)
            * (1 + 0.35 * np.sin(np.pi * np.linspace(0, 1, size)))
        )
        weights = [np.exp(-(((k * event.pitch - formant) / 600) ** 2)) + 0.15 for k in range(1, 14)]
        voice = _tone(hertz, size, weights) + noise(size, random, 500, 2500)
        return voice * _decay(size, 0.06) * np.minimum(1, ramp(size) / 300)

    return _hits(event, samples, random, bark)


def _cat(event, samples, random):
    arch = np.sin(np.pi * np.linspace(0, 1, samples, dtype=np.float32))
    hertz, formant = event.pitch * (0.85 + 0.3 * arch), 700 * _jitter(random) + 1500 * arch
    weights = [
        np.exp(-(((k * hertz - formant) / 450) ** 2)).astype(np.float32) + 0.08
        for k in range(1, 10)
    ]
    return np.abs(arch) ** 0.7 * _tone(hertz, samples, weights)


def _knocks(event, samples, random):
    size, modes = int(0.12 * SAMPLE_RATE), [f * _jitter(random, 0.2) for f in (260, 540, 900)]
    return _hits(
        event,
        samples,
        random,
        lambda: (
            sum(_tone(f, size) * _decay(size, 0.015) for f in modes)
            + 2 * noise(size, random, 200, 1500) * _decay(size, 0.004)
        ),
    )


def _footsteps(event, samples, random):
    heel, toe, gap = int(0.07 * SAMPLE_RATE), int(0.06 * SAMPLE_RATE), int(0.05 * SAMPLE_RATE)
    grit = random.uniform(0.3, 0.6)

    def step():
        sound = np.zeros(gap + toe, np.float32)
        sound[:heel] = noise(heel, random, 60, 250) * _decay(heel, 0.02)
        sound[gap:] += grit * noise(toe, random, 2500, 7000) * np.hanning(toe)
        return sound

    return _hits(event, samples, random, step)


def _drips(event, samples, random):
    size = int(0.09 * SAMPLE_RATE)
    rise = 2 ** np.linspace(0, random.uniform(0.7, 1.1), size)
    return _hits(
        event,
        samples,
        random,
        lambda: _decay(size, 0.022) * _tone(event.pitch * _jitter(random, 0.06) * rise, size),
    )


def _drum(event, samples, random):
    size, snap = int(0.3 * SAMPLE_RATE), random.uniform(0.2, 0.5)
    hertz = event.pitch * (1 + 1.2 * _decay(size, 0.03))
    return _hits(
        event,
        samples,
        random,
        lambda: (
            _decay(size, 0.1) * _tone(hertz, size, (1, 0.4, 0.15))
            + snap * noise(size, random, 300, 3000) * _decay(size, 0.012)
        ),
    )


def _clapping(event, samples, random):
    size, centre = int(0.1 * SAMPLE_RATE), random.uniform(1100, 1900)

    def clap():
        return sum(
            np.roll(_decay(size, 0.012), k * 130) * (ramp(size) >= k * 130) for k in range(3)
        ) * noise(size, random, centre * 0.8, centre * 1.5, 4)

    return _hits(event, samples, random, clap)


def _saw(event, samples, random):
    size, rasp = int(0.85 / event.tempo * SAMPLE_RATE), random.uniform(50, 80)
    teeth = 0.3 + np.maximum(0, np.sin(2 * np.pi * rasp * ramp(size) / SAMPLE_RATE))
    teeth, top = teeth * np.hanning(size), 5000 * _jitter(random, 0.3)
    return _hits(event, samples, random, lambda: teeth * noise(size, random, 1500, top))


def _rain(event, samples, random):
    drops = np.zeros(samples, np.float32)
    at = random.integers(0, samples, int(event.duration * random.uniform(60, 120)))
    drops[at] = random.uniform(3, 15, len(at))
    return noise(samples, random, 1200, 9000, 1) + filtered(drops, 2500, 8000, 1)


def _wind(event, samples, random):
    cycles = random.uniform(0.5, 1.0) * ramp(samples) / SAMPLE_RATE + random.uniform()
    gust = 0.5 + 0.5 * np.sin(2 * np.pi * cycles)
    return (0.3 + gust) * (
        noise(samples, random, 250, 450) + gust * 1.2 * noise(samples, random, 550, 800, 4)
    )


def _thunder(event, samples, random):
    crack = noise(samples, random, 100, 4000, 1) * _decay(samples, 0.05)
    rolls = 1 + 0.8 * np.sin(
        2 * np.pi * random.uniform(2, 4) * ramp(samples) / SAMPLE_RATE + random.uniform(0, 6)
    )
    return crack + rolls * noise(samples, random, 30, 110) * _decay(samples, event.duration * 0.4)


def _glass(event, samples, random):
    sound, size = (
        0.7 * noise(samples, random, 3000, 10000) * _decay(samples, 0.03),
        int(0.25 * SAMPLE_RATE),
    )
    for _ in range(18):
        start = int(min(random.exponential(0.15), event.duration * 0.7) * SAMPLE_RATE)
        shard = _tone(random.uniform(3000, 8500), size) * _decay(size, random.uniform(0.02, 0.07))
        sound[start : start + size] += shard[: samples - start] * np.float32(
            random.uniform(0.2, 0.8)
        )
    return sound


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
