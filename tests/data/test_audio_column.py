"""ReasonAQA's recordings as a column of the type of audio."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, List
from support.builders import clip, run, small_model
from support.hub_server import Hub

from audiolm import AudioLMFeatureExtractor, AudioLMProcessor
from audiolm.data.collator import ReasonAQACollator
from audiolm.data.reasonaqa import decode_audio, load_reasonaqa, load_rows

ROW = dict.fromkeys(("taskname", "filepath2", "caption1", "caption2"), "") | {
    "input": "is there a dog? Answer only using yes or no.",
    "answer": "yes",
    "subtype": "ClothoAQA.json",
}


@pytest.fixture
def recordings(tmp_path):
    """Rows about one and two clips at 8 kHz, as a data set with audio."""
    for seed, name in enumerate(["a.wav", "b.wav"]):
        soundfile.write(tmp_path / name, clip(1.0, rate=8000, seed=seed), 8000)
    rows = [{**ROW, "filepath1": "a.wav"}, {**ROW, "filepath1": "a.wav", "filepath2": "b.wav"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    return load_reasonaqa({"train": tmp_path / "train.json"}, tmp_path)


def test_load_reasonaqa_has_the_type_of_audio(recordings):
    assert recordings["train"].features["audio"] == List(Audio(decode=False))


def test_load_reasonaqa_has_the_paths_of_load_rows(recordings, tmp_path):
    paths = load_rows({"train": tmp_path / "train.json"}, tmp_path)["train"]["audio"]
    files = [[clip["path"] for clip in clips] for clips in recordings["train"]["audio"]]
    assert files == list(paths)


def test_select_and_cast_column_keep_the_files(recordings):
    rows = recordings["train"].select([1]).cast_column("audio", List(Audio(16000, decode=False)))
    assert [Path(clip["path"]).name for clip in rows[0]["audio"]] == ["a.wav", "b.wav"]


def test_decode_audio_gives_arrays_at_the_rate_of_the_extractor(recordings):
    extractor = AudioLMFeatureExtractor(sampling_rate=24000)
    row = decode_audio(recordings, extractor)["train"][1]
    assert [decoded["sampling_rate"] for decoded in row["audio"]] == [24000, 24000]
    expected = extractor.load(row["audio"][0]["path"]).numpy()
    assert np.array_equal(row["audio"][0]["array"], expected)


def test_decode_audio_keeps_the_other_columns(recordings):
    view = decode_audio(recordings, AudioLMFeatureExtractor(sampling_rate=24000))
    assert view["train"][0]["answer"] == "yes"


def test_collator_takes_audio_and_paths_alike(recordings, tokenizer, tmp_path):
    config = small_model("mimi_full").config
    collator = ReasonAQACollator(AudioLMProcessor.from_config(config, tokenizer))
    rows = load_rows({"train": tmp_path / "train.json"}, tmp_path)["train"]
    batches = [collator(list(split)) for split in (recordings["train"], rows)]
    assert batches[0].keys() == batches[1].keys()
    assert torch.equal(batches[0]["input_values"], batches[1]["input_values"])
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])


def test_collator_takes_decoded_audio(recordings, tokenizer):
    processor = AudioLMProcessor.from_config(small_model("mimi_full").config, tokenizer)
    collator = ReasonAQACollator(processor)
    view = decode_audio(recordings, processor.feature_extractor)["train"]
    batches = [collator(list(split)) for split in (recordings["train"], view)]
    assert torch.equal(batches[0]["input_values"], batches[1]["input_values"])


PUSH = """
import sys
from audiolm.data.reasonaqa import load_reasonaqa
from datasets import Audio, List, load_dataset
data = load_reasonaqa({"train": f"{sys.argv[1]}/train.json"}, sys.argv[1])
data.cast_column("audio", List(Audio())).push_to_hub("me/rows")
rows = load_dataset("me/rows")["train"].cast_column("audio", List(Audio(decode=False)))
print([len(clip["bytes"]) for clip in rows[1]["audio"]])
"""


def test_push_to_hub_uploads_the_recordings(recordings, tmp_path):
    with Hub(tmp_path / "hub") as hub:
        pushed = run(hub, "-c", PUSH, str(tmp_path))
    sizes = [(tmp_path / name).stat().st_size for name in ("a.wav", "b.wav")]
    assert pushed.stdout.strip() == str(sizes), pushed.stderr
