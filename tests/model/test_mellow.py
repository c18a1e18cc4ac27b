"""Mellow: what its published code computes, its prompts, and that it is evaluated, trained, saved and loaded like any model."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.builders import SMALL_HTSAT, arguments, make_corpus

from audiolm import AudioLMConfig, AudioLMForConditionalGeneration, AudioLMProcessor
from audiolm.checkpoints.load import load_model
from audiolm.checkpoints.mellow import load_mellow
from audiolm.configuration_audiolm import default_encoder_config
from audiolm.data import load_reasonaqa
from audiolm.data.second_clips import first_clips, second_clips
from audiolm.encoders_audiolm import build_encoder
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.modeling_audiolm import MellowMapper
from audiolm.training.train import main as train

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "mellow_reference"
needed = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="../shared/data/mellow_reference is not there"
)


def drawn(layout: dict) -> dict[str, torch.Tensor]:
    """The weights that the reference's README describes, of each key of a checkpoint."""
    state = {}
    for key, (shape, dtype) in layout.items():
        if dtype != "float32" or key.endswith(("attn_mask", "melW")) or ".stft." in key:
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype))  # made by the architecture
            continue
        values = (
            np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
            .standard_normal(shape)
            .astype("float32")
        )
        if key.endswith("running_var"):
            values = 100 + 10 * np.abs(values)
        elif key.endswith("running_mean"):
            values = values - 30
        elif len(shape) == 1:
            values = 1 + 0.05 * values if key.endswith("weight") else 0.02 * values
        else:
            values = values / np.sqrt(np.prod(shape[1:]))
        state[key] = torch.from_numpy(values.astype("float32"))
    state["caption_decoder.lm.lm_head.weight"] = state[
        "caption_decoder.lm.model.embed_tokens.weight"
    ]
    return state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Its `v0.ckpt`, of two layers, and the tokenizer beside it."""
    folder = tmp_path_factory.mktemp("mellow")
    state = drawn(json.loads((REFERENCE / "layout.json").read_text())["layout"])
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "v0.ckpt")
    return folder / "v0.ckpt"


@needed
@torch.no_grad()
def test_it_computes_what_the_published_code_computes(checkpoint, monkeypatch):
    monkeypatch.setattr(
        "audiolm.checkpoints.mellow.AutoTokenizer.from_pretrained", lambda *a, **k: Fake()
    )
    model, _ = load_mellow(str(checkpoint))
    expected = np.load(REFERENCE / "reference.npz")
    t = np.arange(320000) / 32000
    first = 0.4 * np.sin(2 * np.pi * (200 + 150 * t) * t) + 0.05 * np.random.RandomState(
        1
    ).standard_normal(len(t))
    second = 0.3 * np.sin(2 * np.pi * 880 * t) * (
        np.floor(2 * t) % 2
    ) + 0.02 * np.random.RandomState(2).standard_normal(len(t))
    clips = torch.from_numpy(np.stack([first, second]).astype("float32"))
    features = model.encoder.encode(clips)
    assert features.shape == (2, 129, 768 + 527)
    for clip, name in zip(features, "12"):
        assert np.abs(clip[:1, :768].numpy() - expected[f"latent{name}"]).max() <= 1e-4
        assert np.abs(clip[1::4, 768:].numpy() - expected[f"framewise{name}"]).max() <= 1e-4
    i = torch.arange(129)
    prompt = (37 * i**2 + 11 * i) % 49152
    audio = torch.full((129,), model.config.audio_token_id)
    separator = torch.tensor([0])
    ids = torch.cat([audio, separator, audio, separator, prompt])[None]
    at = torch.cat(
        [i, 130 + i]
    )  # a question may hold the placeholder's number: these are the clips
    mapped = model.get_audio_features(input_features=features)
    prefix = model.put_audio(model.get_input_embeddings()(ids), mapped, ids, at)
    assert np.abs(prefix[0].numpy() - expected["prefix"]).max() <= 1e-3
    logits = model(inputs_embeds=prefix).logits[0, -1].numpy()
    assert np.abs(logits - expected["logits_last"]).max() <= 1e-2
    said = model.generate(
        inputs_embeds=prefix, max_new_tokens=8, do_sample=False, suppress_tokens=None
    )
    assert said[0].tolist() == expected["greedy"].tolist()


class Fake:
    def convert_ids_to_tokens(self, number):
        return "<|endoftext|>"


@pytest.fixture(scope="module")
def whole(checkpoint, tokenizer):
    """The checkpoint with its tokenizer beside it, here the tests' small one."""
    tokenizer.save_pretrained(checkpoint.parent)
    return checkpoint.parent


@needed
def test_prompts_are_its_own(whole):
    model, tokenizer = load_model(str(whole))
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    (short, long) = processor.prompts([" Which TONE? A) low ", "x" * 500], [[129, 129], [129, 129]])
    audio, mark = (
        [model.config.audio_token_id] * 129,
        tokenizer("!", add_special_tokens=False).input_ids,
    )
    assert short[:260] == [*audio, 0, *audio, 0] == long[:260] and len(short) == len(long) == 389
    words = tokenizer("which tone? a) low", add_special_tokens=False).input_ids
    assert short[260:] == words + mark * (129 - len(words))
    assert processor.answers([" B) High "]) == [
        [*tokenizer("b) high", add_special_tokens=False).input_ids, 0]
    ]
    with pytest.raises(ValueError, match="about two clips, not 1"):
        processor.prompts(["?"], [[129]])
    assert (
        model.encoder.num_frames(1600) == model.encoder.num_frames(320000) == 129
    )  # shorter clips are tiled


def test_second_clips(tmp_path):
    corpus = make_corpus(tmp_path)
    rows = load_reasonaqa({"test": corpus / "rows.json"}, str(corpus))["test"]
    paired = second_clips(rows, 0)
    assert all(
        len(set(of)) == 2 and of[0] == alone[0] for of, alone in zip(paired["audio"], rows["audio"])
    )
    assert paired["audio"] == second_clips(rows, 0)["audio"] != second_clips(rows, 1)["audio"]
    assert (
        second_clips(rows.select(range(15, -1, -1)), 0)["audio"] == paired["audio"][::-1]
    )  # whatever their order
    with pytest.raises(ValueError, match="one alone"):
        second_clips(rows.select([0]), 0)
    assert len(set(second_clips(rows.select([0]), 0, first_clips(rows))["audio"][0])) == 2
    # rows that are mended as they are read are mended once, as they were, whether some were left out or not
    twice = iter(range(10**6))

    def mended(batch):
        return (
            {**batch, "input": [f"{text} {next(twice)}" for text in batch["input"]]}
            if "input" in batch
            else batch
        )

    for part in (rows, rows.select(range(2, 9))):
        paired = second_clips(part.with_transform(mended), 0)
        assert (
            re.fullmatch(re.escape(part[1]["input"]) + r" \d+", paired[1]["input"])
            and len(paired[1]["audio"]) == 2
        )


@needed
def test_it_is_evaluated_by_both_protocols_and_saved_like_any_model(whole, tmp_path):
    corpus, found = make_corpus(tmp_path), {}
    said = [
        "--test_file",
        str(corpus / "rows.json"),
        "--audio_dir",
        str(corpus),
        "--max_samples",
        "1",
        "--max_new_tokens",
        "4",
    ]
    for name, more in (
        ("its own", []),
        ("ours", ["--prompt_format", "audiolm", "--controls", "no_audio"]),
    ):
        folder = tmp_path / name
        evaluate(
            [
                "--model_name_or_path",
                str(whole / "v0.ckpt"),
                *said,
                "--output_dir",
                str(folder),
                *more,
            ]
        )
        found[name] = (
            json.loads((folder / "metrics.json").read_text()),
            (folder / "predictions.jsonl").read_text(),
        )
    assert found["its own"][1] != found["ours"][1]
    assert (
        found["ours"][0]["not_run"]["no_audio"]
        == "the model does not hold the mean of training's features"
    )
    assert [
        found[name][0]["settings"]["model"]["prompt_format"] for name in ("its own", "ours")
    ] == ["mellow", "audiolm"]
    model, tokenizer = load_model(str(whole))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    evaluate(
        [
            "--model_name_or_path",
            str(tmp_path / "saved"),
            *said,
            "--output_dir",
            str(tmp_path / "of saved"),
        ]
    )
    # also the same second clips
    assert (tmp_path / "of saved" / "predictions.jsonl").read_text() == found["its own"][1]


def test_what_is_not_mellow_is_one_line(tmp_path):
    torch.save({"audio_encoder.base.htsat.bn0.weight": torch.ones(64)}, tmp_path / "v0.ckpt")
    with pytest.raises(ValueError, match=r"v0\.ckpt holds 0 tensors of language model layers"):
        load_model(str(tmp_path))
    torch.save(
        {"module.caption_decoder.lm.model.layers.1000.x": torch.ones(1)}, tmp_path / "v0.ckpt"
    )
    with pytest.raises(ValueError, match="holds 1 tensors of language model layers, not 9 of each"):
        load_model(str(tmp_path))
    (tmp_path / "v0.ckpt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        load_model(str(tmp_path / "v0.ckpt"))
    with pytest.raises(ValueError, match=r"neither a folder with config.json nor a Hub name"):
        load_model(str(tmp_path / "v1.ckpt"))


def test_the_recipe_trains_all_but_the_encoder(tmp_path, tokenizer, monkeypatch):
    corpus = make_corpus(tmp_path)
    words = arguments(corpus, "htsat", tokenizer)
    kept = words.index("--text_model_name_or_path")
    words = [
        *words[kept : kept + 10],
        "--max_steps",
        "2",
        "--dataloader_num_workers",
        "0",
        "--encoder_name_or_path",
        "random",
    ]
    encoder = build_encoder(default_encoder_config("mellow", SMALL_HTSAT)).eval()
    monkeypatch.setattr("audiolm.training.train.load_encoder", lambda name, source: encoder)
    train([*words, "--recipe", "mellow"])
    model, _ = load_model(str(corpus / "out"))
    before = load_file(corpus / "text" / "model.safetensors")
    after = model.language_model.state_dict()
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    assert type(model.mapper) is MellowMapper and model.config.prompt_format == "mellow"
    assert (
        model.config.training["learning rate"] == 1e-3
        and model.config.training["language model trains"] == "all of it"
    )
    with pytest.raises(SystemExit):
        train([*words, "--recipe", "whiskey"])
    with pytest.raises(SystemExit):
        train([*words, "--recipe", "mellow", "--encoder_type", "mimi_full"])


def test_it_has_as_many_parameters_as_is_published():
    with torch.device("meta"):
        model = AudioLMForConditionalGeneration(AudioLMConfig("mellow", mapper_type="mellow"))
    count = sum(parameter.numel() for parameter in model.parameters())
    filters, unused = (
        2 * 513 * 1024 + 513 * 64,
        527 * 527 + 527,
    )  # of STFT and mel; a layer that its output does not use
    assert count + filters + unused == 167_020_951
