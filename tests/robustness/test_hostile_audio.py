"""Hostile audio files, fuzzed: one line of why it is refused, no traceback, no hang, no memory that it names itself.

The same examples are drawn in each run. What once broke something stands as an example of its own.
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
from audiolm.comparison.report.examples import shown_clip
from audiolm.data.audio_check import check_audio, clip_facts
from audiolm.data.audio_files import clip_audio
from audiolm.processing_audiolm import AudioLMFeatureExtractor, read_file, read_wav, resample

pytestmark = pytest.mark.usefixtures("same_examples")

TONE = (9000 * np.sin(np.arange(24000) / 9)).astype("<i2").tobytes()


def wav(data=TONE, channels=1, rate=24000, bits=16, code=1, stated=None, riff=None) -> bytes:
    """A WAV file whose header says what it is told to."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    sizes = (36 + len(data) if riff is None else riff), (len(data) if stated is None else stated)
    return b"RIFF%sWAVEfmt \x10\0\0\0%sdata%s%s" % (
        struct.pack("<I", sizes[0]),
        form,
        struct.pack("<I", sizes[1]),
        data,
    )


def au(channels: int, rate: int, stated: int = len(TONE)) -> bytes:
    return b".snd" + struct.pack(">IIIII", 24, stated, 3, rate, channels) + TONE


def encoded(form: str, seconds: float = 0.2, rate: int = 24000, channels: int = 1) -> bytes:
    content = io.BytesIO()
    samples = np.frombuffer(TONE, "<i2")[: int(seconds * rate)] / 2**15
    soundfile.write(content, np.stack([samples] * channels, 1), rate, format=form)
    return content.getvalue()


def lying_flac() -> bytes:
    """A FLAC file of a second that states 2**36 - 1 samples."""
    made = bytearray(encoded("FLAC"))
    made[21] |= 0xF
    made[22:26] = b"\xff" * 4
    return bytes(made)


FILES = {form: encoded(form) for form in ("WAV", "FLAC", "OGG", "MP3")}
SOUND = ("sound", None)
# file, its kind of [`ClipFacts`], and what is said of it or None
AUDIO = {
    "whole.wav": (wav(), SOUND),
    "of_10_hours.wav": (wav(stated=36000 * 48000), SOUND),  # what is there is read
    "of_4_gb.wav": (wav(stated=2**32 - 16, riff=2**32 - 1), SOUND),
    "longer_than_it_is.wav": (
        wav(stated=10**6, riff=10**6),
        ("unreadable", "truncated: 48044 of 1000008 bytes"),
    ),
    "half_a_header.wav": (wav()[:30], ("unreadable", "not readable as audio")),
    "header_alone.wav": (wav()[:44], ("unreadable", "no samples")),
    "0_channels.wav": (wav(channels=0), ("unreadable", "Channel count is zero")),
    "1024_channels.wav": (wav(channels=1024), ("unreadable", "states 1024 channels at 24000 Hz")),
    "65535_channels.wav": (wav(channels=65535), ("unreadable", "Too many channels")),
    "2_31_channels.au": (au(2**31, 24000), ("unreadable", "not readable as audio")),
    "0_hz.wav": (wav(rate=0), ("unreadable", "not readable as audio")),
    "1_hz.wav": (wav(rate=1), SOUND),
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
    "lying.flac": (lying_flac(), ("unreadable", "not readable as audio")),
    "samples.raw": (TONE, ("unreadable", "does not tell the rate and format")),
    "empty.mp3": (b"", ("unreadable", "empty file")),
    "text.mp3": (b"<html>log in</html>", ("unreadable", "not readable as audio")),
    "a.parquet": (b"PAR1" + bytes(20) + b"PAR1", ("unreadable", "not readable as audio")),
}

# what each way to read a file comes to, within 1 GB beside what the imports took
DECODE = """
import json, os, resource, sys, time
import soundfile
from audiolm.data.audio_check import clip_facts
from audiolm.data.audio_files import clip_audio
from audiolm.processing_audiolm import AudioLMFeatureExtractor, read_wav
extractor = AudioLMFeatureExtractor(24000)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, taken + 2**30))
found = {}
for name in sorted(os.listdir(sys.argv[1])):
    file = os.path.join(sys.argv[1], name)
    content = open(file, "rb").read() if os.path.isfile(file) else b""
    facts = clip_facts(file)
    found[name] = {"facts": [facts.kind, facts.fault]}
    ways = {"load": lambda: extractor.load(file), "read_wav": lambda: read_wav(file, 10.0)[0],
            "bytes": lambda: extractor.load(clip_audio(content, 10.0))}
    for way, read in ways.items():
        start = time.process_time()
        try:
            found[name][way] = ["samples", len(read())]
        except (ValueError, OSError, ImportError, soundfile.LibsndfileError) as error:
            found[name][way] = ["refused", str(error)]
        found[name][way].append(time.process_time() - start)
# of this process alone: `ru_maxrss` begins with that of the one that started it
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([found, int(peak.split()[1])]))
"""


def test_audio_that_lies_takes_no_memory(tmp_path):
    for name, (content, _) in AUDIO.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", DECODE, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found, peak = json.loads(run.stdout.splitlines()[-1])
    assert peak < 1_500_000, f"{peak} kB"  # torch and transformers take some 400 MB of it
    for name, (_, (kind, said)) in AUDIO.items():
        facts, ways = (
            found[name]["facts"],
            {way: found[name][way] for way in ("load", "read_wav", "bytes")},
        )
        assert facts[0] == kind and (facts[1] is None if said is None else said in facts[1]), (
            name,
            facts,
        )
        assert all(seconds < 10 for *_, seconds in ways.values()), (name, ways)
        assert all("\n" not in of for what, of, _ in ways.values() if what == "refused"), (
            name,
            ways,
        )
        if said is None:
            assert ways["load"][:2] == ways["bytes"][:2] and ways["load"][0] == "samples", (
                name,
                ways,
            )
        assert all(
            0 < ways[way][1] <= 240_000 for way in ("load", "bytes") if ways[way][0] == "samples"
        ), (name, ways)
    assert found["0_hz.wav"]["read_wav"][0] == found["many_hz.wav"]["read_wav"][0] == "refused"
    assert found["65535_channels.wav"]["read_wav"][0] == "refused"
    for name in ("pipe.wav", "folder.wav"):  # a pipe was waited for
        assert found[name]["facts"] == ["unreadable", "not readable as audio (no regular file)"]
        assert [found[name][way][0] for way in ("load", "read_wav")] == ["refused", "refused"]
    assert found["header_alone.wav"]["load"][1].endswith(
        "has shape (0, 1), but (samples,) or two dimensions and a sample are wanted"
    )


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
def test_damaged_audio(tmp_path, monkeypatch, form, edits, size, ending):
    monkeypatch.setattr(
        processing_audiolm, "resample", lambda audio, rate, new: audio
    )  # tested above, and slow at odd rates
    content = bytearray(FILES[form][:size])
    for at, byte in edits:
        if at < len(content):
            content[at] = byte
    reads_or_says_why(tmp_path / f"x.{ending}", bytes(content))


@fuzz(100)
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\xff\xfb"]
    ),
)
def test_audio_of_any_bytes(tmp_path, content, magic):
    reads_or_says_why(tmp_path / "x.wav", magic + content)


def reads_or_says_why(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    facts = clip_facts(str(file))
    assert facts.fault is None or "\n" not in facts.fault
    for clip in (str(file), content):
        try:
            read = clip_audio(clip, 10.0)
            read = AudioLMFeatureExtractor(24000).load(read)
            assert read.ndim == 1 and 0 < len(read) <= 240_000 and torch.isfinite(read).all()
        except (ValueError, OSError, soundfile.LibsndfileError) as error:
            one_line(error)
            assert clip == content or facts.fault is not None
    shown = shown_clip(file.name, 1.0, file.parent, 10.0)
    assert (shown["picture"] is None) == bool(shown["why"])


def test_a_short_file_of_many_channels_is_not_turned(tmp_path):
    soundfile.write(
        tmp_path / "x.wav", np.ones((3, 8)) * [[0.1], [0.2], [0.3]], 24000, subtype="FLOAT"
    )
    assert AudioLMFeatureExtractor(24000).load(tmp_path / "x.wav").tolist() == pytest.approx(
        [0.1, 0.2, 0.3]
    )


@pytest.mark.parametrize("rate", [0, -1, 0.5, 768_001, 2**31 - 1, 10**12, math.inf])
def test_rates_that_no_recording_has(rate):
    for pair in ((rate, 24000), (24000, rate)):
        with pytest.raises(ValueError, match="at most 768,000 Hz"):
            resample(torch.zeros(100), *pair)
    with pytest.raises(ValueError, match="at most 768,000 Hz"):
        AudioLMFeatureExtractor(24000).load((np.zeros(100), rate))


@pytest.mark.parametrize("name", ["x.wav\0.txt", "n" * 10_000, "x\ud800.wav", "-", ""])
def test_names_of_no_file(tmp_path, name):
    (tmp_path / "x.wav").write_bytes(wav())
    file = str(tmp_path / name) if name not in ("-", "") else name
    assert clip_facts(file).fault and check_audio([file], cache_file=tmp_path / "facts.sqlite") == {
        file: "missing"
    }
    for read in (read_file, read_wav):
        with pytest.raises(FileNotFoundError, match="no file is there"):
            read(file, 1.0)


@pytest.mark.parametrize("row", ["0", "7", "9" * 18, "9" * 5000, "0.5"])
@pytest.mark.parametrize(
    "audio", [None, 10**12, "text", {"path": "x"}, {"bytes": None}, {"bytes": 10**12}, []]
)
def test_shards_that_hold_no_audio(tmp_path, audio, row):
    shard = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"other" if audio is None else "audio": [audio if audio is not None else 1]}),
        shard,
    )
    facts = clip_facts(f"{shard}#{row}")
    assert facts.fault.startswith("not readable as audio (") and "\n" not in facts.fault
