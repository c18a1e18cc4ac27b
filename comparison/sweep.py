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


class Sweep:
    """Does what is not done of a comparison's runs, and reports progress.

    Without a cluster, runs go one after another in this process.

    Attributes:
        failures: What failed, by the name of the run.
    """

    def __init__(self, runs: list[PlannedRun], cluster: RayCluster | None = None):
        self.runs = runs
        self.cluster = cluster
        self.failures: dict[str, str] = {}

    def finished_runs(self) -> list[PlannedRun]:
        """Returns the runs of arms of which no seed failed."""
        failed = {run.arm for run in self.runs if run.name in self.failures}
        return [run for run in self.runs if run.arm not in failed]

    def do(self) -> None:
        """Does the remaining stages of all runs.

        Raises:
            SystemExit: If a signal stopped the runs. Trainings save their step before.
        """
        started_at = time.perf_counter()
        remaining = []
        for run in self.runs:
            stages = run.remaining_stages()
            if stages:
                remaining.append(run)
            for stage in STAGES.keys() - stages:
                self._print(run, f"{stage} is done with today's options, so it is not run again")
        if self.cluster:
            results = self.cluster.do(remaining)
        else:
            results = ((run, run.do(run_in_process)) for run in remaining)
        slots = self.cluster.slots if self.cluster else 1
        for count, (run, failure) in enumerate(results, 1):
            if failure:
                self.failures[run.name] = failure
            passed = time.perf_counter() - started_at
            # Runs at once take as long as one of them.
            left = max(0.0, passed * (len(remaining) / slots / math.ceil(count / slots) - 1))
            progress = f"{format_duration(passed)} passed, about {format_duration(left)} left"
            self._print(run, f"{failure or 'finished'} ({progress})")

    def _print(self, run: PlannedRun, message: str) -> None:
        number = self.runs.index(run) + 1
        print(f"[{number}/{len(self.runs)}] {run.name}: {message}", flush=True)


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
