"""Does the runs of a comparison that are not done: one after another, or as Ray tasks (cluster.py).

A run that fails is named at the end, and the others continue.
"""

import contextlib
import math
import signal
import time
import traceback
from importlib import import_module
from pathlib import Path

from ..runtime import format_duration
from .cluster import RayCluster
from .planned_run import STAGES, PlannedRun

# Exit statuses of a training that was stopped by a signal, after it saved its step.
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def do_runs(runs: list[PlannedRun], cluster: RayCluster | None = None) -> dict[str, str]:
    """Does what is not done of a comparison's runs, and reports progress.

    Args:
        runs: The runs. Finished stages are not repeated.
        cluster: Does several runs at once. Default: one after another in this process.

    Returns:
        What failed, by the name of the run.

    Raises:
        SystemExit: If a signal stopped the runs. Trainings save their step before.
    """
    started_at = time.perf_counter()
    titles = {run.name: f"[{number}/{len(runs)}] {run.name}" for number, run in enumerate(runs, 1)}
    remaining = []
    for run in runs:
        stages = run.remaining_stages()
        if stages:
            remaining.append(run)
        for stage in STAGES.keys() - stages:
            print(
                f"{titles[run.name]}: {stage} is done with today's options, so it is not run again"
            )
    if cluster:
        results = cluster.do(remaining)
    else:
        results = ((run, run.do(run_in_process)) for run in remaining)
    slots = cluster.slots if cluster else 1
    failures = {}
    for count, (run, failure) in enumerate(results, 1):
        if failure:
            failures[run.name] = failure
        seconds = time.perf_counter() - started_at
        # Runs at once take as long as one of them.
        seconds_left = max(0.0, seconds * (len(remaining) / slots / math.ceil(count / slots) - 1))
        progress = f"{format_duration(seconds)} passed, about {format_duration(seconds_left)} left"
        print(f"{titles[run.name]}: {failure or 'finished'} ({progress})", flush=True)
    return failures


def without_failures(runs: list[PlannedRun], failures: dict[str, str]) -> list[PlannedRun]:
    """Returns the runs of arms of which no seed failed."""
    failed_arms = {run.arm for run in runs if run.name in failures}
    return [run for run in runs if run.arm not in failed_arms]


def run_in_process(module: str, argv: list[str], log: Path) -> str | None:
    """Runs a command in this process, unless a signal stops it. Returns its error message."""
    with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        try:
            import_module(module).main(argv)
        except SystemExit as error:
            if error.code in STOPPED:
                raise
            print(error.code, file=file)
            is_status = isinstance(error.code, int)
            return f"exit status {error.code}" if is_status else str(error.code)
        except Exception as error:
            traceback.print_exc(file=file)
            return " ".join(f"{type(error).__name__}: {error}".split())
    return None
