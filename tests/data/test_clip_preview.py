"""Clips on pages: spectrograms, small audio files, axes."""

import base64
import io
import math

import numpy as np
import pytest
import soundfile
from PIL import Image

from audiolm.data.clip_preview import (
    BANDS,
    SHADES,
    encode_png,
    preview_clip,
    spectrogram,
)


@pytest.fixture
def noise():
    """12 s of white noise in stereo, the least compressible audio."""
    return 0.1 * np.random.default_rng(0).standard_normal((12 * 44100, 2))


@pytest.fixture
def noise_file(noise, tmp_path):
    soundfile.write(tmp_path / "noise.wav", noise, 44100)
    return str(tmp_path / "noise.wav")


def decode(uri):
    return soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])), always_2d=True)


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
@pytest.mark.parametrize("rate", [24000, 44100])
def test_spectrogram_of_a_pure_tone_is_bright_in_its_band(hertz, rate):
    tone = np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype("float32")
    shades = spectrogram(tone, rate)
    mel_of_tone, mel_of_top = (2595 * math.log10(1 + f / 700) for f in (hertz, rate / 2))
    # The highest band is the first row.
    expected = BANDS - 1 - int(BANDS * mel_of_tone / mel_of_top)
    columns = shades.shape[1]
    middle = shades[:, columns // 4 : -columns // 4].mean(1)
    assert abs(int(middle.argmax()) - expected) <= 1
    assert shades.max() == SHADES - 1
    assert middle[abs(np.arange(BANDS) - expected) > 12].max() < SHADES / 2


def test_spectrogram_of_silence_is_dark():
    shades = spectrogram(np.zeros(24000, "float32"), 24000)
    assert shades.max() == 0
    assert shades.shape[0] == BANDS


@pytest.mark.parametrize("rate", [100, 24000, 768_000])
def test_spectrogram_of_a_few_samples_has_all_bands(rate):
    assert spectrogram(np.ones(10, "float32"), rate).shape[0] == BANDS


def test_spectrogram_of_a_click_is_bright_at_its_time():
    click = np.zeros(48000, "float32")
    click[12000] = 1.0
    power = spectrogram(click, 24000).sum(0)
    assert abs(power.argmax() / len(power) - 0.25) < 0.02


def test_encode_png_keeps_shades_and_has_magmas_colours():
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = encode_png(shades)
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(content))
    assert (image.mode, image.size) == ("P", (3, 2))
    assert np.array_equal(np.asarray(image), shades)
    lightness = Image.open(io.BytesIO(encode_png(np.arange(SHADES, dtype=np.uint8)[None])))
    lightness = np.asarray(lightness.convert("L")).astype(int)
    assert lightness[0, 0] < 5
    assert lightness[0, -1] >= 245
    assert (np.diff(lightness[0]) > 0).all()


def test_preview_of_a_long_clip_is_small_and_as_long_as_what_is_used(noise_file):
    preview = preview_clip(noise_file, 10.0)
    assert (preview.seconds, preview.used) == (12, 10)
    assert preview.audio.startswith("data:audio/mpeg;base64,")
    samples, rate = decode(preview.audio)
    assert samples.shape[1] == 1
    assert abs(len(samples) / rate - 10) < 0.06
    assert len(preview.audio) < 120_000
    assert len(preview.spectrogram) < 30_000


def test_preview_has_ticks_of_seconds_and_kilohertz(noise_file):
    preview = preview_clip(noise_file, 10.0)
    assert preview.times == [(0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8")]
    assert [label for _, label in preview.hertz] == ["0.5", "1", "2", "4", "8", "16"]
    assert preview.hertz == sorted(preview.hertz, reverse=True)


def test_preview_twice_is_the_same(noise_file):
    assert preview_clip(noise_file, 10.0) == preview_clip(noise_file, 10.0)


def test_preview_that_is_not_playable_has_no_audio(noise_file):
    preview = preview_clip(noise_file, 10.0, playable=False)
    assert preview.audio == ""
    assert preview.spectrogram.startswith("data:image/png;base64,")


def test_preview_at_a_rate_without_mp3_is_flac(noise, tmp_path):
    soundfile.write(tmp_path / "rate.wav", noise[:96000], 96000)
    assert preview_clip(str(tmp_path / "rate.wav"), 10.0).audio.startswith("data:audio/flac")


def test_preview_without_samples_raises(noise, tmp_path):
    soundfile.write(tmp_path / "empty.wav", noise[:0], 44100)
    with pytest.raises(ValueError, match="no samples"):
        preview_clip(str(tmp_path / "empty.wav"), 10.0)
