"""Several processes, for real: they end as one does, and none waits for one that died. No GPUs."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from support.builders import TWO_PROCESSES, arguments, free_port, make_corpus, weights
from support.options import logged_values, options

from audiolm.run_train import main as train
from audiolm.training.arguments import parse_arguments
from audiolm.training.resume import RECORD_FILE, find_checkpoint_problem
from audiolm.training.trainer import mask_repeated_examples

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "configs" / "accelerate"
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
FOUR_STEPS = options("--max_steps 4 --eval_steps 2 --save_steps 2 --learning_rate 0.001")


def start(log: Path, command: list[str]) -> subprocess.Popen:
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def kill_all_in(folder: Path) -> None:
    """Kills every process with the folder on its command line, with or without its launcher."""
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            process.kill()


def launch(configuration: str, *argv: str) -> list[str]:
    """`accelerate launch` with one of our configurations, on CPUs, where bfloat16 is slow."""
    file = str(CONFIGURATIONS / configuration)
    return [*LAUNCH, "--config_file", file, "--mixed_precision", "no", *argv]


def set_corpus_size(corpus: Path, num_rows: int) -> None:
    """Removes or adds rows, so that there are so many and no two are equal."""
    rows = json.loads((corpus / "rows.json").read_text())
    longer = [{**row, "input": row["input"] + " Listen."} for row in rows]
    (corpus / "rows.json").write_text(json.dumps([*rows, *longer][:num_rows]))


def logged(folder: Path) -> dict[str, list[float]]:
    """What a run logged, except for times."""
    names = ("loss", "grad_norm", "eval_mcq_token_loss", "eval_yes_no_token_loss")
    return {name: logged_values(folder, name) for name in names}


def assert_same_weights(folder: Path, expected: Path) -> None:
    state = weights(folder)
    for name, value in weights(expected).items():
        assert torch.allclose(value.float(), state[name].float(), atol=2e-5), name


def assert_same_run(folder: Path, expected: Path) -> None:
    assert_same_weights(folder, expected)
    expected_log = logged(expected)
    assert [len(values) for values in expected_log.values()] == [4, 4, 2, 2]
    for name, values in logged(folder).items():
        assert values == pytest.approx(expected_log[name], rel=1e-4), name


# run_train.py, and again without an end
TWICE = """
import sys
from audiolm.run_train import main
main(sys.argv[1:])
endless = ["--output_dir", sys.argv[-1] + "_endless", "--max_steps", "100000", "--save_steps", "1"]
main([*sys.argv[1:], *endless])
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, tokenizer):
    """A folder, arguments of run_train.py, and the launchers of two machines with one process each.

    Both are this machine. Machine N writes to `outN`, and to `outN_endless` until it is killed.
    """
    corpus = make_corpus(tmp_path_factory.mktemp("nodes"))
    set_corpus_size(corpus, 17)  # In the second step one process has an example, the other none.
    argv = arguments(corpus, "mimi_full", tokenizer, *FOUR_STEPS)
    (corpus / "twice.py").write_text(TWICE)
    machine = options(
        f"--num_processes 2 --main_process_ip 127.0.0.1 --main_process_port {free_port()}"
    )
    program = [str(corpus / "twice.py"), *argv, "--output_dir"]
    commands = [
        launch(
            "several_nodes.yaml", *machine, "--machine_rank", rank, *program, f"{corpus}/out{rank}"
        )
        for rank in ("0", "1")
    ]
    try:
        launchers = [
            start(corpus / f"{rank}.log", command) for rank, command in enumerate(commands)
        ]
        yield corpus, argv, launchers
    finally:
        kill_all_in(corpus)


def wait_for(file: Path, launchers: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 240
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} is not written"
        assert [launcher.poll() for launcher in launchers] == [None, None]
        time.sleep(0.05)


@pytest.mark.slow
def test_train_on_two_nodes_ends_as_one_process(nodes):
    corpus, argv, launchers = nodes
    train(argv)
    wait_for(corpus / "out0" / "README.md", launchers)  # the last file of a run
    assert_same_run(corpus / "out0", corpus / "out")
    # Without a shared folder, the other machine has its random states alone.
    files = [file for file in (corpus / "out1").rglob("*") if file.is_file()]
    assert sorted(str(file.relative_to(corpus / "out1")) for file in files) == [
        "checkpoint-2/rng_state_1.pth",
        "checkpoint-4/rng_state_1.pth",
    ]
    checkpoint = corpus / "out0" / "checkpoint-4"
    problem = find_checkpoint_problem(checkpoint)
    assert problem == "expected the random states of 2 processes, found 1"
    shutil.copy(corpus / "out1" / "checkpoint-4" / "rng_state_1.pth", checkpoint)
    assert find_checkpoint_problem(checkpoint) is None


def test_train_process_that_dies_ends_the_job(nodes):
    corpus, _, launchers = nodes
    wait_for(corpus / "out0_endless" / "checkpoint-2" / RECORD_FILE, launchers)
    (worker,) = psutil.Process(launchers[1].pid).children()
    worker.kill()
    assert all(launcher.wait(60) for launcher in launchers)
    assert f"Signal 9 (SIGKILL) received by PID {worker.pid}" in (corpus / "1.log").read_text()
    assert "by peer" in (corpus / "0.log").read_text()  # closed, or reset
    assert not (corpus / "out0_endless" / "model.safetensors").exists()


@pytest.mark.parametrize("process, num_own", [(0, 1), (1, 0)])
def test_mask_repeated_examples_keeps_the_last_of_17_for_two_processes(process, num_own):
    args = SimpleNamespace(train_batch_size=8, world_size=2, process_index=process)
    batch = {"labels": torch.ones(8, 3, dtype=torch.long), "label_index": torch.arange(24)}
    mask_repeated_examples(batch, 17, args)
    has_labels = (batch["labels"] != -100).any(1).tolist()
    assert has_labels == [True] * num_own + [False] * (8 - num_own)
    assert batch["label_index"].tolist() == list(range(3 * num_own))


@pytest.mark.parametrize("num_examples, world_size", [(16, 2), (17, 1)])
def test_mask_repeated_examples_without_repetition_changes_nothing(num_examples, world_size):
    args = SimpleNamespace(train_batch_size=8, world_size=world_size, process_index=0)
    batch = {"labels": torch.ones(8, 3, dtype=torch.long)}
    mask_repeated_examples(batch, num_examples, args)
    assert (batch["labels"] == 1).all()


@pytest.mark.slow
def test_train_in_two_processes_resumes_in_an_uneven_epoch(corpus, tokenizer):
    set_corpus_size(corpus, 17)  # Steps 2 and 4 end an epoch.
    more = options("--save_steps 1 --save_total_limit 9 --eval_strategy no")
    argv = [*arguments(corpus, "mimi_full", tokenizer, *FOUR_STEPS), *more]
    command = [sys.executable, *TWO_PROCESSES, "-m", "audiolm.run_train", *argv]
    subprocess.run([*command, "--output_dir", str(corpus / "uninterrupted")], check=True)
    subprocess.run(command, check=True)
    shutil.rmtree(corpus / "out" / "checkpoint-4")
    checkpoint = str(corpus / "out" / "checkpoint-1")
    subprocess.run([*command, "--resume_from_checkpoint", checkpoint], check=True)
    expected = weights(corpus / "uninterrupted")
    assert all(torch.equal(value, expected[key]) for key, value in weights(corpus / "out").items())


@pytest.mark.parametrize("name", ["one_gpu", "several_gpus", "several_nodes"])
def test_configuration_has_options_of_accelerate_alone(name):
    # It refuses unknown keys.
    configuration = load_config_from_file(str(CONFIGURATIONS / f"{name}.yaml"))
    assert configuration.mixed_precision == "bf16"
    assert 16 % configuration.num_processes == 0


@pytest.mark.parametrize("backend", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused(backend, monkeypatch, capsys):
    monkeypatch.setenv(f"ACCELERATE_USE_{backend}", "true")
    with pytest.raises(SystemExit):
        parse_arguments([])
    assert f"{backend} is not supported" in capsys.readouterr().err
