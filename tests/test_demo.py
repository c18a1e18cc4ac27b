"""The scripts that train the demo's small encoders and language model, at a few steps."""

import json

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MimiModel

from audiolm import AudioLMFeatureExtractor, AudioLMProcessor
from audiolm.data.sound_events import CLASSES
from audiolm.data.soundscapes import draw_corpus
from audiolm.data.synthesis import draw_scene, labels
from audiolm.demo import train_encoders, train_text
from audiolm.encoder_checkpoints import load_encoder


def test_small_encoders_are_trained_and_load_as_any_checkpoint(tmp_path):
    few = ["--scenes", "16", "--unseen", "8", "--htsat_steps", "2", "--mimi_steps", "2"]
    train_encoders.main([*few, "--output", str(tmp_path)])
    htsat, mimi = load_encoder("htsat", str(tmp_path / "htsat")), load_encoder("mimi_full", str(tmp_path / "mimi"))
    codec = MimiModel.from_pretrained(tmp_path / "mimi", dtype=torch.float32)
    assert sum(p.numel() for p in htsat.parameters()) <= 1_500_000
    assert sum(p.numel() for p in codec.parameters()) <= 2_000_000 and codec.decoder is not None
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors")) <= 8_000_000
    assert mimi.frame_rate == 12.5 and mimi.num_levels == 8 and htsat.sample_rate == mimi.sample_rate == 24000
    assert htsat.num_frames(120_000) == 64 and mimi.num_frames(120_000) == 63  # tokens of 5 s
    figures = {part: json.loads((tmp_path / part / "figures.json").read_text()) for part in ("htsat", "mimi")}
    assert 0 < figures["htsat"]["tagging_map"] < 1 and len(figures["mimi"]["spectral_distance"]) == 8


def test_scenes_say_what_is_heard_when():
    audio, cells = train_encoders.scenes(0, 4)
    assert audio.shape == (4, 120_000) and cells.shape == (4, len(CLASSES), train_encoders.CELLS)
    for seed, heard in enumerate(cells):
        scene = draw_scene(np.random.default_rng([train_encoders.SCENE_SEED, seed]))
        assert {list(CLASSES)[i] for i in heard.amax(1).nonzero()[:, 0]} == labels(scene)
        for event in scene.events:
            middle = int((event.onset + event.duration / 2) / 5 * train_encoders.CELLS)
            before = int((event.onset - 0.4) / 5 * train_encoders.CELLS)
            at = heard[list(CLASSES).index(event.name)]
            assert at[middle] and (event.onset < 0.8 or not at[before])


def test_mean_average_precision_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.3]])
    present = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert abs(train_encoders.mean_average_precision(scores, present) - ((1 + 2 / 3) / 2 + 1 / 3) / 2) < 1e-6


def test_a_codebook_follows_its_points():
    torch.manual_seed(0)
    model = MimiModel(train_encoders.MimiConfig(**train_encoders.MIMI))
    codebook = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    codebook.cluster_usage.zero_()
    centres = torch.randn(5, codebook.embed_sum.shape[1]) * 3
    for _ in range(300):
        points = centres[torch.randint(5, (200,))] + 0.01 * torch.randn(200, centres.shape[1])
        train_encoders.follow(codebook, points, codebook.encode(points), 0.99)
    assert (codebook.decode(codebook.encode(centres)) - centres).abs().max() < 0.1


def test_small_language_model(tmp_path):
    train_text.main(["--rows", "800", "--steps", "16", "--output", str(tmp_path)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) <= 5_000_000
    processor = AudioLMProcessor(AudioLMFeatureExtractor(), AutoTokenizer.from_pretrained(tmp_path))
    assert processor.tokenizer.convert_tokens_to_ids("<audio>") == processor.audio_token_id == 3
    row = next(row for row in draw_corpus(40, 1)["train"].rows if row["filepath2"])
    ids, labels = train_text.example(processor, row)
    text = processor.tokenizer.decode(ids)
    assert row["caption1"] in text and row["caption2"] in text and row["input"] in text and "<audio>" not in text
    answer = [token for token in labels if token != -100]
    assert processor.tokenizer.decode(answer) == f" {row['answer']}<|im_end|>" and ids[-len(answer) :] == answer
