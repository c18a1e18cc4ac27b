"""Clips that are encoded once give the loss of clips that are decoded and encoded each time."""

import pickle
from pathlib import Path

import pytest
import soundfile
import torch
from support.builders import clip, small_model
from torch.utils.data import DataLoader

from audiolm import AudioLMFeatureExtractor, AudioLMProcessor
from audiolm.data.cache_command import main as cache_command
from audiolm.data.collator import ReasonAQACollator, encode_new_clips
from audiolm.data.features import FeatureCache, encode_clips, feature_statistics
from audiolm.data.features import cache as cache_module
from audiolm.data.features import encode as encode_module
from audiolm.encoders_audiolm import MimiEncoder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        soundfile.write(folder / f"{i}.wav", clip(0.4 + 0.37 * i, seed=i), 24000)
    return [str(folder / f"{i}.wav") for i in range(5)]


def make_examples(files):
    """Four examples, in turn about one and two clips."""
    return [
        {"input": "What is heard?", "answer": f"a {i}", "audio": files[i : i + 1 + i % 2]}
        for i in range(4)
    ]


def small_extractor(model):
    return AudioLMFeatureExtractor.from_encoder(model.encoder, 10.0)


def small_cache(folder, model):
    return FeatureCache(folder, model.encoder, small_extractor(model))


def test_collator_with_features_gives_the_loss_without(parts, files, monkeypatch):
    _, model, processor = parts
    monkeypatch.setattr(encode_module, "CPU_BATCH_SIZE", 2)
    examples = make_examples(files)
    expected = model(**ReasonAQACollator(processor)(examples)).loss
    encoded = dict(encode_clips(model.encoder, processor.feature_extractor, files))
    batch = ReasonAQACollator(processor, features=encoded)(examples)
    assert torch.allclose(model(**batch).loss, expected, atol=1e-5)


def test_collator_with_a_pickled_cache_gives_the_loss_without(parts, files, tmp_path):
    _, model, processor = parts
    examples = make_examples(files)
    expected = model(**ReasonAQACollator(processor)(examples)).loss
    cache = FeatureCache(tmp_path, model.encoder, processor.feature_extractor)
    cache.encode(files)
    in_worker = pickle.loads(pickle.dumps(cache))
    batch = ReasonAQACollator(processor, features=in_worker)(examples)
    assert "input_values" not in batch
    if isinstance(model.encoder, MimiEncoder):
        assert batch["input_features"].dtype == torch.int16
        assert torch.equal(model(**batch).loss, expected)
    else:
        assert batch["input_features"].dtype == torch.bfloat16
        assert torch.allclose(model(**batch).loss, expected, rtol=2e-2)


def test_feature_statistics_are_mean_and_deviation_over_all_frames(parts, files):
    _, model, processor = parts
    extractor = processor.feature_extractor
    encoded = [clip for _, clip in encode_clips(model.encoder, extractor, files)]
    mean, deviation = feature_statistics(model.encoder, encoded)
    frames = [model.encoder.encode(extractor.load(path)[None])[0] for path in files]
    expected = torch.cat(frames).double()
    assert torch.allclose(mean, expected.mean(0), atol=1e-4)
    assert torch.allclose(deviation, expected.std(0, correction=0), atol=1e-4)


def test_cache_contains_filled_clips_alone(files, tmp_path):
    cache = small_cache(tmp_path, small_model("mimi_full"))
    cache.encode(files[:1])
    assert files[0] in cache
    assert files[1] not in cache
    assert str(tmp_path / "absent.wav") not in cache


def test_cache_after_a_file_changed_does_not_contain_it(tmp_path):
    model = small_model("mimi_full")
    path = str(tmp_path / "a.wav")
    soundfile.write(path, clip(0.5), 24000)
    small_cache(tmp_path / "cache", model).encode([path])
    soundfile.write(path, clip(0.6), 24000)
    assert path not in small_cache(tmp_path / "cache", model)


def test_cache_of_other_weights_or_seconds_has_another_folder(tmp_path):
    model = small_model("mimi_full")
    first = small_cache(tmp_path, model).folder
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(1.01)
    second = small_cache(tmp_path, model).folder
    extractor = small_extractor(model)
    extractor.max_audio_seconds = 0.2
    third = FeatureCache(tmp_path, model.encoder, extractor).folder
    assert len({first, second, third}) == 3


def test_cache_of_another_transformers_version_has_another_folder(tmp_path, monkeypatch):
    model = small_model("mimi_full")
    before = small_cache(tmp_path, model).folder
    monkeypatch.setattr(cache_module.transformers, "__version__", "5.99")
    assert small_cache(tmp_path, model).folder != before


def test_cache_of_changed_encoder_code_has_another_folder(tmp_path, monkeypatch):
    model = small_model("mimi_full")
    before = small_cache(tmp_path, model).folder
    original = cache_module.inspect.getfile
    changed = tmp_path / "changed.py"
    changed.write_bytes(Path(original(MimiEncoder)).read_bytes() + b"# changed")

    def getfile(component):
        return str(changed) if component is MimiEncoder else original(component)

    monkeypatch.setattr(cache_module.inspect, "getfile", getfile)
    assert small_cache(tmp_path, model).folder != before


@pytest.mark.parametrize("arm, expected", [("mimi_semantic", 8 * 125 * 2), ("htsat", 640 * 64 * 2)])
def test_cache_states_the_bytes_of_a_clip(arm, expected, tmp_path):
    """10 s are 125 frames of all 8 codes, or 10 windows of 64 frames of 64 channels, at 2 bytes."""
    assert small_cache(tmp_path, small_model(arm)).bytes_per_clip() == expected


def break_disk(monkeypatch, folder, kind):
    """Makes a folder a file, or fails in the middle of a shard."""
    if kind == "a file":
        folder.write_text("")
    else:

        def fail(tensors, file, metadata):
            Path(file).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(cache_module, "save_file", fail)


@pytest.mark.parametrize("kind", ["a file", "fills up"])
def test_cache_that_cannot_be_written_warns_once_and_encodes(
    kind, files, tmp_path, monkeypatch, caplog
):
    model = small_model("htsat")
    expected = small_cache(tmp_path / "sound", model).encode(files)
    break_disk(monkeypatch, tmp_path / "broken", kind)
    cache = small_cache(tmp_path / "broken", model)
    for _ in range(2):
        encoded = cache.encode(files)
        assert all(torch.equal(encoded[path], expected[path]) for path in files)
    assert files[0] not in cache
    assert caplog.text.count(f"--feature_cache {tmp_path / 'broken'}: ") == 1
    assert not list(tmp_path.glob("broken/*/*.safetensors"))


def test_cache_of_two_processes_has_all_clips(files, tmp_path):
    model = small_model("mimi_semantic")
    caches = [small_cache(tmp_path, model) for _ in range(2)]
    caches[0].encode(files[::2])
    caches[1].encode(files[1::2])
    expected = dict(encode_clips(model.encoder, small_extractor(model), files))
    for cache in caches:
        assert all(torch.equal(cache[path], expected[path]) for path in files if path in cache)
        assert all(path in cache for path in files)


@pytest.mark.parametrize("arm", ["mimi_full", "mimi_acoustic", "mimi_levels=3"])
def test_variants_of_a_mimi_read_the_codes_that_another_encoded(arm, files, tmp_path, monkeypatch):
    semantic, other = small_model("mimi_semantic"), small_model(arm)
    other.encoder.load_state_dict(semantic.encoder.state_dict())
    expected = dict(encode_clips(other.encoder, small_extractor(other), files))
    small_cache(tmp_path, semantic).encode(files)
    monkeypatch.setattr(cache_module, "encode_clips", None)
    encoded = small_cache(tmp_path, other).encode(files)
    assert all(torch.equal(encoded[path], expected[path]) for path in files)


def test_batch_of_old_and_new_clips_gives_the_loss_of_cached_ones(parts, files, tmp_path):
    _, model, processor = parts
    examples = make_examples(files)
    full = FeatureCache(tmp_path / "full", model.encoder, processor.feature_extractor)
    full.encode(files)
    expected = model(**ReasonAQACollator(processor, features=full)(examples)).loss
    cache = FeatureCache(tmp_path / "part", model.encoder, processor.feature_extractor)
    cache.encode(files[:2])
    batch = ReasonAQACollator(processor, features=pickle.loads(pickle.dumps(cache)))(examples)
    assert batch["new_clips"]["paths"] == files[2:5]
    assert torch.equal(model(**encode_new_clips(batch, cache)).loss, expected)
    cache.save()
    assert all(path in pickle.loads(pickle.dumps(cache)) for path in files)


def test_cache_command_lists_and_clears(files, tmp_path, capsys):
    cache = small_cache(tmp_path, small_model("mimi_full"))
    cache.encode(files)
    (tmp_path / "mine").mkdir()
    cache_command(["--feature_cache", str(tmp_path), "--unused_days", "1", "--clear"])
    assert "0 B deleted" in capsys.readouterr().out
    cache_command(["--feature_cache", str(tmp_path), "--clear"])
    assert f"{cache.folder.name}  mimi, 10 s of a clip" in capsys.readouterr().out
    assert [folder.name for folder in tmp_path.iterdir()] == ["mine"]


def test_cache_command_of_a_folder_that_is_missing_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^audiolm cache: --feature_cache .*there is no such"):
        cache_command(["--feature_cache", str(tmp_path / "absent")])


def test_cache_command_without_a_cache_leaves_the_current_folder(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"--feature_cache none: there is no such"):
        cache_command(["--feature_cache", "none", "--clear"])


@pytest.fixture
def encoded_paths(monkeypatch):
    """Paths that are encoded, in order. The encoding of the fourth is interrupted."""
    paths = []
    original = cache_module.encode_clips

    def encode_until_interrupted(encoder, extractor, clips, *args, **kwargs):
        for path, encoded in original(encoder, extractor, clips, *args, **kwargs):
            if len(paths) == 3:
                paths.append("interrupted")
                raise KeyboardInterrupt
            paths.append(path)
            yield path, encoded

    monkeypatch.setattr(cache_module, "encode_clips", encode_until_interrupted)
    monkeypatch.setattr(cache_module, "CLIPS_PER_SHARD", 2)
    return paths


def test_cache_after_an_interrupted_fill_encodes_the_rest(files, tmp_path, encoded_paths):
    model = small_model("mimi_full")
    with pytest.raises(KeyboardInterrupt):
        small_cache(tmp_path, model).encode(files)
    cache = small_cache(tmp_path, model)
    # The third clip is in a shard that is not full.
    assert [path in cache for path in files] == [True, True, True, False, False]
    cache.encode(files)
    assert encoded_paths[encoded_paths.index("interrupted") + 1 :] == files[3:]


def test_cache_with_a_damaged_shard_encodes_its_clips_again(files, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "CLIPS_PER_SHARD", 2)
    model = small_model("mimi_full")
    small_cache(tmp_path, model).encode(files)
    shard = sorted(small_cache(tmp_path, model).folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:50])
    cache = small_cache(tmp_path, model)
    assert sum(path in cache for path in files) < 5
    assert not shard.exists()
    cache.encode(files)
    for path, encoded in encode_clips(model.encoder, small_extractor(model), files):
        assert torch.equal(cache[path], encoded)


def test_text_only_model_ignores_the_audio_and_trains_its_mapper(tokenizer, files):
    """With `no_audio`, the content of a recording changes nothing. Only its length counts."""
    model = small_model("mimi_full", no_audio=True)
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    clips = [(clip(1, seed=seed), 24000) for seed in (0, 5)]
    logits = [model(**processor(text="?", audio=[audio])).logits for audio in clips]
    assert torch.equal(*logits)
    model.train()
    model(**ReasonAQACollator(processor)(make_examples(files))).loss.backward()
    assert model.mapper.linear_1.bias.grad.abs().max() > 0
    assert model.mapper.linear_2.bias.grad.abs().max() > 0


@pytest.mark.parametrize(
    "arm, shape, dtype", [("mimi_full", (8, 125), torch.int16), ("htsat", None, torch.bfloat16)]
)
def test_batches_from_a_worker_equal_those_of_this_process(tokenizer, arm, shape, dtype):
    """Whether a tensor goes through the pipe or through shared memory."""
    model = small_model(arm)
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    shape = shape or (92, model.encoder.dim)
    encoded = {str(i): torch.ones(shape, dtype=dtype) * i for i in range(4)}
    examples = [
        {"input": "What?" * i, "answer": f"a {i}" * (i + 1), "audio": [str(i)]} for i in range(4)
    ]
    collator = ReasonAQACollator(processor, features=encoded)
    here, from_worker = (
        DataLoader(examples, 2, collate_fn=collator, num_workers=workers) for workers in (0, 1)
    )
    for batch, sent in zip(here, from_worker, strict=True):
        assert batch.keys() == sent.keys()
        for name, value in batch.items():
            if torch.is_tensor(value):
                assert torch.equal(value, sent[name]), name
                assert value.dtype == sent[name].dtype, name
                # A batch may be written to.
                sent[name] += 1
            else:
                assert value == sent[name], name
