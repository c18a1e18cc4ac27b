"""Runs that are killed or stopped by real signals resume as if nothing had happened."""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.builders import TWO_PROCESSES, arguments, make_corpus, weights
from transformers import TrainerCallback
from transformers import trainer as trainer_module

from audiolm.data.prepare import main as prepare
from audiolm.run_train import main as train_command
from audiolm.training.arguments import parse_arguments
from audiolm.training.resume import (
    checkpoint_to_resume,
    find_checkpoint_problem,
)
from audiolm.training.safeguards import describe_failure
from audiolm.training.train import train

# run_train.py with a fault, from the variable FAULT: "SIGKILL STEP" at the end of the step, another
# "SIGNAL STEP" at the start of the next step, or "FILE STEP": SIGKILL in a save of checkpoint-STEP.
FAULT = """
import os, signal, sys
import torch
from transformers import TrainerCallback
from audiolm.runtime import report_user_errors
from audiolm.training.arguments import parse_arguments
from audiolm.training.safeguards import describe_failure
from audiolm.training.train import train

what, step = os.environ["FAULT"].split()

class Fault(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if what != "SIGKILL":
            self.strike(state)

    def on_step_end(self, args, state, control, **kwargs):
        if what == "SIGKILL":
            self.strike(state)

    def strike(self, state):
        is_first_process = os.environ.get("RANK", "0") == "0"
        if state.global_step == int(step) and hasattr(signal, what) and is_first_process:
            os.kill(os.getpid(), getattr(signal, what))

inner = torch.save
def save(content, file, *args, **kwargs):
    inner(content, file, *args, **kwargs)
    if str(file).endswith(f"checkpoint-{step}/{what}"):
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save

@report_user_errors("run_train.py")
def main():
    train(*parse_arguments(sys.argv[1:]), callbacks=[Fault()])

main()
"""
NO_FAULT = "nothing 0"
OPTIONS = [
    *["--max_steps", "6", "--save_steps", "2", "--logging_steps", "1"],
    *["--eval_strategy", "no", "--learning_rate", "0.001"],
]
BEST_MODEL = [
    *["--load_best_model_at_end", "true", "--metric_for_best_model", "mcq_loss"],
    *["--save_total_limit", "1"],
]
RESUME = ["--resume_from_checkpoint", "true"]


def run_with_fault(
    corpus: Path, fault: str, options: list[str], launch: tuple = (), program: str = FAULT
) -> subprocess.CompletedProcess:
    (corpus / "fault.py").write_text(program)
    command = [sys.executable, *launch, str(corpus / "fault.py"), *options]
    environment = {**os.environ, "FAULT": fault}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def run_to_the_end(corpus: Path, options: list[str], launch: tuple = ()) -> str:
    """Runs without a fault in a fresh process, and returns its stderr.

    Numbers may depend on what a process did before, so compared runs have processes of their own.
    """
    done = run_with_fault(corpus, NO_FAULT, options, launch)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def read_losses(folder: Path) -> list[tuple[float, float]]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]


def last_complete_step(corpus: Path) -> int:
    """Returns the step of the last complete checkpoint, or 0."""
    try:
        return int(checkpoint_to_resume("true", str(corpus / "out")).rpartition("-")[2])
    except ValueError:
        return 0


def assert_same_end(folder: Path, expected: Path, steps: int = 6) -> None:
    """Compares weights and losses bitwise."""
    actual_weights = weights(folder)
    expected_weights = weights(expected)
    assert actual_weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        assert torch.equal(actual_weights[name], value), name
    assert read_losses(folder) == read_losses(expected)
    assert len(read_losses(folder)) == steps


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, tokenizer):
    """A corpus with an uninterrupted run in its folder `whole`, and the options of the run."""
    corpus = make_corpus(tmp_path_factory.mktemp("resume"))
    options = arguments(corpus, "mimi_semantic", tokenizer, *OPTIONS)
    run_to_the_end(corpus, [*options, "--output_dir", str(corpus / "whole")])
    return corpus, options


@pytest.fixture
def options(corpus, finished_run):
    """Options of a run in a corpus of its own, whose folder `whole` holds the expected end."""
    shutil.copytree(finished_run[0], corpus, dirs_exist_ok=True)
    return [word.replace(str(finished_run[0]), str(corpus)) for word in finished_run[1]]


# ------------------------------------------------------------------------------------------------
# Killed and stopped runs


def test_run_killed_in_a_step_in_a_save_and_stopped_ends_the_same(corpus, options):
    resumed = [*options, *RESUME]
    assert run_with_fault(corpus, "SIGKILL 3", options).returncode == -signal.SIGKILL
    assert last_complete_step(corpus) == 2
    assert not (corpus / "out" / "checkpoint-4").exists()

    assert run_with_fault(corpus, "optimizer.pt 4", resumed).returncode == -signal.SIGKILL
    assert last_complete_step(corpus) == 2
    assert (corpus / "out" / "checkpoint-4").exists()

    stopped = run_with_fault(corpus, "SIGTERM 4", resumed)
    assert f"skipping {corpus}/out/checkpoint-4: optimizer.pt is missing" in stopped.stderr
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "step 5 is saved" in stopped.stderr
    assert last_complete_step(corpus) == 5
    assert not (corpus / "out" / "model.safetensors").exists()

    assert "skipping" not in run_to_the_end(corpus, resumed)
    assert_same_end(corpus / "out", corpus / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL 3", "SIGKILL 4"])
def test_run_killed_in_a_step_ends_the_same(corpus, options, fault):
    assert run_with_fault(corpus, fault, options).returncode == -signal.SIGKILL
    assert not (corpus / "out" / "model.safetensors").exists()
    assert not (corpus / "out" / "checkpoint-4").exists()
    assert "skipping" not in run_to_the_end(corpus, [*options, *RESUME])
    assert_same_end(corpus / "out", corpus / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt"])
def test_run_killed_in_a_save_ends_the_same(corpus, options, file):
    assert run_with_fault(corpus, f"{file} 4", options).returncode == -signal.SIGKILL
    assert not (corpus / "out" / "model.safetensors").exists()
    assert (corpus / "out" / "checkpoint-4").exists()
    message = f"checkpoint-4: {file} is missing or incomplete"
    assert message in run_to_the_end(corpus, [*options, *RESUME])
    assert_same_end(corpus / "out", corpus / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stopped_run_is_saved_and_ends_the_same(corpus, options, name):
    done = run_with_fault(corpus, f"{name} 2", options)
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr.splitlines()[-1] == (
        f"run_train.py: stopped by {name}; step 3 is saved. "
        "To resume, add --resume_from_checkpoint true to the same command."
    )
    assert last_complete_step(corpus) == 3
    run_to_the_end(corpus, [*options, *RESUME])
    assert_same_end(corpus / "out", corpus / "whole")


@pytest.mark.slow
def test_two_processes_stop_at_one_step(corpus, tokenizer):
    options = arguments(corpus, "mimi_semantic", tokenizer, *OPTIONS)
    launch = tuple(TWO_PROCESSES)
    run_to_the_end(corpus, [*options, "--output_dir", str(corpus / "whole")], launch)

    # The signal reaches only the first process.
    done = run_with_fault(corpus, "SIGTERM 2", options, launch)
    assert done.returncode != 0
    assert "step 3 is saved" in done.stderr
    assert find_checkpoint_problem(corpus / "out" / "checkpoint-3") is None

    run_to_the_end(corpus, [*options, *RESUME], launch)
    assert_same_end(corpus / "out", corpus / "whole")
    checkpoint = corpus / "out" / "checkpoint-6"
    (checkpoint / "rng_state_1.pth").unlink()
    problem = find_checkpoint_problem(checkpoint)
    assert problem == "expected the random states of 2 processes, found 1"


class StopAtStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_run_keeps_its_last_step_and_not_its_best(corpus, tokenizer):
    evaluation = ["--eval_strategy", "steps", "--eval_steps", "2", *BEST_MODEL]
    options = arguments(corpus, "mimi_semantic", tokenizer, *OPTIONS, *evaluation)
    with pytest.raises(SystemExit):
        train(*parse_arguments(options), callbacks=[StopAtStep()])
    assert last_complete_step(corpus) == 5


class StopInEvaluation(TrainerCallback):
    """Sends SIGTERM in the second batch of an evaluation, and records steps."""

    def __init__(self):
        self.evaluated_steps = []
        self.saved_steps = []

    def on_prediction_step(self, args, state, control, **kwargs):
        self.evaluated_steps.append(state.global_step)
        if len(self.evaluated_steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_save(self, args, state, control, **kwargs):
        self.saved_steps.append(state.global_step)


@pytest.mark.parametrize("more", [[], BEST_MODEL], ids=["last", "best"])
def test_signal_ends_an_evaluation_and_the_step_is_saved(more, corpus, tokenizer):
    evaluation = ["--eval_strategy", "steps", "--eval_steps", "3", "--save_steps", "6"]
    evaluation += ["--per_device_eval_batch_size", "1"]
    options = arguments(corpus, "mimi_semantic", tokenizer, *OPTIONS, *evaluation, *more)
    train_command([*options, "--output_dir", str(corpus / "whole")])
    stop = StopInEvaluation()
    with pytest.raises(SystemExit) as exit_info:
        train(*parse_arguments(options), callbacks=[stop])
    assert exit_info.value.code == 128 + signal.SIGTERM
    assert 2 <= len(stop.evaluated_steps) < 8  # of 16 batches
    assert set(stop.evaluated_steps) == {3}
    assert stop.saved_steps == [3]
    assert find_checkpoint_problem(corpus / "out" / "checkpoint-3") is None
    train_command([*options, *RESUME])
    assert_same_end(corpus / "out", corpus / "whole")


# ------------------------------------------------------------------------------------------------
# Runs that are killed again and again

VARIANTS = {
    "workers": ["--dataloader_num_workers", "2"],
    "adapters, accumulated": [
        *["--freeze_lm", "true", "--lora_r", "2"],
        *["--gradient_accumulation_steps", "4"],
    ],
    "streamed": ["--streaming", "true", "--dataloader_num_workers", "1"],
    "two processes": [],
}


def stream_options(corpus: Path, options: list[str]) -> list[str]:
    """Converts the corpus to shards, and replaces its files in the options."""
    for split in ("train", "val"):
        shutil.copy(corpus / "rows.json", corpus / f"{split}.json")
    shards = str(corpus / "shards")
    with pytest.raises(SystemExit) as exit_info:
        prepare(["convert", str(corpus), "--output", shards, "--audio", "embedded"])
    assert not exit_info.value.code
    options = list(options)
    for name in ("--train_file", "--validation_file", "--audio_dir"):
        position = options.index(name)
        del options[position : position + 2]
    return [*options, "--dataset_name", shards]


def kill_within(corpus: Path, options: list[str], launch: tuple, seconds: float) -> int:
    """Runs in processes of its own, and kills them some seconds after the first step."""
    command = [sys.executable, *launch, str(corpus / "fault.py"), *options]
    log = corpus / "log"
    environment = {**os.environ, "FAULT": NO_FAULT}
    with open(log, "w+") as file:
        run = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env=environment
        )
        deadline = time.monotonic() + 200
        while run.poll() is None and time.monotonic() < deadline:
            if "/60 [" in log.read_text():
                break
            time.sleep(0.05)
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert run.returncode in (0, -signal.SIGKILL), log.read_text()[-3000:]
    return run.returncode


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_run_killed_again_and_again_ends_the_same(corpus, tokenizer, variant):
    """SIGKILL to all processes at random moments, in a step, in a save or at the start."""
    more = [*OPTIONS, "--max_steps", "60", "--save_steps", "5", *VARIANTS[variant]]
    options = arguments(corpus, "mimi_semantic", tokenizer, *more)
    if variant == "streamed":
        options = stream_options(corpus, options)
    launch = tuple(TWO_PROCESSES) if variant == "two processes" else ()
    run_to_the_end(corpus, [*options, "--output_dir", str(corpus / "whole")], launch)

    rng = random.Random(0)
    returncode = None
    progress = []
    for attempt in range(40):
        resume = RESUME if last_complete_step(corpus) else []
        # On a loaded machine no run would ever end within a second.
        seconds = rng.uniform(0.1, 1 + attempt / 4)
        returncode = kill_within(corpus, [*options, *resume], launch, seconds)
        progress.append(last_complete_step(corpus))
        if returncode == 0:
            break
    print(f"{variant}: killed {len(progress) - 1} times; last checkpoints {progress}")
    assert returncode == 0
    assert len(progress) > 3
    assert_same_end(corpus / "out", corpus / "whole", steps=60)


# ------------------------------------------------------------------------------------------------
# Checkpoints


def test_resuming_with_other_settings_is_an_error_unless_allowed(corpus, options):
    resumed = [*options, "--resume_from_checkpoint", str(corpus / "whole" / "checkpoint-4")]
    other = [*resumed, "--learning_rate", "0.002", "--train_sampling_strategy", "random"]
    with pytest.raises(SystemExit) as exit_info:
        train_command(other)
    message = str(exit_info.value)
    assert "learning rate 0.001 (now 0.002)" in message
    assert "(now of any length)" in message
    assert message.endswith("use the same options, or --resume_with_changes true")
    rows = json.loads((corpus / "rows.json").read_text())
    (corpus / "rows.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(SystemExit, match=r"was trained with .*rows 16 \(now 15\)"):
        train_command(resumed)
    train_command([*other, "--resume_with_changes", "true"])
    assert len(read_losses(corpus / "out")) == 6


def test_folder_without_a_complete_checkpoint_is_one_line(corpus, options):
    for folder in (corpus / "whole").glob("checkpoint-*"):
        (folder / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="whole holds no complete checkpoint"):
        checkpoint_to_resume("true", str(corpus / "whole"))


def test_checkpoint_is_complete_before_an_earlier_one_is_deleted(corpus, tokenizer, monkeypatch):
    rotate_checkpoints = trainer_module.rotate_checkpoints
    problems = []

    def record_problem(output_dir, **options):
        folders = Path(output_dir).glob("checkpoint-*")
        newest = max(folders, key=lambda folder: int(folder.name[11:]))
        problems.append(find_checkpoint_problem(newest))
        rotate_checkpoints(output_dir=output_dir, **options)

    monkeypatch.setattr(trainer_module, "rotate_checkpoints", record_problem)
    more = [*OPTIONS, "--save_total_limit", "1"]
    train_command(arguments(corpus, "mimi_semantic", tokenizer, *more))
    assert problems == [None] * 3


# ------------------------------------------------------------------------------------------------
# Disks


@pytest.mark.slow
def test_disk_that_fills_up_leaves_the_last_checkpoint(corpus, options):
    half = (corpus / "whole" / "checkpoint-4" / "model.safetensors").stat().st_size // 2
    # As with a quota: after step 3 no file may grow beyond half of the weights.
    limit_files = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import resource; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({half}, {half}))"
    )
    program = FAULT.replace("os.kill(os.getpid(), getattr(signal, what))", limit_files)
    done = run_with_fault(corpus, "SIGXFSZ 3", options, program=program)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = done.stderr.splitlines()
    message = next(line for line in lines if line.startswith("run_train.py: "))
    assert "File too large" in message or "could not be written" in message
    assert message.endswith("add --resume_from_checkpoint true to the same command")
    assert last_complete_step(corpus) == 2
    run_to_the_end(corpus, [*options, *RESUME])
    assert_same_end(corpus / "out", corpus / "whole")


def test_disk_error_is_told_from_an_unreadable_file(corpus, options):
    checkpoint = (corpus / "whole" / "checkpoint-6" / "optimizer.pt").read_bytes()
    with pytest.raises(RuntimeError) as error_info:
        torch.load(io.BytesIO(checkpoint[:900]), weights_only=True)
    assert describe_failure(error_info.value) is None
    assert describe_failure(ValueError("other")) is None
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert f"a file could not be written ({full})" in describe_failure(full)
