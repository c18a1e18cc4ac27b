"""The feature extractor and the processor: clips of any form, and the ids of prompts."""

import json

import numpy as np
import pytest
import soundfile
import torch
from support.builders import clip
from support.odd_audio import encode
from support.small_encoders import FURTHER_TYPES, small_encoder

from audiolm import AudioLMFeatureExtractor


@pytest.mark.parametrize("name", ["htsat", "mimi_full", *FURTHER_TYPES, "mellow"])
def test_num_frames_of_a_saved_feature_extractor_is_the_encoders(name):
    encoder = small_encoder(name)
    extractor = AudioLMFeatureExtractor.from_encoder(encoder, 10.0)
    reloaded = AudioLMFeatureExtractor(**json.loads(extractor.to_json_string()))
    lengths = [1, round(0.41 * encoder.sample_rate), round(11.3 * encoder.sample_rate)]
    expected = [encoder.num_frames(length) for length in lengths]
    assert [reloaded.num_frames(length) for length in lengths] == expected


def test_feature_extractor_saves_the_same_after_counting():
    extractor = AudioLMFeatureExtractor.from_encoder(small_encoder("mimi_full"), 10.0)
    before = extractor.to_json_string()
    extractor.num_frames(24000)
    assert extractor.to_json_string() == before


def test_num_frames_without_encoder_config_is_refused():
    with pytest.raises(ValueError, match="has no encoder_config"):
        AudioLMFeatureExtractor().num_frames(1)


@pytest.mark.parametrize("audio", [np.zeros(9000, "float32"), np.ones(1, "float32")])
def test_processor_of_silence_or_one_sample_gives_finite_logits(parts, audio):
    _, model, processor = parts
    inputs = processor(text="<audio> <|im_end|> ?", audio=[audio])
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("has_channels_first", [True, False])
def test_load_averages_channels_in_either_order_of_axes(has_channels_first):
    extractor = AudioLMFeatureExtractor()
    mono = clip(0.5)
    six_channels = np.stack([mono] * 6, 0 if has_channels_first else 1)
    expected = extractor.load((mono, 24000))
    assert torch.allclose(extractor.load((six_channels, 24000)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\): expected a sample or more"),
        (np.zeros(0), r"shape \(0,\): expected a sample or more"),
        (np.array([0.0, np.nan]), "NaN or infinite"),
    ],
)
def test_load_of_an_invalid_clip_is_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        AudioLMFeatureExtractor().load(samples)


def test_processor_text_cannot_inject_a_placeholder(parts):
    _, _, processor = parts
    extractor = processor.feature_extractor
    mono = clip(0.5)
    ids = processor(text="<audio>", audio=[(mono, 24000)])["input_ids"]
    assert int((ids == 3).sum()) == extractor.num_frames(len(extractor.load((mono, 24000))))


def test_processor_with_more_texts_than_audio_is_refused(parts):
    _, _, processor = parts
    with pytest.raises(ValueError, match="got 2 texts, but audio for 1"):
        processor(text=["a", "b"], audio=[(clip(0.5), 24000)])


@pytest.fixture
def stereo():
    return np.stack([clip(1.5), clip(1.5, seed=1)], 1)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_32"])
def test_load_without_soundfile_reads_the_same_wav(subtype, stereo, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", stereo, 16000, subtype=subtype)
    extractor = AudioLMFeatureExtractor(max_audio_seconds=1.0)
    expected = extractor.load(tmp_path / "a.wav")
    monkeypatch.setattr("audiolm.processing_audiolm.soundfile", None)
    assert torch.equal(extractor.load(tmp_path / "a.wav"), expected)
    assert len(expected) == 24000


@pytest.mark.parametrize(
    ("name", "subtype"), [("b.flac", None), ("c.wav", "FLOAT"), ("d.wav", "PCM_24")]
)
def test_load_without_soundfile_of_another_format_names_it(
    name, subtype, stereo, tmp_path, monkeypatch
):
    soundfile.write(tmp_path / name, stereo, 16000, subtype=subtype)
    monkeypatch.setattr("audiolm.processing_audiolm.soundfile", None)
    with pytest.raises(ImportError, match=rf"{name}: install soundfile to read it"):
        AudioLMFeatureExtractor().load(tmp_path / name)


SAMPLES = clip(1.0, 16000)


@pytest.mark.parametrize(
    ("audio", "options"),
    [
        ([SAMPLES], {"sampling_rate": 16000}),
        ([(16000, SAMPLES)], {}),
        ([{"array": SAMPLES, "sampling_rate": 16000}], {}),
        ({"array": SAMPLES, "sampling_rate": 16000}, {"padding": True, "return_tensors": "pt"}),
        ([{"bytes": encode(SAMPLES, "WAV", "FLOAT"), "path": None}], {}),
    ],
)
def test_processor_takes_clips_as_other_processors_do(parts, audio, options):
    _, _, processor = parts
    expected = processor(text="?", audio=[(SAMPLES, 16000)])
    inputs = processor(text="?", audio=audio, **options)
    assert torch.equal(inputs["input_values"], expected["input_values"])


def test_load_scales_16_bit_samples():
    extractor = AudioLMFeatureExtractor()
    samples = np.round(SAMPLES * 2**15).astype(np.int16)
    loaded = extractor.load((samples, 16000))
    assert torch.equal(loaded, extractor.load((samples / np.float32(2**15), 16000)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"audios": [SAMPLES]}, TypeError, "unexpected keyword 'audios': expected text, audio"),
        ({"audio": [SAMPLES], "smapling_rate": 1}, TypeError, "unexpected keyword"),
        ({"audio": [SAMPLES], "return_tensors": "np"}, ValueError, "expected 'pt'"),
        ({"audio": [SAMPLES], "images": [1]}, ValueError, "images="),
        ({"audio": [(SAMPLES, 8000)], "sampling_rate": 16000}, ValueError, "has 8000 Hz, not"),
        ({"audio": [np.arange(9)]}, ValueError, "holds int64: expected float, int16 or int32"),
        ({"audio": [{"sampling_rate": 16000}]}, ValueError, "needs `array` and `sampling_rate`"),
    ],
)
def test_processor_refuses_what_it_would_ignore(parts, options, error, message):
    _, _, processor = parts
    with pytest.raises(error, match=message):
        processor(text="?", **options)
