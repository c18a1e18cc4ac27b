"""Inference over test clips: intervals, tests and their corrections, the smallest difference to be found, calibration.

Questions about one clip are right or wrong together, so clips are drawn and flipped here, never rows. Which of these numbers
decides what is fixed in docs/protocol.md.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest, norm

CHUNK = 2**22  # numbers in the largest array of one chunk, 32 MiB
TIE = 1e-10  # as a share of the largest possible statistic: sums in another order differ by less, other outcomes by more


def clip_bootstrap(
    outcomes: np.ndarray,
    clips: Sequence[tuple[str, ...]],
    groups: np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
) -> np.ndarray:
    """Means of each group under resamples of clips, (resamples, groups, columns); NaN where a group got no row.

    A resample draws as many clips as there are, with replacement; a row counts as often as the product of the draws of its
    clips. For rows about two clips this is the pigeonhole bootstrap (Owen 2007), whose intervals are rather too wide.

    Args:
        outcomes: (rows, columns), such as arms, or differences of two of them on the same rows.
        clips: the one or two of each row. groups: (rows,), numbers from 0; -1 for none.

    Raises:
        ValueError: if lengths differ, an outcome is not finite, or a row has no clip or more than two.
    """
    outcomes = np.asarray(outcomes, float)
    if outcomes.ndim != 2:
        raise ValueError(
            f"outcomes (rows, columns) are wanted, these have the shape {outcomes.shape}"
        )
    groups, pairs, count = _checked(outcomes, clips, groups)
    found = np.full((resamples, groups.max(initial=-1) + 1, outcomes.shape[1]), np.nan)
    inside = groups >= 0
    # a row about one clip gets a second one, `count`, which every resample draws once
    keys = np.column_stack(
        [groups, pairs[:, 0], np.where(pairs[:, 0] == pairs[:, 1], count, pairs[:, 1])]
    )[inside]
    distinct, place = np.unique(keys, axis=0, return_inverse=True)
    of, first, second = distinct.T
    sums = np.zeros((len(of), outcomes.shape[1] + 1))
    np.add.at(sums, place, np.column_stack([outcomes, np.ones(len(outcomes))])[inside])
    bounds = np.searchsorted(of, np.arange(found.shape[1] + 1))
    draw = np.random.default_rng(seed)
    for start, stop in _chunks(resamples, max(count, len(of), 1)):
        drawn = (
            draw.integers(count, size=(stop - start, count))
            + count * np.arange(stop - start)[:, None]
        )
        times = np.ones((stop - start, count + 1))
        times[:, :count] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        for group, (low, high) in enumerate(pairwise(bounds)):
            total = (times[:, first[low:high]] * times[:, second[low:high]]) @ sums[low:high]
            weight = total[:, -1:]
            np.divide(total[:, :-1], weight, out=found[start:stop, group], where=weight > 0)
    return found


def interval(
    samples: np.ndarray, level: float = 0.95, axis: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of bootstrap samples along `axis`, those left out that are NaN: its lower and its upper ends."""
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=axis)
    return low, high


def clip_permutation_test(
    difference: np.ndarray,
    clips: Sequence[tuple[str, ...]],
    groups: np.ndarray,
    permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the mean over groups of their mean differences, had the two arms' names been given by chance.

    The arms of whole clips change places; rows that have a clip in common, directly or by way of others, do so together. If k
    such sets of rows differ at all, no p-value below 2 ** (1 - k) can come out.

    Args:
        difference: (rows,), of two arms. clips: the one or two of each row. groups: (rows,), numbers from 0; -1 for none.

    Raises:
        ValueError: if lengths differ, a difference is not finite, or a row has no clip or more than two.
    """
    difference = np.asarray(difference, float)
    groups, pairs, count = _checked(difference, clips, groups)
    groups, pairs, difference = groups[groups >= 0], pairs[groups >= 0], difference[groups >= 0]
    shares = (
        difference / np.bincount(groups)[groups]
    )  # they sum to the mean of means, times the number of groups
    links = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(count, count))
    sets = connected_components(links, directed=False)[1] if count else np.zeros(0, int)
    sums = np.bincount(sets[pairs[:, 0]], shares)
    sums = sums[sums != 0]
    least = abs(sums.sum()) - TIE * abs(sums).sum()
    draw, extreme = np.random.default_rng(seed), 0
    for start, stop in _chunks(permutations, max(1, len(sums))):
        signs = 2.0 * draw.integers(2, size=(stop - start, len(sums)), dtype=np.int8) - 1
        extreme += np.count_nonzero(abs(signs @ sums) >= least)
    return (1 + extreme) / (1 + permutations)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict:
    """McNemar's exact test of two arms' right answers to the same rows, which it takes for independent.

    Args:
        first, second: (rows,), whether each answer is right.

    Returns:
        `only_first` and `only_second`, the rows that one arm alone has right, and the two-sided `p` (1 without such rows).

    Raises:
        ValueError: if lengths differ, or something is neither right nor wrong.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or not np.isin(np.concatenate([first, second]), (0, 1)).all():
        given = " and ".join(f"{of.dtype} {of.shape}" for of in (first, second))
        raise ValueError(
            f"right (1) or wrong (0) is wanted for the same rows of both arms, not {given}"
        )
    only_first, only_second = int((first > second).sum()), int((first < second).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of one family, corrected by Holm's method, in their order.

    Raises:
        ValueError: if one is not between 0 and 1.
    """
    p_values = np.asarray(p_values, float)
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p-values between 0 and 1 are wanted: {p_values.tolist()}")
    order, adjusted = np.argsort(p_values, kind="stable"), np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(np.arange(len(p_values), 0, -1) * p_values[order])
    return np.minimum(adjusted, 1).tolist()


def minimum_detectable_difference(
    standard_error: float, tests: int = 1, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The true difference that a two-sided test at `alpha / tests` (Holm's strictest level) finds with the probability `power`.

    The estimate counts as normal, with this standard error.
    """
    return float((norm.ppf(1 - alpha / (2 * tests)) + norm.ppf(power)) * standard_error)


def expected_calibration_error(
    probabilities: Sequence[float], correct: Sequence[bool], bins: int = 10
) -> dict:
    """How far the probability of the given answer is from being right so often (Guo et al. 2017).

    Returns:
        `ece`, the distance of the two in bins of equal width, mean over rows; and `bins`, of those with rows `low` (inside),
        `high` (outside, but for 1), `n`, `confidence` (the mean probability) and `accuracy`.

    Raises:
        ValueError: if there are no rows, lengths differ, or a probability is not between 0 and 1.
    """
    probabilities, correct = np.asarray(probabilities, float), np.asarray(correct, float)
    usable = len(probabilities) and probabilities.shape == correct.shape
    if not usable or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(
            f"a probability between 0 and 1 is wanted for each row: {probabilities.shape} for {correct.shape} rows, "
            f"from {probabilities.min(initial=np.inf)} to {probabilities.max(initial=-np.inf)}"
        )
    edges = np.arange(bins + 1) / bins
    place, found = np.digitize(probabilities, edges[1:-1]), []
    for number in np.unique(place):
        inside = place == number
        found.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "n": int(inside.sum()),
                "confidence": float(probabilities[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    gaps = sum(of["n"] * abs(of["confidence"] - of["accuracy"]) for of in found)
    return {"ece": gaps / len(probabilities), "bins": found}


def _checked(
    values: np.ndarray, clips: Sequence[tuple[str, ...]], groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """The groups; the two clips of each row, (rows, 2), twice the same if it has one; and how many clips there are."""
    groups = np.asarray(groups)
    if not len(values) == len(clips) == len(groups):
        raise ValueError(
            f"{len(values)} rows, but clips of {len(clips)} and groups of {len(groups)}"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"row {np.argwhere(~np.isfinite(values))[0, 0]} has an outcome that is not finite"
        )
    if wrong := [
        row for row, of in enumerate(clips) if len(of) not in (1, 2) or isinstance(of, str)
    ]:
        raise ValueError(
            f"row {wrong[0]}: a tuple of one or two clips is wanted, not {clips[wrong[0]]!r}"
        )
    if len(groups) and (groups.dtype.kind not in "iu" or groups.min() < -1):
        raise ValueError(
            f"groups are numbers from 0, or -1 for none, not {groups.min()} of {groups.dtype}"
        )
    # sorted, so that the draws do not depend on the order of the rows
    numbers = {
        clip: number for number, clip in enumerate(sorted({clip for of in clips for clip in of}))
    }
    pairs = [sorted((numbers[of[0]], numbers[of[-1]])) for of in clips]
    return groups.astype(int), np.array(pairs, int).reshape(-1, 2), len(numbers)


def _chunks(count: int, width: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK // width)
    return ((start, min(start + size, count)) for start in range(0, count, size))
