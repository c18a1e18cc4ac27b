"""Does the runs of a comparison that are not done: one after another, or as Ray tasks (cluster.py).

A run that fails is named at the end, and the others continue.
"""

import contextlib
import signal
import time
import traceback
from collections import Counter
from importlib import import_module
from pathlib import Path

from ..runtime import format_duration
from .cluster import RayCluster
from .planned_run import STAGES, Failure, PlannedRun

# Exit statuses of a training that was stopped by a signal, after it saved its step.
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Sweep:
    """Does what is not done of a comparison's runs, and reports progress. Collects `failures`.

    Without a cluster, runs go one after another in this process.
    """

    def __init__(self, runs: list[PlannedRun], cluster: RayCluster | None = None):
        self.runs = runs
        self.cluster = cluster
        self.failures: list[Failure] = []
        self._started_at = time.perf_counter()
        self._numbers = {run.name: number for number, run in enumerate(runs, 1)}

    def timings(self) -> dict[str, dict[str, float]]:
        """Returns the seconds of each finished run's stages, by the run's name."""
        timings = {run.name: run.timings() for run in self.runs}
        return {name: seconds for name, seconds in timings.items() if seconds}

    def without_failures(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Returns the runs of arms of which no seed failed."""
        failed = {failure.run.arm for failure in self.failures}
        return [run for run in runs if run.arm not in failed]

    def do(self, runs: list[PlannedRun]) -> None:
        """Does the remaining stages of runs.

        Raises:
            SystemExit: If a signal stopped the runs. Trainings save their step before.
        """
        remaining = [run for run in runs if run.remaining_stages()]
        for run in runs:
            for stage in list(STAGES)[: len(STAGES) - len(run.remaining_stages())]:
                self._print(run, f"{stage} is done with today's options, so it is not run again")
        if self.cluster and remaining:
            self._do_at_once(remaining, self.cluster)
        else:
            self._do_in_turn(remaining)

    def _do_in_turn(self, runs: list[PlannedRun]) -> None:
        for run in runs:
            for stage in run.remaining_stages():
                self._print(run, f"{STAGES[stage].activity}… ({self._progress(runs)})")
                failure = run.do(stage, run_in_process)
                if failure:
                    self._report(failure)
                    break

    def _do_at_once(self, runs: list[PlannedRun], cluster: RayCluster) -> None:
        with cluster:
            for run, failure in cluster.do(runs):
                if failure:
                    self._report(failure)
                else:
                    self._print(run, f"finished ({self._progress(runs, cluster.slots)})")

    def _report(self, failure: Failure) -> None:
        self.failures.append(failure)
        activity = STAGES[failure.stage].activity
        self._print(failure.run, f"{activity} failed: {failure.message}")

    def _print(self, run: PlannedRun, message: str) -> None:
        print(f"[{self._numbers[run.name]}/{len(self.runs)}] {run.name}: {message}", flush=True)

    def _progress(self, runs: list[PlannedRun], slots: int = 1) -> str:
        """Describes the time that passed, and estimates the rest by what stages took so far."""
        passed = format_duration(time.perf_counter() - self._started_at)
        counts: Counter[str] = Counter()
        for run in self.without_failures(runs):
            counts.update(run.remaining_stages())
        seconds = 0.0
        for stage, count in counts.items():
            durations = [times[stage] for times in self.timings().values() if stage in times]
            if not durations:
                return f"{passed} passed, time left is known after the first run"
            seconds += count * sum(durations) / len(durations) / slots
        return f"{passed} passed, about {format_duration(seconds)} left"


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
