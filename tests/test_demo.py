"""The demo's weights are what its card says; the scripts that train them, at a few steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.recording_tables import make_table
from support.scenes import draw_clean_scene
from transformers import AutoModelForCausalLM, AutoTokenizer, MimiModel

from audiolm import AudioLMFeatureExtractor, AudioLMProcessor
from audiolm.checkpoints.encoders import load_encoder
from audiolm.checkpoints.random_weights import randomise_codebooks
from audiolm.configuration_audiolm import default_encoder_config
from audiolm.data.soundscapes.corpus import draw_corpus
from audiolm.data.soundscapes.events import CLASSES
from audiolm.data.soundscapes.scenes import draw_scene, labels, render
from audiolm.demo import train_encoders, train_text
from audiolm.encoders_audiolm import build_encoder

DEMO = Path(train_text.__file__).parent
FIGURES = {
    part: json.loads((DEMO / part / "figures.json").read_text())
    for part in ("htsat", "mimi", "text")
}


@pytest.fixture(scope="module")
def one_event():
    """160 clean, unseen scenes of one event: audio `(scenes, samples)`, and the class of each."""
    scenes = [draw_clean_scene(np.random.default_rng([7, i])) for i in range(160)]
    audio = np.stack([np.resize(render(scene), 120_000) for scene in scenes])
    return torch.from_numpy(audio), torch.tensor(
        [list(CLASSES).index(*labels(scene)) for scene in scenes]
    )


def test_shipped_weights_are_small():
    files = sorted(file.relative_to(DEMO).as_posix() for file in DEMO.glob("*/*.safetensors"))
    assert files == [
        f"{part}/model.safetensors" for part in ("htsat", "mimi", "text", "text_esc50")
    ]
    assert sum((DEMO / file).stat().st_size for file in files[:2]) <= 8_000_000
    assert (
        sum(p.numel() for p in load_encoder("htsat", str(DEMO / "htsat")).parameters()) <= 1_500_000
    )
    assert (
        sum(p.numel() for p in MimiModel.from_pretrained(DEMO / "mimi").parameters()) <= 2_000_000
    )
    assert (
        sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(DEMO / "text").parameters())
        <= 5_000_000
    )


def events_told_apart(encoder, audio, kinds) -> float:
    """Accuracy of the nearest class mean of time-averaged features. Chance is 0.05."""
    features = encoder.encode(audio).mean(1)
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-4)
    first = torch.arange(len(kinds)) % 2 == 0
    present = kinds[first].unique()
    means = torch.stack([features[first & (kinds == kind)].mean(0) for kind in present])
    right = present[torch.cdist(features[~first], means).argmin(1)] == kinds[~first]
    return float(right.float().mean())


@pytest.mark.parametrize(
    "arm", ["htsat", pytest.param("mimi_semantic", marks=pytest.mark.slow), "mimi_full"]
)
def test_shipped_encoders_tell_events_apart_that_untrained_ones_mix_up(arm, one_event):
    part = arm.split("_")[0]
    torch.manual_seed(0)
    untrained = build_encoder(
        default_encoder_config(arm, getattr(train_encoders, part.upper()))
    ).eval()
    if part == "mimi":
        randomise_codebooks(untrained)
    assert (
        events_told_apart(load_encoder(arm, str(DEMO / part)), *one_event)
        > 2 * events_told_apart(untrained, *one_event) + 0.1
    )


@pytest.mark.slow
def test_shipped_codec_reconstructs_audio(one_event):
    audio = one_event[0][:32]
    codec = MimiModel.from_pretrained(DEMO / "mimi", dtype=torch.float32)
    distance = train_encoders.codec_figures(codec, (audio * 32767).short())["spectral_distance"]
    silence = float(train_encoders.spectral_distance(torch.zeros_like(audio), audio))
    assert distance[8] < distance[2] < distance[1] < 0.7 * silence


def test_shipped_language_model_answers_what_captions_say():
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "text")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "text", dtype=torch.float32).eval()
    processor = AudioLMProcessor(AudioLMFeatureExtractor(), tokenizer)
    rows = draw_corpus(400, 123)["train"].rows
    untold = [
        {**row, "caption1": row["caption1"] and " ", "caption2": row["caption2"] and " "}
        for row in rows
    ]
    exact = [
        train_text.exact_answers(model, [train_text.build_example(processor, row) for row in some])
        for some in (rows, untold)
    ]
    assert exact[0] > exact[1] + 0.2 and abs(exact[0] - FIGURES["text"]["exact_answers"]) < 0.08


def test_card_shows_the_figures():
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    shown = FIGURES["mimi"]["spectral_distance"].values()
    text = FIGURES["text"]
    letters = [text["letters"][name] for name in ("contradictory", "by_letter", "by_words")]
    for value in (*FIGURES["htsat"].values(), *shown, text["exact_answers"], *letters):
        assert f"{value:.3f}" in card


def test_demo_config_names_what_ships():
    config = yaml.safe_load((DEMO.parent / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    assert list(config["arms"]) == ["htsat", "mimi_semantic", "mimi_full", "text_only"]
    named = [arm["encoder_name_or_path"] for arm in config["arms"].values()] + [
        config["train"]["text_model_name_or_path"]
    ]
    assert all((DEMO.parent / path / "model.safetensors").is_file() for path in named)


@pytest.mark.slow
def test_small_encoders_are_trained_and_load_as_any_checkpoint(tmp_path):
    few = ["--scenes", "16", "--unseen", "8", "--htsat_steps", "2", "--mimi_steps", "2"]
    train_encoders.main([*few, "--output", str(tmp_path)])
    htsat, mimi = (
        load_encoder("htsat", str(tmp_path / "htsat")),
        load_encoder("mimi_full", str(tmp_path / "mimi")),
    )
    codec = MimiModel.from_pretrained(tmp_path / "mimi", dtype=torch.float32)
    assert sum(p.numel() for p in htsat.parameters()) <= 1_500_000
    assert sum(p.numel() for p in codec.parameters()) <= 2_000_000 and codec.decoder is not None
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors")) <= 8_000_000
    assert (
        mimi.frame_rate == 12.5
        and mimi.num_levels == 8
        and htsat.sample_rate == mimi.sample_rate == 24000
    )
    assert htsat.num_frames(120_000) == 64 and mimi.num_frames(120_000) == 63  # tokens of 5 s
    figures = {
        part: json.loads((tmp_path / part / "figures.json").read_text())
        for part in ("htsat", "mimi")
    }
    assert (
        0 < figures["htsat"]["tagging_map"] < 1 and len(figures["mimi"]["spectral_distance"]) == 3
    )


def test_render_scenes_marks_when_each_class_sounds():
    audio, cells = train_encoders.render_scenes(0, 4)
    assert audio.shape == (4, 120_000) and cells.shape == (4, len(CLASSES), train_encoders.CELLS)
    for seed, presence in enumerate(cells):
        scene = draw_scene(np.random.default_rng([train_encoders.SCENE_SEED, seed]))
        assert {list(CLASSES)[i] for i in presence.amax(1).nonzero()[:, 0]} == labels(scene)
        for event in scene.events:
            middle = int((event.onset + event.duration / 2) / 5 * train_encoders.CELLS)
            before = int((event.onset - 0.4) / 5 * train_encoders.CELLS)
            at = presence[list(CLASSES).index(event.name)]
            assert at[middle] and (event.onset < 0.8 or not at[before])


def test_update_codebook_converges_to_the_centres_of_points():
    torch.manual_seed(0)
    model = MimiModel(train_encoders.MimiConfig(**train_encoders.MIMI))
    codebook = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    codebook.cluster_usage.zero_()
    centres = torch.randn(5, codebook.embed_sum.shape[1]) * 3
    for _ in range(300):
        points = centres[torch.randint(5, (200,))] + 0.01 * torch.randn(200, centres.shape[1])
        train_encoders.update_codebook(codebook, points, codebook.encode(points))
    assert (codebook.decode(codebook.encode(centres)) - centres).abs().max() < 0.1


def test_train_text_goes_on_from_the_demos_model_with_esc50s_classes(tmp_path):
    make_table(tmp_path / "esc50", ["hen", "toilet flush", "crow", "sneezing", "door knock"])
    (tmp_path / "esc50" / "meta").mkdir()
    (tmp_path / "esc50" / "table.csv").rename(tmp_path / "esc50" / "meta" / "esc50.csv")
    small = ["--rows", "200", "--steps", "16", "--output", str(tmp_path / "text")]
    start = ["--start_from", str(DEMO / "text")]
    train_text.main([*start, "--esc50", str(tmp_path / "esc50"), *small])
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (DEMO / "text", tmp_path / "text")
    )
    assert before.keys() == after.keys()
    distances = [(after[name] - before[name]).abs().max().item() for name in before]
    assert 0 < max(distances) < 0.5


def test_train_text_saves_a_model_and_tokenizer_that_load(tmp_path):
    train_text.main(["--rows", "800", "--steps", "16", "--output", str(tmp_path)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) <= 5_000_000
    processor = AudioLMProcessor(AudioLMFeatureExtractor(), AutoTokenizer.from_pretrained(tmp_path))
    assert processor.tokenizer.convert_tokens_to_ids("<audio>") == processor.audio_token_id == 3
    row = next(row for row in draw_corpus(40, 1)["train"].rows if row["filepath2"])
    ids, labels = train_text.build_example(processor, row)
    text = processor.tokenizer.decode(ids)
    assert (
        row["caption1"] in text
        and row["caption2"] in text
        and row["input"] in text
        and "<audio>" not in text
    )
    answer = [token for token in labels if token != -100]
    assert (
        processor.tokenizer.decode(answer) == f" {row['answer']}<|im_end|>"
        and ids[-len(answer) :] == answer
    )
