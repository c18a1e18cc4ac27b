"""Mellow: its published numbers and prompts, and that it is used like any other model."""

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
from audiolm.data.reasonaqa import load_rows
from audiolm.data.second_clips import first_clips, second_clips
from audiolm.encoders_audiolm import build_encoder
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.modeling_audiolm import MellowMapper
from audiolm.run_train import main as train
from audiolm.runtime import UserError

REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "mellow_reference"
needed = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="../shared/data/mellow_reference not found"
)


def draw_weights(layout: dict) -> dict[str, torch.Tensor]:
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
    state = draw_weights(json.loads((REFERENCE / "layout.json").read_text())["layout"])
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "v0.ckpt")
    return folder / "v0.ckpt"


@needed
@torch.no_grad()
def test_mellow_equals_the_published_code(checkpoint, monkeypatch):
    monkeypatch.setattr(
        "audiolm.checkpoints.mellow.AutoTokenizer.from_pretrained",
        lambda *args, **options: FakeTokenizer(),
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
    mapped = model.get_audio_features(input_features=features).pooler_output
    prefix = model.merge_audio_embeddings(model.get_input_embeddings()(ids), mapped, ids, at)
    assert np.abs(prefix[0].numpy() - expected["prefix"]).max() <= 1e-3
    logits = model(inputs_embeds=prefix).logits[0, -1].numpy()
    assert np.abs(logits - expected["logits_last"]).max() <= 1e-2
    generated = model.generate(
        inputs_embeds=prefix, max_new_tokens=8, do_sample=False, suppress_tokens=None
    )
    assert generated[0].tolist() == expected["greedy"].tolist()


class FakeTokenizer:
    def convert_ids_to_tokens(self, number):
        return "<|endoftext|>"


@pytest.fixture(scope="module")
def mellow_folder(checkpoint, tokenizer):
    """A folder with the checkpoint and a tokenizer, here the tests' small one."""
    tokenizer.save_pretrained(checkpoint.parent)
    return checkpoint.parent


@needed
def test_mellow_prompts_have_two_clips_and_129_tokens(mellow_folder):
    model, tokenizer = load_model(str(mellow_folder))
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    (short, long) = processor.encode_prompts(
        [" Which TONE? A) low ", "x" * 500], [[129, 129], [129, 129]]
    )
    audio, mark = (
        [model.config.audio_token_id] * 129,
        tokenizer("!", add_special_tokens=False).input_ids,
    )
    assert short[:260] == long[:260] == [*audio, 0, *audio, 0]
    assert len(short) == len(long) == 389
    question = tokenizer("which tone? a) low", add_special_tokens=False).input_ids
    assert short[260:] == question + mark * (129 - len(question))
    assert processor.encode_answers([" B) High "]) == [
        [*tokenizer("b) high", add_special_tokens=False).input_ids, 0]
    ]
    with pytest.raises(ValueError, match="about two clips, not 1"):
        processor.encode_prompts(["?"], [[129]])


@needed
@pytest.mark.parametrize("num_samples", [1600, 320000])
def test_mellow_num_frames_of_any_clip_is_129(mellow_folder, num_samples):
    model, _ = load_model(str(mellow_folder))
    assert model.encoder.num_frames(num_samples) == 129


@pytest.fixture
def rows(tmp_path):
    corpus = make_corpus(tmp_path)
    return load_rows({"test": corpus / "rows.json"}, str(corpus))["test"]


def test_second_clips_adds_another_clip_to_each_row(rows):
    paired = second_clips(rows, 0)["audio"]
    assert [clips[0] for clips in paired] == [clips[0] for clips in rows["audio"]]
    assert {len(set(clips)) for clips in paired} == {2}


def test_second_clips_depend_on_the_seed_alone(rows):
    paired = second_clips(rows, 0)["audio"]
    assert paired == second_clips(rows, 0)["audio"]
    assert paired != second_clips(rows, 1)["audio"]
    assert second_clips(rows.select(range(15, -1, -1)), 0)["audio"] == paired[::-1]


def test_second_clips_of_a_single_row_need_others(rows):
    with pytest.raises(ValueError, match="only one clip"):
        second_clips(rows.select([0]), 0)
    paired = second_clips(rows.select([0]), 0, first_clips(rows))["audio"]
    assert len(set(paired[0])) == 2


@pytest.mark.parametrize("indices", [range(16), range(2, 9)])
def test_second_clips_of_transformed_rows_are_transformed_once(rows, indices):
    counter = iter(range(10**6))

    def number_questions(batch):
        if "input" not in batch:
            return batch
        return {**batch, "input": [f"{text} {next(counter)}" for text in batch["input"]]}

    part = rows.select(indices)
    paired = second_clips(part.with_transform(number_questions), 0)
    assert re.fullmatch(re.escape(part[1]["input"]) + r" \d+", paired[1]["input"])
    assert len(paired[1]["audio"]) == 2


@needed
def test_mellow_is_evaluated_with_both_prompts_and_after_saving(mellow_folder, tmp_path):
    corpus = make_corpus(tmp_path)
    results = {}
    runs = {
        "mellow": [str(mellow_folder / "v0.ckpt")],
        "audiolm": [
            str(mellow_folder / "v0.ckpt"),
            *["--prompt_format", "audiolm", "--controls", "no_audio"],
        ],
        "saved": [str(tmp_path / "saved_model")],
    }
    model, tokenizer = load_model(str(mellow_folder))
    model.save_pretrained(tmp_path / "saved_model")
    tokenizer.save_pretrained(tmp_path / "saved_model")
    for name, options in runs.items():
        folder = tmp_path / name
        argv = ["--test_file", str(corpus / "rows.json"), "--audio_dir", str(corpus)]
        argv += ["--max_samples", "1", "--max_new_tokens", "4", "--output_dir", str(folder)]
        evaluate(["--model_name_or_path", *options, *argv])
        metrics = json.loads((folder / "metrics.json").read_text())
        results[name] = (metrics, (folder / "predictions.jsonl").read_text())
    metrics, predictions = results["audiolm"]
    assert predictions != results["mellow"][1]
    reason = "the model does not hold the mean of training's features"
    assert metrics["not_run"]["no_audio"] == reason
    assert metrics["settings"]["model"]["prompt_format"] == "audiolm"
    assert results["mellow"][0]["settings"]["model"]["prompt_format"] == "mellow"
    # Also the second clips are the same.
    assert results["saved"][1] == results["mellow"][1]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"audio_encoder.base.htsat.bn0.weight": torch.ones(64)},
            r"v0\.ckpt is not Mellow: no layers",
        ),
        (
            {"module.caption_decoder.lm.model.layers.1000.x": torch.ones(1)},
            "does not fit: .* Missing key",
        ),
    ],
)
def test_load_model_of_a_checkpoint_that_is_not_mellow_is_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "v0.ckpt")
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path))


def test_load_model_of_an_incomplete_mellow_checkpoint_is_refused(tmp_path):
    (tmp_path / "v0.ckpt").write_bytes(b"PK\x03\x04 incomplete")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        load_model(str(tmp_path / "v0.ckpt"))


def test_load_model_of_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"v1.ckpt is neither a folder"):
        load_model(str(tmp_path / "v1.ckpt"))


def test_mellow_recipe_trains_all_but_the_encoder(tmp_path, tokenizer, monkeypatch):
    corpus = make_corpus(tmp_path)
    argv = arguments(corpus, "htsat", tokenizer)
    first = argv.index("--text_model_name_or_path")
    argv = argv[first : first + 10]
    argv += ["--max_steps", "2", "--dataloader_num_workers", "0"]
    argv += ["--encoder_name_or_path", "random"]
    encoder = build_encoder(default_encoder_config("mellow", SMALL_HTSAT)).eval()
    monkeypatch.setattr("audiolm.training.build.load_encoder", lambda name, source: encoder)
    train([*argv, "--config", "mellow"])
    model, _ = load_model(str(corpus / "out"))
    before = load_file(corpus / "text" / "model.safetensors")
    after = model.language_model.state_dict()
    assert not torch.equal(after["model.norm.weight"], before["model.norm.weight"])
    assert type(model.mapper) is MellowMapper
    assert model.config.prompt_format == "mellow"
    assert model.config.training["learning rate"] == 1e-3
    assert model.config.training["language model trains"] == "all of it"


def test_mellow_recipe_that_is_contradicted_is_refused(tmp_path, tokenizer):
    corpus = make_corpus(tmp_path)
    with pytest.raises(SystemExit):
        train([*arguments(corpus, "mimi_full", tokenizer), "--config", "mellow"])


def test_mellow_has_as_many_parameters_as_published():
    with torch.device("meta"):
        model = AudioLMForConditionalGeneration(AudioLMConfig("mellow", mapper_type="mellow"))
    count = sum(parameter.numel() for parameter in model.parameters())
    filters, unused = (
        2 * 513 * 1024 + 513 * 64,
        527 * 527 + 527,
    )  # of STFT and mel; a layer that its output does not use
    assert count + filters + unused == 167_020_951
