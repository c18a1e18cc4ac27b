"""Differences between arms on the same rows, with the tests that docs/protocol.md fixes."""

from collections.abc import Sequence

import numpy as np

from ..evaluation.estimates import Estimate, ResampledAccuracies, describe_difference
from ..evaluation.statistics import holm, holm_levels, mcnemar
from .outcomes import Outcomes


def compare_by_type(
    outcomes: Outcomes, accuracies: ResampledAccuracies, pairs: Sequence[tuple[str, str]]
) -> dict[str, list[dict]]:
    """Compares pairs of arms in macro accuracy and on each question type.

    Args:
        outcomes: Outcomes of all arms.
        accuracies: Their accuracies by question type.
        pairs: Arms. Differences are of the second from the first.

    Returns:
        Two families of tests: `primary`, of macro accuracy, and `by_type`.
    """
    names, type_index = outcomes.groups["question_type"]
    primary: list[tuple[dict, Estimate]] = []
    by_type: list[tuple[dict, Estimate]] = []
    for a, b in pairs:
        macro = accuracies.estimate(b, a)
        by_seed = accuracies.group(b).values - accuracies.group(a).values
        facts = {
            "a": a,
            "b": b,
            "by_seed": by_seed.tolist(),
            "clip_error": macro.clip_variance**0.5,
            "training_error": macro.training_variance**0.5,
            "minimum_detectable_difference": float(macro.minimum_detectable(len(pairs))),
        }
        primary.append((facts, macro))
        for index, name in enumerate(names):
            selected = type_index == index
            clips = {outcomes.clips[row][0] for row in np.flatnonzero(selected)}
            # McNemar's test is that of the first seed.
            first_seeds = [outcomes.by_seed[arm][0][selected] > 0 for arm in (a, b)]
            facts = {
                "a": a,
                "b": b,
                "question_type": name,
                "n": int(selected.sum()),
                "clips": len(clips),
                "mcnemar": mcnemar(*first_seeds),
            }
            by_type.append((facts, accuracies.estimate(b, a, index)))
    mcnemar_tests = [facts["mcnemar"] for facts, _ in by_type]
    for test, p in zip(mcnemar_tests, holm([test["p"] for test in mcnemar_tests])):
        test["p_holm"] = p
    return {"primary": _test_family(primary), "by_type": _test_family(by_type)}


def _test_family(family: Sequence[tuple[dict, Estimate]]) -> list[dict]:
    """Adds the intervals and p-values of a family, both with and without Holm's correction."""
    p_values = [float(difference.p_value()) for _, difference in family]
    tests = []
    for (facts, difference), p, p_holm, level in zip(
        family, p_values, holm(p_values), holm_levels(p_values)
    ):
        low, high = difference.interval(level)
        corrected = {"p": p, "p_holm": p_holm, "holm_low": float(low), "holm_high": float(high)}
        tests.append({**facts, **describe_difference(difference), **corrected})
    return tests


def compare_by_category(
    accuracies: ResampledAccuracies, pairs: Sequence[tuple[str, str]], counts: dict[str, int]
) -> list[dict]:
    """Returns exploratory differences without tests.

    Args:
        accuracies: Accuracies by category.
        pairs: Arms, as for [`compare_by_type`].
        counts: Number of rows of each category.
    """
    differences = []
    for group, (name, count) in enumerate(counts.items()):
        for a, b in pairs:
            difference = describe_difference(accuracies.estimate(b, a, group))
            differences.append({"a": a, "b": b, **difference, "category": name, "n": count})
    return differences
