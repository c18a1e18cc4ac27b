"""Answers to closed questions as numbers, and the accuracy of each arm.

Each arm has one evaluation for each seed. Its outcome on a row is the mean over its seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..data.reasonaqa import CLOSED_QUESTION_TYPES
from ..evaluation.scores import (
    NO_AUDIO_CONTROLS,
    gain_over_best_baseline,
    groups_of_rows,
    recording_names,
)
from ..evaluation.statistics import clip_bootstrap, interval
from .runs import Run


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the closed questions: 1 for a right answer and 0 for a wrong one."""

    rows: list[dict]  # of the first arm's predictions
    question_types: list[str]  # those that occur, in the order of `CLOSED_QUESTION_TYPES`
    type_index: np.ndarray  # each row's question type, shape `(rows,)`
    clips: list[tuple[str, ...]]  # file names of each row's one or two clips
    by_arm: dict[str, np.ndarray]  # means over the seeds of each arm, shape `(rows,)`
    by_seed: dict[str, np.ndarray]  # of each arm, shape `(seeds, rows)`
    baselines: dict[str, dict[str, np.ndarray]]  # of each arm's no-audio baselines, `(rows,)`

    def type_means(self, outcomes: np.ndarray) -> np.ndarray:
        """Returns the mean of each question type, shape `(types, ...)`, of `(rows, ...)`."""
        types = range(len(self.question_types))
        return np.array([outcomes[self.type_index == index].mean(0) for index in types])

    def audio_gain(self, arm: str) -> dict[str, dict]:
        """Returns an arm's accuracy minus that of its strongest no-audio baseline."""
        accuracy, baselines = self.by_arm[arm], self.baselines[arm]
        return gain_over_best_baseline(
            accuracy, baselines, self.question_types, self.type_index, self.clips
        )


def collect_outcomes(runs: Mapping[str, list[Run]]) -> Outcomes:
    """Returns the outcomes of comparable runs. Text-only arms are baselines of the other arms."""
    first = next(iter(runs.values()))[0]
    indices = [
        i for i, row in enumerate(first.rows) if row["question_type"] in CLOSED_QUESTION_TYPES
    ]
    rows = [first.rows[i] for i in indices]
    present = {row["question_type"] for row in rows}
    question_types = [name for name in CLOSED_QUESTION_TYPES if name in present]
    by_seed = {}
    for arm, seeds in runs.items():
        by_seed[arm] = np.array([_run_outcomes(run, indices) for run in seeds])
    by_arm = {arm: outcomes.mean(0) for arm, outcomes in by_seed.items()}
    text_only = {arm: by_arm[arm] for arm, seeds in runs.items() if seeds[0].is_text_only}
    baselines = {}
    for arm, seeds in runs.items():
        baselines[arm] = _control_outcomes(seeds, indices)
        if arm not in text_only:
            baselines[arm] |= text_only
    type_index = np.array([question_types.index(row["question_type"]) for row in rows])
    clips = [recording_names(row) for row in rows]
    return Outcomes(rows, question_types, type_index, clips, by_arm, by_seed, baselines)


def _run_outcomes(run: Run, indices: list[int], control: str | None = None) -> np.ndarray:
    rows = [run.rows[i] for i in indices]
    answered = [row["controls"][control] for row in rows] if control else rows
    protocol = run.metrics["protocol"]
    return np.array([row["answers"][protocol]["correct"] for row in answered], float)


def _control_outcomes(seeds: list[Run], indices: list[int]) -> dict[str, np.ndarray]:
    """Returns the mean outcomes under each no-audio control that has all rows of all seeds."""
    rows = []
    for run in seeds:
        rows += [run.rows[i] for i in indices]
    outcomes = {}
    for control in NO_AUDIO_CONTROLS:
        if all(control in row["controls"] for row in rows):
            by_seed = [_run_outcomes(run, indices, control) for run in seeds]
            outcomes[control] = np.mean(by_seed, 0)
    return outcomes


def arm_accuracies(outcomes: Outcomes, max_audio_seconds: float, resamples: int) -> dict[str, dict]:
    """Returns the accuracies of each arm with their bootstrap intervals over clips.

    Returns:
        For each arm, accuracies by `question_type` and every other grouping, `micro` over all rows,
        and the mean over question types: `macro`, `macro_accuracy` and `macro_by_seed`.
    """
    groupings = {"question_type": (outcomes.question_types, outcomes.type_index)}
    for grouping, row_groups in groups_of_rows(outcomes.rows, max_audio_seconds).items():
        groupings.setdefault(grouping, index_groups(row_groups))
    groupings["micro"] = index_groups([""] * len(outcomes.rows))
    columns = np.stack(list(outcomes.by_arm.values()), 1)
    accuracies: dict[str, dict] = {arm: {} for arm in outcomes.by_arm}
    for grouping, (names, index) in groupings.items():
        samples = clip_bootstrap(columns, outcomes.clips, index, resamples)
        for column, arm in enumerate(accuracies):
            cells = {}
            for group, name in enumerate(names):
                values = outcomes.by_arm[arm][index == group]
                cells[name] = _cell(len(values), values.mean(), samples[:, group, column])
            accuracies[arm][grouping] = cells
            if grouping == "question_type":
                mean = outcomes.type_means(outcomes.by_arm[arm]).mean()
                macro = _cell(len(outcomes.rows), mean, samples[:, :, column].mean(1))
                by_seed = [outcomes.type_means(seed).mean() for seed in outcomes.by_seed[arm]]
                accuracies[arm]["macro_accuracy"] = macro["accuracy"]
                accuracies[arm]["macro"] = macro
                accuracies[arm]["macro_by_seed"] = [float(mean) for mean in by_seed]
    for cells in accuracies.values():
        cells["micro"] = cells["micro"][""]
    return accuracies


def index_groups(row_groups: list[str]) -> tuple[list[str], np.ndarray]:
    """Returns the sorted groups, and the index among them of each row's group."""
    names, index = np.unique(row_groups, return_inverse=True)
    return names.tolist(), index


def bounds(samples: np.ndarray) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of bootstrap samples, shape `(resamples,)`."""
    low, high = interval(samples)
    return float(low), float(high)


def _cell(count: int, accuracy: float, samples: np.ndarray) -> dict:
    low, high = bounds(samples)
    return {"n": count, "accuracy": float(accuracy), "ci95_low": low, "ci95_high": high}
