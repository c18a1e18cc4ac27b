"""Audio files whose headers are wrong or missing: all samples are read, and faults are named."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from support.odd_audio import encode, media_file, mp3_without_tag, tone, wav_with_sizes

from audiolm.data.audio_check import clip_facts
from audiolm.data.clip_preview import preview_clip
from audiolm.processing_audiolm import open_file, read_file

FAULTS = Path(__file__).parents[3] / "shared" / "data" / "faults"
FORMATS = {
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def read_seconds(content, seconds=10.0):
    samples, rate = read_file(io.BytesIO(content), seconds)
    return len(samples) / rate


@pytest.mark.parametrize("name", FORMATS)
def test_complete_file_is_sound(name):
    facts = clip_facts(encode(tone(3.0), *FORMATS[name]), 1.0)
    assert facts.kind == "sound"
    assert facts.seconds == pytest.approx(3.0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_part_of_a_file_is_truncated_also_after_the_seconds_used(name, share):
    content = encode(tone(3.0), *FORMATS[name])
    fault = clip_facts(content[: int(share * len(content))], 1.0).fault
    assert fault.startswith("truncated: ")


def test_mp3_without_tag_is_read_to_its_end():
    assert read_seconds(mp3_without_tag(8.0)) == pytest.approx(8.0, abs=0.15)


def test_mp3_without_tag_is_sound():
    facts = clip_facts(mp3_without_tag(8.0))
    assert facts.kind == "sound"
    assert facts.seconds == pytest.approx(8.0, abs=0.15)


def test_joined_mp3_streams_are_read_to_their_end():
    content = 4 * encode(tone(2.0), "MP3", "MPEG_LAYER_III")
    assert read_seconds(content) == pytest.approx(8.0, abs=0.5)


@pytest.mark.parametrize("length", [2, 25, 30, 60])
def test_first_bytes_of_an_mp3_are_a_fault(length):
    content = encode(tone(2.0), "MP3", "MPEG_LAYER_III")
    assert clip_facts(content[:length]).kind == "unreadable"


def test_broken_mp3_is_named(tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(b"\xff\xfb" + b"garbage" * 20)
    assert f"{path}" in clip_facts(str(path)).fault


def test_mp3_with_tag_is_read_as_before():
    """The tag also says how many samples the encoder added, which are not part of the clip."""
    content = encode(tone(2.0), "MP3", "MPEG_LAYER_III")
    assert read_seconds(content) == 2.0


def test_mp3_without_tag_is_read_up_to_the_seconds_used():
    assert read_seconds(mp3_without_tag(8.0), 2.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0x7FFFF024, 0x7FFFF000),  # sox
        (0x80000024, 0x80000000),  # arecord
        (0xFFFFFFFF, 0xFFFFFFFF),  # FFmpeg
        (0, 0),
        (36, 0),  # a program that was killed
    ],
)
def test_wav_written_to_a_pipe_is_sound(riff, data):
    facts = clip_facts(wav_with_sizes(riff, data))
    assert facts.kind == "sound"
    assert facts.seconds == 0.5


def test_wav_without_samples_has_none():
    assert clip_facts(encode(tone(0.5)[:0], "WAV", "PCM_16")).fault == "no samples"


def test_channels_that_cancel_each_other_are_silent():
    samples = np.stack([tone(1.0), -tone(1.0)], 1)
    assert clip_facts(encode(samples, "WAV", "PCM_16")).kind == "silent"


@pytest.mark.parametrize(("format", "codec"), [("ipod", "aac"), ("webm", "libopus")])
def test_recording_of_a_phone_or_browser_is_read(format, codec):
    pytest.importorskip("av")
    content = media_file(format, codec, 3.0)
    facts = clip_facts(content)
    assert facts.kind == "sound"
    assert facts.seconds == pytest.approx(3.0, abs=0.1)
    assert read_seconds(content, 1.0) == 1.0


@pytest.mark.parametrize(("format", "codec"), [("ipod", "aac"), ("webm", "libopus")])
def test_half_of_such_a_recording_is_a_fault(format, codec):
    pytest.importorskip("av")
    content = media_file(format, codec, 3.0)
    assert clip_facts(content[: len(content) // 2]).kind == "unreadable"


def test_recording_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    facts = clip_facts(b"\x1aE\xdf\xa3" + bytes(100))
    assert facts.fault.endswith("it needs FFmpeg: `pip install av` (extra `media`))")


def test_page_shows_all_of_an_mp3_without_tag():
    preview = preview_clip(io.BytesIO(mp3_without_tag(4.0)), 10.0)
    assert preview.seconds == pytest.approx(4.0, abs=0.15)


@pytest.mark.skipif(not FAULTS.is_dir(), reason="needs ../shared, which only CI has")
@pytest.mark.parametrize(
    ("name", "kind", "seconds"),
    [
        ("vbr_no_xing_3s.mp3", "sound", 3.0),
        ("cbr_no_xing_3s.mp3", "sound", 3.0),
        ("whole_4s.ogg", "sound", 4.0),
        ("half_of_4s.ogg", "unreadable", 1.5),
        ("sox_pipe.wav", "sound", 0.5),
        ("antiphase.wav", "silent", 0.5),
    ],
)
def test_reported_file(name, kind, seconds):
    facts = clip_facts(str(FAULTS / name))
    assert facts.kind == kind
    with open_file(str(FAULTS / name)) as file:
        assert file.frames / file.samplerate == pytest.approx(seconds, abs=0.15)
