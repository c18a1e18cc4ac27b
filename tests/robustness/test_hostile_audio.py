"""Hostile audio files, fuzzed: one line with the reason, no traceback, no hang, bounded memory.

The same examples are generated in each run. What once broke something is an explicit example.
"""

import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.hostile import fuzz, one_line

from audiolm import processing_audiolm
from audiolm.comparison.report.examples import describe_clip
from audiolm.data.audio_check import check_audio, clip_facts
from audiolm.data.audio_files import clip_audio
from audiolm.processing_audiolm import AudioLMFeatureExtractor, read_file, read_wav, resample

pytestmark = pytest.mark.usefixtures("same_examples")

TONE = (9000 * np.sin(np.arange(24000) / 9)).astype("<i2").tobytes()


def wav(data=TONE, channels=1, rate=24000, bits=16, code=1, stated=None, riff=None) -> bytes:
    """A WAV file with any header.

    Args:
        data: Content of the samples.
        channels: Channels in the header.
        rate: Sampling rate in the header.
        bits: Bits per sample in the header.
        code: Format in the header: 1 for integers, 3 for floats.
        stated: Size of the samples in the header. Default: the true one.
        riff: Size of the file in the header. Default: the true one.
    """
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    file_size = struct.pack("<I", 36 + len(data) if riff is None else riff)
    data_size = struct.pack("<I", len(data) if stated is None else stated)
    return b"RIFF%sWAVEfmt \x10\0\0\0%sdata%s%s" % (file_size, form, data_size, data)


def au(channels: int, rate: int, stated: int = len(TONE)) -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, stated, 3, rate, channels) + TONE


def encoded(form: str, seconds: float = 0.2, rate: int = 24000, channels: int = 1) -> bytes:
    content = io.BytesIO()
    samples = np.frombuffer(TONE, "<i2")[: int(seconds * rate)] / 2**15
    soundfile.write(content, np.stack([samples] * channels, 1), rate, format=form)
    return content.getvalue()


def flac_with_wrong_length() -> bytes:
    """A short FLAC file that states 2**36 - 1 samples."""
    content = bytearray(encoded("FLAC"))
    content[21] |= 0xF
    content[22:26] = b"\xff" * 4
    return bytes(content)


FILES = {form: encoded(form) for form in ("WAV", "FLAC", "OGG", "MP3")}
VALID = ("sound", None)
# File: content, (`ClipFacts.kind`, part of `ClipFacts.fault` or None).
AUDIO = {
    "valid.wav": (wav(), VALID),
    "of_10_hours.wav": (wav(stated=36000 * 48000), VALID),
    "of_4_gb.wav": (wav(stated=2**32 - 16, riff=2**32 - 1), VALID),
    "longer_than_it_is.wav": (
        wav(stated=10**6, riff=10**6),
        ("unreadable", "truncated: 48036 of 1000000 bytes"),
    ),
    "half_a_header.wav": (wav()[:30], ("unreadable", "not readable as audio")),
    "header_alone.wav": (wav()[:44], ("unreadable", "no samples")),
    "0_channels.wav": (wav(channels=0), ("unreadable", "Channel count is zero")),
    "1024_channels.wav": (wav(channels=1024), ("unreadable", "states 1024 channels at 24000 Hz")),
    "65535_channels.wav": (wav(channels=65535), ("unreadable", "Too many channels")),
    "2_31_channels.au": (au(2**31, 24000), ("unreadable", "not readable as audio")),
    "0_hz.wav": (wav(rate=0), ("unreadable", "not readable as audio")),
    "1_hz.wav": (wav(rate=1), VALID),
    "48001_hz.wav": (wav(rate=48_001), ("too short", None)),
    "many_hz.wav": (wav(rate=2**31 - 1), ("unreadable", "states 1 channels at 2147483647 Hz")),
    "many_hz.au": (au(1, 2**31 - 1), ("unreadable", "states 1 channels at 2147483647 Hz")),
    "many_hz_and_channels.au": (
        au(1024, 2**31 - 1),
        ("unreadable", "states 1024 channels at 2147483647 Hz"),
    ),
    "negative_hz.wav": (wav(rate=2**32 - 1), ("unreadable", "not readable as audio")),
    "0_bits.wav": (wav(bits=0), ("unreadable", "not readable as audio")),
    "65535_bits.wav": (wav(bits=65535), ("unreadable", "not readable as audio")),
    "floats.wav": (wav(b"\xff" * 4000, code=3, bits=32), ("not finite", "NaN or infinite samples")),
    "lying.flac": (flac_with_wrong_length(), ("unreadable", "not readable as audio")),
    "samples.raw": (TONE, ("unreadable", "does not tell the rate and format")),
    "empty.mp3": (b"", ("unreadable", "empty file")),
    "text.mp3": (b"<html>log in</html>", ("unreadable", "not readable as audio")),
    "a.parquet": (b"PAR1" + bytes(20) + b"PAR1", ("unreadable", "not readable as audio")),
}

# Reads each file in each way, within 1 GB beside the memory of the imports.
DECODE = """
import json, os, resource, sys, time
import soundfile
from audiolm.data.audio_check import clip_facts
from audiolm.data.audio_files import clip_audio
from audiolm.processing_audiolm import AudioLMFeatureExtractor, read_wav
extractor = AudioLMFeatureExtractor(24000)
imported = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (imported + 2**30, imported + 2**30))
results = {}
for name in sorted(os.listdir(sys.argv[1])):
    file = os.path.join(sys.argv[1], name)
    content = open(file, "rb").read() if os.path.isfile(file) else b""
    facts = clip_facts(file)
    results[name] = {"facts": [facts.kind, facts.fault]}
    ways = {"load": lambda: extractor.load(file), "read_wav": lambda: read_wav(file, 10.0)[0],
            "bytes": lambda: extractor.load(clip_audio(content, 10.0))}
    for way, read in ways.items():
        start = time.process_time()
        try:
            results[name][way] = ["samples", len(read())]
        except (ValueError, OSError, ImportError, soundfile.LibsndfileError) as error:
            results[name][way] = ["refused", str(error)]
        results[name][way].append(time.process_time() - start)
# `ru_maxrss` would start with the peak of the parent process.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([results, int(peak.split()[1])]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Facts and results of each file, and the peak of memory in kB, from one process."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (content, _) in AUDIO.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.wav")
    (folder / "folder.wav").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", DECODE, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def test_hostile_audio_takes_little_memory(results):
    # torch and transformers take about 400 MB.
    _, peak = results
    assert peak < 1_500_000, f"{peak} kB"


@pytest.mark.parametrize("name", AUDIO)
def test_hostile_audio_has_the_facts_of_its_fault(results, name):
    kind, fault = results[0][name]["facts"]
    expected_kind, expected_fault = AUDIO[name][1]
    assert kind == expected_kind
    if expected_fault is None:
        assert fault is None
    else:
        assert expected_fault in fault


@pytest.mark.parametrize("name", AUDIO)
def test_hostile_audio_is_read_or_refused_in_one_line_and_in_time(results, name):
    ways = {way: results[0][name][way] for way in ("load", "read_wav", "bytes")}
    for way, (outcome, value, seconds) in ways.items():
        assert seconds < 10, way
        if outcome == "refused":
            assert "\n" not in value, way
    for way in ("load", "bytes"):
        outcome, value, _ = ways[way]
        if outcome == "samples":
            assert 0 < value <= 240_000, way
    if AUDIO[name][1][1] is None:
        assert ways["load"][:2] == ways["bytes"][:2]
        assert ways["load"][0] == "samples"


@pytest.mark.parametrize("name", ["0_hz.wav", "many_hz.wav", "65535_channels.wav"])
def test_read_wav_of_an_impossible_header_refuses(results, name):
    assert results[0][name]["read_wav"][0] == "refused"


@pytest.mark.parametrize("name", ["pipe.wav", "folder.wav"])
def test_pipe_or_folder_is_refused_and_not_waited_for(results, name):
    result = results[0][name]
    assert result["facts"] == ["unreadable", "not readable as audio (no regular file)"]
    assert result["load"][0] == "refused"
    assert result["read_wav"][0] == "refused"


def test_load_of_a_header_alone_refuses(results):
    message = results[0]["header_alone.wav"]["load"][1]
    expected = "has shape (0, 1): expected a sample or more, as (samples,) or (samples, channels)"
    assert expected in message


EDITS = st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=6)


@fuzz(150)
@given(
    st.sampled_from(list(FILES)),
    EDITS,
    st.integers(0, 3000),
    st.sampled_from(["wav", "flac", "mp3", "ogg", "raw", "au"]),
)
@example("WAV", [], 3000, "raw")
@example("FLAC", [(18, 0xFF), (19, 0xFF), (20, 0xFE)], 3000, "flac")  # 655350 Hz, 8 channels
def test_damaged_audio_is_read_or_refused_in_one_line(
    tmp_path, monkeypatch, form, edits, size, ending
):
    # Resampling is tested above, and slow at odd rates.
    monkeypatch.setattr(processing_audiolm, "resample", lambda audio, rate, new: audio)
    content = bytearray(FILES[form][:size])
    for at, byte in edits:
        if at < len(content):
            content[at] = byte
    assert_read_or_refused(tmp_path / f"x.{ending}", bytes(content))


@fuzz(100)
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\xff\xfb"]
    ),
)
def test_random_bytes_are_read_or_refused_in_one_line(tmp_path, content, magic):
    assert_read_or_refused(tmp_path / "x.wav", magic + content)


def assert_read_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    facts = clip_facts(str(file))
    assert facts.fault is None or "\n" not in facts.fault
    for clip in (str(file), content):
        try:
            samples = AudioLMFeatureExtractor(24000).load(clip_audio(clip, 10.0))
            assert samples.ndim == 1
            assert 0 < len(samples) <= 240_000
            assert torch.isfinite(samples).all()
        except (ValueError, OSError, soundfile.LibsndfileError) as error:
            one_line(error)
            assert clip == content or facts.fault is not None
    shown = describe_clip(file.name, 1.0, file.parent, 10.0)
    assert (shown["picture"] is None) == bool(shown["why"])


def test_short_file_with_many_channels_keeps_its_axes(tmp_path):
    samples = np.ones((3, 8)) * [[0.1], [0.2], [0.3]]
    soundfile.write(tmp_path / "x.wav", samples, 24000, subtype="FLOAT")
    loaded = AudioLMFeatureExtractor(24000).load(tmp_path / "x.wav")
    assert loaded.tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("rate", [0, -1, 0.5, 768_001, 2**31 - 1, 10**12, math.inf])
def test_impossible_rate_is_refused(rate):
    for pair in ((rate, 24000), (24000, rate)):
        with pytest.raises(ValueError, match="at most 768,000 Hz"):
            resample(torch.zeros(100), *pair)
    with pytest.raises(ValueError, match="at most 768,000 Hz"):
        AudioLMFeatureExtractor(24000).load((np.zeros(100), rate))


@pytest.mark.parametrize("name", ["x.wav\0.txt", "n" * 10_000, "x\ud800.wav", "-", ""])
def test_name_of_no_file_is_missing(tmp_path, name):
    (tmp_path / "x.wav").write_bytes(wav())
    file = str(tmp_path / name) if name not in ("-", "") else name
    assert clip_facts(file).fault
    assert check_audio([file], cache_file=tmp_path / "facts.sqlite") == {file: "missing"}
    for read in (read_file, read_wav):
        with pytest.raises(FileNotFoundError, match="file not found"):
            read(file, 1.0)


@pytest.mark.parametrize("row", ["0", "7", "9" * 18, "9" * 5000, "0.5"])
@pytest.mark.parametrize(
    "audio", [None, 10**12, "text", {"path": "x"}, {"bytes": None}, {"bytes": 10**12}, []]
)
def test_shard_without_audio_is_unreadable(tmp_path, audio, row):
    shard = tmp_path / "x.parquet"
    columns = {"other": [1]} if audio is None else {"audio": [audio]}
    pq.write_table(pa.table(columns), shard)
    facts = clip_facts(f"{shard}#{row}")
    assert facts.fault.startswith("not readable as audio (")
    assert "\n" not in facts.fault
