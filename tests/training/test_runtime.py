"""`run_info.json` of checkpoints and results: enough to make a run again, and no secrets."""

import json
import shlex
from importlib.metadata import version

import pytest
from support.builders import arguments

from audiolm.evaluation.evaluate import main as evaluate
from audiolm.runtime import RUN_INFO_FILE, remove_secrets, run_info
from audiolm.training.callbacks import format_log_line
from audiolm.training.train import main as train


def test_every_checkpoint_and_result_says_how_it_was_made(corpus, tokenizer):
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--eval_strategy",
        "no",
    )
    train(words)
    evaluate(
        asked := [
            "--model_name_or_path",
            str(corpus / "out"),
            "--test_file",
            str(corpus / "rows.json"),
            "--audio_dir",
            str(corpus),
            "--output_dir",
            str(corpus / "results"),
        ]
    )
    found = {
        name: json.loads((corpus / name / RUN_INFO_FILE).read_text())
        for name in ("out", "out/checkpoint-2", "out/checkpoint-4", "results")
    }
    assert found["out"] == found["out/checkpoint-2"] == found["out/checkpoint-4"]
    assert shlex.split(found["out"]["command"]) == ["run_train.py", *words]
    assert shlex.split(found["results"]["command"]) == ["run_eval.py", *asked]
    for info in found.values():
        assert info["code"]["torch"] == version("torch") and info["code"]["datasets"] == version(
            "datasets"
        )
        assert info["machine"]["threads"] > 0 and info["machine"]["device"]
    assert found["out"]["settings"]["seed"] == 0 and len(found["out"]["data"]["sha256"]) == 64
    assert (
        found["results"]["rows_sha256"]
        == json.loads((corpus / "results" / "metrics.json").read_text())["settings"]["rows_sha256"]
    )


@pytest.mark.parametrize(
    "words, kept",
    [
        (["--hub_token", "abc", "--seed", "1"], ["--hub_token", "***", "--seed", "1"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--wandb_password", "x y"], ["--wandb_password", "***"]),
        (["--hub_model_id", "hf_abcDEF123"], ["--hub_model_id", "hf_***"]),
        (["--url", "https://me:abc@host/x?y=1"], ["--url", "https://***@host/x?y=1"]),
        (
            ["--max_new_tokens", "8", "--include_tokens_per_second", "--bf16"],
            ["--max_new_tokens", "8", "--include_tokens_per_second", "--bf16"],
        ),
    ],
)
def test_secrets_are_not_kept(words, kept):
    assert remove_secrets(words) == kept


def test_the_environment_is_not_kept(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert "verysecret" not in json.dumps(run_info("run_train.py", ["--seed", "1"]))


def test_a_log_line_says_its_step():
    logs = {"loss": 5.71349, "grad_norm": 0.02616, "learning_rate": 8.997e-05, "epoch": 0.08}
    line = "step 1,200 of 20,000: loss 5.7135, grad norm 0.0262, learning rate 9.00e-05, epoch 0.08"
    assert format_log_line(1200, 20000, logs) == line
    assert (
        format_log_line(8, 9, {"eval_mcq_token_loss": 1.25, "epoch": 2.0})
        == "step 8 of 9: evaluation: mcq token loss 1.25, epoch 2.00"
    )


@pytest.mark.parametrize("bars", [True, False])
def test_a_run_prints_a_line_for_each_log_step(corpus, tokenizer, capsys, bars):
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        "--max_steps",
        "4",
        "--logging_steps",
        "2",
        "--eval_strategy",
        "no",
    )
    train([*words, "--disable_tqdm", str(not bars).lower()])
    out, err = capsys.readouterr()
    assert ("| 4/4 [" in err) is bars
    assert [
        line.split(",")[0].split(": loss")[0] for line in out.splitlines() if ": loss" in line
    ] == [
        "step 2 of 4",
        "step 4 of 4",
    ]


def test_a_tracker_whose_package_is_missing_is_one_line(corpus, tokenizer, capsys):
    words = arguments(corpus, "mimi_semantic", tokenizer, "--report_to", "comet_ml")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train(words)
    told = capsys.readouterr().err
    assert "comet" in told.lower() and len(told.splitlines()) <= 3
