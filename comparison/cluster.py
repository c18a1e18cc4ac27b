"""Does several runs at once as Ray tasks, on one machine or a cluster. Needs the extra `cluster`.

All machines need the same `output_dir`. A run whose machine is lost resumes on another one from its
last checkpoint.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..runtime import UserError
from .planned_run import PlannedRun, last_line

MAX_RETRIES = 3  # of a run whose machine was lost
POLL_SECONDS = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
# Ray reads these when it is imported. Under `uv run` it would upload the current folder.
RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
LOCAL_RAY = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
# Each option is given, because accelerate's own configuration may differ between machines.
LAUNCHER = (
    "accelerate.commands.accelerate_cli launch --multi_gpu --num_machines 1 --num_processes {} "
    "--main_process_port 0 --mixed_precision no --dynamo_backend no -m"
)


class RayCluster:
    """Machines that do several runs at once.

    Args:
        parallel: Runs at once on each machine. Default: as many as it has GPUs for, or one.
        processes: Processes of each run, each with its own GPU if there are GPUs.
        address: Address of a Ray cluster. Default: Ray is started on this machine.

    Attributes:
        slots: Number of runs that are done at once.
    """

    def __init__(self, parallel: int | None, processes: int = 1, address: str | None = None):
        self._ray = _start_ray(parallel, address)
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        resources, self.slots = plan_resources(machines, parallel, processes)
        self._do_run = self._ray.remote(max_retries=MAX_RETRIES, **resources)(do_run)

    def do(self, runs: list[PlannedRun]) -> Iterator[tuple[PlannedRun, str | None]]:
        """Does the remaining stages of runs. Yields each run when it ends, and what failed.

        SIGINT, SIGTERM and SIGHUP end it by `SystemExit`. Unfinished runs are then cancelled. A
        second signal does not wait for them.
        """
        signals: list[int] = []

        def stop(number: int, frame: object) -> None:
            if signals:
                raise KeyboardInterrupt
            # Ray would replace the exit status of an exception that is raised here.
            signals.append(number)

        handlers = {number: signal.signal(number, stop) for number in SIGNALS}
        runs_by_task = {self._do_run.remote(run, os.getcwd()): run for run in runs}
        pending = list(runs_by_task)
        try:
            while pending:
                finished, pending = self._ray.wait(pending, timeout=1)
                if signals:
                    sys.exit(128 + signals[0])
                for task in finished:
                    yield runs_by_task[task], self._get_failure(task)
        finally:
            for task in pending:
                self._ray.cancel(task)
            # Cancelled tasks end when their trainings have saved the step.
            if pending:
                self._ray.wait(pending, num_returns=len(pending))
            self._ray.shutdown()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _get_failure(self, task: Any) -> str | None:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            # The last line of a worker's traceback names the error.
            return str(error).strip().split("\n")[-1]


def _start_ray(parallel: int | None, address: str | None) -> Any:
    """Connects to a cluster, or starts Ray on this machine. Returns the module `ray`."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--parallel and --ray_address need the package ray. Install the extra `cluster`: "
            "`uv sync --extra cluster`, or `pip install ray`."
        ) from error
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not address:
        parallel = parallel or 1
        cpus = parallel * max(1, (os.cpu_count() or 1) // parallel)
        settings |= {**LOCAL_RAY, "num_cpus": cpus}
    try:
        ray.init(address=address or "local", **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--ray_address {address}: no Ray cluster ({error}). Start one with `ray start --head`."
        ) from error
    return ray


def plan_resources(
    machines: list[dict[str, float]], parallel: int | None, processes: int
) -> tuple[dict[str, int], int]:
    """Returns the CPUs and GPUs that a run takes, and how many runs that allows at once.

    Ray takes all resources of one task from one machine, as from a placement group with a single
    bundle, so the processes of a run need no placement group of their own.
    """
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU")]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if 0 < max(gpus) < processes:
        raise UserError(
            f"--processes_per_run {processes}: expected as many GPUs on one machine, but there are "
            f"{max(gpus)}"
        )
    # Runs share the cores of a machine. Ray sets OMP_NUM_THREADS to those of a run.
    num_cpus = max(1, min(cpus) // (parallel or max(1, max(gpus) // processes)))
    slots = sum(count // num_cpus for count in cpus)
    if not max(gpus):
        return {"num_cpus": num_cpus, "num_gpus": 0}, slots
    slots = min(slots, sum(count // processes for count in gpus))
    return {"num_cpus": num_cpus, "num_gpus": processes}, slots


def do_run(run: PlannedRun, working_folder: str) -> str | None:
    """Does a run on a worker. Its paths are relative to a folder. Returns what failed, or None."""
    # Ray cancels by SIGINT, which all processes ignore that a script starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.chdir(working_folder):
        return run.do(partial(run_in_subprocess, run.processes))


def run_in_subprocess(processes: int, module: str, argv: list[str], log: Path) -> str | None:
    """Runs a command in processes of its own. Returns its error message, or None.

    If the task is cancelled, the command gets SIGTERM, upon which a training saves its step.
    """
    launcher = LAUNCHER.format(processes).split() if processes > 1 else []
    threads = int(os.environ.get("OMP_NUM_THREADS", processes)) // processes
    # Without a buffer, the log of a killed process is complete.
    environment = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(max(1, threads))}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher, module, *argv],
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            # Ray cancels a task by a KeyboardInterrupt, which does not end `process.wait()`.
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode < 0:
        return f"killed by {signal.Signals(-process.returncode).name}; {last_line(log)}"
    return last_line(log) if process.returncode else None


def _end_with_parent() -> None:
    """Lets Linux send SIGTERM to this process when its parent is killed, as with a lost node."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
