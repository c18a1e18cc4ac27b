"""Differences between arms on the same rows, with the tests that docs/protocol.md fixes."""

from itertools import combinations

import numpy as np

from ..evaluation.scores import groups_of_rows
from ..evaluation.statistics import (
    clip_bootstrap,
    clip_permutation_test,
    holm,
    mcnemar,
    minimum_detectable_difference,
)
from .outcomes import Outcomes, bounds, index_groups

ALPHA = 0.05


class PairedOutcomes:
    """Outcomes of every pair of arms, `b` minus `a`.

    Attributes:
        pairs: Names of `a` and `b`.
        values: Differences, shape `(rows, pairs)`.
        type_means: Means of each question type, shape `(types, pairs)`.
        type_samples: Their bootstrap samples, shape `(resamples, types, pairs)`.
    """

    def __init__(self, outcomes: Outcomes, arms: list[str], resamples: int):
        self.outcomes = outcomes
        self.resamples = resamples
        self.pairs = list(combinations(arms, 2))
        by_arm = outcomes.by_arm
        self.values = np.stack([by_arm[b] - by_arm[a] for a, b in self.pairs], 1)
        self.type_means = outcomes.type_means(self.values)
        self.type_samples = self.bootstrap(outcomes.type_index)

    def bootstrap(self, index: np.ndarray) -> np.ndarray:
        """Returns bootstrap means of groups of rows, shape `(resamples, groups, pairs)`."""
        return clip_bootstrap(self.values, self.outcomes.clips, index, self.resamples)

    def describe(self, column: int, mean: float, samples: np.ndarray) -> dict:
        """Returns the names of a pair, and its difference with the 95 % interval of samples."""
        a, b = self.pairs[column]
        low, high = bounds(samples)
        return {"a": a, "b": b, "difference": float(mean), "ci95_low": low, "ci95_high": high}

    def test(self, column: int, selected: np.ndarray, index: np.ndarray) -> float:
        """Returns the permutation p value of a pair on selected rows.

        Args:
            column: Number of the pair.
            selected: Mask of the rows, shape `(rows,)`.
            index: Group of each selected row. The statistic is the mean of the groups' means.
        """
        # Rows of one set are permuted together. Second clips would chain all rows into one set,
        # which has no permutations.
        clips = [row[:1] for row, is_selected in zip(self.outcomes.clips, selected) if is_selected]
        return clip_permutation_test(self.values[selected, column], clips, index, self.resamples)


def compare_arms(
    outcomes: Outcomes, arms: list[str], max_audio_seconds: float, resamples: int
) -> dict:
    """Compares every pair of arms.

    Returns:
        `primary`: differences in macro accuracy. `by_type`: on each question type. Both are
        families of tests. `by_category`: exploratory differences without tests. `resamples`.
    """
    paired = PairedOutcomes(outcomes, arms, resamples)
    primary = []
    by_type = []
    for column in range(len(paired.pairs)):
        primary.append(_primary_difference(paired, column))
        for index in range(len(outcomes.question_types)):
            by_type.append(_type_difference(paired, column, index))
    for family in (primary, by_type, [difference["mcnemar"] for difference in by_type]):
        for test, p in zip(family, holm([test["p"] for test in family])):
            test["p_holm"] = p
    by_category = _differences_by_category(paired, max_audio_seconds)
    return {
        "primary": primary,
        "by_type": by_type,
        "by_category": by_category,
        "resamples": resamples,
    }


def _primary_difference(paired: PairedOutcomes, column: int) -> dict:
    outcomes = paired.outcomes
    a, b = paired.pairs[column]
    samples = paired.type_samples[:, :, column].mean(1)
    standard_error = float(np.nanstd(samples, ddof=1))
    all_rows = np.ones(len(outcomes.rows), bool)
    by_seed = []
    for seed_a, seed_b in zip(outcomes.by_seed[a], outcomes.by_seed[b]):
        means = outcomes.type_means(seed_b) - outcomes.type_means(seed_a)
        by_seed.append(float(means.mean()))
    detectable = minimum_detectable_difference(standard_error, len(paired.pairs), ALPHA)
    return {
        **paired.describe(column, paired.type_means[:, column].mean(), samples),
        "p": paired.test(column, all_rows, outcomes.type_index),
        "by_seed": by_seed,
        "minimum_detectable_difference": detectable,
    }


def _type_difference(paired: PairedOutcomes, column: int, index: int) -> dict:
    outcomes = paired.outcomes
    selected = outcomes.type_index == index
    count = int(selected.sum())
    clips = [clips[0] for clips, keep in zip(outcomes.clips, selected) if keep]
    mean = paired.type_means[index, column]
    # McNemar's test is that of the first seed.
    first_seeds = [outcomes.by_seed[arm][0][selected] > 0 for arm in paired.pairs[column]]
    return {
        **paired.describe(column, mean, paired.type_samples[:, index, column]),
        "question_type": outcomes.question_types[index],
        "n": count,
        "clips": len(set(clips)),
        "p": paired.test(column, selected, np.zeros(count, int)),
        "mcnemar": mcnemar(*first_seeds),
    }


def _differences_by_category(paired: PairedOutcomes, max_audio_seconds: float) -> list[dict]:
    names, index = index_groups(groups_of_rows(paired.outcomes.rows, max_audio_seconds)["category"])
    samples = paired.bootstrap(index)
    differences = []
    for group, name in enumerate(names):
        for column in range(len(paired.pairs)):
            values = paired.values[index == group, column]
            difference = paired.describe(column, values.mean(), samples[:, group, column])
            differences.append({**difference, "category": name, "n": len(values)})
    return differences
