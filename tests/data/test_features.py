"""Clips that are encoded once give the loss of clips that are decoded and encoded each time."""

import pickle
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from support.builders import clip, small_model
from torch.utils.data import DataLoader

from audiolm import AudioLMProcessor
from audiolm.data import FeatureCache, ReasonAQACollator, encode_clips, feature_statistics, features
from audiolm.encoders_audiolm import MimiEncoder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        soundfile.write(folder / f"{i}.wav", clip(0.4 + 0.37 * i, seed=i), 24000)
    return [str(folder / f"{i}.wav") for i in range(5)]


def rows_of(files):
    return [
        {"input": "What is heard?", "answer": f"a {i}", "audio": files[i : i + 1 + i % 2]}
        for i in range(4)
    ]


def loss(model, batch):
    return model(**batch).loss


def test_encoded_once_equals_on_the_fly(parts, files, tmp_path):
    _, model, processor = parts
    extractor, rows = processor.feature_extractor, rows_of(files)
    expected = loss(model, ReasonAQACollator(processor)(rows))
    memory = dict(encode_clips(model.encoder, extractor, files, batch_size=2))
    assert torch.allclose(
        loss(model, ReasonAQACollator(processor, features=memory)(rows)), expected, atol=1e-5
    )
    cache = FeatureCache(tmp_path, model.encoder, extractor)
    cache.fill(files)
    batch = ReasonAQACollator(processor, features=pickle.loads(pickle.dumps(cache)))(
        rows
    )  # as in a worker
    assert "input_values" not in batch
    if isinstance(model.encoder, MimiEncoder):
        assert batch["input_features"].dtype == torch.int16 and torch.equal(
            loss(model, batch), expected
        )
    else:
        assert batch["input_features"].dtype == torch.bfloat16 and torch.allclose(
            loss(model, batch), expected, rtol=2e-2
        )


def test_generation_from_what_is_kept(parts, files):
    _, model, processor = parts
    memory = dict(encode_clips(model.encoder, processor.feature_extractor, files))
    made = [
        ReasonAQACollator(processor, generate=True, features=kept)(rows_of(files))
        for kept in (None, memory)
    ]
    tokens = [model.generate(**inputs, max_new_tokens=4, do_sample=False) for inputs in made]
    assert torch.equal(*tokens)


def test_statistics(parts, files):
    _, model, processor = parts
    clips = [clip for _, clip in encode_clips(model.encoder, processor.feature_extractor, files)]
    mean, deviation = feature_statistics(model.encoder, clips)
    kept = torch.cat(
        [model.encoder.encode(processor.feature_extractor.load(path)[None])[0] for path in files]
    ).double()
    assert torch.allclose(mean, kept.mean(0), atol=1e-4)
    assert torch.allclose(deviation, kept.std(0, correction=0), atol=1e-4)


def test_nothing_stale_is_read(files, tmp_path):
    model = small_model("mimi_full")
    processor = small_processor(model)
    soundfile.write(tmp_path / "a.wav", clip(0.5), 24000)
    cache = FeatureCache(tmp_path / "cache", model.encoder, processor)
    cache.fill([str(tmp_path / "a.wav")])
    assert (
        str(tmp_path / "a.wav") in cache
        and files[0] not in cache
        and str(tmp_path / "absent.wav") not in cache
    )
    soundfile.write(tmp_path / "a.wav", clip(0.6), 24000)
    assert str(tmp_path / "a.wav") not in FeatureCache(tmp_path / "cache", model.encoder, processor)
    soundfile.write(tmp_path / "a.wav", clip(0.5), 24000)
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(1.01)
    other = FeatureCache(tmp_path / "cache", model.encoder, processor)
    assert other.folder != cache.folder
    processor.max_audio_seconds = 0.2
    assert FeatureCache(tmp_path / "cache", model.encoder, processor).folder not in (
        cache.folder,
        other.folder,
    )


def test_other_code_makes_another_cache(tmp_path, monkeypatch):
    model = small_model("mimi_full")
    before = FeatureCache(tmp_path, model.encoder, small_processor(model)).folder
    monkeypatch.setattr(features.transformers, "__version__", "5.99")
    assert FeatureCache(tmp_path, model.encoder, small_processor(model)).folder != before
    monkeypatch.undo()
    changed = tmp_path / "changed.py"
    changed.write_bytes(Path(features.inspect.getfile(MimiEncoder)).read_bytes() + b"# changed")
    found = features.inspect.getfile
    monkeypatch.setattr(
        features.inspect, "getfile", lambda of: str(changed) if of is MimiEncoder else found(of)
    )
    assert FeatureCache(tmp_path, model.encoder, small_processor(model)).folder != before


@pytest.mark.parametrize("arm, expected", [("mimi_full", 8 * 125 * 2), ("htsat", 640 * 64 * 2)])
def test_no_room_is_one_line_before_anything_is_encoded(
    arm, expected, tokenizer, files, tmp_path, monkeypatch
):
    """10 s are 125 frames of 8 codes, or 10 windows of 64 frames of 64 channels, of 2 bytes each."""
    model = small_model(arm)
    cache = FeatureCache(
        tmp_path,
        model.encoder,
        AudioLMProcessor.from_config(model.config, tokenizer).feature_extractor,
    )
    assert cache.bytes_per_clip() == expected
    free = shutil.disk_usage(tmp_path)._replace(free=5 * expected - 1)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(
        ValueError, match=r"--feature_cache .*: no room: up to .* MB for the features of 5 clips"
    ):
        cache.fill(files)
    assert not list(cache.folder.iterdir())
    cache.fill(files[:4])
    assert all(file in cache for file in files[:4])


def test_processes_share_the_work(files, tmp_path):
    model = small_model("mimi_semantic")
    caches = [FeatureCache(tmp_path, model.encoder, small_processor(model)) for _ in range(2)]
    for process, cache in enumerate(
        caches
    ):  # the second one finds what the first one has written, and takes its part alone
        cache.fill(files, process=process, processes=2)
    assert [[file in cache for file in files] for cache in caches] == [
        [True, False] * 2 + [True],
        [False, True] * 2 + [False],
    ]
    for cache in caches:
        cache.refresh()
        assert all(
            torch.equal(cache[path], made)
            for path, made in encode_clips(model.encoder, small_processor(model), files)
        )


def small_processor(model):
    from audiolm import AudioLMFeatureExtractor

    return AudioLMFeatureExtractor.of_encoder(model.encoder, 10.0)


def test_an_interrupted_fill_goes_on(files, tmp_path, monkeypatch):
    model = small_model("mimi_full")
    extractor = small_processor(model)
    monkeypatch.setattr(features, "CLIPS_PER_SHARD", 2)
    encoded, encode = [], features.encode_clips

    def counted(encoder, extractor, paths, *args, **kwargs):
        for path, made in encode(encoder, extractor, paths, *args, **kwargs):
            if len(encoded) == 3:
                encoded.append("stop")
                raise KeyboardInterrupt
            encoded.append(path)
            yield path, made

    monkeypatch.setattr(features, "encode_clips", counted)
    cache = FeatureCache(tmp_path, model.encoder, extractor)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(files)
    encoded.append("again")
    again = FeatureCache(tmp_path, model.encoder, extractor)
    assert [path in again for path in files] == [
        True,
        True,
        True,
        False,
        False,
    ]  # the third one in a shard that is not full
    again.fill(files)
    assert encoded[encoded.index("again") + 1 :] == files[3:]
    shard = sorted(again.folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:50])
    torn = FeatureCache(tmp_path, model.encoder, extractor)
    assert sum(path in torn for path in files) < 5 and not shard.exists()
    torn.fill(files)
    for path, made in encode(model.encoder, extractor, files):
        assert torch.equal(torn[path], made)


def test_without_audio_only_the_text_counts(tokenizer, files):
    """`no_audio`: what was recorded changes nothing, how much was recorded is all that is left; the mapper still learns."""
    model = small_model("mimi_full", no_audio=True)
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    deaf = [model(**processor(text="?", audio=[(clip(1, seed=s), 24000)])).logits for s in (0, 5)]
    assert torch.equal(*deaf)
    model.train()
    loss(model, ReasonAQACollator(processor)(rows_of(files))).backward()
    assert (
        min(layer.bias.grad.abs().max() for layer in (model.mapper.linear_1, model.mapper.linear_2))
        > 0
    )


@pytest.mark.parametrize("arm", ["mimi_full", "htsat"])
def test_batches_of_a_loaders_process_are_those_made_here(tokenizer, arm):
    """Whichever way a tensor takes, by its size and kind."""
    model = small_model(arm)
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    shape, kind = (
        ((8, 125), torch.int16) if arm == "mimi_full" else ((92, model.encoder.dim), torch.bfloat16)
    )
    features = {str(i): torch.ones(shape, dtype=kind) * i for i in range(4)}
    rows = [
        {"input": "What?" * i, "answer": f"a {i}" * (i + 1), "audio": [str(i)]} for i in range(4)
    ]
    make = ReasonAQACollator(processor, features=features)
    loaders = [DataLoader(rows, 2, collate_fn=make, num_workers=workers) for workers in (0, 1)]
    for here, there in zip(*loaders, strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            if torch.is_tensor(value):
                assert torch.equal(value, there[name]) and value.dtype == there[name].dtype, name
                there[name] += 1  # may be written to
            else:
                assert value == there[name], name
