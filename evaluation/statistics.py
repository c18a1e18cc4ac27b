"""Resamples of test clips, corrections for several tests, McNemar's test, calibration.

Questions about one clip are right or wrong together. So clips are resampled, never rows.
`estimates.py` adds the error of the trainings. docs/protocol.md says which number decides what.
"""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

# Numbers in the largest array of one chunk of resamples, 32 MiB.
CHUNK = 2**22


def clip_bootstrap(
    outcomes: np.ndarray,
    clips: Sequence[tuple[str, ...]],
    groups: np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
) -> np.ndarray:
    """Returns the mean of each group under resamples of the clips.

    A resample draws as many clips as there are, with replacement. A row counts as often as the
    product of the draws of its clips. For rows about two clips this is the pigeonhole bootstrap
    (Owen 2007, Annals of Applied Statistics), whose intervals are slightly too wide.

    Args:
        outcomes: Shape `(rows, columns)`. A column is an arm, or a difference of two arms.
        clips: The one or two clips of each row.
        groups: Shape `(rows,)`. Numbers from 0, or -1 for no group.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Returns:
        Shape `(resamples, groups, columns)`. NaN where a group got no row.

    Raises:
        ValueError: If shapes differ, an outcome is not finite, or a row has no or three clips.
    """
    if not len(outcomes) == len(clips) == len(groups) or not np.isfinite(outcomes).all():
        shapes = f"{np.shape(outcomes)}, {len(clips)} and {len(groups)}"
        raise ValueError(
            f"expected finite outcomes, clips and groups of as many rows, not {shapes}"
        )
    if not all(isinstance(names, tuple) and len(names) in (1, 2) for names in clips):
        raise ValueError("expected a tuple of one or two clips for each row")
    # Clips are numbered in alphabetical order: the draws do not depend on the order of the rows.
    distinct_clips = sorted(set(chain.from_iterable(clips)))
    numbers = {clip: number for number, clip in enumerate(distinct_clips)}
    num_clips = len(numbers)
    num_groups = groups.max(initial=-1) + 1
    is_in_group = groups >= 0
    pairs = [sorted((numbers[names[0]], numbers[names[-1]])) for names in clips]
    first, second = np.array(pairs, int).reshape(-1, 2).T
    # The second clip of a row about one clip is `num_clips`, which every resample draws once.
    second = np.where(first == second, num_clips, second)
    keys = np.column_stack([groups, first, second])[is_in_group]
    distinct, place = np.unique(keys, axis=0, return_inverse=True)
    group_of_pair, first, second = distinct.T
    sums = np.zeros((len(distinct), outcomes.shape[1] + 1))
    np.add.at(sums, place, np.column_stack([outcomes, np.ones(len(outcomes))])[is_in_group])
    bounds = np.searchsorted(group_of_pair, np.arange(num_groups + 1))

    means = np.full((resamples, num_groups, outcomes.shape[1]), np.nan)
    generator = np.random.default_rng(seed)
    size = max(1, CHUNK // max(num_clips, len(distinct), 1))
    for start in range(0, resamples, size):
        stop = min(start + size, resamples)
        counts = _draw_counts(generator, stop - start, num_clips)
        for group, (low, high) in enumerate(pairwise(bounds)):
            weights = counts[:, first[low:high]] * counts[:, second[low:high]]
            totals = weights @ sums[low:high]
            weight = totals[:, -1:]
            np.divide(totals[:, :-1], weight, out=means[start:stop, group], where=weight > 0)
    return means


def _draw_counts(generator: np.random.Generator, resamples: int, num_clips: int) -> np.ndarray:
    """Draws clips. Returns how often each one was drawn, and a last column of ones."""
    drawn = generator.integers(num_clips, size=(resamples, num_clips))
    drawn += num_clips * np.arange(resamples)[:, None]
    counts = np.ones((resamples, num_clips + 1))
    counts[:, :-1] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    return counts


def mcnemar(first: ArrayLike, second: ArrayLike) -> dict:
    """Runs McNemar's exact test of two arms on the same rows, as if rows were independent.

    Args:
        first: Whether the first arm is right, shape `(rows,)`.
        second: Whether the second arm is.

    Returns:
        `only_first` and `only_second`, the rows that one arm alone has right, and the two-sided
        `p`, which is 1 without such rows.
    """
    only_first = int(np.greater(first, second).sum())
    only_second = int(np.less(first, second).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def holm(p_values: ArrayLike) -> list[float]:
    """Corrects the p-values of one family by Holm's method. Returns them in their order.

    Raises:
        ValueError: If one is not between 0 and 1.
    """
    p_values = np.asarray(p_values, float)
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"expected p-values between 0 and 1: {p_values.tolist()}")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(np.arange(len(p_values), 0, -1) * p_values[order])
    return np.minimum(adjusted, 1).tolist()


def holm_levels(p_values: ArrayLike, alpha: float = 0.05) -> list[float]:
    """Returns the level at which Holm's method tests each p-value of a family.

    An interval that misses the truth with this probability holds no difference exactly if the
    corrected p-value is at least `alpha`. Tests after the first that finds nothing have its level.
    """
    p_values = np.asarray(p_values, float)
    levels = np.empty(len(p_values))
    level = alpha
    has_failed = False
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        if not has_failed:
            level = alpha / (len(p_values) - place)
            has_failed = p_values[index] >= level
        levels[index] = level
    return levels.tolist()


def expected_calibration_error(
    probabilities: ArrayLike, correct: ArrayLike, bins: int = 10
) -> dict:
    """Returns how far the probability of the chosen answer is from its accuracy.

    Source: Guo et al. 2017, arXiv:1706.04599.

    Args:
        probabilities: Of the chosen answers, shape `(rows,)`.
        correct: Whether they are right, shape `(rows,)`.
        bins: Number of bins of equal width.

    Returns:
        `ece`, the mean distance over rows, and `bins`. Each bin with rows has `low` (inside),
        `high` (outside, except 1), `n`, `confidence` (the mean probability) and `accuracy`.
    """
    probabilities = np.asarray(probabilities, float)
    correct = np.asarray(correct, float)
    edges = np.arange(bins + 1) / bins
    bin_of_row = np.digitize(probabilities, edges[1:-1])
    entries = []
    for number in np.unique(bin_of_row):
        is_inside = bin_of_row == number
        entries.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "n": int(is_inside.sum()),
                "confidence": float(probabilities[is_inside].mean()),
                "accuracy": float(correct[is_inside].mean()),
            }
        )
    gaps = sum(entry["n"] * abs(entry["confidence"] - entry["accuracy"]) for entry in entries)
    return {"ece": gaps / len(probabilities), "bins": entries}
