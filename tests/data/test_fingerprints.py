"""data/audit/fingerprints.py: copies of a recording are found, and other recordings are not."""

import io

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly
from support.recordings import RATE, make_recording

from audiolm.data.audit.fingerprints import (
    MIN_CODES,
    FingerprintIndex,
    are_copies,
    fingerprint,
    fingerprint_clips,
)


def encode(samples: np.ndarray, format_name: str) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=format_name)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


CHANGES = {
    "MP3": lambda samples: (encode(samples, "MP3"), RATE),
    "OGG": lambda samples: (encode(samples, "OGG"), RATE),
    "100 ms later": lambda samples: (np.r_[np.zeros(RATE // 10, np.float32), samples], RATE),
    "3 dB softer": lambda samples: (samples * 10 ** (-3 / 20), RATE),
    "resampled": lambda samples: (resample_poly(samples, 160, 441), 16000),
    "stereo": lambda samples: (np.stack([samples, samples], 1), RATE),
    "all": lambda samples: (
        encode(np.r_[np.zeros(RATE // 10, np.float32), samples * 0.7], "MP3"),
        RATE,
    ),
}


@pytest.fixture(scope="module")
def index():
    recordings = {str(seed): fingerprint(make_recording(seed), RATE) for seed in range(30)}
    return FingerprintIndex(recordings)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_find_copy_of_a_changed_recording_names_it(index, change):
    samples, rate = change(make_recording(7))
    assert index.find_copy(fingerprint(samples, rate)) == "7"


@pytest.mark.parametrize("seed", range(100, 110))
def test_find_copy_of_another_recording_is_none(index, seed):
    assert index.find_copy(fingerprint(make_recording(seed), RATE)) is None


def test_silence_is_no_copy_of_silence():
    """It says nothing about a recording."""
    codes = fingerprint(np.zeros(RATE * 5, np.float32), RATE)
    assert not are_copies(codes, codes, 0)


def test_find_copy_in_an_empty_index_is_none():
    codes = fingerprint(make_recording(0), RATE)
    assert FingerprintIndex({}).find_copy(codes) is None


def test_fingerprint_of_a_short_clip_is_too_short_to_compare():
    codes = fingerprint(make_recording(0, 0.6), RATE)
    assert 0 < len(codes) < MIN_CODES


def test_fingerprint_clips_leaves_unreadable_files_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    soundfile.write(tmp_path / "a.wav", make_recording(0), RATE)
    (tmp_path / "b.wav").write_text("no audio")
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]
    fingerprints = fingerprint_clips(paths)
    assert list(fingerprints) == [paths[0]]
    # 16-bit samples differ a little.
    expected = fingerprint(soundfile.read(paths[0], dtype="float32")[0], RATE)
    np.testing.assert_array_equal(fingerprints[paths[0]], expected)
