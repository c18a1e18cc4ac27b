"""Scenes with the properties that a test needs."""

import dataclasses

import numpy as np

from audiolm.data.soundscapes.events import CLASSES
from audiolm.data.soundscapes.scenes import Scene, draw_scene


def draw_clean_scene(rng: np.random.Generator, name: str | None = None) -> Scene:
    """A scene of one event, of a class if it is named, without noise or distortion."""
    name = name or str(rng.choice(list(CLASSES)))
    scene = draw_scene(rng, {name: CLASSES[name]})
    return dataclasses.replace(scene, noise_db=-75.0, quality="clean")
