"""The example of docs/extending.md: added to a copy of the package, trained, loaded elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.builders import arguments
from transformers import Wav2Vec2Config, Wav2Vec2Model

ROOT = Path(__file__).parents[1]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_feat_extract_layers": 7,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}

# a padded clip gives what it gives alone, and as many frames as are said
ALONE = """
import sys, torch
from audiolm import load_encoder
encoder = load_encoder("wav2vec2", sys.argv[1])
assert (encoder.dim, encoder.sample_rate, encoder.frame_rate) == (16, 16000, 12.5)
assert encoder.num_frames(160_000) == 125
audio, lengths = torch.randn(3, 16000, generator=torch.Generator().manual_seed(0)), [16000, 1280, 1]
made = encoder.encode(audio, lengths)
for row, clip, length in zip(made, audio, lengths):
    alone = encoder.encode(clip[None, :length])[0]
    assert len(alone) == encoder.num_frames(length)
    assert (row[: len(alone)] == alone).all()
    assert not row[len(alone):].any()
assert made[0].std() > 0.1
"""
LOADED = """
import sys, torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
samples = torch.sin(torch.arange(30000) / 9).numpy()
inputs = processor(text="Which tone? A) low B) high", audio=[(samples, 24000)])
assert (inputs["input_ids"] == model.config.audio_token_id).sum() == 16
assert "audiolm" not in sys.modules
assert torch.isfinite(model(**inputs).logits).all()
assert type(model.encoder).__name__ == "Wav2Vec2Encoder"
"""


@pytest.fixture
def extended(tmp_path):
    """A folder with the package, to which both pieces of the document are added."""
    package = tmp_path / "extended" / "audiolm"
    for part in ("configs", "data", "evaluation", "demo"):
        shutil.copytree(
            ROOT / part,
            package / part,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
        )
    for file in ROOT.glob("*.py"):
        shutil.copyfile(file, package / file.name)
    document = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    encoder, arm = re.findall(r"```python\n(.*?)```", document, re.S)
    for name, piece in (("encoders_audiolm.py", encoder), ("configuration_audiolm.py", arm)):
        file = package / name
        text = file.read_text(encoding="utf-8")
        start = text.index("\nfrom ")
        more = "\nimport math" if "math." in piece else ""
        file.write_text(f"{text[:start]}{more}{text[start:]}\n\n{piece}", encoding="utf-8")
    return package.parent


def test_the_worked_example_of_an_encoder(extended, corpus, tokenizer):
    def python(*argv):
        environment = {**os.environ, "PYTHONPATH": str(extended)}
        done = subprocess.run(
            [sys.executable, *argv], env=environment, cwd=extended, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert (
        python("-c", "import audiolm; print(audiolm.__file__)")
        == f"{extended}/audiolm/__init__.py\n"
    )
    argv = arguments(
        corpus, "mimi_full", tokenizer, "--max_steps", "2", "--feature_cache", str(corpus / "cache")
    )
    Wav2Vec2Model(Wav2Vec2Config(**SMALL)).save_pretrained(corpus / "wav2vec2")
    python("-c", ALONE, str(corpus / "wav2vec2"))
    more = ["--encoder_type", "wav2vec2", "--encoder_name_or_path", str(corpus / "wav2vec2")]
    assert "wav2vec2" in python("-m", "audiolm.run_train", *argv, *more)
    python("-c", LOADED, str(corpus / "out"))
