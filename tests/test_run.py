"""run_train.py and run_eval.py from end to end, with small models in the real checkpoint formats."""

import json
import subprocess
import sys

import pytest
import soundfile
import torch
from conftest import clip, small_model

from audiolm import AudioLMForConditionalGeneration
from audiolm.run_eval import main as evaluate
from audiolm.run_train import main as train
from audiolm.run_train import parse

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


def test_import_is_light():
    code = "import sys, audiolm; assert 'torch' not in sys.modules; import audiolm.run_eval as r, audiolm.run_train; " \
           "assert not {'msclap', 'moshi'} & set(sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
