"""Hostile input, fuzzed: it gives one line of why it is refused, no traceback, no hang, no memory that it names itself.

The same examples are drawn in each run. What once broke something stands as an example of its own.
"""

import io
import json
import math
import os
import posixpath
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import py7zr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import ARMS, SMALL_HTSAT, SMALL_MIMI, TEXT
from faulty_server import seven_of, tree, zip_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from audiolm import AudioLMConfig, processing_audiolm
from audiolm.data import json_rows, load_reasonaqa, resolve_path
from audiolm.data import unpack as unpacking
from audiolm.data.audio import check_audio, clip_facts
from audiolm.data.benchmarks import read_benchmark
from audiolm.data.clips import clip_audio
from audiolm.data.reasonaqa import FIELDS
from audiolm.data.unpack import contents, unpack
from audiolm.evaluation import comparison
from audiolm.evaluation.comparison import compare
from audiolm.evaluation.parsing import option_spans, options, parse_answer
from audiolm.evaluation.report import write_report
from audiolm.evaluation.report_rows import shown_clip
from audiolm.evaluation.runs import Run
from audiolm.evaluation.scores import score
from audiolm.processing_audiolm import AudioLMFeatureExtractor, read_file, read_wav, resample


def fuzz(count: int):
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def same_examples(monkeypatch):
    """hypothesis also draws constants of the modules that are loaded, which other test files change."""
    monkeypatch.setattr(providers, "_get_local_constants", providers.Constants)


EVERY = st.characters(exclude_categories=())  # lone surrogates and NUL too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(EVERY, max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(EVERY, max_size=5), inner, max_size=3),
    max_leaves=6,
)
NO_LIMIT = 2**62


def one_line(error: BaseException, start: object = "") -> None:
    said = str(error)
    assert said.startswith(str(start)) and said.strip() and "\n" not in said and len(said) < 2000, said[:3000]


# --- rows ---

ROW = {"taskname": "audioqa", "filepath1": "a/x.wav", "filepath2": "", "caption1": "", "caption2": "",
       "input": "Is it low? Answer only using yes or no.", "answer": "yes", "subtype": "ClothoAQA.json"}  # fmt: skip
WHOLE = json.dumps([ROW, {**ROW, "answer": "é\u2028\U0001f415"}], ensure_ascii=False).encode()


def of_row(**fields) -> bytes:
    return json.dumps([{**ROW, **fields}]).encode()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK", 64)


def reads_or_refuses(folder: Path, content: bytes) -> None:
    file = folder / "rows.json"
    file.write_bytes(content)
    try:
        rows = load_reasonaqa({"train": file}, folder)["train"]
    except ValueError as error:
        return one_line(error, file)
    assert [{name: row[name] for name in FIELDS} for row in rows] == [
        {name: row[name] for name in FIELDS} for row in json.loads(content)
    ]


@fuzz(150)
@given(st.binary(max_size=100) | st.text(st.sampled_from('[]{}",:0e.-nulltrue \\ud8\n'), max_size=60).map(str.encode))
@example(b"[" * 100_000)
@example(b'[{"a":' * 50_000)
@example(b"[" + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"]")
@example(b"[" + b"1" * 5000 + b"]")
@example(b"\xef\xbb\xbf" + WHOLE)
@example(json.dumps([ROW]).encode("utf-16"))
@example(b"\0" * 100)
@example(b"[NaN, 1e999, -Infinity]")
def test_files_of_any_bytes(tmp_path, small_chunks, content):
    reads_or_refuses(tmp_path, content)


@fuzz(100)
@given(st.integers(0, len(WHOLE)), st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=3))
@example(len(WHOLE), [])
def test_files_that_are_torn_or_damaged(tmp_path, small_chunks, size, changes):
    content = bytearray(WHOLE)
    for at, byte in changes:
        content[at] = byte
    reads_or_refuses(tmp_path, bytes(content[:size]))


@fuzz(150)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3), st.sets(st.sampled_from(FIELDS), max_size=1))
@example({"answer": "yes\ud800"}, set())
@example({"filepath1": "\udcff.wav"}, set())
@example({"input": "x" * 10**6, "subtype": "unknown"}, set())
@example({"answer": 10**4000, "input": 1e308}, set())
def test_rows_of_any_values(tmp_path, changes, missing):
    row = {name: value for name, value in {**ROW, **changes}.items() if name not in missing}
    reads_or_refuses(tmp_path, json.dumps([row]).encode())


def test_the_last_of_two_equal_keys_counts(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROW])[:-2] + ', "answer": "no"}]')
    assert load_reasonaqa({"train": tmp_path / "rows.json"}, tmp_path)["train"]["answer"] == ["no"]


def test_an_element_without_end_is_given_up(tmp_path, monkeypatch):
    """Each further chunk would have it parsed again, the square of its length in time."""
    monkeypatch.setattr(json_rows, "CHUNK", 100)
    monkeypatch.setattr(json_rows, "LONGEST", 2000)
    file = tmp_path / "rows.json"
    file.write_bytes(of_row(caption1="x" * 1500))
    assert len(load_reasonaqa({"train": file}, tmp_path)["train"]) == 1
    for content in (of_row(caption1="x" * 2500), b'[{"a": [' + b"0," * 2000, b'["' + b"x" * 3000):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"rows.json: .*an element of more than 2,000 characters") as error:
            load_reasonaqa({"train": file}, tmp_path)
        one_line(error.value, file)


MMAR_ITEM = {"id": "1", "audio_path": "a.wav", "question": "What?", "choices": ["x", "y"], "answer": "x", "modality": "m"}


@fuzz(100)
@given(st.dictionaries(st.sampled_from(list(MMAR_ITEM)), VALUES, max_size=2), st.binary(max_size=20))
@example({}, b"\xff")
@example({}, b"[" * 100_000)
@example({}, b"1" * 5000)
@example({"question": "What\ud800?"}, b"")
@example({"category": "\ud800"}, b"")
@example({"audio_path": "a/&#46;&#46;/&#46;&#46;/x.wav"}, b"")
def test_items_of_a_benchmark(tmp_path, changes, end):
    file = tmp_path / "mmar.jsonl"
    file.write_bytes(json.dumps({**MMAR_ITEM, **changes}).encode() + b"\n" + end)
    try:
        rows = read_benchmark("mmar", file, tmp_path)
        assert all(inside(path, tmp_path) for row in rows["audio"] for path in row)
    except ValueError as error:
        one_line(error, file)


# --- paths ---

PIECES = ["..", ".", "/", "\\", "a", "b", "x.wav", "link", "&", "&#46;", "&#x2e;", "&period;", "&#47;", "&sol;", "&bsol;",
          "&amp;", "&#0;", "\0", "C:", "~", "%2e%2e", " ", "\n", "é", "\u202e", "\ud800", "n" * 10_000]  # fmt: skip


def inside(path: str, folder: Path) -> bool:
    return posixpath.normpath(path).startswith(f"{folder}/") and ".." not in path.split("/")


@pytest.fixture
def folders(tmp_path):
    """A folder of audio beside one that no row may reach."""
    for name in ("audio/a", "audio/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.wav").touch()
    (tmp_path / "elsewhere" / "Yabcdefghijk.wav").touch()
    return tmp_path


@fuzz(400)
@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
@example("")
@example("/")
@example("/a/x.wav")
@example("a")
@example("../elsewhere/x.wav")
@example("a/../../elsewhere/x.wav")
@example("..\\elsewhere\\x.wav")
@example("C:\\x.wav")
@example("&#46;&#46;/elsewhere/x.wav")
@example("a/&#46;&#46;&#47;&#46;&#46;&#47;elsewhere&#47;x.wav")
@example("&#47;etc&#47;passwd")
@example("a/&#47;etc&#47;passwd")
@example("a&bsol;..&bsol;..&bsol;elsewhere&bsol;x.wav")
@example("a/" + "n" * 10_000)
def test_paths_stay_in_their_folder(folders, filepath):
    audio = folders / "audio"
    for roots in (audio, {"a": audio / "a", "b": audio / "b"}):
        try:
            path = resolve_path(filepath, roots)
        except ValueError as error:
            one_line(error)
            continue
        assert inside(path, audio if isinstance(roots, Path) else roots[filepath[0]])
        assert Path(path).resolve().is_relative_to(audio) if "\ud800" not in path and "n" * 999 not in path else True


@pytest.mark.parametrize("name", ["Yabcdefghijk.wav", "x.wav"])
@pytest.mark.parametrize(
    "way", ["..{0}elsewhere{0}", "a{0}..{0}..{0}elsewhere{0}", "{1}{0}elsewhere{0}", "&#46;&#46;{0}elsewhere{0}"]
)
@pytest.mark.parametrize("separator", ["/", "\\", "&#47;"])
def test_rows_that_lead_elsewhere_are_refused(folders, name, way, separator):
    file, filepath = folders / "rows.json", way.format(separator, folders) + name
    file.write_bytes(of_row(filepath1=filepath))
    for roots in (folders / "audio", {"a": folders / "audio", "..": folders / "audio"}):
        with pytest.raises(ValueError) as error:
            load_reasonaqa({"train": file}, roots)
        one_line(error.value, f"{file}, row 0: ")


def test_links_in_the_folder_are_its_owners(folders):
    (folders / "audio" / "link").symlink_to(folders / "elsewhere")
    assert Path(resolve_path("link/x.wav", folders / "audio")).is_file()
    (folders / "audio" / "rows.json").write_bytes(of_row(filepath1="link/Yabcdefghijk.wav"))
    rows = load_reasonaqa({"train": folders / "audio" / "rows.json"}, folders / "audio")
    assert rows["train"]["audio"] == [[str(folders / "audio" / "link" / "Yabcdefghijk.wav")]]


# --- audio ---

TONE = (9000 * np.sin(np.arange(24000) / 9)).astype("<i2").tobytes()


def wav(data=TONE, channels=1, rate=24000, bits=16, code=1, stated=None, riff=None) -> bytes:
    """A WAV file whose header says what it is told to."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    sizes = (36 + len(data) if riff is None else riff), (len(data) if stated is None else stated)
    return b"RIFF%sWAVEfmt \x10\0\0\0%sdata%s%s" % (struct.pack("<I", sizes[0]), form, struct.pack("<I", sizes[1]), data)


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
    "longer_than_it_is.wav": (wav(stated=10**6, riff=10**6), ("unreadable", "truncated: 48044 of 1000008 bytes")),
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
    "many_hz_and_channels.au": (au(1024, 2**31 - 1), ("unreadable", "states 1024 channels at 2147483647 Hz")),
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
from audiolm.data.audio import clip_facts
from audiolm.data.clips import clip_audio
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
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def test_audio_that_lies_takes_no_memory(tmp_path):
    for name, (content, _) in AUDIO.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    run = subprocess.run([sys.executable, "-c", DECODE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    found, peak = json.loads(run.stdout.splitlines()[-1])
    assert peak < 1_500_000, f"{peak} kB"  # torch and transformers take some 400 MB of it
    for name, (_, (kind, said)) in AUDIO.items():
        facts, ways = found[name]["facts"], {way: found[name][way] for way in ("load", "read_wav", "bytes")}
        assert facts[0] == kind and (facts[1] is None if said is None else said in facts[1]), (name, facts)
        assert all(seconds < 10 for *_, seconds in ways.values()), (name, ways)
        assert all("\n" not in of for what, of, _ in ways.values() if what == "refused"), (name, ways)
        if said is None:
            assert ways["load"][:2] == ways["bytes"][:2] and ways["load"][0] == "samples", (name, ways)
        assert all(0 < ways[way][1] <= 240_000 for way in ("load", "bytes") if ways[way][0] == "samples"), (name, ways)
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
@given(st.sampled_from(list(FILES)), EDITS, st.integers(0, 3000), st.sampled_from(["wav", "flac", "mp3", "ogg", "raw", "au"]))
@example("WAV", [], 3000, "raw")
@example("FLAC", [(18, 0xFF), (19, 0xFF), (20, 0xFE)], 3000, "flac")  # 655350 Hz, 8 channels
def test_damaged_audio(tmp_path, monkeypatch, form, edits, size, ending):
    monkeypatch.setattr(processing_audiolm, "resample", lambda audio, rate, new: audio)  # tested above, and slow at odd rates
    content = bytearray(FILES[form][:size])
    for at, byte in edits:
        if at < len(content):
            content[at] = byte
    reads_or_says_why(tmp_path / f"x.{ending}", bytes(content))


@fuzz(100)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\xff\xfb"])
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
    soundfile.write(tmp_path / "x.wav", np.ones((3, 8)) * [[0.1], [0.2], [0.3]], 24000, subtype="FLOAT")
    assert AudioLMFeatureExtractor(24000).load(tmp_path / "x.wav").tolist() == pytest.approx([0.1, 0.2, 0.3])


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
    assert clip_facts(file).fault and check_audio([file], cache_file=tmp_path / "facts.sqlite") == {file: "missing"}
    for read in (read_file, read_wav):
        with pytest.raises(FileNotFoundError, match="no file is there"):
            read(file, 1.0)


@pytest.mark.parametrize("row", ["0", "7", "9" * 18, "9" * 5000, "0.5"])
@pytest.mark.parametrize("audio", [None, 10**12, "text", {"path": "x"}, {"bytes": None}, {"bytes": 10**12}, []])
def test_shards_that_hold_no_audio(tmp_path, audio, row):
    shard = tmp_path / "x.parquet"
    pq.write_table(pa.table({"other" if audio is None else "audio": [audio if audio is not None else 1]}), shard)
    facts = clip_facts(f"{shard}#{row}")
    assert facts.fault.startswith("not readable as audio (") and "\n" not in facts.fault


# --- archives ---


def unpacked(folder: Path, content: bytes, limit: int) -> dict[str, bytes] | str:
    """The files that came of an archive, or why none did; nothing else may have been written."""
    shutil.rmtree(folder / "box", ignore_errors=True)
    (folder / "box").mkdir()
    archive = folder / "box" / "a.bin"
    archive.write_bytes(content)
    try:
        count = unpack(archive, folder / "box" / "out", limit)
        found = tree(folder / "box" / "out")
        assert len(found) == count and sorted(found) == sorted(contents(archive, limit))
        assert sum(map(len, found.values())) <= limit
        return found
    except ValueError as error:
        one_line(error, f"{archive}: ")
        return str(error)
    finally:
        assert {Path(name).parts[:2] for name in tree(folder)} <= {("box", "a.bin"), ("box", "out")}
        assert not any(file.is_symlink() for file in folder.rglob("*"))


@pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 9, 93])
def test_a_zip_of_ways_that_unpack_all_at_once(tmp_path, way):
    """4 kB of bzip2 are 4 GB, which Python's zipfile makes at once before it looks at the size that is stated."""
    made = bytearray(zip_of({"a": bytes(10**6)}, way if way in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA) else zipfile.ZIP_STORED))
    made[8:10] = struct.pack("<H", way)
    at = made.rindex(b"PK\x01\x02") + 10
    made[at : at + 2] = struct.pack("<H", way)
    assert "packed in a way that is not unpacked here" in unpacked(tmp_path, bytes(made), 10**7)


@pytest.mark.parametrize("way", [{"id": py7zr.FILTER_ZSTD, "level": 3}, {"id": py7zr.FILTER_DEFLATE}])
def test_a_7z_of_ways_that_unpack_all_at_once(tmp_path, monkeypatch, way):
    """1 MB of zstd is 32 GB, which py7zr makes at once, also of a header."""
    known = dict(py7zr.compressor.algorithm_class_map)
    monkeypatch.setattr(py7zr.compressor, "algorithm_class_map", known)
    known[py7zr.FILTER_ZSTD] = (py7zr.compressor.ZstdCompressor, py7zr.compressor.ZstdDecompressor)
    known[py7zr.FILTER_DEFLATE] = (py7zr.compressor.DeflateCompressor, py7zr.compressor.DeflateDecompressor)
    made = seven_of({"a": bytes(10**6)}, filters=[way])
    assert "packed in a way that is not unpacked here" in unpacked(tmp_path, made, 10**7)


def test_a_7z_of_very_many_files_is_not_listed(tmp_path, monkeypatch):
    """A header of a kB can name 8 million, 4 GB of Python's objects; it is refused before they are made."""
    monkeypatch.setattr(unpacking, "MOST", 30)
    made = seven_of({str(number): b"" for number in range(70)})
    assert "numfiles value 70 exceeds limit 60" in unpacked(tmp_path, made, 10**7)
    monkeypatch.setattr(unpacking, "MOST", 70)
    assert len(unpacked(tmp_path, made, 10**7)) == 70


def directory(names: list[bytes], count: int, offset: int = 0, packed: int = 0, size: int = 0, crc: int = 0, way=0) -> bytes:
    """The directory of a zip whose members all lie at one place, and its end, which states their number."""
    made = b"".join(
        b"PK\1\2"
        + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, way, 0, 0, crc, packed, size, len(name), 0, 0, 0, 0, 0, offset)
        + name
        for name in names
    )
    return made + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(made), offset + packed + 31 if packed else 0, 0)


def test_a_zip_that_hides_its_number_of_members(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST", 1000)
    made = directory([b"%06d" % number for number in range(5000)], count=1)
    assert "5,000 members are in it, at most 1,000 are wanted" in unpacked(tmp_path, made, 10**7)


def test_members_that_overlap(tmp_path):
    """One megabyte of zeros in a kB, named a thousand times: what it unpacks to is counted member by member."""
    body, name = bytes(10**6), b"0000"
    packing = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packing.compress(body) + packing.flush()
    of = {"packed": len(packed), "size": len(body), "crc": zlib.crc32(body), "way": 8}
    local = (
        b"PK\3\4" + struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, of["crc"], len(packed), len(body), len(name), 0) + name + packed
    )

    def of_members(count: int) -> bytes:
        ends = directory([b"%04d" % number for number in range(count)], count, **of)
        return local + ends[:-6] + struct.pack("<IH", len(local), 0)

    assert unpacked(tmp_path, of_members(1), 10**6) == {"0000": body}
    assert "it would unpack to 1,000,000,000 bytes, at most 900,000,000" in unpacked(tmp_path, of_members(1000), 9 * 10**8)
    assert "torn" in unpacked(tmp_path, of_members(3), 10**7)


@pytest.mark.parametrize("size", [2**32 - 2, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_zip_that_states_any_size(tmp_path, size):
    made = directory([b"a"], 1, size=min(size, 2**32 - 1))
    if size >= 2**32:  # in the extra field of large files
        extra = struct.pack("<HHQ", 1, 8, size)
        head = bytearray(made[:47])
        head[30:32] = struct.pack("<H", len(extra))
        made = bytes(head) + extra + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(head) + len(extra), 0, 0)
    assert f"it would unpack to {size:,} bytes" in unpacked(tmp_path, made, 10**9)


def test_an_archive_in_an_archive_stays_one(tmp_path):
    inner = zip_of({"zeros": bytes(5_000_000)})
    for pack in (zip_of, seven_of):
        assert unpacked(tmp_path, pack({"inner.zip": pack({"inner.zip": inner})}), 10**5).keys() == {"inner.zip"}


NAMES = st.lists(st.sampled_from([*PIECES[:15], "é", "\r", "__MACOSX", unpacking.SCRATCH]), min_size=1, max_size=5).map("".join)
MEMBER = st.tuples(NAMES, st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@fuzz(200)
@given(st.lists(MEMBER, min_size=1, max_size=3), st.booleans(), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
@example([("../x", 0, 0, 0)], False, 0, 0)
@example([("a", 0, 0o120777 << 16, 0), ("a/x", 0, 0, 0)], False, 0, 0)
@example([("a", 0, 0o060777 << 16, 0)], False, 0, 0)
def test_zips_of_any_directory(tmp_path, members, damage, way, offset):
    """What the directory says of names, flags, types, sizes, places and ways to pack is anything."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for number, (name, _, attributes, _) in enumerate(members):
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name or str(number), attributes
            info.create_system = 3
            archive.writestr(info, b"content" * number)
    made = bytearray(whole.getvalue())
    if damage:
        at = made.index(b"PK\x01\x02")
        made[at + 8 : at + 12] = struct.pack("<HH", members[0][1], way)
        made[at + 20 : at + 28] = struct.pack("<II", members[0][3], members[0][2])
        made[at + 42 : at + 46] = struct.pack("<I", offset)
    found = unpacked(tmp_path, bytes(made), 10**6)
    assert isinstance(found, str) or set(found.values()) <= {b"content" * number for number in range(3)}


# --- answers ---

WORDS = ["A)", "B) ", "(c)", " d) ", "a", "x ", "x x ", "low ", "the ", "first ", "second one ", "option ", "answer ", "is ",
         "not ", "no", "yes", "n't ", "isn't ", ", ", ". ", "\n", "\t", " ", " - ", "--", "(", "'", "\u2019", '"', "#", "İ",
         "ß", "ª", "\u2003", "\0", "\u202e", "\ud800", "\u0301", "\U0001f415"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(EVERY, max_size=5), max_size=25).map("".join)
LONG = st.tuples(TEXTS, st.integers(1, 10**5)).map(lambda of: (of[0] * of[1])[: 10**4])


def parsed(kind: str, question: str, text: str) -> str | None:
    start, answer = time.process_time(), parse_answer(kind, question, text)
    assert time.process_time() - start < 5, f"{time.process_time() - start:.1f} s"
    allowed = {"yes_no": {"yes", "no"}, "mcq": set(options(question)), "entailment": set(options(question))}.get(kind, set())
    assert answer is None or answer in allowed
    return answer


@fuzz(250)
@given(st.sampled_from(["mcq", "yes_no", "entailment", "caption", "?"]), TEXTS | LONG, TEXTS | LONG)
def test_answers_of_any_text(kind, question, text):
    parsed(kind, question, text)
    for option in option_spans(question):
        assert question[option.start : option.end].strip() == option.text


ASKED = "Which? A) low tone B) high tone C) a a"


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("Which? A) x" + " " * 10**5 + "y B) z", "A", "a"),  # took the square of the spaces
        ("Which? A) " + "x " * 25_000 + "B) y", "x " * 50_000, "a"),  # took the length times the repetitions
        ("Which? " + "A) x \t\n" * 15_000, "A", "a"),
        (ASKED, " " * 10**5 + "A", "a"),
        (ASKED, "A" + " " * 10**5, "a"),
        (ASKED, "(" * 10**5, None),
        (ASKED, "a'" * 50_000, None),
        (ASKED, "'" * 10**5 + "b", "b"),
        (ASKED, "a " + "-" * 50_000 + " b " + "-" * 50_000, None),
        (ASKED, "a a a " * 16_000, "c"),
        (ASKED, "the first one, not option two. " * 3000, "a"),
        (ASKED, "not, " * 20_000, None),
    ],
)  # fmt: skip
def test_long_answers_take_their_length_in_time(question, text, answer):
    assert parsed("mcq", question, text) == answer
    parsed("yes_no", question, text)


# --- the report ---

EVIL = ["<script>alert(1)</script>", "</style>", "</title>", "<!--", "-->", "]]>", '"', "'", "`", "&", "&lt;img&gt;",
        "{{ 7*7 }}", "{% raw %}", "<a href=javascript:alert(1)>", "javascript:alert(1)", '" onclick="alert(1)', "' onload='x",
        "http://evil.example/x", "<img src=//evil.example>", "url(x)", "\0", "\r", "\u202e", "\u200f", "\u2028", "\ud800",
        "é"]  # fmt: skip


class Structure(HTMLParser):
    """What of a page is markup: each tag with the names of its attributes, addresses, and the style sheet."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.style, self.inside = Counter(), set(), [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags[tag, tuple(name for name, _ in attrs)] += 1
        self.addresses |= {value for name, value in attrs if name in ("src", "href", "action", "srcset", "xlink:href", "style")}
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_comment(self, data):
        self.tags["comment"] += 1

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            self.style.append(data)


def report_of(folder: Path, text: str) -> str:
    """The page of a comparison of two arms, `text` wherever a data set or a model could bring one."""
    rows = []
    for number, kind in enumerate(("mcq", "mcq", "yes_no", "caption")):
        right = {"mcq": "a", "yes_no": "yes"}.get(kind)
        found = {"parsed": right, "correct": True if right else None}
        scores = {"mcq": ("a", "b"), "yes_no": ("no", "yes")}.get(kind, ())
        answers = {"generate": {**found, "text": text}}
        if right:
            answers["likelihood"] = {**found, "scores": {option: [-1.0, 2] for option in scores}}
        rows.append({
            "taskname": text, "caption1": text, "caption2": text, "subtype": f"T-{text}", "question_type": kind,
            "filepath1": f"{number}{text}.wav", "filepath2": "", "seconds": [0.6], "category": f"x{text}", "reference": right,
            "input": {"mcq": f"{text} A) {text}x B) x{text}", "yes_no": f"{text}?"}.get(kind, f"caption {text}"),
            "n_tokens": 2, "loss": 3.0, "answer": f"A) {text}", "answers": answers, "controls": {},
        })  # fmt: skip
    metrics = score([row for row in rows if row["reference"]], "likelihood", 1.0)
    metrics["text"] = {"caption": {"n": 1, "loss_per_answer_token": 1.5, "control_loss": {}}}
    metrics["settings"] = {"model": {"encoder_type": "htsat", "no_audio": False, "training": {"seed": 0}}}
    runs = {arm: [Run(Path(f"{arm}{text}".replace("\0", "")), metrics, rows)] for arm in ("one", "two")}
    runs = {f"{arm}{text}": of for arm, of in runs.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "RESAMPLES", 20)
        found = compare(runs)
    found |= {"command": text, "note": f"note {text}", "corpus": None, "train": {}, "eval": {}}
    write_report(folder / "report.html", found, runs, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return Structure(report_of(tmp_path_factory.mktemp("plain"), "plain"))


@fuzz(12)
@given(st.lists(st.sampled_from(EVIL), min_size=1, max_size=8).map("".join))
@example("".join(EVIL))
@example("\ud800")
def test_nothing_in_a_report_becomes_markup(tmp_path, plain, text):
    page = report_of(tmp_path, text)
    found = Structure(page)
    assert found.tags == plain.tags and found.style == plain.style
    assert all(address.startswith(("data:", "#")) for address in found.addresses)
    assert "default-src 'none'" in page and "<script" not in page


# --- configurations ---

SIZES = [0, -1, 10**9, 10**12, 2**63, 2**64, 1e9, math.nan, math.inf, True, None, "576", "", [], [10**9], {}, "x" * 3000]
FIELDS_OF = {
    "text": [*TEXT, "hidden_act", "rope_parameters", "layer_types", "num_local_experts", "n_embd"],
    "htsat": [*SMALL_HTSAT, "n_fft", "num_mel_bins", "spec_size", "patch_size", "patch_stride", "hop_length", "sampling_rate",
              "frequency_max", "window_size", "num_hidden_layers", "mlp_ratio", "enable_fusion", "projection_dim"],
    "mimi": [*SMALL_MIMI, "upsampling_ratios", "kernel_size", "sampling_rate", "num_residual_layers", "max_position_embeddings",
             "num_levels", "compress", "frame_rate", "audio_channels"],
    "own": ["mapper_hidden_size", "audio_token_id", "max_audio_seconds", "freeze_lm", "no_audio", "encoder_type", "text_config",
            "encoder_config"],
}  # fmt: skip


def configured(arm: str, part: str, changes: dict) -> dict:
    """The fields of a small configuration, some of them changed."""
    encoder = SMALL_HTSAT if arm == "htsat" else SMALL_MIMI
    fields = {"encoder_type": arm, "encoder_config": dict(encoder), "text_config": dict(TEXT), "mapper_hidden_size": 32}
    into = {"own": fields, "text": fields["text_config"]}.get(part, fields["encoder_config"])
    into.update(changes)
    return fields


PART = st.sampled_from(["text", "own", "encoder"]).flatmap(
    lambda part: st.sampled_from(ARMS).flatmap(
        lambda arm: st.tuples(
            st.just(arm), st.just(part),
            st.dictionaries(
                st.sampled_from(FIELDS_OF.get(part) or FIELDS_OF["htsat" if arm == "htsat" else "mimi"]),
                st.sampled_from(SIZES) | VALUES | st.integers(-(2**70), 2**70), min_size=1, max_size=2,
            ),
        )
    )
)  # fmt: skip


@fuzz(300)
@given(PART)
@example(("htsat", "text", {"num_attention_heads": 0}))
@example(("htsat", "text", {"model_type": ["llama"]}))
@example(("htsat", "text", {"model_type": "clip"}))
@example(("htsat", "text", {"model_type": "gpt2", "n_embd": 10**9}))
@example(("htsat", "text", {"model_type": "mixtral", "num_local_experts": 10**9}))
@example(("htsat", "text", {"hidden_size": 2**15, "num_hidden_layers": 2**10}))
@example(("htsat", "encoder", {"depths": [1] * 1000}))
@example(("htsat", "encoder", {"window_seconds": math.nan}))
@example(("mimi_full", "encoder", {"hidden_size": -512}))
@example(("mimi_full", "own", {"encoder_config": "x"}))
@example(("mimi_full", "own", {"text_config": [1]}))
@example(("mimi_full", "own", {"encoder_type": ["htsat"]}))
@example(("mimi_full", "own", {"freeze_lm": "no"}))
@example(("mimi_full", "own", {"max_audio_seconds": math.nan}))
def test_configurations_of_any_values(of):
    try:
        config = AudioLMConfig(**configured(*of))
    except ValueError as error:
        return one_line(error)
    text, encoder = config.text_config, config.encoder_config
    assert text.hidden_size * text.vocab_size * max(1, text.num_hidden_layers) <= 10**13
    assert text.hidden_size * (text.vocab_size + text.num_hidden_layers * text.hidden_size) <= 10**11
    assert 0 < encoder.hidden_size <= 4096 and config.mapper_hidden_size <= 2**15 and 0 <= config.max_audio_seconds <= 3600
    assert 0 <= config.audio_token_id < text.vocab_size


@pytest.mark.parametrize("arm", ARMS)
def test_usual_configurations_are_what_they_were(arm, tmp_path):
    for config in (AudioLMConfig(arm), AudioLMConfig(**configured(arm, "own", {}), max_audio_seconds=30, no_audio=True)):
        config.save_pretrained(tmp_path)
        assert AudioLMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {"architectures": None}
    for kind in ("gpt2", "qwen2", "qwen3", "smollm3", "gemma", "mistral", "gpt_neox", "phi"):
        text = AudioLMConfig(arm, text_config={"model_type": kind}).text_config
        assert text.model_type == kind


ABSURD = [
    ("htsat", "text", {"hidden_size": 10**9}),
    ("htsat", "text", {"vocab_size": 10**12}),
    ("htsat", "text", {"num_hidden_layers": 10**8}),
    ("htsat", "text", {"intermediate_size": 10**11}),
    ("htsat", "text", {"hidden_size": -32}),
    ("htsat", "text", {"hidden_size": "32"}),
    ("htsat", "text", {"hidden_size": math.nan}),
    ("htsat", "text", {"hidden_size": 2**15, "vocab_size": 2**22, "intermediate_size": 2**18, "num_hidden_layers": 1000}),
    ("htsat", "encoder", {"n_fft": 10**9}),
    ("htsat", "encoder", {"depths": [10**8] * 4}),
    ("htsat", "encoder", {"patch_embeds_hidden_size": 10**9}),
    ("htsat", "encoder", {"window_seconds": 1e12}),
    ("mimi_full", "encoder", {"codebook_size": 2**40}),
    ("mimi_full", "encoder", {"num_quantizers": 10**9}),
    ("mimi_full", "encoder", {"num_filters": 10**8}),
    ("mimi_full", "encoder", {"num_residual_layers": 10**8}),
    ("mimi_full", "own", {"mapper_hidden_size": 10**12}),
    ("mimi_full", "own", {"mapper_hidden_size": -1}),
]
MAKE = """
import json, os, resource, sys
import torch
from transformers import AutoConfig
from audiolm import AudioLMConfig, AudioLMForConditionalGeneration
AutoConfig.register("audiolm", AudioLMConfig)
def make(folder):
    return AudioLMForConditionalGeneration(AutoConfig.from_pretrained(folder)).num_parameters()
make(sys.argv[1] + "/usual")
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28))
before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for name in sorted(os.listdir(sys.argv[1])):
    try:
        found[name] = make(os.path.join(sys.argv[1], name))
    except ValueError as error:
        found[name] = str(error)
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def test_absurd_models_are_not_begun(tmp_path):
    for number, of in enumerate([*ABSURD, ("htsat", "own", {})]):
        folder = tmp_path / ("usual" if number == len(ABSURD) else f"{number:02d}")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "audiolm", **configured(*of)}))
    run = subprocess.run([sys.executable, "-c", MAKE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-3000:]
    found, grown = json.loads(run.stdout.splitlines()[-1])
    assert found.pop("usual") > 10_000 and grown < 200_000, f"{grown} kB"
    assert len(found) == len(ABSURD)
    for name, said in found.items():
        assert isinstance(said, str) and "\n" not in said, ABSURD[int(name)]
        assert any(field in said for field in (*ABSURD[int(name)][2], "parameters")), (said, ABSURD[int(name)])
