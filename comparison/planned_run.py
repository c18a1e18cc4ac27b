"""One run of a comparison: a training and an evaluation, with their records in the run's folder."""

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
    """One run of a comparison."""

    arm: str
    seed: int
    name: str  # its folder, relative to that of the comparison
    folder: Path  # of the trained model
    argv: dict[str, list[str]]  # command line of each stage
    digests: dict[str, str] = field(default_factory=dict)  # of the data and checkpoints it reads
    processes: int = 1

    def log(self, stage: str) -> Path:
        """Returns the file with a stage's output."""
        return self.folder / f"{stage}.log"

    def is_done(self, stage: str) -> bool:
        """Whether a stage was done with today's options, data and checkpoints."""
        has_result = (self.folder / STAGES[stage].result).is_file()
        return has_result and _read(self.folder / f"{stage}.json") == self._record()

    def remaining_stages(self) -> list[str]:
        """Returns the stages that are not done. A new training needs a new evaluation."""
        return list(dropwhile(self.is_done, STAGES))

    def timings(self) -> dict[str, float]:
        """Returns the seconds that each finished stage took."""
        return _read(self.folder / "timings.json") or {}

    def do(self, stage: str, execute: Execute) -> "Failure | None":
        """Does a stage and records it."""
        started_at = time.perf_counter()
        module, _, result = STAGES[stage]
        message = execute(module, self.prepare(stage), self.log(stage))
        if message is None and not (self.folder / result).is_file():
            message = f"it ended without {result}; {last_line(self.log(stage))}"
        if message is not None:
            return Failure(self, stage, message)
        seconds = round(time.perf_counter() - started_at, 1)
        write_json(self.folder / "timings.json", {**self.timings(), stage: seconds})
        write_json(self.folder / f"{stage}.json", self._record())
        return None

    def prepare(self, stage: str) -> list[str]:
        """Deletes a stage's earlier results. Returns its command line.

        A training resumes from its last checkpoint if that was made with today's options.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for outdated in STAGES if stage == "train" else ("evaluate",):
            (self.folder / f"{outdated}.json").unlink(missing_ok=True)
        (self.folder / STAGES[stage].result).unlink(missing_ok=True)
        argv = self.argv[stage]
        if stage == "evaluate":
            return argv
        begun = self.folder / "begun.json"
        record = {**self._record(), "processes": self.processes}
        if _read(begun) == record:
            # Without a complete checkpoint, the training starts again.
            with contextlib.suppress(ValueError):
                checkpoint_to_resume("true", str(self.folder))
                return [*argv, "--resume_from_checkpoint", "true"]
        for checkpoint in self.folder.glob("checkpoint-*[0-9]"):
            shutil.rmtree(checkpoint)
        write_json(begun, record)
        return argv

    def _record(self) -> dict:
        return {**self.argv, **self.digests}


@dataclass(frozen=True)
class Failure:
    """A stage of a run that failed."""

    run: PlannedRun
    stage: str
    message: str

    def __str__(self) -> str:
        activity = STAGES[self.stage].activity
        return f"{self.run.name}: {activity} failed: {self.message} ({self.run.log(self.stage)})"


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def last_line(log: Path) -> str:
    """Returns the last line of a log that names an error, or else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in re.split(r"[\r\n]", text)]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or list(filter(None, lines)) or ["it wrote nothing"])[-1]
