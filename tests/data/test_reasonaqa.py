"""ReasonAQA's rows: question types, paths, bad rows, and audio at other sampling rates."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from support.builders import SHARED, clip, needs_shared

from audiolm.data.audio_check import check_audio
from audiolm.data.reasonaqa import (
    iterate_columns,
    load_reasonaqa,
    load_rows,
    question_type,
    resolve_path,
)
from audiolm.processing_audiolm import resample
from audiolm.runtime import UserError

ROW = {
    "taskname": "audioqa",
    "filepath1": "a\\b.wav",
    "filepath2": "",
    "caption1": "",
    "caption2": "",
    "input": "is there a dog? Answer only using yes or no.",
    "answer": "yes",
    "subtype": "ClothoAQA.json",
}


SUBTYPE_TYPES = {
    "ClothoAQA": "yes_no",
    "Clotho-MCQ": "mcq",
    "Clotho-Detail": "detail",
    "CLD-1": "difference",
    "CLD-2": "difference",
    "CLD-3": "difference",
    "CLE": "entailment",
    "Clotho": "caption",
}


def test_iterate_columns_gives_the_values_of_each_row():
    paths = [[f"{number}.wav"] for number in range(20_000)]  # more than a batch
    rows = Dataset.from_dict({"number": range(len(paths)), "audio": paths}).select(range(5, 20_000))
    assert list(iterate_columns(rows, "audio", "number")) == list(zip(paths[5:], range(5, 20_000)))


def real_records() -> list[dict]:
    """Returns rows of the published files."""
    file = SHARED / "reasonaqa_records.json"
    return json.loads(file.read_text()) if file.is_file() else []


@needs_shared
@pytest.mark.parametrize("row", real_records(), ids=lambda row: row["subtype"])
def test_processor_labels_of_real_records_are_the_answer(row, parts):
    _, _, processor = parts
    clips = [(clip(0.3), 24000)] * (2 if row["filepath2"] else 1)
    batch = processor(text=[row["input"]], audio=[clips], answer=[row["answer"]])
    labels = batch["labels"][0]
    trained = labels[labels != -100]
    assert processor.tokenizer.decode(trained[:-1]) == " " + row["answer"].strip()
    assert trained[-1] == processor.tokenizer.eos_token_id
    assert torch.equal(batch["input_ids"][0][labels != -100], trained)


@needs_shared
@pytest.mark.parametrize("row", real_records(), ids=lambda row: row["subtype"])
def test_question_type_of_real_records(row):
    assert question_type(row) == SUBTYPE_TYPES[row["subtype"].removesuffix(".json")]


@needs_shared
def test_load_reasonaqa_reads_mini_reasonaqa():
    files = {split: SHARED / f"{split}.json" for split in ("train", "val", "test")}
    data = load_rows(files, SHARED / "audio")
    counts = {split: len(rows) for split, rows in data.items()}
    assert counts == {"train": 4372, "val": 1436, "test": 1444}
    assert len(Counter(data["test"]["question_type"])) == 6
    assert all(Path(path).is_file() for row in data["test"]["audio"] for path in row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": " "}, "field 'answer' is empty"),
        ({"input": 3}, "field 'input' is int, expected text"),
        ({"subtype": "x", "input": "?"}, "subtype 'x' and question '?' match no question type"),
        ({"filepath1": "/a.wav"}, "'/a.wav' is an absolute path"),
    ],
)
def test_load_reasonaqa_bad_row_is_named(change, message, tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps([ROW, {**ROW, **change}]))
    with pytest.raises(UserError) as error:
        load_reasonaqa({"train": file}, tmp_path)
    assert str(error.value).startswith(f"{file}, row 1: {message}")


def test_load_reasonaqa_missing_field_is_named(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps([{k: v for k, v in ROW.items() if k != "caption1"}]))
    with pytest.raises(UserError, match=r"train.json, row 0: field 'caption1' is missing"):
        load_reasonaqa({"train": file}, tmp_path)


def test_load_reasonaqa_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.json: file not found. Download"):
        load_reasonaqa({"train": tmp_path / "gone.json"}, tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("disk_form", ["NFC", "NFD"])
def test_load_reasonaqa_finds_a_name_in_another_unicode_form(form, disk_form, tmp_path):
    name = "café/Bär & naïve.wav"
    path = tmp_path / unicodedata.normalize(disk_form, name)
    path.parent.mkdir()
    path.touch()
    file = tmp_path / "train.json"
    file.write_text(json.dumps([{**ROW, "filepath1": unicodedata.normalize(form, name)}]))
    data = load_rows({"train": file}, tmp_path)
    assert data["train"]["audio"][0] == [str(path)]


def test_load_reasonaqa_reads_a_file_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "train.json"
    file.write_text(json.dumps([ROW]), encoding="utf-8-sig")
    assert len(load_reasonaqa({"train": file}, tmp_path)["train"]) == 1


def test_resolve_path_html_entity_finds_the_file(tmp_path):
    (tmp_path / "Mom&Dad.wav").touch()
    assert resolve_path("Mom&amp;Dad.wav", tmp_path) == str(tmp_path / "Mom&Dad.wav")


def test_resolve_path_backslashes_and_sources_find_the_file(tmp_path):
    path = resolve_path("ClothoAQA\\audio_files\\x.wav", {"ClothoAQA": tmp_path})
    assert path == str(tmp_path / "audio_files" / "x.wav")


@pytest.fixture
def faulty_audio(tmp_path):
    """Paths of a good clip and of bad ones, by what is wrong."""
    good = clip(1)
    samples = {
        "good": good,
        "nan": np.where(good > 0.3, np.nan, good),
        "inf": np.where(good > 0.3, np.inf, good),
        "loud": good * 100,
        "none": good[:0],
    }
    for name, content in samples.items():
        soundfile.write(tmp_path / f"{name}.wav", content, 24000, subtype="FLOAT")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:20000])
    names = [*samples, "empty", "text", "cut", "absent"]
    return {name: str(tmp_path / f"{name}.wav") for name in names}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("absent", "missing"),
        ("empty", "empty file"),
        ("none", "no samples"),
        ("nan", "NaN or infinite samples"),
        ("inf", "NaN or infinite samples"),
        ("cut", "truncated"),
        ("loud", "samples up to "),
        ("text", "not readable as audio"),
    ],
)
def test_check_audio_names_the_fault(name, fault, faulty_audio, tmp_path):
    faults = check_audio(list(faulty_audio.values()), cache_file=tmp_path / "cache.sqlite")
    assert faults[faulty_audio[name]].startswith(fault)


def test_check_audio_good_clip_has_no_fault(faulty_audio, tmp_path):
    faults = check_audio(list(faulty_audio.values()), cache_file=tmp_path / "cache.sqlite")
    assert set(faults) == set(faulty_audio.values()) - {faulty_audio["good"]}


def test_check_audio_cached_faults_are_the_same(faulty_audio, tmp_path):
    paths = list(faulty_audio.values())
    faults = check_audio(paths, cache_file=tmp_path / "cache.sqlite")
    assert check_audio(paths, cache_file=tmp_path / "cache.sqlite") == faults


@pytest.mark.parametrize(
    "rates",
    [(44100, 24000), (16000, 44100), (48000, 24000), (22050, 32000), (96000, 24000), (8000, 44100)],
)
def test_resample_equals_torchaudio(rates):
    import torchaudio

    audio = torch.from_numpy(clip(1.01, rates[0]))
    expected = torchaudio.functional.resample(audio, *rates)
    assert torch.allclose(resample(audio, *rates), expected, atol=1e-5)


def tone(rate: int) -> torch.Tensor:
    return torch.sin(2 * torch.pi * 440 * torch.arange(rate // 2) / rate)


def test_resample_rates_without_common_factor_keep_a_tone():
    # All weights for 44101 and 24000 Hz together would take 9 GB.
    resampled = resample(tone(44101), 44101, 24000)
    expected = tone(24000)
    assert len(resampled) == len(expected)
    assert (resampled - expected)[500:-500].abs().max() < 2e-3
