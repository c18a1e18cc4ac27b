"""`run_info.json` of checkpoints and results repeats a run and holds no secrets; progress lines."""

import json
import shlex
from importlib.metadata import version

import pytest
from support.builders import arguments

from audiolm.evaluation.evaluate import main as evaluate
from audiolm.run_train import main as train_command
from audiolm.runtime import RUN_INFO_FILE, remove_secrets, run_info


def test_checkpoints_and_results_record_how_they_were_made(corpus, tokenizer):
    more = ["--max_steps", "4", "--save_steps", "2", "--eval_strategy", "no"]
    train_argv = arguments(corpus, "mimi_semantic", tokenizer, *more)
    train_command(train_argv)
    evaluate_argv = [
        *["--model_name_or_path", str(corpus / "out"), "--test_file", str(corpus / "rows.json")],
        *["--audio_dir", str(corpus), "--output_dir", str(corpus / "results")],
    ]
    evaluate(evaluate_argv)
    infos = {
        name: json.loads((corpus / name / RUN_INFO_FILE).read_text())
        for name in ("out", "out/checkpoint-2", "out/checkpoint-4", "results")
    }
    assert infos["out"] == infos["out/checkpoint-2"]
    assert infos["out"] == infos["out/checkpoint-4"]
    assert shlex.split(infos["out"]["command"]) == ["run_train.py", *train_argv]
    assert shlex.split(infos["results"]["command"]) == ["run_eval.py", *evaluate_argv]
    for info in infos.values():
        assert info["code"]["torch"] == version("torch")
        assert info["code"]["datasets"] == version("datasets")
        assert info["machine"]["threads"] > 0
        assert info["machine"]["device"]
    assert infos["out"]["settings"]["seed"] == 0
    assert len(infos["out"]["data"]["sha256"]) == 64
    metrics = json.loads((corpus / "results" / "metrics.json").read_text())
    assert infos["results"]["rows_sha256"] == metrics["settings"]["rows_sha256"]


@pytest.mark.parametrize(
    ("argv", "expected"),
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
def test_remove_secrets_replaces_only_secrets(argv, expected):
    assert remove_secrets(argv) == expected


def test_run_info_holds_no_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert "verysecret" not in json.dumps(run_info("run_train.py", ["--seed", "1"]))


@pytest.mark.parametrize("has_bars", [True, False])
def test_run_prints_a_line_for_each_log_step(corpus, tokenizer, capsys, has_bars):
    more = ["--max_steps", "4", "--logging_steps", "2", "--eval_strategy", "no"]
    more += ["--disable_tqdm", str(not has_bars).lower()]
    train_command(arguments(corpus, "mimi_semantic", tokenizer, *more))
    out, err = capsys.readouterr()
    assert ("| 4/4 [" in err) is has_bars
    lines = [line for line in out.splitlines() if "'loss': " in line]
    assert [line.split(", 'loss'")[0] for line in lines] == ["{'step': 2", "{'step': 4"]


def test_tracker_whose_package_is_missing_is_one_line(corpus, tokenizer, capsys):
    options = arguments(corpus, "mimi_semantic", tokenizer, "--report_to", "comet_ml")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train_command(options)
    message = capsys.readouterr().err
    assert "comet" in message.lower()
    assert len(message.splitlines()) <= 3
