"""Small audio files and spectrograms of clips for pages."""

import base64
import io
import math
import struct
import zlib

import numpy as np
import pytest
import soundfile

from audiolm.data import clip_preview
from audiolm.data.clip_preview import BANDS, COLOURS, SHADES, picture, png, spectrogram


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
@pytest.mark.parametrize("rate", [24000, 44100])
def test_spectrogram_of_a_pure_tone_is_brightest_in_its_band(hertz, rate):
    tone = np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype("float32")
    shades = spectrogram(tone, rate)
    tone_mel, highest_mel = (2595 * math.log10(1 + f / 700) for f in (hertz, rate / 2))
    # The highest band is the first row.
    expected = BANDS - 1 - int(BANDS * tone_mel / highest_mel)
    middle = shades[:, shades.shape[1] // 4 : -shades.shape[1] // 4].mean(1)
    assert abs(int(middle.argmax()) - expected) <= 1
    assert shades.max() == SHADES - 1
    assert middle[abs(np.arange(BANDS) - expected) > 12].max() < SHADES / 2


def test_spectrogram_of_silence_is_dark():
    silent = spectrogram(np.zeros(24000, "float32"), 24000)
    assert silent.max() == 0
    assert silent.shape[0] == BANDS


def test_spectrogram_of_a_very_short_clip_has_all_bands():
    assert spectrogram(np.ones(10, "float32"), 24000).shape[0] == BANDS


def test_spectrogram_of_a_click_is_brightest_at_its_time():
    click = np.zeros(48000, "float32")
    click[12000] = 1.0
    loudness = spectrogram(click, 24000).sum(0)
    assert abs(loudness.argmax() / len(loudness) - 0.25) < 0.02


def test_png_holds_the_shades_and_the_palette():
    content = png(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">IIBB", content[16:26]) == (3, 2, 8, 3)
    at = content.index(b"IDAT")
    size = int.from_bytes(content[at - 4 : at], "big")
    assert zlib.decompress(content[at + 4 : at + 4 + size]) == b"\0\0\1\2\0\3\4\5"
    palette = content[content.index(b"PLTE") + 4 :][: 3 * SHADES]
    assert tuple(palette[:3]) == COLOURS[0]
    assert tuple(palette[-3:]) == COLOURS[-1]


def decode(uri):
    return soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])), always_2d=True)


@pytest.fixture
def noise():
    """Twelve seconds of stereo white noise at 44.1 kHz, which no codec compresses well."""
    return 0.1 * np.random.default_rng(0).standard_normal((12 * 44100, 2))


@pytest.fixture
def long_clip(tmp_path, noise):
    soundfile.write(tmp_path / "long.wav", noise, 44100)
    return str(tmp_path / "long.wav")


def test_picture_of_a_long_clip_is_truncated_to_one_small_channel(long_clip):
    preview = picture(long_clip, 10.0)
    assert (preview.whole, preview.used) == (12, 10)
    assert preview.audio.startswith("data:audio/mpeg;base64,")
    samples, rate = decode(preview.audio)
    assert samples.shape[1] == 1
    assert abs(len(samples) / rate - 10) < 0.06
    assert len(preview.audio) < 120_000
    assert len(preview.spectrogram) < 30_000


def test_picture_of_a_long_clip_has_labelled_axes(long_clip):
    preview = picture(long_clip, 10.0)
    assert preview.times == [(0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8")]
    assert [text for _, text in preview.hertz] == ["0.5", "1", "2", "4", "8", "16"]
    assert preview.hertz == sorted(preview.hertz, reverse=True)


def test_picture_of_the_same_clip_has_the_same_bytes(long_clip):
    assert picture(long_clip, 10.0) == picture(long_clip, 10.0)


def test_picture_at_a_rate_unknown_to_mp3_is_vorbis(tmp_path, noise):
    soundfile.write(tmp_path / "rate.wav", noise[:96000], 96000)
    assert picture(str(tmp_path / "rate.wav"), 10.0).audio.startswith("data:audio/ogg")


@pytest.mark.parametrize("supported", [1, 2, 3])
def test_audio_uri_without_a_format_uses_the_next(monkeypatch, noise, supported):
    formats = (("NONE", "NONE", ""), *clip_preview.FORMATS[-supported:])
    monkeypatch.setattr(clip_preview, "FORMATS", formats)
    samples, _ = decode(clip_preview.audio_uri(noise[:4410, 0].astype("float32"), 44100))
    assert len(samples) == 4410


def test_audio_uri_without_any_format_is_an_error(monkeypatch, noise):
    monkeypatch.setattr(clip_preview, "FORMATS", (("NONE", "NONE", ""),))
    with pytest.raises(ValueError, match="writes none of NONE"):
        clip_preview.audio_uri(noise[:4410, 0], 44100)


def test_picture_of_an_empty_clip_is_an_error(tmp_path, noise):
    soundfile.write(tmp_path / "empty.wav", noise[:0], 44100)
    with pytest.raises(ValueError, match="no samples"):
        picture(str(tmp_path / "empty.wav"), 10.0)
