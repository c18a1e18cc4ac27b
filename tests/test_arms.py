"""Arms beside the three of the experiment: what each hears, and that each trains, is kept and loads."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL_HTSAT, SMALL_MIMI, arguments, clip, make_corpus
from torch import nn

from audiolm import AudioLMConfig, AudioLMFeatureExtractor, AudioLMProcessor, load_encoder
from audiolm.configuration_audiolm import ENCODER_TYPES, NUMBERED, arm_of, arms, default_encoder_config
from audiolm.data import FeatureCache
from audiolm.encoder_checkpoints import randomise_codebooks
from audiolm.encoders_audiolm import CodecEncoder, MimiEncoder, build_encoder
from audiolm.hub import load_model
from audiolm.modeling_audiolm import pooled
from audiolm.run_train import main as train

SMALL = {"clap_audio_model": SMALL_HTSAT, "mimi": SMALL_MIMI,
         "encodec": {"hidden_size": 16, "num_filters": 2, "codebook_size": 64, "codebook_dim": 16, "target_bandwidths": [3.6]},
         "dac": {"encoder_hidden_size": 2, "decoder_hidden_size": 32, "codebook_size": 64, "codebook_dim": 4}}  # fmt: skip
NEW = ["mimi_acoustic", "mimi_continuous", "mimi_levels=3", "mimi_transformer_layer=1", "htsat_layer=2", "encodec", "dac"]


def small_encoder(encoder_type: str):
    torch.manual_seed(0)
    encoder = build_encoder(default_encoder_config(encoder_type, SMALL[arm_of(encoder_type)[0]])).eval()
    if isinstance(encoder, (MimiEncoder, CodecEncoder)):
        randomise_codebooks(encoder)
    return encoder


@pytest.fixture(scope="module")
def encoders():
    return {name: small_encoder(name) for name in ("htsat", "mimi_full", "mimi_semantic", *NEW)}


def noise(encoder, *seconds: float) -> tuple[torch.Tensor, list[int]]:
    lengths = [round(of * encoder.sample_rate) for of in seconds]
    waveform = 0.3 * torch.randn(len(lengths), max(lengths), generator=torch.Generator().manual_seed(1))
    return waveform, lengths


def test_names():
    assert arms()[:3] == ["htsat", "mimi_semantic", "mimi_full"] and "mimi_levels=1..32" in arms()
    assert arm_of("mimi_levels=8") == arm_of("mimi_full") and arm_of("mimi_levels=1") == arm_of("mimi_semantic")
    for name in (*ENCODER_TYPES, "mimi_levels=32", "mimi_transformer_layer=8", "htsat_layer=3"):
        assert AudioLMConfig(name).encoder_type == name
    for wrong in ("mimi_levels", "mimi_levels=", "mimi_levels=0", "mimi_levels=33", "mimi_levels=08", "mimi_levels=1.0",
                  "mimi_levels=٣", "htsat_layer=4", "htsat=1", "", "mimi", None, 8, ["htsat"]):  # fmt: skip
        with pytest.raises(ValueError, match=r"is none of htsat, mimi_semantic, mimi_full, .*mimi_levels=1\.\.32"):
            arm_of(wrong)
    for name, (*_, least, most) in NUMBERED.items():
        assert [arm_of(f"{name}={number}") for number in (least, most)]


def test_one_arm_is_not_taken_for_another():
    with pytest.raises(ValueError, match="has num_levels 8, but encoder_config 1"):
        AudioLMConfig("mimi_full", {**SMALL_MIMI, "num_levels": 1})
    with pytest.raises(ValueError, match="has first_level none, but encoder_config 1"):
        AudioLMConfig("mimi_full", {**SMALL_MIMI, "first_level": 1})
    with pytest.raises(ValueError, match="has 9 levels, but the codec of encoder_config 8"):
        AudioLMConfig("mimi_levels=9", SMALL_MIMI)
    with pytest.raises(ValueError, match="needs a 'mimi' encoder_config"):
        AudioLMConfig("mimi_acoustic", {"model_type": "dac"})


@pytest.mark.parametrize("name", NEW)
def test_a_padded_clip_is_heard_as_alone(encoders, name):
    encoder = encoders[name]
    waveform, lengths = noise(encoder, 1.3, 0.41, 0.02)
    made = encoder.encode(waveform, lengths)
    assert made.shape[1] == encoder.num_frames(lengths[0]) and made.shape[2] == encoder.dim
    assert made[0].std() > 1e-3 and torch.isfinite(made).all()
    for row, of, length in zip(made, waveform, lengths):
        alone = encoder.encode(of[None, :length])[0]
        assert len(alone) == encoder.num_frames(length)
        assert torch.allclose(row[: len(alone)], alone, atol=1e-5 * made.abs().max().item()) and not row[len(alone) :].any()
    seconds = round(20 * encoder.sample_rate)
    assert encoder.num_frames(seconds) == pytest.approx(20 * encoder.frame_rate, rel=0.06)


def test_mimis_parts_add_up(encoders):
    """Its quantised latent is that of its first level and that of the others; both quantise the same latent."""
    waveform, lengths = noise(encoders["mimi_full"], 1.3, 0.5)
    whole, first, others = (
        encoders[name].encode(waveform, lengths) for name in ("mimi_full", "mimi_semantic", "mimi_acoustic")
    )
    assert torch.allclose(first + others, whole, atol=1e-5) and others.std() > 0.01
    codes = [
        encoders[name].codes(waveform, lengths) for name in ("mimi_full", "mimi_semantic", "mimi_acoustic", "mimi_levels=3")
    ]
    assert (codes[0][:, 1:] == codes[2]).all() and (codes[0][:, :1] == codes[1]).all() and (codes[0][:, :3] == codes[3]).all()
    continuous = encoders["mimi_continuous"].encode(waveform, lengths)
    latents = encoders["mimi_full"].latents(encoders["mimi_full"].whole_frames(waveform, lengths))
    assert torch.allclose(continuous[0], latents[0]) and not hasattr(encoders["mimi_continuous"], "codes")


def test_mimis_transformer_and_what_follows(encoders):
    encoder = encoders["mimi_transformer_layer=1"]  # of one
    waveform, lengths = noise(encoder, 1.2)
    states = encoder.encode(waveform, lengths)
    assert states.shape[1] == 30 and encoder.frame_rate == 25 and encoder.frame_size == 960
    after = encoder.model.encoder.downsample(states.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(after, encoders["mimi_continuous"].encode(waveform, lengths), atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_htsats_stages(stage):
    """A tone burst in the second half of a window shows there, at each stage; cells are means of transformers' own states."""
    encoder = small_encoder(f"htsat_layer={stage}")
    window = encoder.window_samples
    audio = torch.zeros(1, window)
    audio[0, window // 2 :] = torch.randn(window // 2, generator=torch.Generator().manual_seed(0))
    made = encoder.encode(audio)[0].view(32, 2, -1)  # time, frequency
    assert encoder.dim == 8 * 2 ** (stage - 1) == made.shape[2] and encoder.num_frames(window) == 64
    change = (made[1:] - made[:-1]).abs().mean((1, 2))
    assert 13 <= change.argmax() <= 17
    states = encoder.model(input_features=encoder.log_mel(audio)[:, None], output_hidden_states=True,
                           output_hidden_states_before_downsampling=True).hidden_states[stage][0]  # fmt: skip
    side = states.shape[1]
    slices = states.reshape(-1, 4, side // 4, side)  # of the window's time, one below the other
    grid = torch.cat(list(slices.unbind(1)), 2)  # (dim, frequency, time)
    expected = grid.unflatten(2, (32, -1)).unflatten(1, (2, -1)).mean((2, 4))  # (dim, frequency, time)
    assert torch.allclose(made.permute(2, 1, 0), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_codecs_equal_transformers_own(encoders, name):
    encoder = encoders[name]
    waveform = noise(encoder, 1.4)[0][:, : encoder.frame_size * 40]
    if name == "encodec":
        codes = encoder.model.encode(waveform[:, None], bandwidth=3.6).audio_codes[0]  # 8 levels of 6 bits, 75 a second
        features = encoder.model.quantizer.decode(codes.transpose(0, 1))
    else:
        made = encoder.model.encode(waveform[:, None], n_quantizers=9)
        codes, features = made.audio_codes, made.quantized_representation
    ours = encoder.codes(waveform)
    assert ours.shape[1] == encoder.num_levels == codes.shape[1] and (ours == codes[..., : ours.shape[2]]).all()
    assert len(ours.unique()) > 5 and ours.shape[2] == 40
    assert torch.allclose(encoder.encode(waveform), features.transpose(1, 2)[:, :40], atol=1e-5)


def test_published_sizes():
    for name, (dim, rate, levels, frame) in {"encodec": (128, 24000, 8, 320), "dac": (1024, 44100, 9, 512)}.items():
        with torch.device("meta"):
            encoder = build_encoder(default_encoder_config(name))
        assert (encoder.dim, encoder.sample_rate, encoder.num_levels, encoder.frame_size) == (dim, rate, levels, frame)


def test_pooled_frames():
    features = torch.randn(3, 7, 2)
    made = pooled(features, [7, 4, 1], 4)
    assert torch.equal(made[1], features[1, :4]) and torch.equal(made[2], features[2, :1].expand(4, -1))
    assert torch.allclose(made[0], nn.functional.adaptive_avg_pool1d(features[0].T, 4).T)
    assert torch.allclose(pooled(features[:, :6], [6, 6, 6], 3), features[:, :6].unflatten(1, (3, 2)).mean(2))
    assert torch.allclose(pooled(features, [7, 7, 7], 1)[:, 0], features.mean(1), atol=1e-6)


LOADED = """
import json, numpy, sys, torch
from transformers import AutoModel, AutoProcessor
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(text="Which tone? A) low B) high", audio=[(numpy.sin(numpy.arange(30000) / 9).astype("float32"), 24000)])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    print(json.dumps([int((inputs["input_ids"] == model.config.audio_token_id).sum()), logits.tolist()]))
assert "audiolm" not in sys.modules
"""


def test_every_arm_trains_and_loads(tmp_path, tokenizer, encoders):
    runs = {name: [] for name in NEW}
    runs |= {"mimi_full": ["--audio_tokens", "5"], "htsat": ["--audio_tokens", "70", "--no_audio", "true"]}
    expected = {}
    for name, more in runs.items():
        folder = tmp_path / name.replace("=", "-")
        folder.mkdir()
        corpus = make_corpus(folder)
        words = arguments(corpus, "htsat" if name.startswith("htsat") else "mimi_full", tokenizer, "--max_steps", "3", *more)
        if name in ("encodec", "dac"):
            encoders[name].model.save_pretrained(corpus / "encoder")
        train([*words, "--encoder_type", name, "--feature_cache", str(corpus / "cache")])
        model, its = load_model(str(corpus / "out"))
        processor = AudioLMProcessor.from_config(model.eval().config, its)
        assert model.config.encoder_type == name and model.config.training["batches"].startswith("of one length")
        sound = np.sin(np.arange(30000) / 9).astype("float32")
        inputs = processor(text="Which tone? A) low B) high", audio=[(sound, 24000)])
        count = int((inputs["input_ids"] == model.config.audio_token_id).sum())
        assert count == model.config.audio_tokens or count == model.encoder.num_frames(len(inputs["input_values"][0]))
        with torch.no_grad():
            expected[str(corpus / "out")] = count, model(**inputs).logits[0, -1].numpy()
    assert len({count for count, _ in expected.values()}) > 4
    done = subprocess.run([sys.executable, "-c", LOADED, *expected], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for (count, logits), line in zip(expected.values(), done.stdout.splitlines(), strict=True):
        found = json.loads(line)
        assert found[0] == count and np.allclose(np.float32(found[1]), logits, atol=1e-5)


def test_the_cache_knows_arms_of_the_same_weights_apart(encoders, tmp_path):
    folders = set()
    for name in ("mimi_full", "mimi_acoustic", "mimi_continuous", "mimi_transformer_layer=1", "mimi_levels=3"):
        encoder = encoders[name]
        extractor = AudioLMFeatureExtractor.of_encoder(encoder, 10.0)
        folders.add(FeatureCache(tmp_path, encoder, extractor).folder)
    assert len(folders) == 5


def test_a_folder_of_transformers_format(encoders, tmp_path):
    for name in ("encodec", "dac", "mimi_continuous", "mimi_acoustic"):
        encoders[name].model.save_pretrained(tmp_path / name)
        loaded = load_encoder(name, str(tmp_path / name))
        waveform = clip(0.6, loaded.sample_rate)[None]
        assert torch.equal(loaded.encode(torch.from_numpy(waveform)), encoders[name].encode(torch.from_numpy(waveform)))
