"""Encoders in a file of their own: the example of docs/extending.md, and those of examples/."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.builders import arguments, run
from support.hub_server import Hub
from transformers import Wav2Vec2Config, Wav2Vec2Model

from audiolm import load_encoder, run_compare, run_eval, run_train
from audiolm.ask import cli as ask
from audiolm.checkpoints.check_encoder import (
    CheckError,
    check_encoder,
    check_frame_counts,
    check_padding,
    check_precision,
)
from audiolm.checkpoints.check_encoder import main as check_main
from audiolm.evaluation import probe_command
from audiolm.runtime import UserError

ROOT = Path(__file__).parents[1]
ENCODERS = ROOT / "examples" / "encoders"
REAL = ROOT.parent / "shared" / "data" / "real_encoders"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the weights of real_encoders are not beside the checkout"
)
NAME = "wav2vec2_example.py:Wav2Vec2"
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
LOADED = """
import sys, torch
from transformers import AutoModel, AutoProcessor
# The processor first: it must find the encoder without the model.
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
samples = torch.sin(torch.arange(30000) / 9).numpy()
inputs = processor(text="Which tone? A) low B) high", audio=[(samples, 24000)])
assert (inputs["input_ids"] == model.config.audio_token_id).sum() == 16
assert "audiolm" not in sys.modules
assert torch.isfinite(model(**inputs).logits).all()
assert type(model.encoder).__name__ == "Wav2Vec2"
"""
BROKEN = '''
import torch
from transformers import PreTrainedConfig
from audiolm.encoders_audiolm import FramedEncoder


class Means(FramedEncoder):
    """Means of 100 samples."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.dim, self.sample_rate, self.frame_size, self.frame_rate = 1, 8000, 100, 80.0

    def _encode(self, waveform, num_samples):
        frames = self.scale * self.fill_frames(waveform, num_samples).unflatten(1, (-1, 100))
        return self.mask_padding_frames(frames.mean(2, keepdim=True), num_samples)


class Width(PreTrainedConfig):
    model_type = "test_width"
    width: int = 3


class Configured(Means):
    config_class = Width

    def __init__(self, config):
        super().__init__(config)
        self.dim = config.width

    def _encode(self, waveform, num_samples):
        return super()._encode(waveform, num_samples).repeat(1, 1, self.dim)


class ReadsPadding(Means):
    def fill_frames(self, waveform, num_samples):
        return torch.nn.functional.pad(waveform, (0, -waveform.shape[1] % 100))


class Miscounts(Means):
    def _encode(self, waveform, num_samples):
        return super()._encode(waveform, num_samples)[:, 1:]


class LosesBuffer(Means):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("window", torch.ones(3), persistent=False)


class Rounds(Means):
    def encode(self, waveform, num_samples=None):
        with torch.no_grad():
            return self._encode(waveform, num_samples or [waveform.shape[1]] * len(waveform))

    def _encode(self, waveform, num_samples):
        frames = super()._encode(waveform, num_samples)
        return (frames.flatten(0, 1) @ torch.ones(1, 1)).view(frames.shape).float()
'''


def python(folder, *argv, success=True):
    environment = {**os.environ, "HF_HOME": str(folder / "home")}
    process = subprocess.run(
        [sys.executable, *argv], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert (process.returncode == 0) == success, process.stderr[-3000:]
    return process.stdout + process.stderr


@pytest.fixture
def example(tmp_path):
    """The file of the document. Its small weights are in the folder `wav2vec2` beside it."""
    document = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", document, re.S)
    file = tmp_path / "wav2vec2_example.py"
    file.write_text(code, encoding="utf-8")
    Wav2Vec2Model(Wav2Vec2Config(**SMALL)).save_pretrained(tmp_path / "wav2vec2")
    return file


@pytest.fixture
def trained(example, corpus, tokenizer):
    """A folder with the document's file and a model that was trained with it."""
    argv = arguments(corpus, "mimi_full", tokenizer, "--max_steps", "2", "--save_steps", "2")
    weights = ["--encoder_name_or_path", str(corpus / "wav2vec2")]
    argv += ["--encoder_type", NAME, *weights, "--feature_cache", str(corpus / "cache")]
    return corpus, argv


def test_the_documents_file_passes_linter_and_formatter(example):
    for command in (["check"], ["format", "--check"]):
        options = ["--config", str(ROOT / "pyproject.toml"), str(example)]
        python(example.parent, "-m", "ruff", *command, *options)


def test_the_documents_file_passes_check_encoder(example, capsys):
    assert check_encoder(f"{example}:Wav2Vec2", str(example.parent / "wav2vec2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["ok"] * 7


def test_file_encoder_trains_evaluates_answers_and_probes(trained, monkeypatch, capsys):
    folder, argv = trained
    monkeypatch.chdir(folder)
    run_train.main(argv)
    assert NAME in capsys.readouterr().out
    config = (folder / "out" / "config.json").read_text()
    assert json.loads(config)["encoder_type"] == NAME
    assert str(folder) not in config
    del sys.modules["audiolm.wav2vec2_example"]  # as in another process
    question = ["0.wav", "Which tone? A) low B) high", "--model", "out"]
    with pytest.raises(SystemExit, match="--trust_remote_code"):
        ask.main(question)
    ask.main([*question, "--trust_remote_code"])
    assert capsys.readouterr().out.startswith(("A) low", "B) high", "low", "high"))
    evaluation = ["--model_name_or_path", "out", "--test_file", "rows.json", "--audio_dir", "."]
    evaluation += ["--output_dir", "scores", "--feature_cache", "cache"]
    run_eval.main([*evaluation, "--trust_remote_code"])
    assert json.loads((folder / "scores" / "metrics.json").read_text())
    rows = [f"{i}.wav,{('low', 'high')[i % 2]},{i // 8}" for i in range(16)]
    (folder / "labels.csv").write_text("\n".join(["filename,label,fold", *rows]))
    probe = ["--encoder_type", f"{folder}/{NAME}", "--encoder_name_or_path", "wav2vec2"]
    probe += ["--labels", "labels.csv", "--audio_dir", ".", "--output_dir", "probes"]
    probe_command.main(probe)
    assert NAME in (folder / "probes" / "probes.json").read_text()


def test_comparison_of_folders_runs_the_file_if_it_is_trusted(trained, monkeypatch):
    folder, argv = trained
    monkeypatch.chdir(folder)
    run_train.main(argv)
    data = ["--test_file", "rows.json", "--audio_dir", "."]
    run_eval.main(["--model_name_or_path", "out", *data, "--output_dir", "out/evaluation"])
    del sys.modules["audiolm.wav2vec2_example"]  # as in another process
    folders = ["--evaluations", "a=out/evaluation", "b=out/evaluation", "--output_dir", "compared"]
    with pytest.raises(SystemExit, match="--trust_remote_code"):
        run_compare.main(folders)
    run_compare.main([*folders, "--trust_remote_code"])
    arms = json.loads((folder / "compared" / "comparison.json").read_text())["arms"]
    assert arms["a"]["tokens_per_clip"] > 0


def test_lmms_eval_runs_the_file_if_it_is_trusted(trained, monkeypatch):
    if not os.environ.get("CI"):  # CI installs all extras
        pytest.importorskip("lmms_eval", reason="the extra lmms-eval is not installed")
    from audiolm.evaluation.lmms_eval_adapter import LmmsEvalModel

    folder, argv = trained
    monkeypatch.chdir(folder)
    run_train.main(argv)
    del sys.modules["audiolm.wav2vec2_example"]  # as in another process
    with pytest.raises(UserError, match="--trust_remote_code"):
        LmmsEvalModel("out", device="cpu")
    model = LmmsEvalModel("out", device="cpu", trust_remote_code=True).model
    assert model.config.encoder_type == NAME


def test_pushed_file_encoder_loads_elsewhere(trained, tmp_path_factory):
    folder, argv = trained
    push = ["--push_to_hub", "--hub_model_id", "me/file", "--eval_strategy", "no"]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with Hub(elsewhere / "hub") as hub:
        argv[argv.index(NAME)] = str(folder / NAME)
        process = run(hub, "-m", "audiolm", "train", *argv, *push)
        assert process.returncode == 0, process.stderr[-3000:]
        assert "wav2vec2_example.py" in hub.files("me/file")
        assert "Apache-2.0" in hub.read("me/file", "README.md").decode()
        loaded = run(hub, "-c", LOADED, "me/file", home="other_home")
        assert loaded.returncode == 0, loaded.stderr[-3000:]
    python(elsewhere, "-c", LOADED, str(folder / "out"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    file = tmp_path_factory.mktemp("broken") / "test_encoders.py"
    file.write_text(BROKEN, encoding="utf-8")
    return file


def test_check_encoder_passes_an_encoder_with_its_own_configuration_class(broken):
    with pytest.warns(UserWarning, match="RANDOM"):
        assert check_encoder(f"{broken}:Configured", "random") == 0


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("ReadsPadding", check_padding, "other features in a padded batch"),
        ("Miscounts", check_frame_counts, "num_frames says"),
        ("Rounds", check_precision, "other features under autocast"),
    ],
)
def test_check_of_a_broken_encoder_says_what_is_wrong(name, check, message, broken):
    with pytest.warns(UserWarning, match="RANDOM"):
        encoder = load_encoder(f"{broken}:{name}", "random")
    with pytest.raises(CheckError, match=message):
        check(encoder)


def test_check_encoder_prints_failures_and_exits_with_status_1(broken, capsys):
    argv = [f"{broken}:LosesBuffer", "--encoder_name_or_path", "random"]
    with pytest.warns(UserWarning, match="RANDOM"), pytest.raises(SystemExit) as stop:
        check_main(argv)
    assert stop.value.code == 1
    failures = [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]
    assert len(failures) == 1
    assert "the encoder's buffer window is not persistent" in failures[0]


@needs_real
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("efficient_at.py:EfficientAT", "mn04_as_mAP_432.pt"),
        ("lyra_v2.py:LyraV2Levels8", "lyra_v2.safetensors"),
        ("lyra_v2.py:LyraV2Latents", "lyra_v2.safetensors"),
    ],
)
def test_real_encoders_pass_check_encoder(name, weights):
    assert check_encoder(str(ENCODERS / name), str(REAL / weights)) == 0


@needs_real
def test_lyras_first_codebook_holds_a_part_of_all_codes():
    audio = 0.3 * torch.sin(torch.arange(16000) * torch.tensor([[0.1], [0.2]]))
    names = ("LyraV2Levels1", "LyraV2Levels8", "LyraV2", "LyraV2Latents")
    encoders = [
        load_encoder(f"{ENCODERS}/lyra_v2.py:{name}", str(REAL / "lyra_v2.safetensors"))
        for name in names
    ]
    first, eight, every, latents = [encoder.encode(audio) for encoder in encoders]
    errors = [(features - latents).square().mean().item() for features in (first, eight, every)]
    assert errors[0] > errors[1] > errors[2] > 0
    codes = [encoder.codes(audio).unflatten(1, (4, -1)) for encoder in encoders[:3]]
    assert [part.shape[2] for part in codes] == [1, 8, 46]
    assert torch.equal(codes[0], codes[2][:, :, :1])
