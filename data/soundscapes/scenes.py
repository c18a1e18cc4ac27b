"""Draws scenes of one to four sound events in a place, and renders their waveforms with numpy.

A scene is plain values, and its waveform follows from them alone. Questions about it therefore have
a known answer. Levels are in dB relative to full scale, before the recording is scaled to its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .events import (
    CLASSES,
    DISTANCE_DB,
    SAMPLE_RATE,
    TEMPO,
    Event,
    EventClass,
    band_gain,
    bins_hertz,
    fft_size,
    noise,
    noise_spectrum,
    ramp,
    render_event,
)
from .recordings import Excerpt

# Energy of the reverberation relative to the direct sound.
WET = {
    "dry": {"near": 0.0, "middle": 0.05, "far": 0.2},
    "small": {"near": 0.25, "middle": 0.5, "far": 0.9},
    "large": {"near": 0.4, "middle": 0.8, "far": 1.4},
}
REVERBERATION = {"dry": (0.3, 0.5), "small": (0.2, 0.4), "large": (1.4, 2.2)}  # range of RT60, s
LEVEL_DB = {"quiet": (-42.0, -37.0), "loud": (-28.0, -25.0)}  # RMS of the whole recording
NOISY_DB = -60
CONDITIONS = ("clean", "noisy", "clipped", "band-limited")


@dataclass(frozen=True)
class Scene:
    """One recording. Outdoors is always "dry", indoors always a "small" or a "large" room."""

    seconds: float
    events: tuple[Event, ...]  # by onset
    room: str  # "dry", "small" or "large"
    place: str  # "indoors" or "outdoors"
    noise_db: float  # white noise of the recorder, RMS
    quality: str  # "clean", "band-limited" or "clipped"
    level_db: float  # RMS of the whole recording
    seed: int
    classes: tuple[str, ...] = tuple(CLASSES)  # that questions about it name

    @property
    def condition(self) -> str:
        """Returns one of `CONDITIONS`. Only a recording of clean quality is ever noisy."""
        return "noisy" if self.noise_db > NOISY_DB else self.quality

    @property
    def has_recordings(self) -> bool:
        """Whether its sounds are excerpts of recordings."""
        return isinstance(self.events[0], Excerpt)

    @property
    def level_word(self) -> str:
        """Returns "loud" or "quiet"."""
        return "loud" if self.level_db >= LEVEL_DB["loud"][0] else "quiet"


def labels(scene: Scene) -> set[str]:
    """Returns the names of the classes in a scene."""
    return {event.name for event in scene.events}


def draw_scene(rng: np.random.Generator, classes: Mapping[str, EventClass] = CLASSES) -> Scene:
    """Draws a scene, whose properties are uniform and independent.

    Classes with files give excerpts of recordings.
    """
    count = min(int(rng.integers(1, 5)), len(classes))
    condition = str(rng.choice(CONDITIONS))
    room = str(rng.choice(["dry", "small", "large"]))
    # Independent of the count, which a clip's length must not tell.
    seconds = _uniform(rng, 4.0, 5.0)
    slot = (seconds - 0.1) / count
    events = []
    for i, name in enumerate(rng.choice(list(classes), count, replace=False)):
        duration = min(_uniform(rng, 1.0, 2.2), 0.98 * slot)
        onset = 0.05 + i * slot + _uniform(rng, 0.0, 1.0) * (slot - duration)
        events.append(_draw_event(rng, str(name), classes[str(name)], onset, duration))
    is_noisy = condition == "noisy"
    return Scene(
        seconds=seconds,
        events=tuple(events),
        room=room,
        place="outdoors" if room == "dry" else "indoors",
        noise_db=_uniform(rng, -46, -42) if is_noisy else _uniform(rng, -80, -70),
        quality="clean" if is_noisy else condition,
        level_db=_uniform(rng, *LEVEL_DB[str(rng.choice(list(LEVEL_DB)))]),
        seed=int(rng.integers(2**31)),
        classes=tuple(classes),
    )


def _draw_event(
    rng: np.random.Generator, name: str, event_class: EventClass, onset: float, duration: float
) -> Event:
    pitch = tempo = glide = None
    if event_class.pitch:
        low, high = event_class.pitch
        # "low" and "high" leave a gap in the middle of the range.
        position = _uniform(rng, *((0.0, 0.35), (0.65, 1.0))[rng.integers(2)])
        pitch = round(low * (high / low) ** position, 1)
    if event_class.has_tempo:
        tempo = _uniform(rng, *TEMPO[str(rng.choice(list(TEMPO)))])
    if event_class.has_glide:
        glide = str(rng.choice(["rising", "falling", "steady"]))
    event = Event(
        name=name,
        onset=round(onset, 4),
        duration=round(duration, 4),
        pitch=pitch,
        tempo=tempo,
        glide=glide,
        gain_db=_uniform(rng, -1.5, 1.5),
        distance=str(rng.choice(list(DISTANCE_DB))),
        seed=int(rng.integers(2**31)),
    )
    if event_class.files:
        return Excerpt(**vars(event), path=str(rng.choice(event_class.files)))
    return event


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)


def render(scene: Scene) -> np.ndarray:
    """Returns the waveform of a scene: float32 mono in [-1, 1] at `SAMPLE_RATE`."""
    rng = np.random.default_rng(scene.seed)
    samples = int(scene.seconds * SAMPLE_RATE)
    rt60 = rng.uniform(*REVERBERATION[scene.room])
    tail = int(min(rt60, 1.2) * SAMPLE_RATE)
    size = fft_size(samples + tail)
    direct = np.zeros(size, np.float32)
    wet = np.zeros(size, np.float32)
    direct[:samples] = _ambience(scene.place, samples, rng)
    for event in scene.events:
        sound = render_event(event)
        start = int(event.onset * SAMPLE_RATE)
        direct[start : start + len(sound)] += sound
        wet[start : start + len(sound)] += sound * math.sqrt(WET[scene.room][event.distance])
    decay = np.exp(-6.91 / (rt60 * SAMPLE_RATE) * ramp(tail))
    response = rng.standard_normal(tail, np.float32) * decay
    response[: int(0.004 * SAMPLE_RATE)] = 0  # the first reflection arrives after 4 ms
    response = np.fft.rfft(response / np.sqrt(np.square(response).sum()), size)
    hertz = bins_hertz(size)
    spectrum = np.fft.rfft(direct) + np.fft.rfft(wet) * response * band_gain(hertz, 100, 4000, 1)
    spectrum += noise_spectrum(size, rng, scene.noise_db)
    if scene.quality == "band-limited":
        spectrum *= band_gain(hertz, 250, 3000, 4)
    sound = np.fft.irfft(spectrum, size)[:samples]
    if scene.quality == "clipped":
        limit = np.abs(sound).max() * 10 ** (-rng.uniform(16, 20) / 20)
        sound = np.clip(sound, -limit, limit)
    sound *= 10 ** (scene.level_db / 20) / np.sqrt(np.square(sound).mean())
    return sound * np.float32(min(1.0, 0.98 / np.abs(sound).max()))


def _ambience(place: str, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns mains hum and ventilation indoors, and leaves that rustle in gusts outdoors."""
    seconds = ramp(samples) / SAMPLE_RATE
    if place == "indoors":
        hum = sum(np.sin(2 * np.pi * 50 * k * seconds) / k for k in (1, 2, 3, 6))
        return 10 ** (rng.uniform(-54, -50) / 20) * (noise(samples, rng, 40, 200, 2) + hum)
    gusts = 1 + 0.6 * np.sin(2 * np.pi * (rng.uniform(0.3, 0.6) * seconds + rng.uniform()))
    return 10 ** (rng.uniform(-51, -48) / 20) * gusts * noise(samples, rng, 1500, 5000, 1)
