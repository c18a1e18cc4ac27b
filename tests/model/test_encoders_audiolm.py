"""The encoders: frames of a clip, alone and in a batch, against transformers' own classes."""

import copy
import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torchaudio
from support.builders import TEXT, arguments, clip, make_corpus
from support.small_encoders import (
    FURTHER_TYPES,
    LAION_FRONT_END,
    PAIR,
    noise_clips,
    small_encoder,
)

from audiolm import (
    AudioLMConfig,
    AudioLMFeatureExtractor,
    AudioLMForConditionalGeneration,
    AudioLMProcessor,
    load_encoder,
)
from audiolm.checkpoints.encoders import with_overrides
from audiolm.checkpoints.load import load_model
from audiolm.configuration_audiolm import default_encoder_config
from audiolm.data.features import FeatureCache
from audiolm.encoders_audiolm import build_encoder
from audiolm.run_train import main as train


@pytest.fixture(scope="module")
def encoders():
    names = ("htsat", "mimi_full", "mimi_semantic", *FURTHER_TYPES)
    return {name: small_encoder(name) for name in names}


@pytest.mark.parametrize("name", FURTHER_TYPES)
def test_encode_of_a_padded_clip_equals_the_clip_alone(encoders, name):
    encoder = encoders[name]
    waveform, lengths = noise_clips(encoder, 1.3, 0.41, 0.02)
    features = encoder.encode(waveform, lengths)
    tolerance = 1e-5 * features.abs().max().item()
    for row, samples, length in zip(features, waveform, lengths):
        alone = encoder.encode(samples[None, :length])[0]
        assert len(alone) == encoder.num_frames(length)
        assert torch.allclose(row[: len(alone)], alone, atol=tolerance)
        assert not row[len(alone) :].any()


@pytest.mark.parametrize("name", FURTHER_TYPES)
def test_encode_has_the_shape_that_the_attributes_say(encoders, name):
    encoder = encoders[name]
    waveform, lengths = noise_clips(encoder, 1.3, 0.41, 0.02)
    features = encoder.encode(waveform, lengths)
    assert features.shape == (3, encoder.num_frames(lengths[0]), encoder.dim)
    assert torch.isfinite(features).all()
    assert features[0].std() > 1e-3


@pytest.mark.parametrize("name", [name for name in FURTHER_TYPES if name != "silence=9"])
def test_num_frames_of_a_long_clip_follows_the_frame_rate(encoders, name):
    encoder = encoders[name]
    frames = encoder.num_frames(round(20 * encoder.sample_rate))
    assert frames == pytest.approx(20 * encoder.frame_rate, rel=0.06)


@pytest.mark.parametrize("num_samples", [1, 480_000])
def test_num_frames_of_silence_is_that_of_its_tokens(encoders, num_samples):
    assert encoders["silence=9"].num_frames(num_samples) == 9


@pytest.mark.parametrize(
    ("waveform", "num_samples", "message"),
    [
        (torch.zeros(1, 1, 9), None, r"shape \(1, 1, 9\): expected \(batch, samples\)"),
        (torch.zeros(2, 9), [9], "do not fit"),
        (torch.zeros(2, 9), [9, 0], "do not fit"),
        (torch.zeros(2, 9), [9, 10], "do not fit"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "codes"])
def test_encode_of_wrong_shapes_is_refused(encoders, method, waveform, num_samples, message):
    with pytest.raises(ValueError, match=message):
        getattr(encoders["mimi_full"], method)(waveform, num_samples)


def test_mimi_latent_is_the_sum_of_semantic_and_acoustic_latents(encoders):
    waveform, lengths = noise_clips(encoders["mimi_full"], 1.3, 0.5)
    full, semantic, acoustic = (
        encoders[name].encode(waveform, lengths)
        for name in ("mimi_full", "mimi_semantic", "mimi_acoustic")
    )
    assert torch.allclose(semantic + acoustic, full, atol=1e-5)
    assert acoustic.std() > 0.01


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("mimi_semantic", slice(0, 1)),
        ("mimi_acoustic", slice(1, 8)),
        ("mimi_levels=3", slice(0, 3)),
    ],
)
def test_mimi_codes_are_those_of_its_codebooks(encoders, name, levels):
    waveform, lengths = noise_clips(encoders["mimi_full"], 1.3, 0.5)
    full = encoders["mimi_full"].codes(waveform, lengths)
    assert torch.equal(encoders[name].codes(waveform, lengths), full[:, levels])


def test_mimi_continuous_is_the_latent_before_quantisation(encoders):
    waveform, lengths = noise_clips(encoders["mimi_full"], 1.3, 0.5)
    features = encoders["mimi_continuous"].encode(waveform, lengths)
    latents = encoders["mimi_full"].latents(encoders["mimi_full"].fill_frames(waveform, lengths))
    assert torch.allclose(features[0], latents[0])
    assert not hasattr(encoders["mimi_continuous"], "codes")


def test_mimi_transformer_layer_is_followed_by_the_downsampling(encoders):
    encoder = encoders["mimi_transformer_layer=1"]  # Its only layer.
    waveform, lengths = noise_clips(encoder, 1.2)
    states = encoder.encode(waveform, lengths)
    downsampled = encoder.model.encoder.downsample(states.transpose(1, 2)).transpose(1, 2)
    latents = encoders["mimi_continuous"].encode(waveform, lengths)
    assert torch.allclose(downsampled, latents, atol=1e-5)


def test_mimi_transformer_layer_has_twice_the_frame_rate(encoders):
    encoder = encoders["mimi_transformer_layer=1"]
    assert (encoder.frame_rate, encoder.frame_size) == (25, 960)
    assert encoder.encode(*noise_clips(encoder, 1.2)).shape[1] == 30


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_htsat_layer_shows_a_tone_burst_where_it_is(stage):
    encoder = small_encoder(f"htsat_layer={stage}")
    features = encoder.encode(tone_burst(encoder))[0].view(32, 2, -1)  # (time, frequency, dim)
    change = (features[1:] - features[:-1]).abs().mean((1, 2))
    assert 13 <= change.argmax() <= 17


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_htsat_layer_has_the_width_of_its_stage(stage):
    encoder = small_encoder(f"htsat_layer={stage}")
    assert encoder.dim == 8 * 2 ** (stage - 1)
    assert encoder.num_frames(encoder.window_samples) == 64


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_htsat_layer_averages_the_states_of_transformers(stage):
    encoder = small_encoder(f"htsat_layer={stage}")
    audio = tone_burst(encoder)
    states = encoder.model(
        input_features=encoder.log_mel(audio)[:, None],
        output_hidden_states=True,
        output_hidden_states_before_downsampling=True,
    ).hidden_states[stage][0]
    side = states.shape[1]
    slices = states.reshape(-1, 4, side // 4, side)  # The window's time, one slice below the other.
    grid = torch.cat(list(slices.unbind(1)), 2)  # (dim, frequency, time)
    expected = grid.unflatten(2, (32, -1)).unflatten(1, (2, -1)).mean((2, 4))
    features = encoder.encode(audio)[0].view(32, 2, -1)
    assert torch.allclose(features.permute(2, 1, 0), expected, atol=1e-5)


def tone_burst(encoder) -> torch.Tensor:
    """A window whose second half alone holds noise."""
    window = encoder.window_samples
    audio = torch.zeros(1, window)
    audio[0, window // 2 :] = torch.randn(window // 2, generator=torch.Generator().manual_seed(0))
    return audio


def transformers_encodec(model, waveform):
    # 8 codebooks of 6 bits at 75 Hz are 3.6 kbit/s.
    codes = model.encode(waveform[:, None], bandwidth=3.6).audio_codes[0]
    return codes, model.quantizer.decode(codes.transpose(0, 1))


def transformers_dac(model, waveform):
    output = model.encode(waveform[:, None], n_quantizers=9)
    return output.audio_codes, output.quantized_representation


@pytest.mark.parametrize(
    ("name", "reference"), [("encodec", transformers_encodec), ("dac", transformers_dac)]
)
def test_codec_equals_transformers(encoders, name, reference):
    encoder = encoders[name]
    waveform = noise_clips(encoder, 1.4)[0][:, : encoder.frame_size * 40]
    expected_codes, expected_features = reference(encoder.model, waveform)
    codes = encoder.codes(waveform)
    assert codes.shape == (1, encoder.num_levels, 40)
    assert torch.equal(codes, expected_codes[..., :40])
    assert len(codes.unique()) > 5
    expected = expected_features.transpose(1, 2)[:, :40]
    assert torch.allclose(encoder.encode(waveform), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes"), [("encodec", (128, 24000, 8, 320)), ("dac", (1024, 44100, 9, 512))]
)
def test_codec_by_default_has_the_published_sizes(name, sizes):
    with torch.device("meta"):
        encoder = build_encoder(default_encoder_config(name))
    assert (encoder.dim, encoder.sample_rate, encoder.num_levels, encoder.frame_size) == sizes


def test_pair_has_frames_of_the_first_and_then_of_the_second_encoder(encoders):
    pair = encoders[PAIR]
    waveform, lengths = noise_clips(pair, 1.3, 0.5)
    width = pair.first.dim
    for row, samples, length in zip(pair.encode(waveform, lengths), waveform, lengths):
        first = pair.first.encode(samples[None, :length])[0]
        low = torchaudio.functional.resample(samples[:length], 44100, 24000)
        second = pair.second.encode(low[None])[0]
        end = len(first) + len(second)
        assert torch.allclose(row[: len(first), :width], first, atol=1e-4)
        assert torch.allclose(row[len(first) : end, width:], second, atol=1e-4)
        assert not row[: len(first), width:].any()
        assert not row[len(first) :, :width].any()


def test_pair_takes_clips_at_the_higher_sampling_rate(encoders):
    pair = encoders[PAIR]
    assert (pair.sample_rate, pair.first.sample_rate, pair.second.sample_rate) == (
        44100,
        44100,
        24000,
    )


@pytest.fixture(scope="module")
def half_precision_parts(encoders, tmp_path_factory):
    """Folders with the encoders of a pair in float16."""
    folder = tmp_path_factory.mktemp("half")
    for name, encoder_type in (("first", "htsat"), ("second", "mimi_full")):
        copy.deepcopy(encoders[encoder_type].model).half().save_pretrained(folder / name)
    (folder / "first" / "preprocessor_config.json").write_text(json.dumps(LAION_FRONT_END))
    return folder / "first", folder / "second"


def parameter_dtypes(encoder) -> set[str]:
    return {str(parameter.dtype) for parameter in encoder.parameters()}


def test_with_overrides_of_half_precision_weights_is_float32(half_precision_parts):
    _, mimi = half_precision_parts
    limited = with_overrides(load_encoder("mimi_full", str(mimi)), band_limit=12000)
    assert parameter_dtypes(limited) == {"torch.float32"}


def test_pair_of_half_precision_weights_reloads_in_float32(
    half_precision_parts, tmp_path, tokenizer
):
    first, second = half_precision_parts
    pair = load_encoder(PAIR, f"{first}+{second}")
    model = AudioLMForConditionalGeneration(AudioLMConfig(PAIR, pair.config, TEXT, 32))
    model.encoder = pair
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    reloaded, _ = load_model(str(tmp_path))
    assert parameter_dtypes(reloaded.encoder) == {"torch.float32"}
    clips, lengths = noise_clips(pair, 1.1, 0.4)
    assert torch.equal(reloaded.encoder.encode(clips, lengths), pair.encode(clips, lengths))


def test_pair_does_not_save_the_folders_of_its_encoders(half_precision_parts):
    first, second = half_precision_parts
    pair = load_encoder(PAIR, f"{first}+{second}")
    assert str(first.parent) not in json.dumps(AudioLMConfig(PAIR, pair.config, TEXT).to_dict())


def test_htsat_posteriors_are_a_latent_and_those_of_the_grid(encoders):
    encoder = encoders["htsat_posteriors"]
    audio, _ = noise_clips(encoder, encoder.window_samples / encoder.sample_rate)
    features = encoder.encode(audio)[0]
    grid, latent = encoder.encode_windows(audio)
    width = encoder.latent_dim
    posteriors = encoder.classifier(grid).sigmoid()[0, :, 0].T
    assert len(features) == 33
    assert torch.allclose(features[0, :width], latent[0], atol=1e-6)
    assert not features[0, width:].any()
    assert torch.allclose(features[1:, width:], posteriors, atol=1e-6)
    assert not features[1:, :width].any()


LIMITED_TYPES = ["htsat", "mimi_full", PAIR]


@pytest.mark.parametrize("name", LIMITED_TYPES)
def test_band_limit_removes_what_a_lower_rate_lacks(encoders, name):
    encoder = with_overrides(encoders[name], band_limit=12000)
    time = torch.arange(encoder.sample_rate) / encoder.sample_rate
    low, high = (torch.sin(2 * torch.pi * tone * time)[None] for tone in (3000, 9000))
    limited = encoder._band_limit(low + high, [len(time)])
    assert (limited - low)[0, 500:-500].abs().max() < 0.01
    expected = encoders[name].encode(limited)
    assert torch.allclose(encoder.encode(low + high), expected, atol=1e-4)


@pytest.mark.parametrize("name", LIMITED_TYPES)
def test_band_limit_above_the_sampling_rate_changes_nothing(encoders, name):
    clips, _ = noise_clips(encoders[name], 1.0)
    limited = with_overrides(encoders[name], band_limit=96000)
    assert torch.equal(limited.encode(clips), encoders[name].encode(clips))


@pytest.mark.parametrize("name", LIMITED_TYPES)
def test_band_limit_of_a_padded_clip_equals_the_clip_alone(encoders, name):
    encoder = with_overrides(encoders[name], band_limit=12000)
    clips, lengths = noise_clips(encoder, 1.3, 0.41, 0.02)
    for row, samples, length in zip(encoder.encode(clips, lengths), clips, lengths):
        alone = encoder.encode(samples[None, :length])[0]
        assert torch.allclose(row[: len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["htsat", PAIR])
def test_window_seconds_that_are_shorter_give_more_frames(encoders, name):
    encoder = with_overrides(encoders[name], window_seconds=0.5)
    eight_seconds = 8 * encoders[name].sample_rate
    frames = encoder.num_frames(eight_seconds)
    assert frames - encoders[name].num_frames(eight_seconds) == 8 * 64
    assert len(encoder.encode(noise_clips(encoder, 8)[0])[0]) == frames


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("htsat", {"band_limit": 1}, "band_limit 1: expected a sampling rate of 1,000 Hz"),
        ("mimi_full", {"window_seconds": 5}, "--window_seconds 5: only HTSAT has windows"),
        ("htsat", {"window_seconds": 30}, r"window_seconds 30: HTSAT reads at most 7\.43 s"),
    ],
)
def test_with_overrides_that_do_not_fit_is_refused(encoders, name, options, message):
    with pytest.raises(ValueError, match=message):
        with_overrides(encoders[name], **options)


def test_feature_cache_distinguishes_types_of_the_same_weights(encoders, tmp_path):
    names = (
        "mimi_full",
        "mimi_continuous",
        "mimi_transformer_layer=1",
    )
    folders = set()
    for name in names:
        extractor = AudioLMFeatureExtractor.from_encoder(encoders[name], 10.0)
        folders.add(FeatureCache(tmp_path, encoders[name], extractor).folder)
    assert len(folders) == len(names)


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi_continuous", "mimi_acoustic"])
def test_load_encoder_reads_a_folder_of_transformers(encoders, name, tmp_path):
    encoders[name].model.save_pretrained(tmp_path)
    loaded = load_encoder(name, str(tmp_path))
    waveform = torch.from_numpy(clip(0.6, loaded.sample_rate)[None])
    assert torch.equal(loaded.encode(waveform), encoders[name].encode(waveform))


# Runs in a fresh process that does not have the package.
LOAD_AND_ASK = """
import json, numpy, sys, torch
from transformers import AutoModel, AutoProcessor
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    clip = numpy.sin(numpy.arange(30000) / 9).astype("float32"), 24000
    clips = [clip, clip] if processor.prompt_format == "mellow" else [clip]
    inputs = processor(text="Which tone? A) low B) high", audio=clips)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    count = int((inputs["input_ids"] == model.config.audio_token_id).sum())
    print(json.dumps([count, logits.tolist()]))
assert "audiolm" not in sys.modules
"""


def options_by_type() -> dict[str, list[str]]:
    """Options of run_train.py beside those of every run."""
    options: dict[str, list[str]] = {name: [] for name in FURTHER_TYPES}
    options["mimi_full"] = ["--audio_tokens", "5", "--learn_code_embeddings", "true"]
    options["mellow"] = ["--config", "mellow"]
    options["htsat"] = ["--audio_tokens", "70", "--band_limit", "4000", "--window_seconds", "0.8"]
    options[PAIR] = ["--audio_tokens", "50"]
    return options


def train_type(name, options, folder, tokenizer, encoders, replaced) -> str:
    """Trains three steps, and returns the model's folder."""
    folder.mkdir()
    corpus = make_corpus(folder)
    arm = "htsat" if name.startswith("htsat") else "mimi_full"
    argv = arguments(corpus, arm, tokenizer, "--max_steps", "3", *options)
    argv += ["--encoder_type", name]
    if name in ("encodec", "dac"):
        encoders[name].model.save_pretrained(corpus / "encoder")
    if name not in ("mellow", "silence=9"):
        argv += ["--feature_cache", str(corpus / "cache")]
    if name in replaced:
        argv += ["--encoder_name_or_path", "random"]
    train(argv)
    return str(corpus / "out")


def ask_trained_model(name: str, folder: str) -> tuple[int, np.ndarray]:
    """Loads a trained model, checks its configuration, and returns its audio tokens and logits."""
    model, tokenizer = load_model(folder)
    processor = AudioLMProcessor.from_config(model.eval().config, tokenizer)
    assert model.config.encoder_type == name
    assert model.config.training["batches"].startswith("of one length")
    num_clips = 2 if name == "mellow" else 1
    sound = np.sin(np.arange(30000) / 9).astype("float32")
    inputs = processor(text="Which tone? A) low B) high", audio=[(sound, 24000)] * num_clips)
    count = int((inputs["input_ids"] == model.config.audio_token_id).sum())
    frames = model.encoder.num_frames(len(inputs["input_values"][0]))
    assert count == (model.config.audio_tokens or frames) * num_clips
    if name == "htsat":
        config = model.encoder.config
        assert (config.band_limit, config.window_seconds) == (4000, 0.8)
    with torch.no_grad():
        return count, model(**inputs).logits[0, -1].numpy()


def load_replaced(replaced, name, source):
    return replaced.get(name) or load_encoder(name, source)


def test_every_encoder_type_trains_and_loads_without_the_package(
    tmp_path, tokenizer, encoders, monkeypatch
):
    # Their small weights come in no format of their own.
    replaced = {name: encoders[name] for name in ("htsat_posteriors", PAIR, "silence=9")}
    replaced["mellow"] = small_encoder("mellow")
    monkeypatch.setattr("audiolm.training.build.load_encoder", partial(load_replaced, replaced))
    expected = {}
    for name, options in options_by_type().items():
        folder = tmp_path / name.replace("=", "-")
        output = train_type(name, options, folder, tokenizer, encoders, replaced)
        expected[output] = ask_trained_model(name, output)
    assert len({count for count, _ in expected.values()}) > 4
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_ASK, *expected], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    for (output, (count, logits)), line in zip(
        expected.items(), run.stdout.splitlines(), strict=True
    ):
        loaded_count, loaded_logits = json.loads(line)
        assert loaded_count == count, output
        assert np.allclose(np.float32(loaded_logits), logits, atol=1e-5), output
