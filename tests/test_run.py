"""run_train.py and run_eval.py from end to end, with small models in the real checkpoint formats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from conftest import clip, small_model

from audiolm import AudioLMForConditionalGeneration
from audiolm.run_eval import main as evaluate
from audiolm.run_train import checkpoint_to_resume, parse
from audiolm.run_train import main as train

MCQ = {"input": "Which tone? A) low B) high", "subtype": "T-MCQ.json"}
YES_NO = {"input": "Is it low? Answer only using yes or no.", "subtype": "TAQA.json"}


@pytest.fixture
def corpus(tmp_path):
    rows = []
    for i in range(16):
        soundfile.write(tmp_path / f"{i}.wav", clip(0.5 + i / 20, seed=i % 2 * 9), 24000)
        answer = {"answer": "B) high" if i % 2 else "A) low"} if i < 8 else {"answer": "no" if i % 2 else "yes"}
        empty = {k: "" for k in ("taskname", "filepath2", "caption1", "caption2")}
        rows.append({**empty, "filepath1": f"{i}.wav", **(MCQ if i < 8 else YES_NO), **answer})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def arguments(corpus, arm, tokenizer, *more):
    model = small_model(arm)
    model.encoder.model.save_pretrained(corpus / "encoder")
    model.language_model.save_pretrained(corpus / "text")
    tokenizer.save_pretrained(corpus / "text")
    if arm == "htsat":  # LAION's front end, its window short here
        front = {"sampling_rate": 48000, "fft_window_size": 1024, "hop_length": 480, "max_length_s": 1,
                 "frequency_min": 50, "frequency_max": 14000}  # fmt: skip
        (corpus / "encoder" / "preprocessor_config.json").write_text(json.dumps(front))
    return ["--encoder_type", arm, "--encoder_name_or_path", str(corpus / "encoder"),
            "--text_model_name_or_path", str(corpus / "text"), "--train_file", str(corpus / "rows.json"),
            "--validation_file", str(corpus / "rows.json"), "--audio_dir", str(corpus), "--output_dir", str(corpus / "out"),
            "--max_steps", "20", "--learning_rate", "0.01", "--logging_steps", "1", "--dataloader_num_workers", "0",
            "--freeze_lm", "false", "--eval_steps", "10", *more]  # fmt: skip


@pytest.mark.parametrize("arm", ["htsat", "mimi_full"])
def test_train_then_evaluate(arm, corpus, tokenizer, capsys):
    train(arguments(corpus, arm, tokenizer))
    assert "yes_no loss" in capsys.readouterr().out
    log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 20 and float(losses[-1]) < 0.7 * float(losses[0])
    loaded = AudioLMForConditionalGeneration.from_pretrained(corpus / "out")
    assert (loaded.mapper.feature_std > 0).any() and not torch.equal(loaded.mapper.feature_std, torch.ones(loaded.encoder.dim))
    written = []
    for name in ("a", "b"):
        evaluate(["--model_name_or_path", str(corpus / "out"), "--test_file", str(corpus / "rows.json"),
                  "--audio_dir", str(corpus), "--output_dir", str(corpus / name), "--batch_size", "5"])  # fmt: skip
        written.append([(corpus / name / f).read_bytes() for f in ("predictions.jsonl", "metrics.json")])
    assert written[0] == written[1]
    assert "all (micro)" in capsys.readouterr().out
    metrics = json.loads(written[0][1])
    assert metrics["question_type"]["mcq"]["n"] == 8 and metrics["micro"]["n"] == 16


def test_bad_audio_stops_or_is_skipped(corpus, tokenizer, capsys):
    (corpus / "3.wav").write_bytes(b"")
    options = arguments(corpus, "mimi_semantic", tokenizer, "--max_steps", "1")
    with pytest.raises(SystemExit, match="1 audio files cannot be used"):
        train(options)
    assert "3.wav\tempty file" in (corpus / "out" / "bad_audio.txt").read_text()
    train([*options, "--on_bad_audio", "skip"])


def test_arguments(tmp_path, capsys):
    _, _, args = parse(["--per_device_train_batch_size", "4"])
    assert (args.gradient_accumulation_steps, args.max_steps, args.learning_rate) == (4, 20000, 1e-4)
    (tmp_path / "c.yaml").write_text("encoder_type: mimi_full\nlearning_rate: 0.1\n")
    model, data, args = parse(["--config", str(tmp_path / "c.yaml"), "--learning_rate", "0.2"])
    assert (model.encoder_type, args.learning_rate, data.max_audio_seconds) == ("mimi_full", 0.2, 10.0)
    (tmp_path / "c.yaml").write_text("learning_speed: 1\n")
    wrongs = {
        "do not divide": ["--per_device_train_batch_size", "5"],
        "none of htsat": ["--encoder_type", "x"],
        "unrecognized": ["--no_such_flag"],
        "learning_speed": ["--config", str(tmp_path / "c.yaml")],
    }
    for message, wrong in wrongs.items():
        with pytest.raises(SystemExit):
            parse(wrong)
        assert message in capsys.readouterr().err
    _, _, args = parse(["--push_to_hub", "--hub_model_id", "me/x", "--hub_strategy", "every_save"])
    assert args.push_to_hub and (args.hub_model_id, args.hub_strategy) == ("me/x", "every_save")


def weights(folder) -> dict:
    return AudioLMForConditionalGeneration.from_pretrained(folder).state_dict()


def test_the_batch_size_does_not_matter(corpus, tokenizer):
    """16 rows at once, 4 at a time, or 8 in each of two processes: the same step."""
    options = arguments(corpus, "mimi_full", tokenizer, "--max_steps", "2", "--eval_strategy", "no", "--learning_rate", "0.001")
    found = []
    for size in ("16", "4"):
        train([*options, "--per_device_train_batch_size", size])
        found.append(weights(corpus / "out"))
    script = str(Path(__file__).parents[1] / "run_train.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0"]
    run = subprocess.run([*launch, script, *options], capture_output=True, text=True, cwd=corpus, env={**os.environ})
    assert run.returncode == 0, run.stderr[-3000:]
    found.append(weights(corpus / "out"))
    for other in found[1:]:
        for key, value in found[0].items():
            assert torch.allclose(value.float(), other[key].float(), atol=2e-5), key


def test_resume(corpus, tokenizer, capsys):
    options = arguments(corpus, "mimi_semantic", tokenizer, "--max_steps", "4", "--save_steps", "2", "--eval_strategy", "no")
    train(options)
    expected = weights(corpus / "out")
    for file in (corpus / "out" / "checkpoint-4").iterdir():
        file.unlink()
    (corpus / "out" / "checkpoint-4").rmdir()
    assert checkpoint_to_resume("True", str(corpus / "out")) == str(corpus / "out" / "checkpoint-2")
    train([*options, "--resume_from_checkpoint", "True"])
    assert all(torch.equal(value, expected[key]) for key, value in weights(corpus / "out").items())
    for name in ("model.safetensors", "optimizer.pt"):
        file = corpus / "out" / "checkpoint-2" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(SystemExit):
            train([*options, "--resume_from_checkpoint", str(file.parent)])
        assert f"{name} is missing or torn" in capsys.readouterr().err
        file.unlink()
        (file.parent / "model.safetensors").write_bytes((corpus / "out" / "model.safetensors").read_bytes())
    with pytest.raises(SystemExit):
        parse(["--resume_from_checkpoint", "true", "--output_dir", str(corpus / "nothing")])
    assert "holds no checkpoint" in capsys.readouterr().err


def test_evaluation_of_a_wrong_path_is_one_line(corpus):
    with pytest.raises(SystemExit, match=r"run_eval.py: .* is neither a folder with config.json nor a Hub name"):
        evaluate(["--model_name_or_path", str(corpus), "--test_file", "x", "--audio_dir", "y", "--output_dir", "z"])


def test_import_is_light():
    code = """
import sys, time
start = time.perf_counter()
import audiolm
assert time.perf_counter() - start < 1 and "torch" not in sys.modules
import audiolm.run_eval, audiolm.run_train
assert not {"msclap", "moshi", "librosa"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
