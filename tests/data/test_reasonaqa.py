import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.builders import SHARED, clip, needs_shared

from audiolm.data import check_audio, load_reasonaqa, resolve_path
from audiolm.data.reasonaqa import question_type
from audiolm.processing_audiolm import resample

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


@needs_shared
def test_labels_of_the_real_records(parts, capsys):
    _, _, processor = parts
    for row in json.loads((SHARED / "reasonaqa_records.json").read_text()):
        clips = [(clip(0.3), 24000)] * (2 if row["filepath2"] else 1)
        batch = processor(text=[row["input"]], audio=[clips], answer=[row["answer"]])
        labels = batch["labels"][0]
        kept = labels[labels != -100]
        decoded = processor.tokenizer.decode(kept[:-1])
        with capsys.disabled():
            print(f"\n{question_type(row):<11}{decoded!r}", end="")
        assert decoded == " " + row["answer"].strip()
        assert kept[-1] == processor.tokenizer.eos_token_id
        assert torch.equal(batch["input_ids"][0][labels != -100], kept)


@needs_shared
def test_question_types_of_the_real_records():
    kinds = {
        "ClothoAQA": "yes_no",
        "Clotho-MCQ": "mcq",
        "Clotho-Detail": "detail",
        "CLD-1": "difference",
        "CLD-2": "difference",
        "CLD-3": "difference",
        "CLE": "entailment",
        "Clotho": "caption",
    }
    for row in json.loads((SHARED / "reasonaqa_records.json").read_text()):
        assert question_type(row) == kinds[row["subtype"].removesuffix(".json")]


@needs_shared
def test_mini_reasonaqa():
    data = load_reasonaqa(
        {s: SHARED / f"{s}.json" for s in ("train", "val", "test")}, SHARED / "audio"
    )
    assert {s: len(d) for s, d in data.items()} == {"train": 4372, "val": 1436, "test": 1444}
    assert len(Counter(data["test"]["question_type"])) == 6
    assert all(Path(p).is_file() for row in data["test"]["audio"] for p in row)


def test_rows_that_are_wrong_are_named(tmp_path):
    file = tmp_path / "train.json"
    for change, message in [
        ({"answer": " "}, "row 1: field 'answer' is empty"),
        ({"input": 3}, "row 1: field 'input' is int"),
        ({"subtype": "x", "input": "?"}, "row 1: subtype 'x'"),
    ]:
        file.write_text(json.dumps([ROW, {**ROW, **change}]))
        with pytest.raises(ValueError, match=message):
            load_reasonaqa({"train": file}, tmp_path)
    file.write_text(json.dumps([{k: v for k, v in ROW.items() if k != "caption1"}]))
    with pytest.raises(ValueError, match=r"train.json, row 0: field 'caption1' is missing"):
        load_reasonaqa({"train": file}, tmp_path)


def test_resolve_path(tmp_path):
    (tmp_path / "Mom&Dad.wav").touch()
    assert resolve_path("Mom&amp;Dad.wav", tmp_path) == str(tmp_path / "Mom&Dad.wav")
    assert resolve_path("ClothoAQA\\audio_files\\x.wav", {"ClothoAQA": tmp_path}) == str(
        tmp_path / "audio_files" / "x.wav"
    )


def test_faulty_audio_is_found(tmp_path):
    good = clip(1)
    write = {
        "good": good,
        "nan": np.where(good > 0.3, np.nan, good),
        "inf": np.where(good > 0.3, np.inf, good),
        "loud": good * 100,
        "none": good[:0],
    }
    for name, samples in write.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 24000, subtype="FLOAT")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "torn.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:20000])
    paths = [str(tmp_path / f"{n}.wav") for n in [*write, "empty", "text", "torn", "absent"]]
    cache = tmp_path / "cache.json"
    faults = {Path(p).stem: f for p, f in check_audio(paths, cache_file=cache).items()}
    assert "good" not in faults and len(faults) == 8
    assert (
        faults["absent"] == "missing"
        and faults["empty"] == "empty file"
        and faults["none"] == "no samples"
    )
    assert faults["nan"] == faults["inf"] == "NaN or infinite samples"
    assert faults["torn"].startswith("truncated") and faults["loud"].startswith("samples up to ")
    assert faults == {Path(p).stem: f for p, f in check_audio(paths, cache_file=cache).items()}


@pytest.mark.parametrize(
    "rates",
    [(44100, 24000), (16000, 44100), (48000, 24000), (22050, 32000), (96000, 24000), (8000, 44100)],
)
def test_resampling_equals_torchaudio(rates):
    import torchaudio

    audio = torch.from_numpy(clip(1.01, rates[0]))
    expected = torchaudio.functional.resample(audio, *rates)
    assert torch.allclose(resample(audio, *rates), expected, atol=1e-5)


def test_resampling_from_an_odd_rate():
    # 44101 and 24000 Hz share no factor: all weights together would be 9 GB
    tones = [
        torch.sin(2 * torch.pi * 440 * torch.arange(rate // 2) / rate) for rate in (44101, 24000)
    ]
    resampled = resample(tones[0], 44101, 24000)
    assert (resampled - tones[1])[500:-500].abs().max() < 2e-3 and len(resampled) == len(tones[1])
