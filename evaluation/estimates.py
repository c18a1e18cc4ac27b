"""Means and differences of accuracies with two sources of error: test clips and trainings.

Questions about one clip are right or wrong together, and another training of the same model answers
differently. Both errors are added:

- clips: the variance of the mean over trainings, under resamples of the clips. It has as many
  degrees of freedom as clips, minus one.
- trainings: the variance between the trainings of an arm, divided by their number. The variances of
  two arms are added, with Welch's degrees of freedom.

The critical value is the mean of both t quantiles, weighted by the two variances (Cochran and Cox,
Experimental Designs, 1957). It is conservative. Satterthwaite's degrees of freedom are not, with
three trainings. docs/evaluate.md has the simulation that chose it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from .statistics import clip_bootstrap

ALPHA = 0.05
POWER = 0.8  # of a test, as docs/protocol.md asks for
MEAN = -1
# No p-value is smaller. It bounds the search for it.
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Group:
    """Accuracies of one arm, or of one baseline.

    Attributes:
        values: Shape `(trainings,)`.
        samples: The same under resamples of the clips, shape `(resamples, trainings)`.
        is_fixed: Whether there is no other training of it: a published checkpoint, or a rule.
    """

    values: np.ndarray
    samples: np.ndarray
    is_fixed: bool = False


@dataclass(frozen=True)
class Estimate:
    """An estimate with its two sources of error. All numbers may be arrays of one shape.

    Attributes:
        value: A mean accuracy, or a difference of two.
        clip_variance: Its variance due to the choice of clips.
        num_clips: Number of clips. For a mean over groups, of the group with the fewest.
        training_variance: Its variance due to the trainings.
        training_df: Degrees of freedom of that. Infinite without such variance.
    """

    value: float
    clip_variance: float
    num_clips: int
    training_variance: float = 0.0
    training_df: float = np.inf

    def margin(self, alpha: float | np.ndarray = ALPHA) -> Any:
        """Returns half the width of the interval that misses the truth in a share `alpha`."""
        quantile = 1 - np.asarray(alpha) / 2
        total = np.maximum(self.clip_variance + self.training_variance, np.finfo(float).tiny)
        clip_part = student_t.ppf(quantile, max(1, self.num_clips - 1)) * self.clip_variance
        training_part = student_t.ppf(quantile, self.training_df) * self.training_variance
        return (clip_part + training_part) / np.sqrt(total)

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns the ends of the interval that misses the truth in a share `alpha`."""
        margin = self.margin(alpha)
        return self.value - margin, self.value + margin

    def p_value(self) -> Any:
        """Returns the two-sided p-value of the value 0: the `alpha` whose interval ends at 0."""
        low = np.full(np.shape(self.value), np.log(SMALLEST_P))
        high = np.zeros(np.shape(self.value))
        for _ in range(50):
            middle = (low + high) / 2
            holds_zero = self.margin(np.exp(middle)) >= np.abs(self.value)
            low, high = np.where(holds_zero, middle, low), np.where(holds_zero, high, middle)
        return np.exp(high)

    def minimum_detectable(self, tests: int) -> float:
        """Returns the true difference that is found with the probability `POWER`.

        Each of the `tests` has the level `ALPHA / tests`, Holm's strictest.
        """
        return self.margin(ALPHA / tests) + self.margin(2 * (1 - POWER))


def estimate(first: Group, second: Group | None = None, num_clips: int = 2) -> Estimate:
    """Estimates a mean accuracy, or the first group's minus the second's.

    An arm with one training beside an arm with several is taken to scatter as those do. Where no
    arm has several trainings, only the error of the clips is known.

    Args:
        first: An arm, or the differences of an arm's trainings from a control of the same models.
        second: Another arm or baseline, from other trainings.
        num_clips: Number of clips, see [`Estimate`].
    """
    groups = [group for group in (first, second) if group is not None]
    signs = (1, -1)
    value = sum(sign * group.values.mean() for sign, group in zip(signs, groups))
    samples = sum(sign * group.samples.mean(1) for sign, group in zip(signs, groups))
    # A sample without a row of some group is NaN.
    clip_variance = float(np.nanvar(samples, ddof=1))
    # If no resample differs, the interval would have no width, but one more clip may differ.
    extreme = abs(value) if second else max(abs(value), 1 - value)
    clip_variance = max(clip_variance, (extreme / max(1, num_clips)) ** 2)
    trained = [group.values for group in groups if not group.is_fixed]
    return add_training_error(float(value), clip_variance, num_clips, trained)


def add_training_error(
    value: float, clip_variance: float, num_clips: int, trained: Sequence[np.ndarray]
) -> Estimate:
    """Returns an estimate with the error that the trainings' accuracies show.

    Args:
        value: The estimate, or an array of simulated ones.
        clip_variance: Its variance due to the choice of clips.
        num_clips: Number of clips, see [`Estimate`].
        trained: Accuracies of the trainings of each arm, shape `(..., trainings)`.
    """
    repeated = [values for values in trained if values.shape[-1] > 1]
    if not repeated:
        return Estimate(value, clip_variance, num_clips)
    variances = []
    for values in trained:
        source = values if values.shape[-1] > 1 else repeated[0]
        variance = np.var(source, axis=-1, ddof=1) / values.shape[-1]
        variances.append((variance, source.shape[-1] - 1))
    total = sum(variance for variance, _ in variances)
    if len(repeated) < len(trained):
        # Both variances come from the same trainings.
        return Estimate(value, clip_variance, num_clips, total, variances[0][1])
    # Without any variance, the degrees of freedom do not matter.
    squares = sum(variance**2 / df for variance, df in variances)
    df = np.where(total > 0, total**2 / np.maximum(squares, np.finfo(float).tiny), np.inf)
    return Estimate(value, clip_variance, num_clips, total, df)


class ResampledAccuracies:
    """Accuracies of arms and baselines in groups of rows, with their resamples over clips.

    A group of rows is a question type, for instance. The group `MEAN` is the mean over all groups.
    """

    def __init__(
        self,
        outcomes: Mapping[str, np.ndarray],
        clips: Sequence[tuple[str, ...]],
        row_groups: np.ndarray,
        resamples: int,
        fixed: Collection[str] = (),
    ):
        """Resamples the clips.

        Args:
            outcomes: By arm, 1 for a right answer and 0 for a wrong one, shape
                `(trainings, rows)`.
            clips: The one or two clips of each row.
            row_groups: Shape `(rows,)`. Numbers from 0, or -1 for no group.
            resamples: Number of resamples.
            fixed: Arms of which there is no other training.
        """
        self.fixed = fixed
        self.columns: dict[str, slice] = {}
        start = 0
        for arm, by_training in outcomes.items():
            stop = start + len(by_training)
            self.columns[arm] = slice(start, stop)
            start = stop
        columns = np.concatenate(list(outcomes.values())).T
        self.samples = clip_bootstrap(columns, clips, row_groups, resamples)
        means, self.clip_counts = [], []
        for group in range(self.samples.shape[1]):
            rows = np.flatnonzero(row_groups == group)
            means.append(columns[rows].mean(0))
            self.clip_counts.append(len(set(chain.from_iterable(clips[row] for row in rows))))
        # The mean over all groups is the last one.
        self.means = [*means, np.mean(means, 0)]
        self.samples = np.append(self.samples, self.samples.mean(1, keepdims=True), axis=1)
        self.clip_counts.append(min(self.clip_counts))

    def group(self, arm: str, row_group: int = MEAN) -> Group:
        """Returns an arm's accuracies in a group of rows."""
        columns = self.columns[arm]
        samples = self.samples[:, row_group, columns]
        return Group(self.means[row_group][columns], samples, arm in self.fixed)

    def estimate(self, first: str, second: str | None = None, row_group: int = MEAN) -> Estimate:
        """Estimates an arm's accuracy, or its difference from another arm with other trainings."""
        other = self.group(second, row_group) if second else None
        return estimate(self.group(first, row_group), other, self.clip_counts[row_group])

    def estimate_paired(self, arm: str, control: str, row_group: int = MEAN) -> Estimate:
        """Estimates an arm's accuracy minus that of the same models under a control."""
        first, second = self.group(arm, row_group), self.group(control, row_group)
        values, samples = first.values - second.values, first.samples - second.samples
        difference = Group(values, samples, first.is_fixed)
        return estimate(difference, num_clips=self.clip_counts[row_group])


def describe_accuracy(accuracy: Estimate, count: int) -> dict:
    """Returns an accuracy on `count` rows with its 95 % interval."""
    low, high = accuracy.interval()
    return {
        "n": int(count),
        "accuracy": accuracy.value,
        "ci95_low": float(max(0.0, low)),
        "ci95_high": float(min(1.0, high)),
    }


def describe_difference(difference: Estimate) -> dict[str, float]:
    """Returns a difference with its 95 % interval."""
    low, high = difference.interval()
    return {"difference": difference.value, "ci95_low": float(low), "ci95_high": float(high)}
