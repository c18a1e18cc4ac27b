"""Answers to closed questions as numbers, and the accuracy of each arm.

Each arm has one evaluation for each seed, and a published model has one alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..data.reasonaqa import CLOSED_QUESTION_TYPES
from ..evaluation.audio_gain import (
    FIXED_CONTROLS,
    NO_AUDIO_CONTROLS,
    TEXT_ONLY_CONTROL,
    gain_over_best_baseline,
)
from ..evaluation.estimates import ResampledAccuracies, describe_accuracy
from ..evaluation.scores import groups_of_rows, recording_names
from .runs import Run


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the closed questions: 1 for a right answer and 0 for a wrong one."""

    rows: list[dict]  # of the first arm's predictions
    question_types: list[str]  # those that occur, in the order of `CLOSED_QUESTION_TYPES`
    type_index: np.ndarray  # each row's question type, shape `(rows,)`
    clips: list[tuple[str, ...]]  # digests of each row's one or two clips
    by_seed: dict[str, np.ndarray]  # of each arm, shape `(seeds, rows)`
    published: list[str]  # arms of which there is no other training
    baselines: dict[str, dict[str, np.ndarray]]  # of each arm, without audio

    def resample(self, row_groups: np.ndarray, resamples: int) -> ResampledAccuracies:
        """Returns the accuracies of all arms in groups of rows."""
        return ResampledAccuracies(
            self.by_seed, self.clips, row_groups, resamples, fixed=self.published
        )

    def audio_gain(self, arm: str, resamples: int) -> dict[str, dict]:
        """Returns an arm's accuracy minus that of its strongest no-audio baseline."""
        return gain_over_best_baseline(
            self.by_seed[arm],
            self.baselines[arm],
            self.question_types,
            self.type_index,
            self.clips,
            resamples,
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
    # An arm may have the name of a control.
    text_only = {
        f"arm {arm}" if arm in NO_AUDIO_CONTROLS else arm: by_seed[arm]
        for arm, seeds in runs.items()
        if seeds[0].is_text_only
    }
    published = [arm for arm, seeds in runs.items() if seeds[0].is_published]
    baselines = {}
    for arm, seeds in runs.items():
        baselines[arm] = _control_outcomes(seeds, indices)
        if not seeds[0].is_text_only:
            baselines[arm] |= text_only
    type_index = np.array([question_types.index(row["question_type"]) for row in rows])
    clips = [recording_names(row) for row in rows]
    return Outcomes(rows, question_types, type_index, clips, by_seed, published, baselines)


def _run_outcomes(run: Run, indices: list[int], control: str | None = None) -> np.ndarray:
    rows = [run.rows[i] for i in indices]
    answered = [row["controls"][control] for row in rows] if control else rows
    protocol = run.metrics["protocol"]
    return np.array([row["answers"][protocol]["correct"] for row in answered], float)


def _control_outcomes(seeds: list[Run], indices: list[int]) -> dict[str, np.ndarray]:
    """Returns the outcomes under each no-audio control that has all rows of all seeds."""
    rows = []
    for run in seeds:
        rows += [run.rows[i] for i in indices]
    baselines = {}
    for control in NO_AUDIO_CONTROLS:
        if all(control in row["controls"] for row in rows):
            answering = seeds
            if control == TEXT_ONLY_CONTROL:
                # One text-only model may stand beside all seeds. It is one training.
                models = {_text_only_model(run): run for run in reversed(seeds)}
                answering = list(models.values())
            elif control in FIXED_CONTROLS:
                answering = seeds[:1]
            outcomes = [_run_outcomes(run, indices, control) for run in answering]
            baselines[control] = np.array(outcomes)
    return baselines


def _text_only_model(run: Run) -> object:
    return run.metrics["settings"].get(TEXT_ONLY_CONTROL, {}).get("weights_sha256")


def arm_accuracies(outcomes: Outcomes, max_audio_seconds: float, resamples: int) -> dict[str, dict]:
    """Returns the accuracies of each arm with their 95 % intervals.

    Returns:
        For each arm, accuracies by `question_type` and every other grouping, `micro` over all rows,
        and the mean over question types: `macro`, `macro_accuracy` and `macro_by_seed`.
    """
    groupings = {"question_type": (outcomes.question_types, outcomes.type_index)}
    for grouping, row_groups in groups_of_rows(outcomes.rows, max_audio_seconds).items():
        groupings.setdefault(grouping, index_groups(row_groups))
    groupings["micro"] = index_groups([""] * len(outcomes.rows))
    results: dict[str, dict] = {arm: {} for arm in outcomes.by_seed}
    for grouping, (names, index) in groupings.items():
        accuracies = outcomes.resample(index, resamples)
        counts = np.bincount(index)
        for arm, result in results.items():
            result[grouping] = {
                name: describe_accuracy(accuracies.estimate(arm, row_group=group), counts[group])
                for group, name in enumerate(names)
            }
            if grouping == "question_type":
                macro = describe_accuracy(accuracies.estimate(arm), len(outcomes.rows))
                result["macro_accuracy"] = macro["accuracy"]
                result["macro"] = macro
                result["macro_by_seed"] = accuracies.group(arm).values.tolist()
    for cells in results.values():
        cells["micro"] = cells["micro"][""]
    return results


def index_groups(row_groups: list[str]) -> tuple[list[str], np.ndarray]:
    """Returns the sorted groups, and the index among them of each row's group."""
    names, index = np.unique(row_groups, return_inverse=True)
    return names.tolist(), index
