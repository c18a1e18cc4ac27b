"""What a model gains from the audio: its accuracy minus that of its strongest no-audio baseline."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from .controls import CONTROLS
from .estimates import MEAN, ResampledAccuracies, describe_difference

# Under these controls no answer uses the audio. Under `option_relabel` it does.
NO_AUDIO_CONTROLS = tuple(control for control in CONTROLS if control != "option_relabel")
# Controls that no training of the evaluated model changes.
FIXED_CONTROLS = ("majority",)
# The control that is another model, trained without audio.
TEXT_ONLY_CONTROL = "question_only"


class Baseline(NamedTuple):
    """Outcomes without audio.

    Attributes:
        outcomes: 1 for a right answer and 0 for a wrong one, shape `(trainings, rows)`.
        has_own_trainings: Whether other models answered than with audio, or none.
    """

    outcomes: np.ndarray
    has_own_trainings: bool


def gain_over_best_baseline(
    correct: np.ndarray,
    baselines: Mapping[str, Baseline],
    question_types: list[str],
    type_index: np.ndarray,
    clips: list[tuple[str, ...]],
    resamples: int = 10_000,
) -> dict[str, dict]:
    """Returns the accuracy minus that of the strongest no-audio baseline, with its interval.

    It is slightly pessimistic, because the baseline is chosen on the same rows.

    Args:
        correct: Outcomes with audio, shape `(trainings, rows)`.
        baselines: By name.
        question_types: The types that occur.
        type_index: Shape `(rows,)`. Index of each row's type.
        clips: Names of each row's clips.
        resamples: Number of resamples of the clips.

    Returns:
        One entry per question type, and `macro` for the mean over types.
    """
    if not baselines:
        return {}
    outcomes = {"": correct} | {name: baseline.outcomes for name, baseline in baselines.items()}
    accuracies = ResampledAccuracies(outcomes, clips, type_index, resamples, FIXED_CONTROLS)
    gains = {}
    for row_group, name in [*enumerate(question_types), (MEAN, "macro")]:
        means = {arm: accuracies.group(arm, row_group).values.mean() for arm in outcomes}
        best = max(baselines, key=lambda baseline: means[baseline])
        if baselines[best].has_own_trainings:
            gain = accuracies.estimate("", best, row_group)
        else:
            gain = accuracies.estimate_paired("", best, row_group)
        gains[name] = {
            "accuracy": float(means[""]),
            "best_control": best,
            "control_accuracy": float(means[best]),
            **describe_difference(gain),
        }
    return gains
