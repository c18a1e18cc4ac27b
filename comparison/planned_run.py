"""One run of a comparison: a training and an evaluation, with their record in the run's folder."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

from ..runtime import write_json
from ..training.resume import checkpoint_to_resume

# Runs a module with a command line and a log file. Returns a message if it failed, else None.
Execute = Callable[[str, list[str], Path], str | None]
RECORD_FILE = "planned_run.json"
# A line that names an error. Launchers report only that one of their processes failed.
ERROR = re.compile(
    r"(?!.*(ChildFailedError|CalledProcessError))(run_\w+\.py: |[\w.]*(Error|Exception)\b)"
)


class Stage(NamedTuple):
    """A part of a run: a command, what messages call it, and the file that it writes last."""

    module: str
    activity: str
    result: str


STAGES = {
    "train": Stage("audiolm.run_train", "training", "trainer_state.json"),
    "evaluate": Stage("audiolm.run_eval", "evaluating", "evaluation/metrics.json"),
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    `planned_run.json` in its folder records the options, data and checkpoints with which it began,
    and the seconds of each finished stage.
    """

    arm: str
    seed: int
    name: str  # its folder, relative to that of the comparison
    folder: Path  # of the trained model
    argv: dict[str, list[str]]  # command line of each stage
    data_files: tuple[str, ...] = ()  # training, validation and test file
    checkpoints: tuple[str, ...] = ()  # names or paths of what it reads: weights, files of code
    digests: dict[str, str] = field(default_factory=dict)  # of the data and checkpoints
    processes: int = 1

    def _record(self, seconds: dict[str, float]) -> dict:
        return {**self.argv, **self.digests, "processes": self.processes, "seconds": seconds}

    def _read_record(self) -> dict:
        file = self.folder / RECORD_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each stage that was done with today's options and inputs."""
        record = self._read_record()
        # Other processes give the same numbers.
        if {**record, "processes": self.processes, "seconds": {}} != self._record({}):
            return {}
        return {
            stage: seconds
            for stage, seconds in record["seconds"].items()
            if (self.folder / STAGES[stage].result).is_file()
        }

    def remaining_stages(self) -> list[str]:
        """Returns the stages that are not done. A new training needs a new evaluation."""
        return list(dropwhile(self.seconds().__contains__, STAGES))

    def do(self, execute: Execute) -> str | None:
        """Does the remaining stages and records their seconds. Returns what failed, or None."""
        for stage in self.remaining_stages():
            started_at = time.perf_counter()
            module, activity, result = STAGES[stage]
            print(f"{self.name}: {activity}…", flush=True)
            log = self.folder / f"{stage}.log"
            message = execute(module, self.prepare(stage), log)
            if message is None and not (self.folder / result).is_file():
                message = f"it ended without {result}; {last_line(log)}"
            if message is not None:
                return f"{activity} failed: {message} ({log})"
            seconds = round(time.perf_counter() - started_at, 1)
            record = self._record({**self.seconds(), stage: seconds})
            write_json(self.folder / RECORD_FILE, record)
        return None

    def prepare(self, stage: str) -> list[str]:
        """Deletes a stage's earlier result. Returns its command line.

        A training resumes from its last checkpoint if that was made with today's options.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / STAGES[stage].result).unlink(missing_ok=True)
        argv = self.argv[stage]
        if stage == "evaluate":
            return argv
        earlier_record = {**self._read_record(), "seconds": {}}
        write_json(self.folder / RECORD_FILE, self._record({}))
        if earlier_record == self._record({}):
            # Without a complete checkpoint, the training starts again.
            with contextlib.suppress(ValueError):
                checkpoint_to_resume("true", str(self.folder))
                return [*argv, "--resume_from_checkpoint", "true"]
        for checkpoint in self.folder.glob("checkpoint-*[0-9]"):
            shutil.rmtree(checkpoint)
        return argv


def last_line(log: Path) -> str:
    """Returns the last line of a log that names an error, or else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in re.split(r"[\r\n]", text)]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or list(filter(None, lines)) or ["it wrote nothing"])[-1]
