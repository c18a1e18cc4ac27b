"""Synthetic recordings: scenes of one to four sound events in a place, and the waveform of each, with numpy alone.

A scene is plain values, and its waveform follows from them alone, so that questions about it have a known answer.
Levels are in dB relative to full scale, before the recording is brought to the scene's own level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .events import (
    CLASSES,
    DISTANCE_DB,
    SAMPLE_RATE,
    TEMPO,
    Event,
    band_gain,
    bins_hertz,
    fft_size,
    noise,
    noise_spectrum,
    ramp,
    render_event,
)

# Energy of the room's answer relative to the direct sound, by room and distance. Outdoors only what is far is diffuse.
WET = {
    "dry": {"near": 0.0, "middle": 0.05, "far": 0.2},
    "small": {"near": 0.25, "middle": 0.5, "far": 0.9},
    "large": {"near": 0.4, "middle": 0.8, "far": 1.4},
}
REVERBERATION = {"dry": (0.3, 0.5), "small": (0.2, 0.4), "large": (1.4, 2.2)}  # range of RT60, s
LEVEL_DB = {"quiet": (-42.0, -37.0), "loud": (-28.0, -25.0)}  # RMS of the whole recording, dB
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

    @property
    def condition(self) -> str:
        """One of `CONDITIONS`: only a recording of clean quality is ever noisy."""
        return "noisy" if self.noise_db > -60 else self.quality

    @property
    def level_word(self) -> str:
        return "loud" if self.level_db >= LEVEL_DB["loud"][0] else "quiet"


def labels(scene: Scene) -> set[str]:
    """The names of the classes that can be heard."""
    return {event.name for event in scene.events}


def draw_scene(
    random: np.random.Generator,
    count: int | None = None,
    names: Sequence[str] | None = None,
    condition: str | None = None,
    place: str | None = None,
) -> Scene:
    """Draws a scene: every property uniformly and independently of the others, but for what the arguments fix.

    Args:
        count: number of events, 1 to 4. names: classes to draw from without repetition, all by default.
        condition: one of `CONDITIONS`. place: "indoors" or "outdoors".
    """
    names = tuple(CLASSES) if names is None else tuple(names)
    count = min(int(random.integers(1, 5)), len(names)) if count is None else count
    condition = condition or str(random.choice(CONDITIONS))
    room = (
        "dry"
        if place == "outdoors"
        else str(random.choice(["small", "large"] if place else ["dry", "small", "large"]))
    )
    seconds = _uniform(random, 4.0, 5.0)  # whatever the count, which a clip's length must not tell
    slot = (seconds - 0.1) / count
    events = []
    for i, name in enumerate(random.choice(names, count, replace=False)):
        duration = min(_uniform(random, 1.0, 2.2), 0.98 * slot)
        onset = 0.05 + i * slot + _uniform(random, 0.0, 1.0) * (slot - duration)
        events.append(_draw_event(random, str(name), onset, duration))
    return Scene(
        seconds=seconds,
        events=tuple(events),
        room=room,
        place="outdoors" if room == "dry" else "indoors",
        noise_db=_uniform(random, -46, -42) if condition == "noisy" else _uniform(random, -80, -70),
        quality="clean" if condition == "noisy" else condition,
        level_db=_uniform(random, *LEVEL_DB[str(random.choice(list(LEVEL_DB)))]),
        seed=int(random.integers(2**31)),
    )


def _draw_event(random: np.random.Generator, name: str, onset: float, duration: float) -> Event:
    kind, pitch = CLASSES[name], None
    if kind.pitch:
        place = _uniform(random, *((0.0, 0.35), (0.65, 1.0))[random.integers(2)])
        pitch = round(kind.pitch[0] * (kind.pitch[1] / kind.pitch[0]) ** place, 1)
    return Event(
        name=name,
        onset=round(onset, 4),
        duration=round(duration, 4),
        pitch=pitch,
        tempo=_uniform(random, *TEMPO[str(random.choice(list(TEMPO)))]) if kind.has_tempo else None,
        glide=str(random.choice(["rising", "falling", "steady"])) if kind.has_glide else None,
        gain_db=_uniform(random, -1.5, 1.5),
        distance=str(random.choice(list(DISTANCE_DB))),
        seed=int(random.integers(2**31)),
    )


def _uniform(random: np.random.Generator, low: float, high: float) -> float:
    return round(float(random.uniform(low, high)), 4)


def render(scene: Scene) -> np.ndarray:
    """The waveform of a scene: float32 mono in [-1, 1] at `SAMPLE_RATE`, the same for the same scene."""
    random = np.random.default_rng(scene.seed)
    samples = int(scene.seconds * SAMPLE_RATE)
    rt60 = random.uniform(*REVERBERATION[scene.room])
    tail = int(min(rt60, 1.2) * SAMPLE_RATE)
    size = fft_size(samples + tail)
    direct, wet = np.zeros((2, size), np.float32)
    direct[:samples] = _ambience(scene.place, samples, random)
    for event in scene.events:
        sound, start = render_event(event), int(event.onset * SAMPLE_RATE)
        direct[start : start + len(sound)] += sound
        wet[start : start + len(sound)] += sound * math.sqrt(WET[scene.room][event.distance])
    response = random.standard_normal(tail, np.float32) * np.exp(
        -6.91 / (rt60 * SAMPLE_RATE) * ramp(tail)
    )
    response[: int(0.004 * SAMPLE_RATE)] = 0  # no reflection is there before 4 ms
    response = np.fft.rfft(response / np.sqrt(np.square(response).sum()), size)
    hertz = bins_hertz(size)
    spectrum = np.fft.rfft(direct) + np.fft.rfft(wet) * response * band_gain(hertz, 100, 4000, 1)
    spectrum += noise_spectrum(size, random, scene.noise_db)
    if scene.quality == "band-limited":
        spectrum *= band_gain(hertz, 250, 3000, 4)
    sound = np.fft.irfft(spectrum, size)[:samples]
    if scene.quality == "clipped":
        limit = np.abs(sound).max() * 10 ** (-random.uniform(16, 20) / 20)
        sound = np.clip(sound, -limit, limit)
    sound *= 10 ** (scene.level_db / 20) / np.sqrt(np.square(sound).mean())
    return sound * np.float32(min(1.0, 0.98 / np.abs(sound).max()))


def _ambience(place: str, samples: int, random: np.random.Generator) -> np.ndarray:
    """Indoors mains hum and ventilation, outdoors the rustle of leaves in gusts."""
    seconds = ramp(samples) / SAMPLE_RATE
    if place == "indoors":
        hum = sum(np.sin(2 * np.pi * 50 * k * seconds) / k for k in (1, 2, 3, 6))
        return 10 ** (random.uniform(-54, -50) / 20) * (noise(samples, random, 40, 200, 2) + hum)
    gusts = 1 + 0.6 * np.sin(2 * np.pi * (random.uniform(0.3, 0.6) * seconds + random.uniform()))
    return 10 ** (random.uniform(-51, -48) / 20) * gusts * noise(samples, random, 1500, 5000, 1)
