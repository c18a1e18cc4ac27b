"""Recordings that differ from one another as sounds do, unlike tones."""

import numpy as np
from scipy.signal import sosfilt

RATE = 44100


def make_recording(seed: int, seconds: float = 5.0) -> np.ndarray:
    """Noise with bursts at other frequencies every 0.2 s."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(int(seconds / 0.2)):
        centre = rng.uniform(400, 1800)
        radius, angle = 0.99, 2 * np.pi * centre / RATE
        section = [[1, 0, 0, 1, -2 * radius * np.cos(angle), radius**2]]
        noise = rng.standard_normal(int(0.2 * RATE))
        parts.append(sosfilt(section, noise) * rng.uniform(0.2, 1))
    samples = np.concatenate(parts)
    return (0.3 * samples / np.abs(samples).max()).astype(np.float32)
