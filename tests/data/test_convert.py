"""A corpus as shards, `run_prepare.py convert`: what comes back, interruptions, refusals, and reading by many at once."""

import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from audiolm.data import audio_files as clips_module
from audiolm.data import convert as conversion
from audiolm.data import load_reasonaqa
from audiolm.data.audio_files import clip_audio, open_clip
from audiolm.data.convert import Conversion
from audiolm.data.prepare import main as prepare
from audiolm.data.reasonaqa import FIELDS
from audiolm.data.shards import MANIFEST, load_shards
from audiolm.processing_audiolm import AudioLMFeatureExtractor, resample

SETTINGS = [("referenced", "flac", 0), ("embedded", "wav", 0), ("embedded", "flac", 16000)]
FORK = multiprocessing.get_context("fork")
SMALL = {
    "CLIPS_PER_SHARD": 3,
    "CLIPS_PER_GROUP": 2,
    "ROWS_PER_SHARD": 5,
    "ROWS_PER_GROUP": 2,
    "EMBEDDED_PER_SHARD": 6,
    "EMBEDDED_PER_GROUP": 3,
}
# seconds, rate and channels of each clip
CLIPS = {
    "a b.wav": (1.3, 8000, 1),
    "c.wav": (0.7, 22050, 1),
    "d/é.wav": (12, 8000, 1),
    "e.wav": (1.1, 24000, 1),
    "f.wav": (0.9, 16000, 2),
    "g.wav": (1, 24000, 1),
    "h.wav": (0.8, 8000, 1),
}
KINDS = [
    ("Which? A) x B) y", "X-MCQ.json"),
    ("Answer only using yes or no.", "CAQA.json"),
    ("Explain the difference", "D-1"),
]


@pytest.fixture(autouse=True)
def small_shards_and_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    for name, value in SMALL.items():
        monkeypatch.setattr(conversion, name, value)


@pytest.fixture
def data(tmp_path):
    """Clips of any samples of 16 bits, and questions about one or two of them in three splits."""
    draw, names, rows = np.random.default_rng(0), list(CLIPS), []
    for name, (seconds, rate, channels) in CLIPS.items():
        file = tmp_path / "data" / "audio" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        samples = draw.integers(-32768, 32768, (int(seconds * rate), channels), np.int16)
        soundfile.write(file, samples, rate, subtype="PCM_16")
    for i in range(20):
        (text, subtype), second = KINDS[i % 3], names[(2 * i + 1) % 7] if i % 3 == 2 else ""
        rows.append(
            {
                "taskname": f"t{i}",
                "filepath1": names[i * 5 % 7],
                "filepath2": second,
                "caption1": "ü" * (i % 2),
                "caption2": "",
                "input": text,
                "answer": f"answer {i}",
                "subtype": subtype,
            }
        )
    for split, part in {"train": rows[:14], "val": rows[14:17], "test": rows[17:]}.items():
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(part))
    return tmp_path / "data"


def convert(data, output, *options, refused: str = "^0$") -> Path:
    with pytest.raises(SystemExit, match=refused) as ended:
        prepare(["convert", str(data), "--output", str(output), *options])
    assert "\n" not in str(ended.value)
    return Path(output)


def shards(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.glob("*/*"))}


@pytest.mark.parametrize(("layout", "sound", "rate"), SETTINGS)
def test_rows_and_audio_come_back(data, tmp_path, layout, sound, rate):
    options = [
        "--audio",
        layout,
        "--audio_format",
        sound,
        *(["--sampling_rate", str(rate)] if rate else []),
    ]
    found, extractor = (
        load_shards(convert(data, tmp_path / "out", *options)),
        AudioLMFeatureExtractor(sampling_rate=24000),
    )
    expected = load_reasonaqa(
        {split: data / f"{split}.json" for split in ("train", "val", "test")}, str(data / "audio")
    )
    assert list(found) == list(expected)
    for split, rows in expected.items():
        plain, here = (
            [{k: row[k] for k in (*FIELDS, "question_type")} for row in of]
            for of in (rows, found[split])
        )
        if layout == "embedded":
            plain.sort(key=lambda row: [row[k] for k in ("filepath1", "filepath2") if row[k]])
        assert here == plain and [len(row["audio"]) for row in found[split]] == [
            1 + bool(row["filepath2"]) for row in here
        ]
    clips = {
        n: c
        for of in found.values()
        for r in of
        for n, c in zip((r["filepath1"], r["filepath2"]), r["audio"])
    }
    assert clips.keys() == CLIPS.keys()
    for name, clip in clips.items():
        file, (_, own, channels) = data / "audio" / name, CLIPS[name]
        audio = soundfile.read(file, 10 * own, dtype="float32", always_2d=True)[0].mean(1)
        if rate and rate != own:
            audio = resample(torch.from_numpy(audio), own, rate).numpy()
        read, its_rate = soundfile.read(open_clip(clip), dtype="float32")
        assert (its_rate, soundfile.info(open_clip(clip)).format) == (rate or own, sound.upper())
        if channels == 1 and not rate:
            assert np.array_equal(read, audio)
            assert torch.equal(
                *(extractor([c])["input_values"] for c in (clip_audio(clip, 10), file))
            )
        assert np.array_equal(
            read * 32768, np.clip(np.rint(audio * 32768), -32768, 32767)
        )  # stereo: its mean


@pytest.mark.parametrize(("layout", "last"), [("referenced", "e.wav"), ("embedded", "h.wav")])
def test_a_killed_conversion_goes_on(data, tmp_path, monkeypatch, layout, last):
    whole = shards(convert(data, tmp_path / "whole", "--audio", layout))
    assert whole == shards(convert(data, tmp_path / "twice", "--audio", layout)) and len(whole) > 4
    out, words, inner = tmp_path / "out", ["--audio", layout], Conversion.encoded

    with monkeypatch.context() as patch:  # it is stuck in a later shard, after the size is told
        patch.setattr(
            Conversion,
            "encoded",
            lambda self, clip: (
                time.sleep(600 if clip == last and hasattr(self, "pool") else 0)
                or inner(self, clip)
            ),
        )
        process = FORK.Process(target=convert, args=(data, out, *words), daemon=True)
        process.start()
    files = []
    while not (
        {".part", ".parquet"} <= {file.suffix for file in files}
        and files == sorted(out.glob("*/*"))
    ):
        files = sorted(
            out.glob("*/*")
        )  # the same twice: it is stuck, and no shard is about to be finished
        process.join(0.3)
        assert process.is_alive()
    process.kill()
    process.join()
    assert list(out.glob("*/*.part")) and not (out / MANIFEST).exists()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("*/*.parquet")}
    assert 0 < len(finished) < len(whole)
    with pytest.raises(ValueError, match="its conversion did not end: run it again"):
        load_shards(out)
    convert(data, out, *words)
    assert (
        shards(out) == whole
        and (out / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()
    )
    assert {file: file.stat().st_mtime_ns for file in finished} == finished


def test_another_conversion_is_refused(data, tmp_path):
    out = convert(data, tmp_path / "out", "--audio_format", "wav")
    (out / MANIFEST).unlink()  # begun
    wav, before = ["--audio_format", "wav"], shards(out)
    for wrong, options in {
        r"another conversion \(format differ": [],
        r"\(max_audio_seconds, sampling_rate differ": [
            *wav,
            "--max_audio_seconds",
            "5",
            "--sampling_rate",
            "8000",
        ],
        r"\(audio differ": [*wav, "--audio", "embedded"],
        r"\(splits differ": [*wav, "--subtypes", "D-1"],
    }.items():
        convert(data, out, *options, refused=wrong)
    rows, clip = json.loads((data / "val.json").read_text()), data / "audio" / "c.wav"
    kept, status = clip.read_bytes(), clip.stat()
    clip.write_bytes(kept[:-2] + b"\1\1")  # of the same size
    convert(data, out, *wav, refused=r"\(files differ")
    soundfile.write(clip, np.zeros(9999, np.int16), 22050)
    convert(data, out, *wav, refused=r"\(files differ")
    clip.write_bytes(kept)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns))
    (data / "val.json").write_text(json.dumps([{**rows[0], "answer": "x"}, *rows[1:]]))
    convert(data, out, *wav, refused=r"\(splits differ\); choose another folder")
    assert shards(out) == before
    (data / "val.json").write_text(json.dumps(rows))
    convert(data, out, *wav)
    (out / ".conversion.json").unlink()
    convert(data, out, *wav, refused="holds shards of something else; choose another folder")


@pytest.mark.parametrize(
    "options", [[], ["--audio", "embedded"], ["--audio_format", "wav", "--sampling_rate", "8000"]]
)
def test_the_size_is_told_before(data, tmp_path, monkeypatch, capsys, options):
    said, write = [], Conversion.write
    monkeypatch.setattr(
        Conversion,
        "write",
        lambda self: (said.append((capsys.readouterr().out, self.size())), write(self)),
    )
    out = convert(data, tmp_path / "out", *options)
    written = sum(len(content) for content in shards(out).values())
    [(text, (total, left))] = said
    assert text.startswith("7 clips and 20 rows: about 0.00 GB") and left == total
    assert (
        json.loads((out / MANIFEST).read_text())["bytes"] == written
        and abs(total - written) < 0.3 * written
    )
    convert(data, out, *options)
    assert said[1][1][1] < 0.1 * total  # nothing is left but a guess for the text
    for file in out.glob("*/*00000-of*"):
        file.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    for folder in (out, tmp_path / "other"):
        convert(data, folder, *options, refused="0.0 GB are free, about 0.0 GB are needed")
    assert len(said) == 2 and not shards(tmp_path / "other")


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_reads_it(data, tmp_path, streaming):
    load = partial(datasets.load_dataset, streaming=streaming)
    referenced, embedded = (
        str(convert(data, tmp_path / k, "--audio", k)) for k in ("referenced", "embedded")
    )
    rows, clips = (
        list(load(referenced, "rows", split="train")),
        list(load(referenced, "clips", split="clips")),
    )
    assert [row["answer"] for row in rows] == [
        f"answer {i}" for i in range(14)
    ] and "audio" not in rows[0]
    assert list(load(referenced, split="val")) == list(
        load(referenced, "rows", split="val")
    )  # the default
    assert [row["filepath"] for row in clips] == sorted(CLIPS)
    content = {row["filepath"]: row["audio"]["bytes"] for row in clips}
    assert soundfile.info(open_clip(content["d/é.wav"])).duration == 10
    for row in load(embedded, "rows", split="train"):
        names = [row[k] for k in ("filepath1", "filepath2") if row[k]]
        assert row["audio"] == [{"bytes": content[name], "path": name} for name in names]


def test_a_clip_stands_once_in_a_row_group(data, tmp_path, monkeypatch):
    row = json.loads((data / "train.json").read_text())[0]
    samples = np.random.default_rng(0).integers(
        -32768, 32768, 600_000, np.int16
    )  # more than Parquet's usual dictionary
    soundfile.write(data / "audio" / row["filepath1"], samples, 96000)
    (data / "train.json").write_text(
        json.dumps([{**row, "answer": f"answer {i}"} for i in range(15)])
    )
    monkeypatch.setattr(conversion, "EMBEDDED_PER_SHARD", 15)
    monkeypatch.setattr(conversion, "EMBEDDED_PER_GROUP", 5)
    out = convert(data, tmp_path / "out", "--audio", "embedded")
    once = len(content(load_shards(out)["train"]["audio"][0][0]))
    assert 3 * once < (out / "rows" / "train-00000-of-00001.parquet").stat().st_size < 3.2 * once


def content(clip: str) -> bytes:
    return open_clip(clip).getvalue()


@pytest.mark.parametrize(
    ("layout", "size"), [("referenced", "CLIPS_PER_SHARD"), ("embedded", "EMBEDDED_PER_SHARD")]
)
def test_many_read_a_shard_at_once(data, tmp_path, monkeypatch, layout, size):
    monkeypatch.setattr(conversion, size, 100)
    monkeypatch.setattr(conversion, size.replace("SHARD", "GROUP"), 1)
    monkeypatch.setattr(
        clips_module, "_audio_of_group", clips_module._audio_of_group.__wrapped__
    )  # none is kept
    found = load_shards(convert(data, tmp_path / "out", "--audio", layout))["train"]["audio"]
    clips = [clip for row in found for clip in row] * 40
    np.random.default_rng(0).shuffle(clips)
    wanted = [
        content(clip) for clip in clips
    ]  # one after the other; the workers below are forked behind it

    def threads():
        with ThreadPoolExecutor(8) as pool:
            os._exit(list(pool.map(content, clips)) != wanted)

    process = FORK.Process(target=threads, daemon=True)
    process.start()
    process.join(40)
    process.kill()  # if it hangs
    assert process.exitcode == 0
    loader = DataLoader(
        clips,
        16,
        num_workers=2,
        timeout=40,
        collate_fn=lambda batch: [content(clip) for clip in batch],
        multiprocessing_context="fork",
    )
    assert [read for batch in loader for read in batch] == wanted


def test_bad_audio_and_what_is_no_data_set(data, tmp_path):
    (data / "audio" / "g.wav").write_bytes(b"RIFF")
    convert(
        data,
        tmp_path / "out",
        refused="1 audio files cannot be used .*g.wav: .*--on_bad_audio skip",
    )
    out = convert(data, tmp_path / "out", "--on_bad_audio", "skip")
    rows = [
        row
        for split in ("train", "val", "test")
        for row in json.loads((data / f"{split}.json").read_text())
    ]
    sound = [row["answer"] for row in rows if "g.wav" not in (row["filepath1"], row["filepath2"])]
    assert [
        answer for part in load_shards(out).values() for answer in part["answer"]
    ] == sound and len(sound) < 20
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["clips"] == 6 and "g.wav" in (out / "bad_audio.txt").read_text()
    (data / MANIFEST).write_text(json.dumps({**manifest, "version": 99}))
    for folder, splits, wrong in [
        (out, ["dev"], "has no split 'dev', only train, val, test"),
        (data, None, "has version 99 of the layout, not 1; convert it again"),
        (tmp_path, None, r"no converted data set \(audiolm.json is not there\)"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            load_shards(folder, splits)
