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
from ..evaluation.estimates import ResampledAccuracies
from ..evaluation.scores import groups_of_rows, recording_names
from .runs import Run


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the closed questions: 1 for a right answer and 0 for a wrong one."""

    rows: list[dict]  # of the first arm's predictions
    # Names of groups and each row's index among them, shape `(rows,)`, by grouping. Question types
    # are in the order of `CLOSED_QUESTION_TYPES`, other groups in alphabetical order.
    groups: dict[str, tuple[list[str], np.ndarray]]
    clips: list[tuple[str, ...]]  # names of each row's one or two clips
    by_seed: dict[str, np.ndarray]  # of each arm, shape `(seeds, rows)`
    published: list[str]  # arms of which there is no other training
    baselines: dict[str, dict[str, np.ndarray]]  # of each arm, without audio

    def resample(self, grouping: str, resamples: int) -> ResampledAccuracies:
        """Returns the accuracies of all arms in the groups of a grouping."""
        row_groups = self.groups[grouping][1]
        return ResampledAccuracies(
            self.by_seed, self.clips, row_groups, resamples, fixed=self.published
        )

    def audio_gain(self, arm: str, resamples: int) -> dict[str, dict]:
        """Returns an arm's accuracy minus that of its strongest no-audio baseline."""
        types = self.groups["question_type"]
        outcomes, baselines = self.by_seed[arm], self.baselines[arm]
        return gain_over_best_baseline(outcomes, baselines, *types, self.clips, resamples)


def collect_outcomes(runs: Mapping[str, list[Run]]) -> Outcomes:
    """Returns the outcomes of comparable runs. Text-only arms are baselines of the other arms."""
    first = next(iter(runs.values()))[0]
    indices = [
        i for i, row in enumerate(first.rows) if row["question_type"] in CLOSED_QUESTION_TYPES
    ]
    rows = [first.rows[i] for i in indices]
    by_seed = {}
    for arm, seeds in runs.items():
        by_seed[arm] = np.array([_run_outcomes(run, indices) for run in seeds])
    # An arm may have the name of a control.
    text_only = {
        f"arm {arm}" if arm in NO_AUDIO_CONTROLS else arm: by_seed[arm]
        for arm, seeds in runs.items()
        if seeds[0].is_text_only
    }
    baselines = {}
    for arm, seeds in runs.items():
        baselines[arm] = _control_outcomes(seeds, indices)
        if not seeds[0].is_text_only:
            baselines[arm] |= text_only
    published = [arm for arm, seeds in runs.items() if seeds[0].is_published]
    clips = [recording_names(row) for row in rows]
    groups = _index_groups(rows, first.metrics["max_audio_seconds"])
    return Outcomes(rows, groups, clips, by_seed, published, baselines)


def _index_groups(
    rows: list[dict], max_audio_seconds: float
) -> dict[str, tuple[list[str], np.ndarray]]:
    present = {row["question_type"] for row in rows}
    types = [name for name in CLOSED_QUESTION_TYPES if name in present]
    groups = {
        "question_type": (types, np.array([types.index(row["question_type"]) for row in rows]))
    }
    for grouping, row_groups in groups_of_rows(rows, max_audio_seconds).items():
        names, index = np.unique(row_groups, return_inverse=True)
        groups.setdefault(grouping, (names.tolist(), index))
    groups["micro"] = ([""], np.zeros(len(rows), int))
    return groups


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
        if not all(control in row["controls"] for row in rows):
            continue
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
