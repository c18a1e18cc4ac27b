"""Differences between arms on the same rows, with the tests that docs/protocol.md fixes."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ..evaluation.estimates import Estimate, ResampledAccuracies, describe_difference
from ..evaluation.scores import groups_of_rows
from ..evaluation.statistics import holm, holm_levels, mcnemar
from .outcomes import Outcomes, index_groups


def compare_arms(
    outcomes: Outcomes, arms: list[str], max_audio_seconds: float, resamples: int
) -> dict:
    """Compares every pair of arms.

    Returns:
        `primary`: differences in macro accuracy. `by_type`: on each question type. Both are
        families of tests. `by_category`: exploratory differences without tests. `resamples`.
    """
    accuracies = outcomes.resample(outcomes.type_index, resamples)
    pairs = list(combinations(arms, 2))
    primary = []
    by_type = []
    for a, b in pairs:
        difference = accuracies.estimate(b, a)
        primary.append((_primary_difference(accuracies, a, b, len(pairs)), difference))
        for index in range(len(outcomes.question_types)):
            difference = accuracies.estimate(b, a, index)
            by_type.append((_type_difference(outcomes, a, b, index), difference))
    by_category = _differences_by_category(outcomes, pairs, max_audio_seconds, resamples)
    results = {
        "primary": _test_family(primary),
        "by_type": _test_family(by_type),
        "by_category": by_category,
        "resamples": resamples,
    }
    mcnemar_tests = [difference["mcnemar"] for difference in results["by_type"]]
    for test, p in zip(mcnemar_tests, holm([test["p"] for test in mcnemar_tests])):
        test["p_holm"] = p
    return results


def _test_family(family: Sequence[tuple[dict, Estimate]]) -> list[dict]:
    """Adds the intervals and p-values of a family, both with and without Holm's correction."""
    p_values = [float(difference.p_value()) for _, difference in family]
    tests = []
    for (names, difference), p, p_holm, level in zip(
        family, p_values, holm(p_values), holm_levels(p_values)
    ):
        low, high = difference.interval(level)
        corrected = {"p": p, "p_holm": p_holm, "holm_low": float(low), "holm_high": float(high)}
        tests.append({**names, **describe_difference(difference), **corrected})
    return tests


def _primary_difference(accuracies: ResampledAccuracies, a: str, b: str, num_pairs: int) -> dict:
    difference = accuracies.estimate(b, a)
    by_seed = accuracies.group(b).values - accuracies.group(a).values
    return {
        "a": a,
        "b": b,
        "by_seed": by_seed.tolist(),
        "clip_error": difference.clip_variance**0.5,
        "training_error": difference.training_variance**0.5,
        "minimum_detectable_difference": float(difference.minimum_detectable(num_pairs)),
    }


def _type_difference(outcomes: Outcomes, a: str, b: str, index: int) -> dict:
    selected = outcomes.type_index == index
    clips = [clips[0] for clips, is_selected in zip(outcomes.clips, selected) if is_selected]
    # McNemar's test is that of the first seed.
    first_seeds = [outcomes.by_seed[arm][0][selected] > 0 for arm in (a, b)]
    return {
        "a": a,
        "b": b,
        "question_type": outcomes.question_types[index],
        "n": int(selected.sum()),
        "clips": len(set(clips)),
        "mcnemar": mcnemar(*first_seeds),
    }


def _differences_by_category(
    outcomes: Outcomes, pairs: list[tuple[str, str]], max_audio_seconds: float, resamples: int
) -> list[dict]:
    names, index = index_groups(groups_of_rows(outcomes.rows, max_audio_seconds)["category"])
    accuracies = outcomes.resample(index, resamples)
    differences = []
    for group, name in enumerate(names):
        count = int(np.count_nonzero(index == group))
        for a, b in pairs:
            difference = describe_difference(accuracies.estimate(b, a, group))
            differences.append({"a": a, "b": b, **difference, "category": name, "n": count})
    return differences
