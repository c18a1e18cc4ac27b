"""Arms beside the three of the experiment: what each hears, and that each trains, is kept and loads."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio
from support.builders import SMALL_HTSAT, SMALL_MIMI, TEXT, arguments, clip, make_corpus
from torch import nn

from audiolm import (
    AudioLMConfig,
    AudioLMFeatureExtractor,
    AudioLMForConditionalGeneration,
    AudioLMProcessor,
    load_encoder,
)
from audiolm.checkpoints.encoders import randomise_codebooks, with_overrides
from audiolm.checkpoints.load import load_model
from audiolm.configuration_audiolm import (
    ENCODER_TYPES,
    NUMBERED,
    default_encoder_config,
    list_encoder_types,
    parse_encoder_type,
)
from audiolm.data import FeatureCache, feature_statistics
from audiolm.encoders_audiolm import CodecEncoder, MimiEncoder, build_encoder
from audiolm.modeling_audiolm import AudioMapper, pooled
from audiolm.training.train import main as train

SMALL = {
    "clap_audio_model": SMALL_HTSAT,
    "mimi": SMALL_MIMI,
    "encodec": {
        "hidden_size": 16,
        "num_filters": 2,
        "codebook_size": 64,
        "codebook_dim": 16,
        "target_bandwidths": [3.6],
    },
    "dac": {
        "encoder_hidden_size": 2,
        "decoder_hidden_size": 32,
        "codebook_size": 64,
        "codebook_dim": 4,
    },
}
PAIR = "htsat+mimi_full"
NEW = [
    "mimi_acoustic",
    "mimi_continuous",
    "mimi_levels=3",
    "mimi_transformer_layer=1",
    "htsat_layer=2",
    "encodec",
    "dac",
    "htsat_posteriors",
    PAIR,
    "silence=9",
]


def small_encoder(encoder_type: str):
    torch.manual_seed(0)
    small = (
        {"first": SMALL_HTSAT, "second": SMALL_MIMI}
        if encoder_type == PAIR
        else SMALL.get(parse_encoder_type(encoder_type)[0])
    )
    encoder = build_encoder(default_encoder_config(encoder_type, small)).eval()
    for part in encoder.modules():
        if isinstance(part, (MimiEncoder, CodecEncoder)):
            randomise_codebooks(part)
    return encoder


@pytest.fixture(scope="module")
def encoders():
    return {name: small_encoder(name) for name in ("htsat", "mimi_full", "mimi_semantic", *NEW)}


def noise(encoder, *seconds: float) -> tuple[torch.Tensor, list[int]]:
    lengths = [round(of * encoder.sample_rate) for of in seconds]
    waveform = 0.3 * torch.randn(
        len(lengths), max(lengths), generator=torch.Generator().manual_seed(1)
    )
    return waveform, lengths


def test_names():
    assert (
        list_encoder_types()[:3] == ["htsat", "mimi_semantic", "mimi_full"]
        and "mimi_levels=1..32" in list_encoder_types()
    )
    assert parse_encoder_type("mimi_levels=8") == parse_encoder_type(
        "mimi_full"
    ) and parse_encoder_type("mimi_levels=1") == parse_encoder_type("mimi_semantic")
    for name in (
        *ENCODER_TYPES,
        PAIR,
        "dac+mimi_levels=3",
        "silence=999",
        "mimi_levels=32",
        "mimi_transformer_layer=8",
        "htsat_layer=3",
    ):
        assert AudioLMConfig(name).encoder_type == name
    for wrong in (
        "mimi_levels",
        "mimi_levels=",
        "mimi_levels=0",
        "mimi_levels=33",
        "mimi_levels=08",
        "mimi_levels=1.0",
        "mimi_levels=٣",
        "htsat_layer=4",
        "htsat=1",
        "",
        "mimi",
        None,
        8,
        ["htsat"],
        "silence=1000",
        "htsat+",
        "+htsat",
        "htsat+mimi",
        "htsat+dac+encodec",
    ):
        with pytest.raises(
            ValueError, match=r"is none of htsat, mimi_semantic, mimi_full, .*mimi_levels=1\.\.32"
        ):
            parse_encoder_type(wrong)
    for wrong in ("htsat+htsat", "htsat+silence", "mellow+mimi_full"):
        with pytest.raises(ValueError, match="pair"):
            parse_encoder_type(wrong)
    for name, (*_, least, most) in NUMBERED.items():
        assert [parse_encoder_type(f"{name}={number}") for number in (least, most)]


def test_one_arm_is_not_taken_for_another():
    with pytest.raises(ValueError, match="has num_levels 8, but encoder_config 1"):
        AudioLMConfig("mimi_full", {**SMALL_MIMI, "num_levels": 1})
    with pytest.raises(ValueError, match="has first_level none, but encoder_config 1"):
        AudioLMConfig("mimi_full", {**SMALL_MIMI, "first_level": 1})
    with pytest.raises(ValueError, match="has 9 levels, but encoder_config 8"):
        AudioLMConfig("mimi_levels=9", SMALL_MIMI)
    with pytest.raises(ValueError, match="needs a 'mimi' encoder_config"):
        AudioLMConfig("mimi_acoustic", {"model_type": "dac"})
    with pytest.raises(ValueError, match="has num_levels 8, but encoder_config 1"):
        AudioLMConfig(PAIR, {"first": SMALL_HTSAT, "second": {**SMALL_MIMI, "num_levels": 1}})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learn_code_embeddings": True}, "htsat has no codes"),
        ({"mapper_type": "mellow"}, "has no posteriors"),
        ({"prompt_format": "chat"}, "none of audiolm, mellow"),
        ({"learn_code_embeddings": 1}, "true or false is wanted"),
        ({"encoder_type": PAIR, "no_audio": True}, "two kinds of frames"),
        ({"encoder_type": "silence", "no_audio": True}, "there is none"),
        ({"encoder_config": {"band_limit": 10}}, "fewer than 1,000"),
        ({"encoder_config": {"band_limit": "x"}}, "band_limit 'x'"),
        ({"encoder_config": {"band_limit": [24000]}}, r"band_limit \[24000\]"),
        (
            {"encoder_type": "mimi_transformer_layer=2", "encoder_config": SMALL_MIMI},
            "has 2 layers, but encoder_config 1",
        ),
        (
            {"encoder_type": "htsat_layer=3", "encoder_config": {**SMALL_HTSAT, "depths": [1, 1]}},
            "3 stages, but encoder_config 2",
        ),
        (
            {"encoder_type": "dac", "encoder_config": {"n_codebooks": 4}},
            "has 9 levels, but encoder_config 4",
        ),
    ],
)
def test_what_an_arm_cannot_have_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        AudioLMConfig(**{"encoder_type": "htsat", **fields})


@pytest.mark.parametrize("name", NEW)
def test_a_padded_clip_is_heard_as_alone(encoders, name):
    encoder = encoders[name]
    waveform, lengths = noise(encoder, 1.3, 0.41, 0.02)
    made = encoder.encode(waveform, lengths)
    assert made.shape[1] == encoder.num_frames(lengths[0]) and made.shape[2] == encoder.dim
    assert made[0].std() > 1e-3 and torch.isfinite(made).all()
    extractor = AudioLMFeatureExtractor.of_encoder(encoder, 10.0)
    extractor = AudioLMFeatureExtractor(**json.loads(extractor.to_json_string()))
    assert [extractor.num_frames(length) for length in lengths] == [
        encoder.num_frames(length) for length in lengths
    ]
    for row, of, length in zip(made, waveform, lengths):
        alone = encoder.encode(of[None, :length])[0]
        assert len(alone) == encoder.num_frames(length)
        assert (
            torch.allclose(row[: len(alone)], alone, atol=1e-5 * made.abs().max().item())
            and not row[len(alone) :].any()
        )
    seconds = round(20 * encoder.sample_rate)
    if name == "silence=9":
        assert encoder.num_frames(1) == encoder.num_frames(seconds) == 9
        return
    assert encoder.num_frames(seconds) == pytest.approx(20 * encoder.frame_rate, rel=0.06)


def test_mimis_parts_add_up(encoders):
    """Its quantised latent is that of its first level and that of the others; both quantise the same latent."""
    waveform, lengths = noise(encoders["mimi_full"], 1.3, 0.5)
    whole, first, others = (
        encoders[name].encode(waveform, lengths)
        for name in ("mimi_full", "mimi_semantic", "mimi_acoustic")
    )
    assert torch.allclose(first + others, whole, atol=1e-5) and others.std() > 0.01
    codes = [
        encoders[name].codes(waveform, lengths)
        for name in ("mimi_full", "mimi_semantic", "mimi_acoustic", "mimi_levels=3")
    ]
    assert (
        (codes[0][:, 1:] == codes[2]).all()
        and (codes[0][:, :1] == codes[1]).all()
        and (codes[0][:, :3] == codes[3]).all()
    )
    continuous = encoders["mimi_continuous"].encode(waveform, lengths)
    latents = encoders["mimi_full"].latents(encoders["mimi_full"].whole_frames(waveform, lengths))
    assert torch.allclose(continuous[0], latents[0]) and not hasattr(
        encoders["mimi_continuous"], "codes"
    )


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
    states = encoder.model(
        input_features=encoder.log_mel(audio)[:, None],
        output_hidden_states=True,
        output_hidden_states_before_downsampling=True,
    ).hidden_states[stage][0]
    side = states.shape[1]
    slices = states.reshape(-1, 4, side // 4, side)  # of the window's time, one below the other
    grid = torch.cat(list(slices.unbind(1)), 2)  # (dim, frequency, time)
    expected = (
        grid.unflatten(2, (32, -1)).unflatten(1, (2, -1)).mean((2, 4))
    )  # (dim, frequency, time)
    assert torch.allclose(made.permute(2, 1, 0), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_codecs_equal_transformers_own(encoders, name):
    encoder = encoders[name]
    waveform = noise(encoder, 1.4)[0][:, : encoder.frame_size * 40]
    if name == "encodec":
        codes = encoder.model.encode(waveform[:, None], bandwidth=3.6).audio_codes[
            0
        ]  # 8 levels of 6 bits, 75 a second
        features = encoder.model.quantizer.decode(codes.transpose(0, 1))
    else:
        made = encoder.model.encode(waveform[:, None], n_quantizers=9)
        codes, features = made.audio_codes, made.quantized_representation
    ours = encoder.codes(waveform)
    assert (
        ours.shape[1] == encoder.num_levels == codes.shape[1]
        and (ours == codes[..., : ours.shape[2]]).all()
    )
    assert len(ours.unique()) > 5 and ours.shape[2] == 40
    assert torch.allclose(encoder.encode(waveform), features.transpose(1, 2)[:, :40], atol=1e-5)


def test_published_sizes():
    for name, (dim, rate, levels, frame) in {
        "encodec": (128, 24000, 8, 320),
        "dac": (1024, 44100, 9, 512),
    }.items():
        with torch.device("meta"):
            encoder = build_encoder(default_encoder_config(name))
        assert (encoder.dim, encoder.sample_rate, encoder.num_levels, encoder.frame_size) == (
            dim,
            rate,
            levels,
            frame,
        )


def test_pooled_frames():
    features = torch.randn(3, 7, 2)
    made = pooled(features, [7, 4, 1], 4)
    assert torch.equal(made[1], features[1, :4]) and torch.equal(
        made[2], features[2, :1].expand(4, -1)
    )
    assert torch.allclose(made[0], nn.functional.adaptive_avg_pool1d(features[0].T, 4).T)
    assert torch.allclose(
        pooled(features[:, :6], [6, 6, 6], 3), features[:, :6].unflatten(1, (3, 2)).mean(2)
    )
    assert torch.allclose(pooled(features, [7, 7, 7], 1)[:, 0], features.mean(1), atol=1e-6)


def test_a_pair_is_its_two_encoders(encoders):
    pair, waveform, lengths = encoders[PAIR], *noise(encoders[PAIR], 1.3, 0.5)
    assert pair.sample_rate == pair.first.sample_rate == 44100 != pair.second.sample_rate
    made = pair.encode(waveform, lengths)
    for row, of, length in zip(made, waveform, lengths):
        first = pair.first.encode(of[None, :length])[0]
        low = torchaudio.functional.resample(of[:length], 44100, 24000)
        second = pair.second.encode(low[None])[0]
        assert torch.allclose(row[: len(first), : pair.first.dim], first, atol=1e-4)
        assert torch.allclose(
            row[len(first) : len(first) + len(second), pair.first.dim :], second, atol=1e-4
        )
        assert (
            not row[: len(first), pair.first.dim :].any()
            and not row[len(first) :, : pair.first.dim].any()
        )


def test_a_pair_of_encoders_that_were_kept_in_half_precision(encoders, tmp_path, tokenizer):
    for name, arm in (("first", "htsat"), ("second", "mimi_full")):
        copy.deepcopy(encoders[arm].model).half().save_pretrained(tmp_path / name)
    (tmp_path / "first" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "sampling_rate": 48000,
                "fft_window_size": 1024,
                "hop_length": 480,
                "max_length_s": 1,
                "frequency_min": 50,
                "frequency_max": 14000,
            }
        )
    )
    limited = with_overrides(load_encoder("mimi_full", str(tmp_path / "second")), band_limit=12000)
    assert {str(p.dtype) for p in limited.parameters()} == {"torch.float32"}
    pair = load_encoder(PAIR, f"{tmp_path / 'first'}+{tmp_path / 'second'}")
    config = AudioLMConfig(PAIR, pair.config, TEXT, 32)
    model = AudioLMForConditionalGeneration(config)
    model.encoder = pair
    tokenizer.save_pretrained(tmp_path / "model")
    again, _ = load_model(saved(model, tmp_path / "model"))
    assert {str(p.dtype) for p in again.encoder.parameters()} == {"torch.float32"}
    clips, lengths = noise(pair, 1.1, 0.4)
    assert torch.equal(again.encoder.encode(clips, lengths), pair.encode(clips, lengths))


def test_each_of_two_kinds_of_frames_is_standardised_and_mapped_by_itself(encoders):
    pair = encoders[PAIR]
    clips = [pair.encode(noise(pair, seconds)[0])[0] for seconds in (1.3, 0.7)]
    mean, deviation = feature_statistics(pair, clips)
    width = pair.first.dim
    firsts = torch.cat([clip[clip[:, :width].any(1), :width] for clip in clips])
    seconds = torch.cat([clip[~clip[:, :width].any(1), width:] for clip in clips])
    assert torch.allclose(mean.float(), torch.cat([firsts.mean(0), seconds.mean(0)]), atol=1e-5)
    expected = torch.cat([firsts.std(0, correction=0), seconds.std(0, correction=0)])
    assert torch.allclose(deviation.float(), expected, atol=1e-5)
    mapper = AudioMapper(pair.dims, 16, 8)
    mapper.feature_mean.copy_(mean)
    mapper.feature_std.copy_(deviation)
    mapped = mapper(clips[0])
    number = int(clips[0][:, :width].any(1).sum())
    alone = mapper.linear_2(
        mapper.act(mapper.linear_1(((firsts - mean[:width]) / deviation[:width]).float()[:number]))
    )
    assert torch.allclose(mapped[:number], alone, atol=1e-5)
    mapped[number:].sum().backward()
    assert (
        mapper.linear_1.weight.grad.abs().sum()
        == 0
        < mapper.second["linear_1"].weight.grad.abs().sum()
    )
    silent = mapper.mean(clips[0])  # keeps its kinds
    assert (
        torch.allclose(silent[:number, :width], mean[:width].float().expand(number, -1))
        and not silent[:number, width:].any()
    )
    assert not silent[number:, :width].any() and silent[number:, width:].any()


def test_posteriors_are_those_of_the_grid(encoders):
    encoder = encoders["htsat_posteriors"]
    audio = noise(encoder, encoder.window_samples / encoder.sample_rate)[0]
    made, (grid, latent) = encoder.encode(audio)[0], encoder.encode_windows(audio)
    width = encoder.latent_dim
    assert (
        len(made) == 33
        and torch.allclose(made[0, :width], latent[0], atol=1e-6)
        and not made[0, width:].any()
    )
    expected = encoder.classifier(grid).sigmoid()[0, :, 0].T
    assert torch.allclose(made[1:, width:], expected, atol=1e-6) and not made[1:, :width].any()


def test_what_a_lower_rate_lacks_is_not_heard(encoders):
    for name in ("htsat", "mimi_full", PAIR):
        encoder = with_overrides(encoders[name], band_limit=12000)
        t = torch.arange(encoder.sample_rate) / encoder.sample_rate
        low, high = (torch.sin(2 * torch.pi * tone * t)[None] for tone in (3000, 9000))
        heard = encoder.heard(low + high, [len(t)])[0, 500:-500]
        assert (heard - low[0, 500:-500]).abs().max() < 0.01
        assert torch.allclose(
            encoder.encode(low + high),
            encoders[name].encode(encoder.heard(low + high, [len(t)])),
            atol=1e-4,
        )
        assert torch.equal(
            with_overrides(encoders[name], band_limit=96000).encode(low), encoders[name].encode(low)
        )
        clips, lengths = noise(
            encoder, 1.3, 0.41, 0.02
        )  # what rings behind a clip's end is not heard
        for row, of, length in zip(encoder.encode(clips, lengths), clips, lengths):
            alone = encoder.encode(of[None, :length])[0]
            assert torch.allclose(row[: len(alone)], alone, atol=1e-4)
    with pytest.raises(ValueError, match="fewer than 1,000"):
        with_overrides(encoders["htsat"], band_limit=1)


def test_shorter_windows(encoders):
    for name in ("htsat", PAIR):
        encoder, long = (
            with_overrides(encoders[name], window_seconds=0.5),
            8 * encoders[name].sample_rate,
        )
        more = encoder.num_frames(long) - encoders[name].num_frames(long)
        assert more == 8 * 64 and len(
            encoder.encode(noise(encoder, 8)[0])[0]
        ) == encoder.num_frames(long)
    with pytest.raises(ValueError, match="HTSAT alone hears by windows"):
        with_overrides(encoders["mimi_full"], window_seconds=5)
    with pytest.raises(ValueError, match=r"window_seconds is 30, but HTSAT hears up to 7\.43 s"):
        with_overrides(encoders["htsat"], window_seconds=30)


def test_embeddings_of_codes_are_learnt(encoders):
    """In place of the codec's own: one table a level, of which only the codes that were heard change."""
    torch.manual_seed(0)
    config = AudioLMConfig(
        "mimi_full", encoders["mimi_full"].config, TEXT, 32, learn_code_embeddings=True
    )
    model = AudioLMForConditionalGeneration(config)
    model.encoder = encoders["mimi_full"]
    model.train()
    levels, size = model.mapper.codes
    assert (levels, size) == (8, 64) and model.mapper.code_embeddings.weight.shape == (512, 32)
    assert model.mapper.code_embeddings.weight.std().item() == pytest.approx(8**-0.5, rel=0.05)
    waveform, lengths = noise(encoders["mimi_full"], 1.2, 0.4)
    codes = model.encoder.codes(waveform, lengths)
    made = model.get_audio_features(input_values=waveform, num_samples=lengths)
    frames = [model.encoder.num_frames(length) for length in lengths]
    assert torch.equal(
        made, model.get_audio_features(input_features=codes.to(torch.int16), num_frames=frames)
    )
    first = model.mapper.code_embeddings.weight.unflatten(0, (8, 64))[
        torch.arange(8), codes[0, :, 0]
    ].sum(0)
    assert torch.allclose(made[0], model.mapper(first[None])[0], atol=1e-6)
    made.sum().backward()
    touched = model.mapper.code_embeddings.weight.grad.unflatten(0, (8, 64)).any(2)
    for level in range(8):
        heard = {int(code) for row, count in zip(codes[:, level], frames) for code in row[:count]}
        assert set(touched[level].nonzero()[:, 0].tolist()) == heard


@torch.no_grad()
def test_silence_hears_nothing(tmp_path):
    config = AudioLMConfig("silence=9", text_config=TEXT, mapper_hidden_size=32)
    model = AudioLMForConditionalGeneration(config).eval()
    waveform, lengths = noise(model.encoder, 1.2, 0.4)
    made = model.get_audio_features(input_values=waveform, num_samples=lengths).unflatten(0, (2, 9))
    assert torch.equal(made[0], made[1]) and len(made[0].unique(dim=0)) == 9
    half = AudioLMForConditionalGeneration.from_pretrained(
        saved(model, tmp_path), dtype=torch.bfloat16
    )
    again = half.get_audio_features(input_values=waveform, num_samples=lengths).unflatten(0, (2, 9))
    assert again.dtype == torch.bfloat16 and torch.allclose(
        again.float(), made, atol=0.02 * made.abs().max().item()
    )


def saved(model, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


LOADED = """
import json, numpy, sys, torch
from transformers import AutoModel, AutoProcessor
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    clip = numpy.sin(numpy.arange(30000) / 9).astype("float32"), 24000
    inputs = processor(text="Which tone? A) low B) high", audio=[clip] * (1 + (processor.prompt_format == "mellow")))
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    print(json.dumps([int((inputs["input_ids"] == model.config.audio_token_id).sum()), logits.tolist()]))
assert "audiolm" not in sys.modules
"""


def test_every_arm_trains_and_loads(tmp_path, tokenizer, encoders, monkeypatch):
    runs = {name: [] for name in NEW}
    runs |= {
        "mimi_full": ["--audio_tokens", "5", "--learn_code_embeddings", "true"],
        "mellow": ["--recipe", "mellow"],
        "htsat": ["--audio_tokens", "70", "--band_limit", "4000", "--window_seconds", "0.8"],
    }
    runs[PAIR] = ["--audio_tokens", "50"]
    expected = {}
    given = {
        "htsat_posteriors": encoders["htsat_posteriors"],
        "mellow": small_encoder("mellow"),
        PAIR: encoders[PAIR],
        "silence=9": encoders["silence=9"],
    }
    monkeypatch.setattr(
        "audiolm.training.train.load_encoder",
        lambda name, source: given.get(name) or load_encoder(name, source),
    )
    for name, more in runs.items():
        folder = tmp_path / name.replace("=", "-")
        folder.mkdir()
        corpus = make_corpus(folder)
        words = arguments(
            corpus,
            "htsat" if name.startswith("htsat") else "mimi_full",
            tokenizer,
            "--max_steps",
            "3",
            *more,
        )
        if name in ("encodec", "dac"):
            encoders[name].model.save_pretrained(corpus / "encoder")
        cached = (
            [] if name in ("mellow", "silence=9") else ["--feature_cache", str(corpus / "cache")]
        )
        cached += ["--encoder_name_or_path", "random"] if name in given else []
        train([*words, "--encoder_type", name, *cached])
        model, its = load_model(str(corpus / "out"))
        processor = AudioLMProcessor.from_config(model.eval().config, its)
        assert model.config.encoder_type == name and model.config.training["batches"].startswith(
            "of one length"
        )
        sound = np.sin(np.arange(30000) / 9).astype("float32")
        inputs = processor(
            text="Which tone? A) low B) high", audio=[(sound, 24000)] * (1 + (name == "mellow"))
        )
        count = int((inputs["input_ids"] == model.config.audio_token_id).sum())
        if name == "htsat":
            assert (model.encoder.config.band_limit, model.encoder.config.window_seconds) == (
                4000,
                0.8,
            )
        frames = model.encoder.num_frames(len(inputs["input_values"][0]))
        assert count == (model.config.audio_tokens or frames) * (1 + (name == "mellow"))
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
    for name in (
        "mimi_full",
        "mimi_acoustic",
        "mimi_continuous",
        "mimi_transformer_layer=1",
        "mimi_levels=3",
    ):
        encoder = encoders[name]
        extractor = AudioLMFeatureExtractor.of_encoder(encoder, 10.0)
        folders.add(FeatureCache(tmp_path, encoder, extractor).folder)
    assert len(folders) == 5


def test_a_folder_of_transformers_format(encoders, tmp_path):
    for name in ("encodec", "dac", "mimi_continuous", "mimi_acoustic"):
        encoders[name].model.save_pretrained(tmp_path / name)
        loaded = load_encoder(name, str(tmp_path / name))
        waveform = clip(0.6, loaded.sample_rate)[None]
        assert torch.equal(
            loaded.encode(torch.from_numpy(waveform)),
            encoders[name].encode(torch.from_numpy(waveform)),
        )
