"""comparison/cluster.py: several runs at once by Ray, failing, stopped, and on a lost machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.small_comparisons import command_line, read_comparison, write_two_arms

from audiolm.comparison.cluster import (
    RAY_ENVIRONMENT,
    RayCluster,
    plan_resources,
    run_in_subprocess,
)
from audiolm.comparison.config import read_config
from audiolm.comparison.plan import plan_runs
from audiolm.comparison.runs import read_run
from audiolm.comparison.sweep import do_runs
from audiolm.run_compare import main
from audiolm.runtime import UserError
from audiolm.training.resume import RECORD_FILE

# Ray reads it when a test imports it, and `uv run pytest` would start each worker by uv.
os.environ.update(RAY_ENVIRONMENT)

LONG_TRAINING = {"max_steps": 100_000, "save_strategy": "steps", "save_steps": 100_000}


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer):
    """A folder, and the config of a comparison of two arms in it."""
    folder = tmp_path_factory.mktemp("cluster")
    return folder, write_two_arms(folder, tokenizer) | {"seeds": [0]}


@pytest.fixture(scope="module")
def in_turn(config):
    """Folder of all runs one after another."""
    main(command_line(*config, "in_turn"))
    return config[0] / "in_turn"


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def test_two_runs_at_once_give_the_numbers_of_runs_in_turn(in_turn, config, capsys):
    pytest.importorskip("ray")
    argv = command_line(*config, "at_once")
    main([*argv, "--parallel", "2"])
    output = capsys.readouterr().out
    assert read_comparison(config[0] / "at_once") == read_comparison(in_turn)
    assert output.count(": finished (") == 2
    assert " left)" in output
    main(argv)
    assert capsys.readouterr().out.count("not run again") == 4


@pytest.mark.slow
def test_run_that_fails_beside_another_is_reported_at_the_end(in_turn, config, capsys):
    """The other run's numbers are unchanged, and the same command tries the failed one again."""
    pytest.importorskip("ray")
    folder, options = config
    broken = {"encoder_type": "mimi_full", "encoder_name_or_path": str(folder / "text")}
    arms = {"broken": broken, "mimi_full": options["arms"]["mimi_full"]}
    argv = command_line(*config, "failing", arms=arms, seeds=[0])
    output = folder / "failing"
    for more, repeated in ((["--parallel", "2"], 0), ([], 2)):
        with pytest.raises(SystemExit) as error:
            main([*argv, *more])
        captured = capsys.readouterr()
        last = captured.err.strip().split("\n")[-1]
        comparison = json.loads((output / "comparison.json").read_text())
        assert error.value.code == 1
        assert "1 runs failed" in captured.err
        assert last.startswith("  broken: training failed: run_train.py: ")
        assert last.endswith(f"({output / 'broken' / 'train.log'})")
        assert captured.out.count("not run again") == repeated
        assert list(comparison["arms"]) == ["mimi_full"]
        assert comparison["left_out"] == ["broken"]
    report = (output / "report.html").read_text()
    assert "Excluded because a run failed: broken." in report
    assert "mcq loss" in (output / "mimi_full" / "train.log").read_text()
    expected = read_run(in_turn / "mimi_full" / "evaluation")
    assert read_run(output / "mimi_full" / "evaluation").rows == expected.rows


def test_command_without_ray_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = "run_compare.py: --parallel and --ray_address need the package ray. Install"
    with pytest.raises(SystemExit, match=message):
        main([*command_line(*config, "without_ray"), "--parallel", "2"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "send", "shell"),
    [
        # Ctrl-C reaches all processes of the terminal.
        (signal.SIGINT, os.killpg, []),
        (signal.SIGTERM, os.kill, []),
        # In the background of a script, SIGINT is ignored at first.
        (signal.SIGHUP, os.kill, ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]),
    ],
)
def test_stopped_command_saves_the_step_of_each_training(config, number, send, shell):
    pytest.importorskip("ray")
    train = {**config[1]["train"], **LONG_TRAINING}
    name = f"stopped_{number}"
    argv = command_line(*config, name, train=train, seeds=[0])
    command = [*shell, sys.executable, "-m", "audiolm.run_compare", *argv, "--parallel", "2"]
    folders = [config[0] / name / arm for arm in config[1]["arms"]]
    logs = [folder / "train.log" for folder in folders]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: all(log.is_file() and "'loss'" in log.read_text() for log in logs))
    finally:  # also ends the trainings of a failing test
        send(process.pid, number)
        _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    for folder, log in zip(folders, logs):
        assert "stopped by SIGTERM" in log.read_text()
        assert len(list(folder.glob(f"checkpoint-*/{RECORD_FILE}"))) == 1
        assert json.loads((folder / "planned_run.json").read_text())["seconds"] == {}
    assert running_commands(config[0] / name) == ""


def running_commands(folder):
    """Command lines of processes that name a folder."""
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return "\n".join(line for line in processes.split("\n") if f"{folder}/" in line)


@pytest.mark.slow
def test_run_on_a_lost_machine_ends_on_another_one(config):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    saving = {"max_steps": 150, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}
    train = {**config[1]["train"], **saving, "eval_steps": 150}
    argv = command_line(*config, "lost", train=train, seeds=[0])
    folders = [config[0] / "lost" / arm for arm in config[1]["arms"]]
    health = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": health}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    machine = cluster.add_node(num_cpus=1, include_dashboard=False)

    def lose_machine():
        wait_for(
            lambda: all(list(folder.glob(f"checkpoint-*/{RECORD_FILE}")) for folder in folders)
        )
        cluster.remove_node(machine, allow_graceful=False)

    thread = threading.Thread(target=lose_machine)
    thread.start()
    try:
        main([*argv, "--ray_address", cluster.address])
    finally:
        thread.join()
        cluster.shutdown()
    infos = [json.loads((folder / "run_info.json").read_text()) for folder in folders]
    assert sum("--resume_from_checkpoint" in info["command"] for info in infos) == 1
    for folder in folders:
        state = json.loads((folder / "trainer_state.json").read_text())
        steps = [entry["step"] for entry in state["log_history"] if "loss" in entry]
        assert steps == list(range(1, 151))
        assert (folder / "evaluation" / "metrics.json").is_file()
    assert running_commands(config[0] / "lost") == ""


@pytest.mark.slow
def test_run_in_two_processes(config):
    """As on two GPUs, `accelerate launch` starts them. Here they are processes of the CPU."""
    pytest.importorskip("ray")
    arms = {"mimi_full": config[1]["arms"]["mimi_full"]}
    argv = command_line(*config, "two", seeds=[0], arms=arms)
    (run,) = plan_runs(read_config(argv[1]), processes=2)
    assert do_runs([run], RayCluster(parallel=1, processes=2)) == {}
    info = json.loads((run.folder / "run_info.json").read_text())
    assert info["machine"]["processes"] == 2


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("pass", None),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL; it wrote nothing"),
        ("raise ValueError('no room')", "ValueError: no room"),
    ],
)
def test_run_in_subprocess_returns_what_went_wrong(tmp_path, statement, message):
    argv = ["--number", "1", "--repeat", "1", statement]
    assert run_in_subprocess(1, "timeit", argv, tmp_path / "a.log") == message


GPUS = {"CPU": 16.0, "GPU": 4.0}
CPUS = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("machines", "parallel", "processes", "resources", "slots"),
    [
        ([CPUS], 2, 1, {"num_cpus": 4, "num_gpus": 0}, 2),
        ([CPUS, CPUS], None, 1, {"num_cpus": 8, "num_gpus": 0}, 2),
        ([CPUS], 16, 2, {"num_cpus": 1, "num_gpus": 0}, 8),
        ([GPUS], 2, 1, {"num_cpus": 8, "num_gpus": 1}, 2),
        ([GPUS, GPUS], None, 2, {"num_cpus": 8, "num_gpus": 2}, 4),
        ([GPUS], 4, 2, {"num_cpus": 4, "num_gpus": 2}, 2),
        # The driver's machine does no runs.
        ([{"CPU": 0.0}, GPUS], None, 4, {"num_cpus": 16, "num_gpus": 4}, 1),
    ],
)
def test_plan_resources_shares_cores_and_gpus(machines, parallel, processes, resources, slots):
    assert plan_resources(machines, parallel, processes) == (resources, slots)


def test_plan_resources_with_too_few_gpus_is_refused():
    with pytest.raises(UserError, match="--processes_per_run 8: expected as many GPUs on one"):
        plan_resources([GPUS, GPUS], None, 8)
