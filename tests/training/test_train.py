"""run_train.py and run_eval.py from end to end, with small models in real checkpoint formats."""

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
from transformers import TrainerCallback

from audiolm import AudioLMForConditionalGeneration
from audiolm.data.features import cache as cache_module
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.run_train import main as train_command
from audiolm.runtime import is_bfloat16_fast
from audiolm.training import build
from audiolm.training.arguments import build_parser, parse_arguments
from audiolm.training.build import choose_compilation
from audiolm.training.resume import checkpoint_to_resume
from audiolm.training.train import train

SCRIPT = Path(__file__).parents[2] / "run_train.py"


def read_log(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def evaluation_options(corpus: Path, model: Path, output: str) -> list[str]:
    return [
        *["--model_name_or_path", str(model), "--test_file", str(corpus / "rows.json")],
        *["--audio_dir", str(corpus), "--output_dir", str(corpus / output)],
    ]


def assert_equal_weights(actual: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name


def assert_close_weights(actual: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert torch.allclose(value.float(), actual[name].float(), atol=2e-5), name


def run_in_two_processes(corpus: Path, options: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, *TWO_PROCESSES, str(SCRIPT), *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=corpus, env={**os.environ})
    assert run.returncode == 0, run.stderr[-3000:]
    return run


# ------------------------------------------------------------------------------------------------
# Whole runs


@pytest.mark.parametrize("arm", ["htsat", "mimi_full"])
def test_trained_model_evaluates_to_the_same_files_twice(arm, corpus, tokenizer, capsys):
    train_command(arguments(corpus, arm, tokenizer))
    assert "yes_no loss" in capsys.readouterr().out
    losses = [float(entry["loss"]) for entry in read_log(corpus / "out") if "loss" in entry]
    assert len(losses) == 20
    assert losses[-1] < 0.7 * losses[0]

    loaded = AudioLMForConditionalGeneration.from_pretrained(corpus / "out")
    assert (loaded.mapper.feature_std > 0).any()
    assert not torch.equal(loaded.mapper.feature_std, torch.ones(loaded.encoder.dim))

    for name in ("a", "b"):
        options = evaluation_options(corpus, corpus / "out", name)
        evaluate([*options, "--batch_size", "5"])
    assert "all (micro)" in capsys.readouterr().out
    for file in ("predictions.jsonl", "metrics.json"):
        assert (corpus / "a" / file).read_bytes() == (corpus / "b" / file).read_bytes()
    metrics = json.loads((corpus / "a" / "metrics.json").read_text())
    assert metrics["question_type"]["mcq"]["n"] == 8
    assert metrics["micro"]["n"] == 16


def test_run_encodes_clips_into_the_users_cache_as_it_needs_them(
    corpus, tokenizer, caplog, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    more = ["--max_steps", "2", "--eval_strategy", "no", "--num_stats_clips", "2"]
    options = arguments(corpus, "mimi_semantic", tokenizer, *more)
    with caplog.at_level("INFO", "audiolm"):
        train_command(options)
        assert "holds 0 of 16 clips, and takes up to 32.0 kB" in caplog.text
        first_losses = training_losses(corpus / "out")
        train_command(options)
        assert "holds 16 of 16 clips" in caplog.text
    assert training_losses(corpus / "out") == first_losses
    clips = map(list_cached_clips, (tmp_path / "home").rglob("*.safetensors"))
    assert sorted(map(len, clips)) == [2, 14]


def training_losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder) if "loss" in entry]


def test_evaluation_loss_does_not_depend_on_the_batch_size(corpus, tokenizer):
    losses = []
    more = ["--max_steps", "2", "--eval_steps", "2", "--max_eval_samples", "7"]
    for size in ("3", "16"):
        options = arguments(corpus, "mimi_full", tokenizer, *more)
        train_command([*options, "--per_device_eval_batch_size", size])
        losses.append(
            {
                key: float(value)
                for entry in read_log(corpus / "out")
                for key, value in entry.items()
                if key.endswith("token_loss")
            }
        )
    assert losses[0].keys() == {"eval_mcq_token_loss", "eval_yes_no_token_loss"}
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_two_processes_share_a_feature_cache(corpus, tokenizer):
    more = ["--max_steps", "2", "--eval_strategy", "no", "--learning_rate", "0.001"]
    options = arguments(corpus, "mimi_full", tokenizer, *more)
    train_command(options)
    expected = weights(corpus / "out")
    run = run_in_two_processes(corpus, [*options, "--feature_cache", str(corpus / "cache")])
    assert (run.stderr + run.stdout).count("tokens for 10 s") == 1  # only the main process logs
    shards = list((corpus / "cache").rglob("*.safetensors"))
    assert [len(list_cached_clips(file)) for file in shards] == [8, 8]
    assert not list((corpus / "cache").rglob("*.part"))
    assert_close_weights(weights(corpus / "out"), expected)


def list_cached_clips(shard: Path) -> list[str]:
    with safe_open(shard, "pt") as file:
        return list(file.keys())


def test_step_is_the_same_accumulated_and_in_two_processes(corpus, tokenizer):
    more = ["--max_steps", "2", "--eval_strategy", "no", "--learning_rate", "0.001"]
    options = arguments(corpus, "mimi_full", tokenizer, *more)
    train_command([*options, "--per_device_train_batch_size", "16"])
    expected = weights(corpus / "out")
    accumulated = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4"]
    train_command([*options, *accumulated])
    assert_close_weights(weights(corpus / "out"), expected)
    run_in_two_processes(corpus, options)
    assert_close_weights(weights(corpus / "out"), expected)


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(corpus, tokenizer, capsys):
    more = ["--max_steps", "4", "--save_steps", "2", "--eval_strategy", "no"]
    options = arguments(corpus, "mimi_semantic", tokenizer, *more)
    output = corpus / "out"
    train_command(options)
    expected = weights(output)
    for file in (output / "checkpoint-4").iterdir():
        file.unlink()
    (output / "checkpoint-4").rmdir()
    assert checkpoint_to_resume("True", str(output)) == str(output / "checkpoint-2")

    train_command([*options, "--resume_from_checkpoint", "True"])
    assert_equal_weights(weights(output), expected)

    # The run is complete, except for what it saves at its end.
    (output / "model.safetensors").unlink()
    train_command([*options, "--resume_from_checkpoint", "True"])
    assert_equal_weights(weights(output), expected)
    assert json.loads((output / "trainer_state.json").read_text())["global_step"] == 4

    for name in ("model.safetensors", "optimizer.pt"):
        file = output / "checkpoint-2" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(SystemExit):
            train_command([*options, "--resume_from_checkpoint", str(file.parent)])
        assert f"{name} is missing or incomplete" in capsys.readouterr().err
        file.unlink()
        model = (output / "model.safetensors").read_bytes()
        (file.parent / "model.safetensors").write_bytes(model)

    (corpus / "encoder" / "model.safetensors").unlink()
    small_model("mimi_semantic", seed=1).encoder.model.save_pretrained(corpus / "encoder")
    with pytest.raises(SystemExit, match=r"was trained with encoder weights \w+ \(now"):
        train_command([*options, "--resume_from_checkpoint", str(output / "checkpoint-4")])


# ------------------------------------------------------------------------------------------------
# The Trainer on a GPU

# These read values on the CPU: the codes and texts of a batch, a new epoch's seed, the frame mask.
ON_THE_HOST = (
    "cache.py, __getitem__",
    "collator.py, _text_inputs",
    "data_loader.py, __iter__",
    "modeling_audiolm.py, get_audio_features",
)


class Watch(TrainerCallback):
    """Records waits for the GPU from the second step to the fourth, with nothing logged."""

    def __init__(self, strict: bool):
        self.waits = Waits()
        self.strict = strict and torch.cuda.is_available()

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


@pytest.mark.parametrize(("logging_steps", "is_free_of_waits"), [(5, True), (3, False)])
def test_training_step_waits_for_the_gpu_only_to_log(
    logging_steps, is_free_of_waits, corpus, tokenizer
):
    watch = Watch(is_free_of_waits)
    train_command(
        [*arguments(corpus, "mimi_full", tokenizer), "--max_steps", "1"]
    )  # fills the cache
    more = ["--max_steps", "5", "--eval_strategy", "no", "--freeze_lm", "true", "--bf16", "true"]
    more += ["--logging_steps", str(logging_steps)]
    if not torch.cuda.is_available():
        more += ["--use_cpu", "true"]
    options = arguments(corpus, "mimi_full", tokenizer, *more)
    train(*parse_arguments(options), callbacks=[watch])
    waits = {place for place in watch.waits.places if not place.endswith(ON_THE_HOST)}
    assert watch.waits.places
    assert (not waits) == is_free_of_waits, waits


class CopyModes(TrainerCallback):
    """Records whether the batches of each step are copied without waiting."""

    def __init__(self):
        self.by_step = []

    def on_step_end(self, args, state, control, **kwargs):
        loader = GradientState().active_dataloader
        self.by_step.append((state.global_step, loader._non_blocking))


def test_resumed_epoch_copies_without_waiting_and_uses_no_random_numbers(corpus, tokenizer):
    rows = json.loads((corpus / "rows.json").read_text())
    (corpus / "rows.json").write_text(json.dumps(rows * 3))  # three steps per epoch
    copies = CopyModes()
    more = ["--max_steps", "3", "--save_steps", "1", "--save_total_limit", "9"]
    more += ["--eval_strategy", "no", "--dataloader_pin_memory", "true"]
    more += ["--feature_cache", str(corpus / "c")]
    options = arguments(corpus, "mimi_semantic", tokenizer, *more)
    trainer = train(*parse_arguments(options), callbacks=[copies])
    checkpoint = str(corpus / "out" / "checkpoint-1")
    resumed = [*options, "--resume_from_checkpoint", checkpoint]
    train(*parse_arguments(resumed), callbacks=[copies])
    assert copies.by_step == [(1, True), (2, True), (3, True), (2, True), (3, True)]

    # A loader that drew its workers' seed from the run's generator would shift a resumed dropout.
    before = torch.get_rng_state()
    next(iter(trainer.get_train_dataloader()))
    next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------
# Runs that fail


def test_interrupted_encoding_resumes_from_the_cache(corpus, tokenizer, monkeypatch, caplog):
    encode_clips = cache_module.encode_clips

    def interrupted(*args, **options):
        for number, encoded in enumerate(encode_clips(*args, **options)):
            if number == 5:
                raise KeyboardInterrupt
            yield encoded

    cache = corpus / "cache"
    more = ["--max_steps", "1", "--save_steps", "1", "--eval_strategy", "no"]
    options = arguments(corpus, "mimi_semantic", tokenizer, *more, "--feature_cache", str(cache))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(cache_module, "encode_clips", interrupted)
        train_command(options)
    assert exit_info.value.code == 130
    with caplog.at_level("INFO", "audiolm"):
        train_command(options)
        assert "holds 5 of 16 clips" in caplog.text
        assert "already holds checkpoints" not in caplog.text
        train_command(options)
        assert "already holds checkpoints; they will be overwritten" in caplog.text


def test_bad_audio_stops_the_run_or_is_skipped(corpus, tokenizer):
    (corpus / "3.wav").write_bytes(b"")
    options = arguments(corpus, "mimi_semantic", tokenizer, "--max_steps", "1")
    with pytest.raises(SystemExit, match="1 audio files cannot be used"):
        train_command(options)
    assert "3.wav\tempty file" in (corpus / "out" / "bad_audio.txt").read_text()
    train_command([*options, "--on_bad_audio", "skip"])


def test_encoder_that_cannot_be_read_is_named(corpus, tokenizer):
    options = arguments(corpus, "mimi_full", tokenizer, "--max_steps", "1")

    def assert_rejected(path: Path, message: str) -> None:
        with pytest.raises(SystemExit, match=message):
            train_command([*options, "--encoder_name_or_path", str(path)])

    torch.save([1, 2], corpus / "list.pth")
    (corpus / "cut.safetensors").write_bytes(b"\x99" * 40)
    (corpus / "text.pth").write_bytes(b"no checkpoint")
    for name in ("cut.safetensors", "text.pth", "list.pth"):
        assert_rejected(corpus / name, f"{name} is not a readable checkpoint")
    small_model("htsat").encoder.model.save_pretrained(corpus / "other")
    assert_rejected(corpus / "other", "needs a 'mimi' encoder_config")
    without_config = corpus / "alone" / "model.safetensors"
    without_config.parent.mkdir()
    without_config.write_bytes((corpus / "other" / "model.safetensors").read_bytes())
    assert_rejected(without_config, r"does not fit: .* MimiModel: Missing key")


def test_folder_without_a_trained_model_is_not_evaluated(corpus, tokenizer):
    model = small_model("mimi_full")

    def assert_rejected(folder: Path, message: str) -> None:
        tokenizer.save_pretrained(folder)
        with pytest.raises(SystemExit, match=message):
            evaluate(evaluation_options(corpus, folder, "results"))

    model.language_model.save_pretrained(corpus / "llama")
    assert_rejected(corpus / "llama", "'llama' model, not an AudioLM")

    state = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("mapper.linear") and "lm_head" not in name
    }
    model.save_pretrained(corpus / "no_mapper", state_dict=state)
    assert_rejected(corpus / "no_mapper", r"4 missing keys \(mapper.linear_1.bias")

    model.save_pretrained(corpus / "complete")
    config = json.loads((corpus / "complete" / "config.json").read_text())
    wrong_configs = {
        "list": [],
        "null": None,
        "encoder": {**config, "encoder_type": "whisper"},
        "text": {**config, "text_config": {"model_type": "no_such"}},
        "size": {**config, "mapper_hidden_size": 7},
    }
    for name, wrong_config in wrong_configs.items():
        model.save_pretrained(corpus / name)
        (corpus / name / "config.json").write_text(json.dumps(wrong_config))
        assert_rejected(corpus / name, f"--model_name_or_path {corpus / name}: ")

    file = corpus / "complete" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert_rejected(corpus / "complete", f"--model_name_or_path {corpus / 'complete'}: ")

    (corpus / "results").rmdir()
    (corpus / "results").write_text("a file")
    assert_rejected(corpus / "complete", "results")


def test_evaluation_of_a_wrong_path_is_one_line(corpus):
    message = r"run_eval.py: .* is neither a folder with config.json nor a Hub name"
    with pytest.raises(SystemExit, match=message):
        evaluate(evaluation_options(corpus, corpus, "z"))


# ------------------------------------------------------------------------------------------------
# Options


def read_parser_error(argv: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(argv)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [
        ("", 1, (16, 1)),
        ("", 2, (8, 1)),
        ("", 3, (5, 1)),
        ("", 32, (1, 1)),
        ("--gradient_accumulation_steps 4", 2, (2, 4)),
        ("--per_device_train_batch_size 5", 1, (5, 1)),
        ("--per_device_train_batch_size 4 --gradient_accumulation_steps 8", 2, (4, 8)),
    ],
)
def test_batch_options_mean_what_they_mean_in_the_stock_trainer(options, processes, expected):
    args = parse_arguments(options.split(), processes)[2]
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected


def test_batch_of_another_size_is_one_line_and_recorded(corpus, tokenizer, caplog):
    more = ["--max_steps", "1", "--eval_strategy", "no", "--per_device_train_batch_size", "3"]
    more += ["--gradient_accumulation_steps", "2"]
    with caplog.at_level("INFO", "audiolm"):
        train_command(arguments(corpus, "mimi_semantic", tokenizer, *more))
    assert caplog.text.count("6 examples per optimizer step, where the experiment has 16") == 1
    config = json.loads((corpus / "out" / "config.json").read_text())
    assert config["training"]["rows a step"] == 6


BFLOAT16 = {
    "CPU": (False, None, "AVX2", False),
    "CPU with AVX512-BF16": (False, None, "AVX512", True),
    "T4": (True, (7, 5), "AVX512", False),
    "L4": (True, (8, 9), "AVX2", True),
}


@pytest.mark.parametrize(("has_gpu", "capability", "cpu", "expected"), BFLOAT16.values())
def test_default_precision_is_that_of_the_device(has_gpu, capability, cpu, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert is_bfloat16_fast() == expected


def test_default_precision_follows_the_device_unless_options_say_more(monkeypatch):
    monkeypatch.setattr("audiolm.training.arguments.is_bfloat16_fast", lambda use_cpu: True)
    # `accelerate launch` sets it, also without a configuration.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert parse_arguments([])[2].bf16
    assert not parse_arguments(["--bf16", "false"])[2].bf16


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", "", True),
        ("cpu", "", False),
        ("cuda", "--max_steps 999", False),
        ("cuda", "--freeze_lm false", False),
        ("cuda", "--lora_r 4", False),
        ("cuda", "--torch_compile false", False),
    ],
)
def test_compilation_is_on_where_it_pays_off(device, options, expected, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: name)
    model_args, _, args = parse_arguments(options.split())
    args.__dict__["_setup_devices"] = torch.device(device)
    choose_compilation(small_model("htsat"), model_args, args)
    assert bool(args.torch_compile) == expected


def test_defaults_are_the_experiments():
    _, data_args, args = parse_arguments([])
    assert args.per_device_train_batch_size == 16
    assert args.max_steps == 20000
    assert args.learning_rate == 1e-4
    assert data_args.max_audio_seconds == 10.0


def test_flags_override_the_config_file(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("encoder_type: mimi_full\nlearning_rate: 0.1\n")
    model_args, _, args = parse_arguments(["--config", str(config), "--learning_rate", "0.2"])
    assert model_args.encoder_type == "mimi_full"
    assert args.learning_rate == 0.2


def test_config_may_hold_one_value_for_a_list_and_false(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("audio_dir: sounds\nresume_from_checkpoint: false\n")
    _, data_args, args = parse_arguments(["--config", str(config)])
    assert data_args.audio_dir == ["sounds"]
    assert args.resume_from_checkpoint is None


def test_config_of_the_package_is_found_by_its_name():
    assert parse_arguments(["--config", "mimi_full"])[0].encoder_type == "mimi_full"


def test_config_file_goes_before_the_packages_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mimi_full").write_text("encoder_type: htsat\n")
    assert parse_arguments(["--config", "mimi_full"])[0].encoder_type == "htsat"


def test_push_options_are_those_of_transformers():
    options = ["--push_to_hub", "--hub_model_id", "me/x", "--hub_strategy", "every_save"]
    args = parse_arguments(options)[2]
    assert args.push_to_hub
    assert args.hub_model_id == "me/x"
    assert args.hub_strategy == "every_save"


@pytest.mark.parametrize(
    ("message", "argv"),
    [
        ("--encoder_type", ["--encoder_type", "x"]),
        ("unrecognized", ["--no_such_flag"]),
        ("--per_device_train_batch_size 0", ["--per_device_train_batch_size", "0"]),
        ("--per_device_train_batch_size -4", ["--per_device_train_batch_size", "-4"]),
        ("--num_stats_clips 0", ["--num_stats_clips", "0"]),
        ("--audio_timeout 0.0", ["--audio_timeout", "0"]),
        ("--max_audio_seconds 0.0", ["--max_audio_seconds", "0"]),
        ("--gradient_accumulation_steps 0", ["--gradient_accumulation_steps", "0"]),
        (
            "load_best_model_at_end",
            ["--load_best_model_at_end", "--validation_file", "v", "--save_steps", "7"],
        ),
        ("holds no checkpoint", ["--resume_from_checkpoint", "true", "--output_dir", "nothing"]),
    ],
)
def test_wrong_option_is_named(message, argv, capsys):
    assert message in read_parser_error(argv, capsys)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("learning_speed", "learning_speed: 1\n"),
        ("found a list", "- learning_rate: 0.1"),
        ("found a str", "just words"),
        ("c.yaml", "a: [1"),
    ],
)
def test_wrong_config_file_is_named(message, text, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert message in read_parser_error(["--config", str(tmp_path / "c.yaml")], capsys)


@pytest.mark.parametrize("option", ["--batch_size", "--max_samples", "--max_new_tokens"])
def test_wrong_number_of_an_evaluation_is_named(option, corpus, capsys):
    with pytest.raises(SystemExit):
        evaluate([*evaluation_options(corpus, corpus, "o"), option, "-1"])
    assert f"{option} -1: " in capsys.readouterr().err


@pytest.mark.parametrize("pinned", [True, False])
def test_batches_from_pinned_memory_are_copied_without_waiting(pinned):
    args = parse_arguments(["--dataloader_pin_memory", str(pinned)])[2]
    assert args.accelerator_config.non_blocking is pinned


def test_accelerator_config_of_the_user_is_not_changed():
    config = ["--accelerator_config", '{"even_batches": true}']
    args = parse_arguments(["--dataloader_pin_memory", "true", *config])[2]
    assert args.accelerator_config.non_blocking is False


def test_compilation_does_not_turn_tf32_on():
    assert parse_arguments(["--torch_compile", "true"])[2].tf32 is False


def test_help_of_a_negated_option_says_what_it_does():
    action = build_parser()._option_string_actions["--no_freeze_lm"]
    assert action.help == "The same as `--freeze_lm false`"
    assert parse_arguments(["--no_freeze_lm"])[0].freeze_lm is False


# ------------------------------------------------------------------------------------------------
# The script


def test_import_of_the_package_and_the_scripts_is_light():
    code = """
import sys, time
start = time.process_time()
import audiolm
assert time.process_time() - start < 1
assert "torch" not in sys.modules
import audiolm.run_train
assert "transformers" not in sys.modules
import audiolm.run_eval
assert not {"msclap", "moshi", "librosa"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_script_of_another_checkout_is_one_line(tmp_path):
    copy = tmp_path / "run_train.py"
    copy.write_bytes(SCRIPT.read_bytes())
    command = [sys.executable, str(copy), "--help"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line == (
        f"run_train.py of {tmp_path} runs with the package of {SCRIPT.parent}: "
        f"run `pip install -e {tmp_path}`, or run {SCRIPT}"
    )
