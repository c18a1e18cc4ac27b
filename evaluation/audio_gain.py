"""What a model gains from the audio: its accuracy minus that of its strongest no-audio baseline."""

from collections.abc import Mapping

import numpy as np

from .controls import CONTROLS
from .estimates import MEAN, ResampledAccuracies, describe_difference

# Under these controls no answer uses the audio. Under `option_relabel` it does.
NO_AUDIO_CONTROLS = tuple(control for control in CONTROLS if control != "option_relabel")
# Controls under which the evaluated models answer themselves.
PAIRED_CONTROLS = ("no_audio", "noise", "mismatched_audio")
# Controls that no training of the evaluated model changes.
FIXED_CONTROLS = ("majority",)
# The control that is another model, trained without audio.
TEXT_ONLY_CONTROL = "question_only"


def gain_over_best_baseline(
    correct: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    question_types: list[str],
    type_index: np.ndarray,
    clips: list[tuple[str, ...]],
    resamples: int = 10_000,
) -> dict[str, dict]:
    """Returns the accuracy minus that of the strongest no-audio baseline, with its interval.

    It is slightly pessimistic, because the baseline is chosen on the same rows.

    Args:
        correct: Outcomes with audio, shape `(trainings, rows)`.
        baselines: Outcomes without audio by the name of a control, or of a text-only arm.
        question_types: The types that occur.
        type_index: Shape `(rows,)`. Index of each row's type.
        clips: Names of each row's clips.
        resamples: Number of resamples of the clips.

    Returns:
        One entry per question type, and `macro` for the mean over types.
    """
    if not baselines:
        return {}
    outcomes = {"": correct, **baselines}
    accuracies = ResampledAccuracies(outcomes, clips, type_index, resamples, FIXED_CONTROLS)
    gains = {}
    for row_group, name in [*enumerate(question_types), (MEAN, "macro")]:
        means = {arm: accuracies.group(arm, row_group).values.mean() for arm in outcomes}
        best = max(baselines, key=lambda baseline: means[baseline])
        is_paired = best in PAIRED_CONTROLS
        estimate = accuracies.estimate_paired if is_paired else accuracies.estimate
        gain = estimate("", best, row_group)
        gains[name] = {
            "accuracy": float(means[""]),
            "best_control": best,
            "control_accuracy": float(means[best]),
            **describe_difference(gain),
        }
    return gains
