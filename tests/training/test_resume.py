"""Runs that are killed, stopped or torn, in processes of their own by real signals, end as if nothing had happened."""

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
from transformers import trainer

from audiolm.data.prepare import main as prepare
from audiolm.training import train as run_train
from audiolm.training.callbacks import StopOnSignal
from audiolm.training.disk import describe_disk_error
from audiolm.training.resume import (
    checkpoint_to_resume,
    delete_incomplete_checkpoint,
    find_checkpoint_problem,
)
from audiolm.training.train import main as train

# run_train.py, to which something happens: SIGNAL at the end of STEP, or SIGKILL as it writes FILE of checkpoint-STEP
FAULT = """
import os, signal, sys
import torch
from transformers import TrainerCallback
from audiolm.training import train as run_train
what, step = os.environ["FAULT"].split()

class Fault(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == int(step) and hasattr(signal, what) and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), getattr(signal, what))

class Trainer(run_train.BucketTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(Fault())

inner = torch.save
def save(content, file, *args, **kwargs):
    inner(content, file, *args, **kwargs)
    if str(file).endswith(f"checkpoint-{step}/{what}"):
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
run_train.BucketTrainer = Trainer
run_train.main(sys.argv[1:])
"""
WORDS = [
    "--max_steps",
    "6",
    "--save_steps",
    "2",
    "--eval_strategy",
    "no",
    "--learning_rate",
    "0.001",
    "--logging_steps",
    "1",
]


def happens(corpus, what: str, words: list[str], launch: tuple = ()) -> subprocess.CompletedProcess:
    (corpus / "fault.py").write_text(FAULT)
    words = [sys.executable, *launch, str(corpus / "fault.py"), *words]
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, "FAULT": what})


def go_on(corpus, words: list[str]) -> str:
    """What a run to which nothing happens says, in a process of its own as that of the run it is compared with: numbers are
    those of the same process, whatever was done in it before."""
    done = happens(corpus, "nothing 0", words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def losses(folder) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]


def assert_same_end(folder, expected) -> None:
    found = weights(folder)
    assert found.keys() == expected[0].keys() and all(
        torch.equal(value, expected[0][key]) for key, value in found.items()
    )
    assert losses(folder) == expected[1] and len(expected[1]) == 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """A corpus with a run in its folder `whole` to which nothing happened, and the run's arguments."""
    corpus = make_corpus(tmp_path_factory.mktemp("resume"))
    words = arguments(corpus, "mimi_semantic", tokenizer, *WORDS)
    go_on(corpus, [*words, "--output_dir", str(corpus / "whole")])
    return corpus, words


@pytest.fixture
def run(corpus, whole):
    """Arguments of a run in a corpus of its own, and how it ends if nothing happens to it."""
    shutil.copytree(whole[0], corpus, dirs_exist_ok=True)
    words = [word.replace(str(whole[0]), str(corpus)) for word in whole[1]]
    return words, (weights(corpus / "whole"), losses(corpus / "whole"))


def test_a_run_killed_killed_in_a_save_and_stopped_ends_the_same(corpus, run):
    words, expected = run
    again = [*words, "--resume_from_checkpoint", "true"]
    assert happens(corpus, "SIGKILL 3", words).returncode == -signal.SIGKILL
    assert checkpoints(corpus) == 2 and not (corpus / "out" / "checkpoint-4").exists()
    assert happens(corpus, "optimizer.pt 4", again).returncode == -signal.SIGKILL
    assert checkpoints(corpus) == 2 and (corpus / "out" / "checkpoint-4").exists()
    stopped = happens(corpus, "SIGTERM 4", again)
    assert "checkpoint-4 is passed over: optimizer.pt is missing or torn" in stopped.stderr
    assert (
        stopped.returncode == 128 + signal.SIGTERM
        and "step 5 is saved" in stopped.stderr
        and checkpoints(corpus) == 5
    )
    assert not (corpus / "out" / "model.safetensors").exists()
    assert "passed over" not in go_on(corpus, again)
    assert_same_end(corpus / "out", expected)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGKILL 3", "SIGKILL 4", "optimizer.pt 4", "scheduler.pt 4"])
def test_a_killed_run_ends_the_same(corpus, run, what):
    words, expected = run
    assert happens(corpus, what, words).returncode == -signal.SIGKILL
    assert not (corpus / "out" / "model.safetensors").exists()
    torn = what.startswith(("optimizer", "scheduler"))
    assert (corpus / "out" / "checkpoint-4").exists() is torn
    said = go_on(corpus, [*words, "--resume_from_checkpoint", "true"])
    assert_same_end(corpus / "out", expected)
    assert (f"checkpoint-4 is passed over: {what.split()[0]} is missing or torn" in said) is torn


@pytest.mark.slow
@pytest.mark.parametrize("what", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_is_saved_and_ends_the_same(corpus, run, what):
    words, expected = run
    done = happens(corpus, f"{what} 2", words)
    assert done.returncode == 128 + getattr(signal, what)
    assert done.stderr.splitlines()[-1] == (
        f"run_train.py: stopped by {what}; step 3 is saved: the same command with --resume_from_checkpoint true goes on"
    )
    assert checkpoint_to_resume("true", str(corpus / "out")) == str(corpus / "out" / "checkpoint-3")
    go_on(corpus, [*words, "--resume_from_checkpoint", "true"])
    assert_same_end(corpus / "out", expected)


@pytest.mark.slow
def test_two_processes_stop_at_one_step(corpus, tokenizer):
    words = arguments(corpus, "mimi_semantic", tokenizer, *WORDS)
    whole = happens(
        corpus, "nothing 0", [*words, "--output_dir", str(corpus / "whole")], tuple(TWO_PROCESSES)
    )
    assert whole.returncode == 0, whole.stderr[-3000:]
    done = happens(corpus, "SIGTERM 2", words, tuple(TWO_PROCESSES))  # to the first one alone
    assert done.returncode != 0 and "step 3 is saved" in done.stderr
    checkpoint = corpus / "out" / "checkpoint-3"
    assert find_checkpoint_problem(checkpoint) is None
    again = happens(
        corpus, "nothing 0", [*words, "--resume_from_checkpoint", "true"], tuple(TWO_PROCESSES)
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert_same_end(corpus / "out", (weights(corpus / "whole"), losses(corpus / "whole")))
    checkpoint = corpus / "out" / "checkpoint-6"
    (checkpoint / "rng_state_1.pth").unlink()
    assert (
        find_checkpoint_problem(checkpoint)
        == "the states of 2 processes are wanted, but 1 are there"
    )


def test_going_on_with_other_settings_is_refused_unless_asked_for(corpus, run):
    words, _ = run
    checkpoint = str(corpus / "whole" / "checkpoint-4")
    other = [
        *words,
        "--resume_from_checkpoint",
        checkpoint,
        "--learning_rate",
        "0.002",
        "--train_sampling_strategy",
        "random",
    ]
    with pytest.raises(SystemExit) as refused:
        train(other)
    assert "learning rate 0.001 (now 0.002)" in str(refused.value) and "(now of any length)" in str(
        refused.value
    )
    assert str(refused.value).endswith("give the same, or --resume_with_changes true")
    rows = json.loads((corpus / "rows.json").read_text())
    (corpus / "rows.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(SystemExit, match=r"was trained with .*rows 16 \(now 15\)"):
        train([*words, "--resume_from_checkpoint", checkpoint])
    train([*other, "--resume_with_changes", "true"])
    assert len(losses(corpus / "out")) == 6


def test_no_whole_checkpoint_is_one_line(corpus, run):
    for folder in (corpus / "whole").glob("checkpoint-*"):
        (folder / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="whole holds no whole checkpoint"):
        checkpoint_to_resume("true", str(corpus / "whole"))


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(corpus, run):
    words, expected = run
    size = (corpus / "whole" / "checkpoint-4" / "model.safetensors").stat().st_size
    # as a quota does: files may no longer grow beyond the weights' half once step 3 is done
    limited = FAULT.replace(
        "os.kill(os.getpid(), getattr(signal, what))",
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import resource; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))",
    )
    (corpus / "limited.py").write_text(limited)
    done = subprocess.run(
        [sys.executable, str(corpus / "limited.py"), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "FAULT": "SIGXFSZ 3"},
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    said = next(
        line for line in done.stderr.splitlines() if line.startswith("run_train.py: ")
    )  # behind it a bar may end
    assert "File too large" in said or "could not be written" in said
    assert said.endswith(
        f"step 4 is not saved; free some room, or lower --save_total_limit; {corpus}/out/checkpoint-2 is "
        "whole: --resume_from_checkpoint true goes on from it"
    )
    assert sorted(path.name for path in (corpus / "out").glob("checkpoint-*")) == ["checkpoint-2"]
    go_on(corpus, [*words, "--resume_from_checkpoint", "true"])
    assert_same_end(corpus / "out", expected)


def test_a_stopped_run_keeps_its_last_step_and_not_its_best(corpus, tokenizer, monkeypatch):
    best = [
        "--load_best_model_at_end",
        "true",
        "--metric_for_best_model",
        "mcq_loss",
        "--save_total_limit",
        "1",
    ]
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        *WORDS,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        *best,
    )
    inner = StopOnSignal.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        inner(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_step_end", on_step_end)
    with pytest.raises(SystemExit):
        train(words)
    assert checkpoints(corpus) == 5


def test_a_checkpoint_is_whole_before_an_earlier_one_gives_way(corpus, tokenizer, monkeypatch):
    rotate, found = trainer.rotate_checkpoints, []

    def look(output_dir, **options):
        found.append(
            find_checkpoint_problem(
                max(Path(output_dir).glob("checkpoint-*"), key=lambda folder: int(folder.name[11:]))
            )
        )
        rotate(output_dir=output_dir, **options)

    monkeypatch.setattr(trainer, "rotate_checkpoints", look)
    train([*arguments(corpus, "mimi_semantic", tokenizer, *WORDS), "--save_total_limit", "1"])
    assert found == [None] * 3


def test_a_whole_checkpoint_is_never_dropped(corpus, run):
    assert delete_incomplete_checkpoint(str(corpus / "whole"), 6).startswith("step 6 is saved; ")
    assert find_checkpoint_problem(corpus / "whole" / "checkpoint-6") is None
    with pytest.raises(RuntimeError) as torn:
        torch.load(
            io.BytesIO((corpus / "whole" / "checkpoint-6" / "optimizer.pt").read_bytes()[:900]),
            weights_only=True,
        )
    assert describe_disk_error(torn.value) is None  # a file that cannot be read is no full disk
    assert (
        describe_disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        and describe_disk_error(ValueError("other")) is None
    )


def test_a_disk_without_room_is_noticed_before_the_run(corpus, tokenizer, monkeypatch):
    usage = shutil.disk_usage(corpus)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(
        SystemExit,
        match=r"run_train.py: --output_dir .*: no room: up to [\d.]+ MB for 3 checkpoints of",
    ):
        train(arguments(corpus, "mimi_semantic", tokenizer, *WORDS))
    for step in (2, 4):  # as where a run goes on: its checkpoints give way to new ones
        (corpus / "out" / f"checkpoint-{step}").mkdir()
    with pytest.raises(SystemExit, match="for 1 checkpoints of"):
        train(arguments(corpus, "mimi_semantic", tokenizer, *WORDS))


@pytest.mark.parametrize(
    "more",
    [
        [],
        [
            "--load_best_model_at_end",
            "true",
            "--metric_for_best_model",
            "mcq_loss",
            "--save_total_limit",
            "1",
        ],
    ],
)
def test_a_signal_breaks_an_evaluation_off_and_the_step_is_saved(
    more, corpus, tokenizer, monkeypatch
):
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        *WORDS,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "3",
        "--per_device_eval_batch_size",
        "1",
        "--save_steps",
        "6",
        *more,
    )
    train([*words, "--output_dir", str(corpus / "whole")])
    inner, asked, saved, save = (
        StopOnSignal.on_prediction_step,
        [],
        [],
        run_train.BucketTrainer._save_checkpoint,
    )
    monkeypatch.setattr(
        run_train.BucketTrainer,
        "_save_checkpoint",
        lambda self, *args: saved.append(self.state.global_step) or save(self, *args),
    )

    def on_prediction_step(self, args, state, control, **kwargs):
        asked.append(state.global_step)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        inner(self, args, state, control, **kwargs)

    monkeypatch.setattr(StopOnSignal, "on_prediction_step", on_prediction_step)
    with pytest.raises(SystemExit) as stopped:
        train(words)
    assert stopped.value.code == 128 + signal.SIGTERM and 2 <= len(asked) < 8  # of 16 batches
    assert set(asked) == {3} and saved == [3]
    assert find_checkpoint_problem(corpus / "out" / "checkpoint-3") is None
    train([*words, "--resume_from_checkpoint", "true"])
    assert_same_end(corpus / "out", (weights(corpus / "whole"), losses(corpus / "whole")))


KINDS = {
    "workers": ["--dataloader_num_workers", "2"],
    "adapters, accumulated": [
        "--freeze_lm",
        "true",
        "--lora_r",
        "2",
        "--per_device_train_batch_size",
        "4",
    ],
    "streamed": ["--streaming", "true", "--dataloader_num_workers", "1"],
    "two processes": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_ends_the_same(corpus, tokenizer, kind):
    """SIGKILL to all of its processes at random moments, in a step, in a save or at its start, until it has ended."""
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        *WORDS,
        "--max_steps",
        "60",
        "--save_steps",
        "5",
        *KINDS[kind],
    )
    if kind == "streamed":
        for split in ("train", "val"):
            (corpus / f"{split}.json").write_text((corpus / "rows.json").read_text())
        with pytest.raises(SystemExit) as ended:
            prepare(
                ["convert", str(corpus), "--output", str(corpus / "shards"), "--audio", "embedded"]
            )
        assert not ended.value.code
        for name in ("--train_file", "--validation_file", "--audio_dir"):
            at = words.index(name)
            del words[at : at + 2]
        words += ["--dataset_name", str(corpus / "shards")]
    launch = tuple(TWO_PROCESSES) if kind == "two processes" else ()
    whole = happens(corpus, "nothing 0", [*words, "--output_dir", str(corpus / "whole")], launch)
    assert whole.returncode == 0, whole.stderr[-3000:]
    draw, killed, progress = random.Random(0), 0, []
    for attempt in range(40):
        again = ["--resume_from_checkpoint", "true"] if checkpoints(corpus) else []
        with open(corpus / "log", "w+") as log:
            command = [sys.executable, *launch, str(corpus / "fault.py"), *words, *again]
            run = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "FAULT": "nothing 0"},
            )
            deadline = time.monotonic() + 200
            while (
                run.poll() is None
                and "/60 [" not in Path(log.name).read_text()
                and time.monotonic() < deadline
            ):
                time.sleep(0.05)
            try:
                run.wait(
                    draw.uniform(0.1, 1 + attempt / 4)
                )  # on a busy machine no run would ever end within a second
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
                killed += 1
        assert run.returncode in (0, -signal.SIGKILL), Path(log.name).read_text()[-3000:]
        progress.append(checkpoints(corpus))
        if run.returncode == 0:
            break
    print(f"{kind}: killed {killed} times; last checkpoints {progress}")
    assert run.returncode == 0 and killed >= 3
    found, expected = weights(corpus / "out"), weights(corpus / "whole")
    assert found.keys() == expected.keys() and all(
        torch.equal(value, expected[key]) for key, value in found.items()
    )
    assert losses(corpus / "out") == losses(corpus / "whole") and len(losses(corpus / "out")) == 60


def checkpoints(corpus) -> int:
    """The last step that is saved whole, 0 if there is none."""
    try:
        return int(checkpoint_to_resume("true", str(corpus / "out")).rpartition("-")[2])
    except ValueError:
        return 0
