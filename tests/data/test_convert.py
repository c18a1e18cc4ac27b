"""A corpus as shards: what comes back, interruptions, refusals, and many readers at once."""

import errno
import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audiolm.data import audio_files
from audiolm.data import convert as convert_module
from audiolm.data.audio_files import clip_audio, open_clip
from audiolm.data.convert import Conversion
from audiolm.data.prepare import main as prepare
from audiolm.data.reasonaqa import FIELDS, load_rows
from audiolm.data.shards import MANIFEST, load_shards
from audiolm.processing_audiolm import AudioLMFeatureExtractor

FORK = multiprocessing.get_context("fork")
SPLITS = ("train", "val", "test")
SMALL_SIZES = {
    "CLIPS_PER_SHARD": 3,
    "CLIPS_PER_GROUP": 2,
    "ROWS_PER_SHARD": 5,
    "ROWS_PER_GROUP": 2,
    "EMBEDDED_PER_SHARD": 6,
    "EMBEDDED_PER_GROUP": 3,
}
# Seconds, rate and channels of each clip.
CLIPS = {
    "a b.wav": (1.3, 8000, 1),
    "c.wav": (0.7, 22050, 1),
    "d/é.wav": (12, 8000, 1),
    "e.wav": (1.1, 24000, 1),
    "f.wav": (0.9, 16000, 2),
    "g.wav": (1, 24000, 1),
    "h.wav": (0.8, 8000, 1),
}
QUESTIONS = [
    ("Which? A) x B) y", "X-MCQ.json"),
    ("Answer only using yes or no.", "CAQA.json"),
    ("Explain the difference", "D-1"),
]


@pytest.fixture(autouse=True)
def small_shards_and_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    for name, value in SMALL_SIZES.items():
        monkeypatch.setattr(convert_module, name, value)


@pytest.fixture
def data(tmp_path):
    """Clips of random 16-bit samples, and questions about one or two of them in three splits."""
    rng = np.random.default_rng(0)
    for name, (seconds, rate, channels) in CLIPS.items():
        file = tmp_path / "data" / "audio" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        samples = rng.integers(-32768, 32768, (int(seconds * rate), channels), np.int16)
        soundfile.write(file, samples, rate, subtype="PCM_16")
    names = list(CLIPS)
    rows = []
    for i in range(20):
        text, subtype = QUESTIONS[i % 3]
        row = {
            "taskname": f"t{i}",
            "filepath1": names[i * 5 % 7],
            "filepath2": names[(2 * i + 1) % 7] if i % 3 == 2 else "",
            "caption1": "ü" if i % 2 else "",
            "caption2": "",
            "input": text,
            "answer": f"answer {i}",
            "subtype": subtype,
        }
        rows.append(row)
    for split, part in {"train": rows[:14], "val": rows[14:17], "test": rows[17:]}.items():
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(part))
    return tmp_path / "data"


def convert(data, output, *options) -> Path:
    with pytest.raises(SystemExit) as ended:
        prepare(["convert", str(data), "--output", str(output), *options])
    assert not ended.value.code
    return Path(output)


def assert_refused(message: str, data, output, *options) -> None:
    with pytest.raises(SystemExit, match=message) as ended:
        prepare(["convert", str(data), "--output", str(output), *options])
    assert "\n" not in str(ended.value)


def shard_contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("*/*"))}


def clip_names(row: dict) -> list[str]:
    return [name for name in (row["filepath1"], row["filepath2"]) if name]


def clip_content(clip: str) -> bytes:
    return open_clip(clip).getvalue()


def clips_by_name(data) -> dict[str, str]:
    clips = {}
    for rows in data.values():
        for row in rows:
            clips.update(zip(clip_names(row), row["audio"]))
    return clips


@pytest.mark.parametrize("layout", ["referenced", "embedded"])
def test_converted_rows_equal_the_corpus(data, tmp_path, layout):
    loaded = load_shards(convert(data, tmp_path / "out", "--audio", layout))
    files = {split: data / f"{split}.json" for split in SPLITS}
    corpus = load_rows(files, str(data / "audio"))
    assert list(loaded) == list(corpus)
    columns = [*FIELDS, "question_type"]
    for split, rows in corpus.items():
        expected = [{name: row[name] for name in columns} for row in rows]
        if layout == "embedded":
            expected.sort(key=clip_names)
        assert [{name: row[name] for name in columns} for row in loaded[split]] == expected
        num_clips = [len(row["audio"]) for row in loaded[split]]
        assert num_clips == [len(clip_names(row)) for row in expected]


@pytest.mark.parametrize("layout", ["referenced", "embedded"])
def test_converted_audio_equals_the_first_seconds(data, tmp_path, layout):
    clips = clips_by_name(load_shards(convert(data, tmp_path / "out", "--audio", layout)))
    assert clips.keys() == CLIPS.keys()
    extractor = AudioLMFeatureExtractor(sampling_rate=24000)
    for name, clip in clips.items():
        file = data / "audio" / name
        _, rate, channels = CLIPS[name]
        # Stereo becomes its mean.
        audio = soundfile.read(file, 10 * rate, dtype="float32", always_2d=True)[0].mean(1)
        samples, clip_rate = soundfile.read(open_clip(clip), dtype="float32")
        assert clip_rate == rate
        assert soundfile.info(open_clip(clip)).format == "FLAC"
        assert np.array_equal(samples * 32768, np.clip(np.rint(audio * 32768), -32768, 32767))
        if channels == 1:
            assert np.array_equal(samples, audio)
            inputs = [
                extractor([source])["input_values"] for source in (clip_audio(clip, 10), file)
            ]
            assert torch.equal(*inputs)


@pytest.mark.parametrize("layout", ["referenced", "embedded"])
def test_conversion_twice_writes_the_same_bytes(data, tmp_path, layout):
    first = shard_contents(convert(data, tmp_path / "first", "--audio", layout))
    second = shard_contents(convert(data, tmp_path / "second", "--audio", layout))
    assert first == second
    assert len(first) > 4


def start_conversion_that_hangs(monkeypatch, clip: str, data, output, *options):
    """Starts a process that hangs at a clip."""
    original = Conversion.encode

    def encode(self, name):
        if name == clip:
            time.sleep(600)
        return original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "encode", encode)
        process = FORK.Process(target=convert, args=(data, output, *options), daemon=True)
        process.start()
    return process


def wait_until_it_hangs(process, output: Path) -> None:
    """Waits for a finished and an unfinished shard, and the same files twice."""
    files = []
    while True:
        suffixes = {file.suffix for file in files}
        if {".part", ".parquet"} <= suffixes and files == sorted(output.glob("*/*")):
            return
        files = sorted(output.glob("*/*"))
        process.join(0.3)
        assert process.is_alive()


@pytest.mark.parametrize(("layout", "clip"), [("referenced", "e.wav"), ("embedded", "h.wav")])
def test_killed_conversion_resumes_with_the_same_result(data, tmp_path, monkeypatch, layout, clip):
    complete = convert(data, tmp_path / "complete", "--audio", layout)
    expected = shard_contents(complete)
    output = tmp_path / "out"
    process = start_conversion_that_hangs(monkeypatch, clip, data, output, "--audio", layout)
    wait_until_it_hangs(process, output)
    process.kill()
    process.join()
    assert list(output.glob("*/*.part"))
    assert not (output / MANIFEST).exists()
    finished = {file: file.stat().st_mtime_ns for file in output.glob("*/*.parquet")}
    assert 0 < len(finished) < len(expected)
    with pytest.raises(ValueError, match=r"its conversion is incomplete\. Run it again"):
        load_shards(output)
    convert(data, output, "--audio", layout)
    assert shard_contents(output) == expected
    assert (output / MANIFEST).read_bytes() == (complete / MANIFEST).read_bytes()
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


@pytest.fixture
def incomplete(data, tmp_path):
    """A conversion without its manifest, as if it were interrupted."""
    output = convert(data, tmp_path / "out")
    (output / MANIFEST).unlink()
    return output


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        (["--max_audio_seconds", "5"], "max_audio_seconds"),
        (["--audio", "embedded"], "audio"),
        (["--subtypes", "D-1"], "splits"),
    ],
)
def test_conversion_with_other_options_is_refused(data, incomplete, options, differing):
    before = shard_contents(incomplete)
    assert_refused(rf"another conversion \({differing} differ\)", data, incomplete, *options)
    assert shard_contents(incomplete) == before


def test_conversion_of_changed_rows_is_refused(data, incomplete):
    before = shard_contents(incomplete)
    rows = json.loads((data / "val.json").read_text())
    (data / "val.json").write_text(json.dumps([{**rows[0], "answer": "x"}, *rows[1:]]))
    assert_refused(r"\(splits differ\)\. Choose another folder", data, incomplete)
    assert shard_contents(incomplete) == before
    (data / "val.json").write_text(json.dumps(rows))
    convert(data, incomplete)


def test_conversion_into_a_folder_without_a_plan_is_refused(data, incomplete):
    (incomplete / ".conversion.json").unlink()
    message = r"another conversion \(version, audio, .* differ\)\. Choose another folder"
    assert_refused(message, data, incomplete)


def test_conversion_with_a_full_disk_is_refused_in_one_line(data, tmp_path, monkeypatch):
    def write_to_a_full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Conversion, "_write_shard", write_to_a_full_disk)
    message = r"No space left on device\. Run it again to resume"
    assert_refused(message, data, tmp_path / "out")
    assert not shard_contents(tmp_path / "out")


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_reads_a_conversion(data, tmp_path, streaming):
    load = partial(datasets.load_dataset, streaming=streaming)
    referenced = str(convert(data, tmp_path / "referenced", "--audio", "referenced"))
    embedded = str(convert(data, tmp_path / "embedded", "--audio", "embedded"))
    rows = list(load(referenced, "rows", split="train"))
    clips = list(load(referenced, "clips", split="clips"))
    assert [row["answer"] for row in rows] == [f"answer {i}" for i in range(14)]
    assert "audio" not in rows[0]
    # `rows` is the default configuration.
    assert list(load(referenced, split="val")) == list(load(referenced, "rows", split="val"))
    assert [row["filepath"] for row in clips] == sorted(CLIPS)
    contents = {row["filepath"]: row["audio"]["bytes"] for row in clips}
    assert soundfile.info(open_clip(contents["d/é.wav"])).duration == 10
    for row in load(embedded, "rows", split="train"):
        expected = [{"bytes": contents[name], "path": name} for name in clip_names(row)]
        assert row["audio"] == expected


def test_embedded_row_group_holds_a_clip_once(data, tmp_path, monkeypatch):
    row = json.loads((data / "train.json").read_text())[0]
    # More than Parquet's usual dictionary.
    samples = np.random.default_rng(0).integers(-32768, 32768, 600_000, np.int16)
    soundfile.write(data / "audio" / row["filepath1"], samples, 96000)
    rows = [{**row, "answer": f"answer {i}"} for i in range(15)]
    (data / "train.json").write_text(json.dumps(rows))
    monkeypatch.setattr(convert_module, "EMBEDDED_PER_SHARD", 15)
    monkeypatch.setattr(convert_module, "EMBEDDED_PER_GROUP", 5)
    output = convert(data, tmp_path / "out", "--audio", "embedded")
    clip_bytes = len(clip_content(load_shards(output)["train"]["audio"][0][0]))
    shard_bytes = (output / "rows" / "train-00000-of-00001.parquet").stat().st_size
    assert 3 * clip_bytes < shard_bytes < 3.2 * clip_bytes


@pytest.fixture(params=[("referenced", "CLIPS"), ("embedded", "EMBEDDED")])
def clips_in_groups_of_their_own(request, data, tmp_path, monkeypatch):
    """Many clips in a random order, from one shard with a row group for each, and no cache."""
    layout, prefix = request.param
    monkeypatch.setattr(convert_module, f"{prefix}_PER_SHARD", 100)
    monkeypatch.setattr(convert_module, f"{prefix}_PER_GROUP", 1)
    monkeypatch.setattr(audio_files, "_read_audio", audio_files._read_audio.__wrapped__)
    loaded = load_shards(convert(data, tmp_path / "out", "--audio", layout))
    clips = [clip for row in loaded["train"]["audio"] for clip in row] * 40
    np.random.default_rng(0).shuffle(clips)
    return clips


def test_shard_read_by_threads_and_workers_gives_the_same_bytes(clips_in_groups_of_their_own):
    clips = clips_in_groups_of_their_own
    # The parent has the shard open when the readers below are forked.
    expected = [clip_content(clip) for clip in clips]

    def read_in_threads():
        with ThreadPoolExecutor(8) as pool:
            os._exit(list(pool.map(clip_content, clips)) != expected)

    process = FORK.Process(target=read_in_threads, daemon=True)
    process.start()
    process.join(40)
    # It may hang.
    process.kill()
    assert process.exitcode == 0
    loader = DataLoader(
        clips,
        16,
        num_workers=2,
        timeout=40,
        collate_fn=lambda batch: [clip_content(clip) for clip in batch],
        multiprocessing_context="fork",
    )
    assert [content for batch in loader for content in batch] == expected


def test_conversion_with_bad_audio_stops_or_skips_its_rows(data, tmp_path):
    (data / "audio" / "g.wav").write_bytes(b"RIFF")
    message = "1 audio files cannot be used .*g.wav: .*--on_bad_audio skip"
    assert_refused(message, data, tmp_path / "out")
    output = convert(data, tmp_path / "out", "--on_bad_audio", "skip")
    expected = []
    for split in SPLITS:
        rows = json.loads((data / f"{split}.json").read_text())
        expected += [row["answer"] for row in rows if "g.wav" not in clip_names(row)]
    answers = [answer for rows in load_shards(output).values() for answer in rows["answer"]]
    assert answers == expected
    assert len(expected) < 20
    assert json.loads((output / MANIFEST).read_text())["clips"] == 6
    assert "g.wav" in (output / "bad_audio.txt").read_text()


def test_load_shards_of_a_missing_split_raises(data, tmp_path):
    output = convert(data, tmp_path / "out")
    with pytest.raises(ValueError, match="no split 'dev', only train, val, test"):
        load_shards(output, ["dev"])


def test_load_shards_of_no_data_set_raises(tmp_path):
    with pytest.raises(ValueError, match=r"no converted data set \(audiolm.json not found\)"):
        load_shards(tmp_path)
