"""The runs of a comparison: one after another, several at once, or a part of them; what is done is not run again.

A run trains and is evaluated. One that fails is named in the end, and the others go on.
"""

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from ..evaluation import evaluate as run_eval
from ..runtime import UserError, write_json
from ..training import train as run_train
from ..training.resume import checkpoint_to_resume
from .plan import PlannedRun

SCRIPTS = {"train": run_train, "evaluate": run_eval}
MODULES = {"train": "audiolm.run_train", "evaluate": "audiolm.run_eval"}
SAYING = {"train": "training", "evaluate": "evaluating"}
MADE = {"train": "trainer_state.json", "evaluate": "evaluation/metrics.json"}
STOPPED = (
    128 + signal.SIGINT,
    128 + signal.SIGTERM,
)  # exit statuses of a run that was told to stop
OF_LAUNCHERS = (
    "ChildFailedError",
    "CalledProcessError",
)  # which say only that a process of theirs has failed


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def as_json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def part_of(share: str) -> tuple[int, int]:
    """(number, of how many), numbered from 1, of `I/N`.

    Raises:
        UserError: in one line, if it is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", share)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(
            f"--share {share}: I/N is wanted, such as 1/2 on one machine and 2/2 on another"
        )
    return int(found[1]), int(found[2])


def devices(parallel: int, each: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of so many runs at once, of `each` GPUs; None where there is no GPU.

    Raises:
        UserError: in one line, if there are GPUs, but fewer.
    """
    if not (count := torch.cuda.device_count()):
        return [None] * parallel
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    names = names.split(",")[:count]
    if parallel * each > count:
        raise UserError(
            f"--parallel {parallel} with {each} GPUs a run wants {parallel * each} GPUs, but {count} are here"
        )
    return [",".join(names[i * each : (i + 1) * each]) for i in range(parallel)]


def command(module: str, words: list[str], processes: int) -> list[str]:
    """The command line of a script, in so many processes."""
    if processes == 1:
        return [sys.executable, "-m", module, *words]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_machines",
        "1",
    ]
    own = [
        "--num_processes",
        str(processes),
        "--main_process_port",
        "0",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    return [*launch, *own, "-m", module, *words]


def last_words(log: Path) -> str:
    """The last line of a log that says what went wrong; else its last line."""
    lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace"))
    lines = [said for line in lines if (said := re.sub(r"^\[rank\d+\]: ?", "", line).strip())]
    telling = [
        line
        for line in lines
        if re.match(r"run_\w+\.py: |[\w.]*(Error|Exception)\b", line)
        and not any(name in line for name in OF_LAUNCHERS)
    ]
    return (telling or lines or ["it said nothing"])[-1]


class Failure(NamedTuple):
    """A run that came to no end: its name, at which stage, what it said last, and where the rest is."""

    run: PlannedRun
    name: str
    stage: str
    said: str
    log: Path

    def __str__(self) -> str:
        return f"{self.name}: {SAYING[self.stage]} failed: {self.said} ({self.log})"


class Sweep:
    """Runs the stages of runs that are not done with today's options, and says how far it is.

    Args:
        runs: all that may be run. records: what each depends on, by folder.
        parallel: runs at once, each in `processes` processes of its own; None runs one after another in this process.
        share: (number, of how many) parts of the runs, of which only this one is run.

    Attributes:
        failures: of the runs that were tried.
    """

    def __init__(
        self,
        output: Path,
        runs: list[PlannedRun],
        records: dict[Path, dict],
        start: float,
        parallel: int | None = None,
        processes: int = 1,
        share: tuple[int, int] = (1, 1),
    ):
        self.output, self.runs, self.records, self.start = output, runs, records, start
        self.mine = runs[share[0] - 1 :: share[1]]
        self.parallel, self.processes = parallel, processes
        self.failures: list[Failure] = []
        self.places: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for place in devices(parallel, processes) if parallel else ():
            self.places.put(place)
        self.started: set[subprocess.Popen] = set()
        self.stopped, self.lock = False, threading.Lock()

    def name(self, run: PlannedRun) -> str:
        return run.folder.relative_to(self.output).as_posix()

    def timings(self) -> dict[str, dict[str, float]]:
        """Seconds of each run's stages, whoever ran them."""
        files = {self.name(run): run.folder / "timings.json" for run in self.runs}
        return {
            name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()
        }

    def done(self, stage: str, run: PlannedRun) -> bool:
        record = run.folder / f"{stage}.json"
        return (
            record.is_file()
            and record.read_text() == as_json(self.records[run.folder])
            and (run.folder / MADE[stage]).is_file()
        )

    def whole(self, runs: list[PlannedRun]) -> list[PlannedRun]:
        """Those of `runs` that did not fail, nor did the same with another seed."""
        failed = {(failure.run.arm, failure.run.setting) for failure in self.failures}
        return [run for run in runs if (run.arm, run.setting) not in failed]

    def left(self) -> str:
        """Time left, by what each stage has taken so far."""
        seconds, timings = 0.0, self.timings().values()
        for stage in SCRIPTS:
            took = [of[stage] for of in timings if stage in of]
            todo = sum(not self.done(stage, run) for run in self.mine)
            if todo and not took:
                return "time left is known after the first arm"
            seconds += todo * sum(took) / max(1, len(took)) / (self.parallel or 1)
        return f"about {clock(seconds)} left"

    def do(self, jobs: list[tuple[PlannedRun, tuple[str, ...]]]) -> None:
        """Runs the stages of each run: in turn, or several runs at once.

        Raises:
            SystemExit, KeyboardInterrupt: if this process or the run in it is told to stop, after its runs have stopped.
        """
        jobs = [job for job in jobs if job[0] in self.mine]
        if not self.parallel:
            for job in jobs:
                self._job(*job)
            return

        def stop(number, frame):
            sys.exit(128 + number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
        pool = ThreadPoolExecutor(self.parallel)
        try:
            for future in [pool.submit(self._job, *job) for job in jobs]:
                future.result()
        except BaseException:
            self.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            with self.lock:
                for process in self.started:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGTERM)  # a training saves its step
            raise
        finally:
            pool.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _job(self, run: PlannedRun, stages: tuple[str, ...]) -> None:
        number = f"[{self.runs.index(run) + 1}/{len(self.runs)}] {self.name(run)}"
        for stage in stages:
            if self.done(stage, run):
                print(f"{number}: {stage} is done, with today's options; not run again", flush=True)
                continue
            passed = clock(time.perf_counter() - self.start)
            print(f"{number}: {SAYING[stage]}… ({passed} passed, {self.left()})", flush=True)
            log, before = run.folder / f"{stage}.log", time.perf_counter()
            words = self._prepare(stage, run)
            said = (
                self._apart(stage, words, log) if self.parallel else self._here(stage, words, log)
            )
            if self.stopped:
                return
            if said is None and not (run.folder / MADE[stage]).is_file():
                said = f"it ended without {MADE[stage]}; {last_words(log)}"
            if said is not None:
                self.failures.append(Failure(run, self.name(run), stage, said, log))
                print(f"{number}: {SAYING[stage]} failed: {said}", flush=True)
                return
            file, took = run.folder / "timings.json", round(time.perf_counter() - before, 1)
            write_json(
                file, {**(json.loads(file.read_text()) if file.is_file() else {}), stage: took}
            )
            write_json(run.folder / f"{stage}.json", self.records[run.folder])

    def _prepare(self, stage: str, run: PlannedRun) -> list[str]:
        """The options of a stage, whose earlier results are no more; a training that broke off goes on from its checkpoint."""
        run.folder.mkdir(parents=True, exist_ok=True)
        for stale in SCRIPTS if stage == "train" else ("evaluate",):
            (run.folder / f"{stale}.json").unlink(missing_ok=True)
        (run.folder / MADE[stage]).unlink(missing_ok=True)
        if stage == "evaluate":
            return run.eval_argv
        begun = run.folder / "begun.json"  # what its checkpoints are of
        record = as_json({**self.records[run.folder], "processes": self.processes})
        if begun.is_file() and begun.read_text() == record:
            with contextlib.suppress(ValueError):  # there is none, or none that is whole
                checkpoint_to_resume("true", str(run.folder))
                return [*run.train_argv, "--resume_from_checkpoint", "true"]
        for other in run.folder.glob("checkpoint-*[0-9]"):
            shutil.rmtree(other)
        begun.write_text(record)
        return run.train_argv

    def _here(self, stage: str, words: list[str], log: Path) -> str | None:
        """Runs a script in this process; what went wrong, None if nothing did."""
        with open(log, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            try:
                SCRIPTS[stage].main(words)
            except SystemExit as error:
                if error.code in STOPPED:
                    raise
                print(error.code, file=file)
                return (
                    f"exit status {error.code}" if isinstance(error.code, int) else str(error.code)
                )
            except Exception as error:
                traceback.print_exc(file=file)
                return " ".join(f"{type(error).__name__}: {error}".split())
        return None

    def _apart(self, stage: str, words: list[str], log: Path) -> str | None:
        """Runs a script in processes of its own, a group; what went wrong, None if nothing did."""
        place, environment = (
            self.places.get(),
            {**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # what a killed one has said is kept
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        else:  # runs share the cores
            threads = max(1, (os.cpu_count() or 1) // (self.parallel * self.processes))
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        words = command(MODULES[stage], words, self.processes)
        try:
            with open(log, "w", encoding="utf-8") as file:
                with self.lock:
                    if self.stopped:
                        return None
                    process = subprocess.Popen(
                        words, stdout=file, stderr=file, env=environment, start_new_session=True
                    )
                    self.started.add(process)
                status = process.wait()
                with self.lock:
                    self.started.remove(process)
        finally:
            self.places.put(place)
        if status < 0:
            return f"killed by {signal.Signals(-status).name}; {last_words(log)}"
        return last_words(log) if status else None
