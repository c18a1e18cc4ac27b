"""Fixtures of questions to a trained model."""

import json

import pytest

from audiolm.ask.model import LoadedModel
from audiolm.data.soundscapes.corpus import make_soundscapes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The demo's test scenes of seed 7, and their rows."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = json.loads(make_soundscapes(folder, 40, 7)["test"].read_text())
    (folder / "not_audio.wav").write_text("RIFF, but no more than that")
    return folder, rows


@pytest.fixture(scope="module")
def model():
    return LoadedModel("mimi_full")
