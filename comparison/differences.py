"""Differences between arms on the same rows, with the tests that docs/protocol.md fixes."""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np

from ..evaluation.scores import groups
from ..evaluation.statistics import (
    clip_bootstrap,
    clip_permutation_test,
    holm,
    mcnemar,
    minimum_detectable_difference,
)
from .outcomes import Outcomes, bounds, index_groups

ALPHA = 0.05


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of arm `b` minus that of arm `a` on the same rows."""

    a: str
    b: str
    difference: float
    ci95_low: float
    ci95_high: float


@dataclass(frozen=True)
class PrimaryDifference(PairedDifference):
    """Difference in macro accuracy, the primary metric."""

    p: float
    by_seed: list[float]
    minimum_detectable_difference: float
    p_holm: float | None = None


@dataclass(frozen=True)
class TypeDifference(PairedDifference):
    """Difference on one question type. McNemar's test is that of the first seed."""

    question_type: str
    n: int
    clips: int
    p: float
    mcnemar: dict
    p_holm: float | None = None


@dataclass(frozen=True)
class CategoryDifference(PairedDifference):
    """Difference on one category. It is exploratory, so it has no test."""

    category: str
    n: int


@dataclass(frozen=True)
class Comparison:
    """Differences of every pair of arms. `primary` and `by_type` are families of tests."""

    primary: list[PrimaryDifference]
    by_type: list[TypeDifference]
    by_category: list[CategoryDifference]
    resamples: int


Tested = TypeVar("Tested", PrimaryDifference, TypeDifference)


class PairedOutcomes:
    """Outcomes of every pair of arms, `b` minus `a`.

    Args:
        outcomes: Outcomes of all arms.
        arms: Arms to compare, at least two.
        resamples: Bootstrap resamples, and permutations of a test.

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
) -> Comparison:
    """Compares every pair of arms: on the primary metric, per question type and per category."""
    paired = PairedOutcomes(outcomes, arms, resamples)
    return Comparison(
        primary=correct_with_holm(primary_differences(paired)),
        by_type=correct_with_holm(correct_mcnemar(differences_by_question_type(paired))),
        by_category=differences_by_category(paired, max_audio_seconds),
        resamples=resamples,
    )


def correct_with_holm(differences: list[Tested]) -> list[Tested]:
    """Returns the differences of one family with Holm-corrected p values."""
    corrected = holm([difference.p for difference in differences])
    return [replace(difference, p_holm=p) for difference, p in zip(differences, corrected)]


def correct_mcnemar(differences: list[TypeDifference]) -> list[TypeDifference]:
    """Returns the differences with Holm-corrected p values of McNemar's test."""
    corrected = holm([difference.mcnemar["p"] for difference in differences])
    return [
        replace(difference, mcnemar=difference.mcnemar | {"p_holm": p})
        for difference, p in zip(differences, corrected)
    ]


def primary_differences(paired: PairedOutcomes) -> list[PrimaryDifference]:
    """Returns the difference of each pair in macro accuracy."""
    outcomes = paired.outcomes
    all_rows = np.ones(len(outcomes.rows), bool)
    differences = []
    for column, (a, b) in enumerate(paired.pairs):
        mean = float(paired.type_means[:, column].mean())
        samples = paired.type_samples[:, :, column].mean(1)
        standard_error = float(np.nanstd(samples, ddof=1))
        p = paired.test(column, all_rows, outcomes.type_index)
        by_seed = [
            float((outcomes.type_means(seed_b) - outcomes.type_means(seed_a)).mean())
            for seed_a, seed_b in zip(outcomes.by_seed[a], outcomes.by_seed[b])
        ]
        detectable = minimum_detectable_difference(standard_error, len(paired.pairs), ALPHA)
        difference = PrimaryDifference(a, b, mean, *bounds(samples), p, by_seed, detectable)
        differences.append(difference)
    return differences


def differences_by_question_type(paired: PairedOutcomes) -> list[TypeDifference]:
    """Returns the difference of each pair on each question type."""
    outcomes = paired.outcomes
    differences = []
    for column, (a, b) in enumerate(paired.pairs):
        for index, question_type in enumerate(outcomes.question_types):
            selected = outcomes.type_index == index
            count = int(selected.sum())
            difference = TypeDifference(
                a,
                b,
                float(paired.type_means[index, column]),
                *bounds(paired.type_samples[:, index, column]),
                question_type=question_type,
                n=count,
                clips=len({clips[0] for clips, keep in zip(outcomes.clips, selected) if keep}),
                p=paired.test(column, selected, np.zeros(count, int)),
                mcnemar=mcnemar(
                    outcomes.by_seed[a][0][selected] > 0, outcomes.by_seed[b][0][selected] > 0
                ),
            )
            differences.append(difference)
    return differences


def differences_by_category(
    paired: PairedOutcomes, max_audio_seconds: float
) -> list[CategoryDifference]:
    """Returns the difference of each pair on each category."""
    names, index = index_groups(groups(paired.outcomes.rows, max_audio_seconds)["category"])
    samples = paired.bootstrap(index)
    differences = []
    for group, name in enumerate(names):
        for column, (a, b) in enumerate(paired.pairs):
            values = paired.values[index == group, column]
            mean = float(values.mean())
            ends = bounds(samples[:, group, column])
            differences.append(CategoryDifference(a, b, mean, *ends, name, len(values)))
    return differences
