"""run_train.py and run_eval.py from end to end, with small models in the real checkpoint formats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from safetensors import safe_open
from support.builders import TWO_PROCESSES, Waits, arguments, small_model, weights
from transformers import Trainer, TrainerCallback, TrainingArguments

from audiolm import AudioLMForConditionalGeneration
from audiolm.data import features
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.training import train as run_train
from audiolm.training.resume import checkpoint_to_resume
from audiolm.training.train import main as train
from audiolm.training.train import parse


@pytest.mark.parametrize("arm", ["htsat", "mimi_full"])
def test_train_then_evaluate(arm, corpus, tokenizer, capsys):
    train(arguments(corpus, arm, tokenizer))
    assert "yes_no loss" in capsys.readouterr().out
    log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 20 and float(losses[-1]) < 0.7 * float(losses[0])
    loaded = AudioLMForConditionalGeneration.from_pretrained(corpus / "out")
    assert (loaded.mapper.feature_std > 0).any() and not torch.equal(
        loaded.mapper.feature_std, torch.ones(loaded.encoder.dim)
    )
    written = []
    for name in ("a", "b"):
        evaluate(
            [
                "--model_name_or_path",
                str(corpus / "out"),
                "--test_file",
                str(corpus / "rows.json"),
                "--audio_dir",
                str(corpus),
                "--output_dir",
                str(corpus / name),
                "--batch_size",
                "5",
            ]
        )
        written.append(
            [(corpus / name / f).read_bytes() for f in ("predictions.jsonl", "metrics.json")]
        )
    assert written[0] == written[1]
    assert "all (micro)" in capsys.readouterr().out
    metrics = json.loads(written[0][1])
    assert metrics["question_type"]["mcq"]["n"] == 8 and metrics["micro"]["n"] == 16


def test_a_plain_run_says_what_a_cache_would_save(corpus, tokenizer, caplog):
    options = arguments(
        corpus, "mimi_semantic", tokenizer, "--max_steps", "3", "--eval_strategy", "no"
    )
    with caplog.at_level("INFO", "audiolm"):
        train(options)
        assert (
            "each clip is decoded and encoded 3 times; --feature_cache DIR does it once"
            in caplog.text
        )
        caplog.clear()
        train([*options, "--feature_cache", str(corpus / "cache")])
        assert (
            "does it once" not in caplog.text
            and "up to 0.0 MB for the features of 16 clips" in caplog.text
        )


# What asks values of the CPU: the codes and texts that become a batch, a new epoch's seed, and the mask of frames
ON_THE_HOST = (
    "features.py, __getitem__",
    "collator.py, __call__",
    "data_loader.py, __iter__",
    "modeling_audiolm.py, get_audio_features",
)


class Watch(TrainerCallback):
    """Looks at all that a Trainer does from the second step to the fourth: three batches taken, nothing logged."""

    def __init__(self, strict: bool):
        self.waits, self.strict = Waits(), strict and torch.cuda.is_available()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.waits.__enter__()
            if self.strict:
                torch.cuda.set_sync_debug_mode("error")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.waits.__exit__(None, None, None)
            if self.strict:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("logged, nothing", [(5, True), (3, False)])
def test_no_step_of_the_trainer_waits_for_the_gpu(logged, nothing, corpus, tokenizer, monkeypatch):
    watch, kind = Watch(nothing), run_train.BucketTrainer
    monkeypatch.setattr(
        run_train,
        "BucketTrainer",
        lambda callbacks, **more: kind(callbacks=[*callbacks, watch], **more),
    )
    where = [] if torch.cuda.is_available() else ["--use_cpu", "true"]
    train(
        [
            *arguments(corpus, "mimi_full", tokenizer),
            "--max_steps",
            "5",
            "--eval_strategy",
            "no",
            "--freeze_lm",
            "true",
            "--logging_steps",
            str(logged),
            "--feature_cache",
            str(corpus / "cache"),
            "--bf16",
            "true",
            *where,
        ]
    )
    found = {place for place in watch.waits.found if not place.endswith(ON_THE_HOST)}
    assert watch.waits.found and (not found) == nothing, found


def test_gradients_are_clipped_as_by_the_trainer(tmp_path):
    norms, clipped = [], []
    for kind in (run_train.BucketTrainer, Trainer):
        model = small_model("mimi_full", freeze_lm=True).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        trainer = kind(
            model=model, args=TrainingArguments(str(tmp_path), max_grad_norm=0.5, report_to="none")
        )
        for seed in range(2):
            draw = torch.Generator().manual_seed(seed)
            for parameter in trained:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            norms.append(trainer._clip_grad_norm(model))
            clipped += [parameter.grad.clone() for parameter in trained]
    assert norms[0] > 0.5 and norms[:2] == norms[2:] and norms[0] != norms[1]
    half = len(clipped) // 2
    assert half == 8 and all(
        torch.equal(ours, theirs) for ours, theirs in zip(clipped[:half], clipped[half:])
    )


def test_batches_are_copied_without_waiting():
    for pinned in ("true", "false"):
        args = parse(["--dataloader_pin_memory", pinned])[2]
        assert args.accelerator_config.non_blocking is (pinned == "true")
    assert (
        parse(["--torch_compile", "true"])[2].tf32 is False
    )  # which TrainingArguments would turn on with it
    given = parse(
        ["--dataloader_pin_memory", "true", "--accelerator_config", '{"even_batches": true}']
    )[2]
    assert (
        given.accelerator_config.non_blocking is False
    )  # whoever gives a configuration gives all of it


class Copies(TrainerCallback):
    """How the batches of each step are copied."""

    def __init__(self):
        self.found, self.loader = [], None

    def on_step_end(self, args, state, control, **kwargs):
        self.found.append((state.global_step, GradientState().active_dataloader._non_blocking))


def test_a_resumed_epoch_copies_as_the_others_and_draws_nothing(corpus, tokenizer, monkeypatch):
    rows = json.loads((corpus / "rows.json").read_text())
    (corpus / "rows.json").write_text(json.dumps(rows * 3))  # three steps an epoch
    copies, kind, made = Copies(), run_train.BucketTrainer, []

    def trainer(callbacks, **more):
        made.append(kind(callbacks=[*callbacks, copies], **more))
        return made[-1]

    monkeypatch.setattr(run_train, "BucketTrainer", trainer)
    words = [
        *arguments(corpus, "mimi_semantic", tokenizer),
        "--max_steps",
        "3",
        "--save_steps",
        "1",
        "--eval_strategy",
        "no",
        "--dataloader_pin_memory",
        "true",
        "--save_total_limit",
        "9",
        "--feature_cache",
        str(corpus / "c"),
    ]
    train(words)
    train([*words, "--resume_from_checkpoint", str(corpus / "out" / "checkpoint-1")])
    assert copies.found == [(1, True), (2, True), (3, True), (2, True), (3, True)]
    before = (
        torch.get_rng_state()
    )  # a loader that draws its workers' seed from it shifts a resumed run's dropout
    next(iter(made[0].get_train_dataloader()))
    next(iter(made[0].get_eval_dataloader(made[0].train_dataset)))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_encoding_keeps_what_it_has(corpus, tokenizer, monkeypatch, capsys, caplog):
    inner = features.encode_clips

    def interrupted(*args, **options):
        for number, found in enumerate(inner(*args, **options)):
            if number == 5:
                raise KeyboardInterrupt
            yield found

    words = [
        *arguments(corpus, "mimi_semantic", tokenizer),
        "--max_steps",
        "1",
        "--save_steps",
        "1",
        "--eval_strategy",
        "no",
        "--feature_cache",
        str(corpus / "cache"),
    ]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(features, "encode_clips", interrupted)
        train(words)
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith(
        f"before the first step; what is encoded is kept in {corpus / 'cache'}\n"
    )
    with caplog.at_level("INFO", "audiolm"):
        train(words)
        assert (
            "for the features of 11 clips" in caplog.text
            and "give way to this one's" not in caplog.text
        )
        train(words)
        assert "checkpoints of an earlier run are there, and give way to this one's" in caplog.text


def test_a_folder_that_cannot_be_is_named(corpus, tokenizer):
    with pytest.raises(
        SystemExit, match=r"^run_train.py: --feature_cache .*rows.json: File exists$"
    ):
        train(
            [
                *arguments(corpus, "mimi_semantic", tokenizer),
                "--feature_cache",
                str(corpus / "rows.json"),
            ]
        )


def test_a_disk_that_fills_up_is_one_line(corpus, tokenizer, monkeypatch):
    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    options = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        "--max_steps",
        "1",
        "--feature_cache",
        str(corpus / "cache"),
    )
    with pytest.raises(SystemExit, match=r"^run_train.py: .*No space left on device$"):
        train(options)
    assert not [file for file in (corpus / "cache").rglob("*") if file.is_file()]


def test_bad_audio_stops_or_is_skipped(corpus, tokenizer, capsys):
    (corpus / "3.wav").write_bytes(b"")
    options = arguments(corpus, "mimi_semantic", tokenizer, "--max_steps", "1")
    with pytest.raises(SystemExit, match="1 audio files cannot be used"):
        train(options)
    assert "3.wav\tempty file" in (corpus / "out" / "bad_audio.txt").read_text()
    train([*options, "--on_bad_audio", "skip"])


def test_arguments(tmp_path, capsys):
    _, _, args = parse(["--per_device_train_batch_size", "4"])
    assert (args.gradient_accumulation_steps, args.max_steps, args.learning_rate) == (
        4,
        20000,
        1e-4,
    )
    (tmp_path / "c.yaml").write_text("encoder_type: mimi_full\nlearning_rate: 0.1\n")
    model, data, args = parse(["--config", str(tmp_path / "c.yaml"), "--learning_rate", "0.2"])
    assert (model.encoder_type, args.learning_rate, data.max_audio_seconds) == (
        "mimi_full",
        0.2,
        10.0,
    )
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


def test_wrong_numbers_and_files_are_one_line(tmp_path, capsys):
    files = {"list.yaml": "- learning_rate: 0.1", "text.yaml": "just words", "broken.yaml": "a: [1"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "one.yaml").write_text("audio_dir: sounds\nresume_from_checkpoint: false\n")
    assert parse(["--config", str(tmp_path / "one.yaml")])[1].audio_dir == ["sounds"]
    wrongs = {
        "--per_device_train_batch_size 0": ["--per_device_train_batch_size", "0"],
        "--per_device_train_batch_size -4": ["--per_device_train_batch_size", "-4"],
        "--num_stats_clips 0": ["--num_stats_clips", "0"],
        "--max_bad_audio 2.0": ["--max_bad_audio", "2"],
        "--audio_timeout 0.0": ["--audio_timeout", "0"],
        "--max_audio_seconds 0.0": ["--max_audio_seconds", "0"],
        "makes it 4": ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "8"],
        "load_best_model_at_end": [
            "--load_best_model_at_end",
            "--validation_file",
            "v",
            "--save_steps",
            "7",
        ],
        "not list": ["--config", str(tmp_path / "list.yaml")],
        "not str": ["--config", str(tmp_path / "text.yaml")],
        "broken.yaml": ["--config", str(tmp_path / "broken.yaml")],
    }
    for message, wrong in wrongs.items():
        with pytest.raises(SystemExit):
            parse(wrong)
        assert message in capsys.readouterr().err
    for option in ("--batch_size", "--max_samples", "--max_new_tokens"):
        with pytest.raises(SystemExit):
            evaluate(
                [
                    "--model_name_or_path",
                    "m",
                    "--test_file",
                    "t",
                    "--audio_dir",
                    "a",
                    "--output_dir",
                    "o",
                    option,
                    "-1",
                ]
            )
        assert f"{option} -1: a number above 0" in capsys.readouterr().err


def test_what_is_no_encoder_is_named(corpus, tokenizer):
    options = arguments(corpus, "mimi_full", tokenizer, "--max_steps", "1")
    for name, content in (("torn.safetensors", b"\x99" * 40), ("text.pth", b"no checkpoint")):
        (corpus / name).write_bytes(content)
        with pytest.raises(SystemExit, match=f"{name} is not a readable checkpoint"):
            train([*options, "--encoder_name_or_path", str(corpus / name)])
    torch.save([1, 2], corpus / "list.pth")
    with pytest.raises(SystemExit, match=r"list.pth is not a readable checkpoint"):
        train([*options, "--encoder_name_or_path", str(corpus / "list.pth")])
    small_model("htsat").encoder.model.save_pretrained(corpus / "other")
    with pytest.raises(SystemExit, match="needs a 'mimi' encoder_config"):
        train([*options, "--encoder_name_or_path", str(corpus / "other")])
    alone = corpus / "alone" / "model.safetensors"  # without its config.json
    alone.parent.mkdir()
    alone.write_bytes((corpus / "other" / "model.safetensors").read_bytes())
    with pytest.raises(SystemExit, match=r"does not fit MimiModel: .* keys missing"):
        train([*options, "--encoder_name_or_path", str(alone)])


def test_what_is_no_trained_model_is_not_evaluated(corpus, tokenizer):
    model = small_model("mimi_full")
    rest = [
        "--test_file",
        str(corpus / "rows.json"),
        "--audio_dir",
        str(corpus),
        "--output_dir",
        str(corpus / "results"),
    ]

    def refused(folder, message):
        tokenizer.save_pretrained(folder)
        with pytest.raises(SystemExit, match=message):
            evaluate(["--model_name_or_path", str(folder), *rest])

    model.language_model.save_pretrained(corpus / "llama")
    refused(corpus / "llama", "'llama' model, not an AudioLM")
    state = {
        k: v
        for k, v in model.state_dict().items()
        if not k.startswith("mapper.linear") and "lm_head" not in k
    }
    model.save_pretrained(corpus / "deaf", state_dict=state)
    refused(corpus / "deaf", r"4 missing keys \(mapper.linear_1.bias")
    model.save_pretrained(corpus / "whole")
    config = json.loads((corpus / "whole" / "config.json").read_text())
    for name, changed in {
        "list": [],
        "null": None,
        "kind": {**config, "encoder_type": "whisper"},
        "text": {**config, "text_config": {"model_type": "no_such"}},
        "size": {**config, "mapper_hidden_size": 7},
    }.items():
        model.save_pretrained(corpus / name)
        (corpus / name / "config.json").write_text(json.dumps(changed))
        refused(corpus / name, f"--model_name_or_path {corpus / name}: ")
    weights = corpus / "whole" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    refused(corpus / "whole", f"--model_name_or_path {corpus / 'whole'}: ")
    (corpus / "results").rmdir()
    (corpus / "results").write_text("a file")
    with pytest.raises(SystemExit, match="results"):
        evaluate(["--model_name_or_path", str(corpus / "whole"), *rest])


def test_evaluation_loss_does_not_depend_on_the_batch_size(corpus, tokenizer):
    found = []
    for size in ("3", "16"):
        train(
            arguments(
                corpus,
                "mimi_full",
                tokenizer,
                "--max_steps",
                "2",
                "--eval_steps",
                "2",
                "--per_device_eval_batch_size",
                size,
                "--max_eval_samples",
                "7",
            )
        )
        log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
        found.append(
            {k: float(v) for entry in log for k, v in entry.items() if k.endswith("token_loss")}
        )
    assert found[0].keys() == {"eval_mcq_token_loss", "eval_yes_no_token_loss"}
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_two_processes_share_a_feature_cache(corpus, tokenizer):
    options = arguments(
        corpus,
        "mimi_full",
        tokenizer,
        "--max_steps",
        "2",
        "--eval_strategy",
        "no",
        "--learning_rate",
        "0.001",
    )
    train(options)
    expected = weights(corpus / "out")
    script = str(Path(__file__).parents[2] / "run_train.py")
    launch = [
        sys.executable,
        *TWO_PROCESSES,
        script,
        *options,
        "--feature_cache",
        str(corpus / "cache"),
    ]
    run = subprocess.run(launch, capture_output=True, text=True, cwd=corpus, env={**os.environ})
    assert run.returncode == 0, run.stderr[-3000:]
    assert (
        run.stderr.count("tokens for 10 s") + run.stdout.count("tokens for 10 s") == 1
    )  # only one of them speaks
    assert [len(cached(file)) for file in (corpus / "cache").rglob("*.safetensors")] == [
        8,
        8,
    ] and not list((corpus / "cache").rglob("*.part"))
    found = weights(corpus / "out")
    assert all(
        torch.allclose(value.float(), found[key].float(), atol=2e-5)
        for key, value in expected.items()
    )


def cached(shard) -> list[str]:
    with safe_open(shard, "pt") as file:
        return list(file.keys())


def test_the_batch_size_does_not_matter(corpus, tokenizer):
    """16 rows at once, 4 at a time, or 8 in each of two processes: the same step."""
    options = arguments(
        corpus,
        "mimi_full",
        tokenizer,
        "--max_steps",
        "2",
        "--eval_strategy",
        "no",
        "--learning_rate",
        "0.001",
    )
    found = []
    for size in ("16", "4"):
        train([*options, "--per_device_train_batch_size", size])
        found.append(weights(corpus / "out"))
    script = str(Path(__file__).parents[2] / "run_train.py")
    run = subprocess.run(
        [sys.executable, *TWO_PROCESSES, script, *options],
        capture_output=True,
        text=True,
        cwd=corpus,
        env={**os.environ},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found.append(weights(corpus / "out"))
    for other in found[1:]:
        for key, value in found[0].items():
            assert torch.allclose(value.float(), other[key].float(), atol=2e-5), key


def test_resume(corpus, tokenizer, capsys):
    options = arguments(
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
    train(options)
    expected = weights(corpus / "out")
    for file in (corpus / "out" / "checkpoint-4").iterdir():
        file.unlink()
    (corpus / "out" / "checkpoint-4").rmdir()
    assert checkpoint_to_resume("True", str(corpus / "out")) == str(corpus / "out" / "checkpoint-2")
    train([*options, "--resume_from_checkpoint", "True"])
    assert all(torch.equal(value, expected[key]) for key, value in weights(corpus / "out").items())
    (corpus / "out" / "model.safetensors").unlink()
    train(
        [*options, "--resume_from_checkpoint", "True"]
    )  # of a run that was complete, but for what it saves at its end
    assert all(torch.equal(value, expected[key]) for key, value in weights(corpus / "out").items())
    assert json.loads((corpus / "out" / "trainer_state.json").read_text())["global_step"] == 4
    for name in ("model.safetensors", "optimizer.pt"):
        file = corpus / "out" / "checkpoint-2" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(SystemExit):
            train([*options, "--resume_from_checkpoint", str(file.parent)])
        assert f"{name} is missing or torn" in capsys.readouterr().err
        file.unlink()
        (file.parent / "model.safetensors").write_bytes(
            (corpus / "out" / "model.safetensors").read_bytes()
        )
    checkpoint = corpus / "out" / "checkpoint-4"
    (corpus / "encoder" / "model.safetensors").unlink()
    small_model("mimi_semantic", seed=1).encoder.model.save_pretrained(corpus / "encoder")
    with pytest.raises(SystemExit, match="was trained with another encoder"):
        train([*options, "--resume_from_checkpoint", str(checkpoint)])
    with pytest.raises(SystemExit):
        parse(["--resume_from_checkpoint", "true", "--output_dir", str(corpus / "nothing")])
    assert "holds no checkpoint" in capsys.readouterr().err


def test_evaluation_of_a_wrong_path_is_one_line(corpus):
    with pytest.raises(
        SystemExit, match=r"run_eval.py: .* is neither a folder with config.json nor a Hub name"
    ):
        evaluate(
            [
                "--model_name_or_path",
                str(corpus),
                "--test_file",
                "x",
                "--audio_dir",
                "y",
                "--output_dir",
                "z",
            ]
        )


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
