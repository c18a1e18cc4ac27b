"""Statistics against values by hand, scipy, statsmodels and simulated arms with a known truth.

    uv run pytest -n 0 -s -m slow tests/evaluation/test_statistics.py

prints the coverage of the intervals.
"""

import tracemalloc
from itertools import product

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from audiolm.evaluation import statistics
from audiolm.evaluation.statistics import (
    clip_bootstrap,
    expected_calibration_error,
    holm,
    holm_levels,
    mcnemar,
)

MEANS = np.array(
    [[0.2, 0.6, 1.0], [0.4, 0.7, 1.1]]
)  # (arms, types), of what an answer is right by if it is above 0
SPREAD = {"clip": 0.5, "clip_of_arm": 1.0, "row": 0.5, "row_of_arm": 1.0}
TRUTH = norm.cdf(MEANS / np.sqrt(sum(spread**2 for spread in SPREAD.values()))).mean(
    1
)  # macro accuracy of each arm


def simulated(generator: np.random.Generator, count: int, means: np.ndarray = MEANS):
    """Right answers of two arms, (rows, 2), the clip of each row, and its question type.

    There are 1 to 10 questions about each of `count` clips. Clips are hard or easy, for both arms
    and for one. Each has a type that half of its questions have.
    """
    clip = np.repeat(np.arange(count), generator.integers(1, 11, size=count))
    own, any_type = generator.integers(3, size=count)[clip], generator.integers(3, size=len(clip))
    kind = np.where(generator.random(len(clip)) < 0.5, own, any_type)
    latent = means[:, kind].T + SPREAD["clip"] * generator.standard_normal((count, 1))[clip]
    latent += SPREAD["clip_of_arm"] * generator.standard_normal((count, 2))[clip]
    latent += SPREAD["row"] * generator.standard_normal((len(clip), 1)) + SPREAD[
        "row_of_arm"
    ] * generator.standard_normal((len(clip), 2))
    return (latent > 0).astype(float), clip, kind


def named(numbers) -> list[tuple[str]]:
    return [(f"{number:05d}",) for number in numbers]


def macro(difference: np.ndarray, kind: np.ndarray) -> float:
    return float(np.mean([difference[kind == number].mean() for number in range(3)]))


def coverage(clips: int, simulations: int, resamples: int, by_row: bool = False) -> float:
    """How often the 95 % interval of the two arms' difference in macro accuracy holds the truth."""
    generator, held = np.random.default_rng(clips), 0
    for seed in range(simulations):
        right, clip, kind = simulated(generator, clips)
        names = named(range(len(clip)) if by_row else clip)
        samples = clip_bootstrap(right[:, 1:] - right[:, :1], names, kind, resamples, seed)
        low, high = np.quantile(samples[:, :, 0].mean(1), [0.025, 0.975])
        held += low <= TRUTH[1] - TRUTH[0] <= high
    return held / simulations


def test_simulated_accuracy_is_the_known_truth():
    right, _, kind = simulated(np.random.default_rng(0), 100_000)
    for arm in (0, 1):
        assert macro(right[:, arm], kind) == pytest.approx(TRUTH[arm], abs=0.004)
    assert 0.03 < TRUTH[1] - TRUTH[0] < 0.05


def test_clip_bootstrap_draws_all_resamples_by_hand():
    """Three clips can be drawn in 27 ways. Group 0 is empty if only c is drawn."""
    outcomes = np.array([[1.0, 0.0], [0.0, 0.5], [1.0, 1.0], [0.0, 1.0], [9.0, 9.0]])
    clips, groups = [("b",), ("a",), ("b", "a"), ("c",), ("a",)], np.array([0, 0, 0, 1, -1])
    expected = {}
    for a, b, c in (np.bincount(drawn, minlength=3) for drawn in product(range(3), repeat=3)):
        total = b + a + b * a
        first = ((b + b * a) / total, (a / 2 + b * a) / total) if total else (np.nan, np.nan)
        second = (0.0, 1.0) if c else (np.nan, np.nan)
        key = tuple(np.round([*first, *second], 9).astype(str))
        expected[key] = expected.get(key, 0) + 1 / 27
    # aab: (1 + 2 * 1) / (1 + 2 + 2) and (2 / 2 + 2) / 5, by hand
    assert any(key[:2] == ("0.6", "0.6") for key in expected)
    assert ("nan", "nan", "0.0", "1.0") in expected
    samples = clip_bootstrap(outcomes, clips, groups, 27_000)
    assert samples.shape == (27_000, 2, 2)
    distinct, times = np.unique(
        np.round(samples.reshape(-1, 4), 9).astype(str), axis=0, return_counts=True
    )
    assert {tuple(key.tolist()) for key in distinct} == set(expected)
    for key, count in zip(distinct, times):
        share = expected[tuple(key.tolist())]
        assert abs(count / 27_000 - share) < 5 * np.sqrt(share * (1 - share) / 27_000)


def test_clip_bootstrap_row_with_one_clip_twice_equals_one_clip():
    outcomes, groups = np.array([[1.0], [0.0]]), np.zeros(2, int)
    twice = clip_bootstrap(outcomes, [("a", "a"), ("b",)], groups, 100)
    np.testing.assert_array_equal(twice, clip_bootstrap(outcomes, [("a",), ("b",)], groups, 100))


def test_resampling_with_equal_arguments_gives_equal_numbers(monkeypatch):
    right, clip, kind = simulated(np.random.default_rng(0), 40)
    clips = named(clip)
    once = clip_bootstrap(right, clips, kind, 200, seed=3)
    np.testing.assert_array_equal(once, clip_bootstrap(right, clips, kind, 200, seed=3))
    assert not np.array_equal(once, clip_bootstrap(right, clips, kind, 200, seed=4))
    order = np.random.default_rng(1).permutation(len(clip))
    moved = clip_bootstrap(right[order], [clips[i] for i in order], kind[order], 200, seed=3)
    np.testing.assert_allclose(moved, once, atol=1e-12)
    monkeypatch.setattr(statistics, "CHUNK", 1000)  # 25 resamples at a time
    np.testing.assert_allclose(clip_bootstrap(right, clips, kind, 200, seed=3), once, atol=1e-12)


def test_clip_bootstrap_standard_errors_equal_cluster_robust_ones():
    right, clip, kind = simulated(np.random.default_rng(5), 400)
    difference, kinds = right[:, 1] - right[:, 0], np.eye(3)[kind]
    fitted = sm.OLS(difference, kinds).fit(
        cov_type="cluster", cov_kwds={"groups": clip, "use_correction": False}
    )
    of_types, of_macro = fitted.bse, fitted.t_test(np.full(3, 1 / 3)).sd.item()
    samples = clip_bootstrap(difference[:, None], named(clip), kind, 10_000)[:, :, 0]
    np.testing.assert_allclose(samples.std(0), of_types, rtol=0.05)
    assert samples.mean(1).std() == pytest.approx(of_macro, rel=0.05)
    assert abs(samples.mean(1).mean() - macro(difference, kind)) < 0.1 * of_macro
    by_row = (
        clip_bootstrap(difference[:, None], named(range(len(clip))), kind, 2000)[:, :, 0]
        .mean(1)
        .std()
    )
    assert by_row < 0.75 * of_macro


def test_resampling_memory_is_bounded():
    generator = np.random.default_rng(0)
    clips, kinds = named(generator.integers(5000, size=30_000)), generator.integers(3, size=30_000)
    outcomes = generator.random((30_000, 3))
    tracemalloc.start()
    clip_bootstrap(outcomes, clips, kinds, 2000)  # 80 MB of draws at once would be 370 MB in all
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


def test_interval_coverage_in_short_simulation():
    """A share of .95 of 750 simulations has a standard error of .008, of which 3 are allowed."""
    assert coverage(300, 750, 400) == pytest.approx(
        0.945, abs=0.024
    )  # so few resamples alone cost .005
    assert coverage(300, 150, 400, by_row=True) < 0.88


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "tolerance"), [(300, 0.015), (100, 0.02), (50, 0.03)])
def test_interval_coverage_in_long_simulation(clips, tolerance):
    held = coverage(clips, 4000, 1000)
    naive = coverage(clips, 1000, 1000, by_row=True)
    print(
        f"\n{clips} clips: coverage of 95 % intervals {held:.2%} in 4000 simulations, "
        f"by rows {naive:.1%} in 1000"
    )
    assert held == pytest.approx(0.95, abs=tolerance)
    assert naive < 0.85


@pytest.mark.parametrize(
    "p_values",
    [[0.01, 0.04, 0.03], [0.5, 0.9, 0.2, 0.2], [0.02], [0.001, 0.3, 0.012, 0.012, 1.0, 0.0]],
)
def test_holm_equals_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx(
        [0.03, 0.06, 0.06]
    )  # 3 * .01, then 2 * .03, which 1 * .04 cannot go below
    assert holm([]) == []
    with pytest.raises(ValueError, match="nan"):
        holm([0.1, float("nan")])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        # The smallest is tested at .05 / 3 and found, the next at .05 / 2 and not found.
        ([0.04, 0.001, 0.03], [0.025, 0.05 / 3, 0.025]),
        ([0.01, 0.02, 0.03], [0.05 / 3, 0.025, 0.05]),
        ([0.2], [0.05]),
        ([], []),
    ],
)
def test_holm_levels_by_hand(p_values, expected):
    assert holm_levels(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_holm_levels_find_what_the_corrected_p_values_find(seed):
    p_values = np.random.default_rng(seed).uniform(0, 0.06, 6)
    is_below_level = p_values < holm_levels(p_values)
    assert is_below_level.tolist() == [p < 0.05 for p in holm(p_values)]


@pytest.mark.parametrize(("only_first", "only_second"), [(1, 9), (12, 5), (4, 4), (0, 3)])
def test_mcnemar_equals_statsmodels(only_first, only_second):
    first = np.array([True] * 7 + [False] * 5 + [True] * only_first + [False] * only_second)
    second = np.array([True] * 7 + [False] * 5 + [False] * only_first + [True] * only_second)
    expected = min(1, statsmodels_mcnemar([[7, only_first], [only_second, 5]], exact=True).pvalue)
    assert mcnemar(first, second) == {
        "only_first": only_first,
        "only_second": only_second,
        "p": pytest.approx(expected),
    }


def test_mcnemar_without_discordant_rows():
    assert mcnemar([True, False], [True, False]) == {"only_first": 0, "only_second": 0, "p": 1.0}


def test_expected_calibration_error_by_hand():
    """.3 and .35 share a bin. (2 * |.325 - .5| + 1 * |.6 - 0| + 2 * |.975 - 1|) / 5."""
    result = expected_calibration_error(
        [0.3, 0.95, 0.35, 0.6, 1.0], [True, True, False, False, True]
    )
    assert result["ece"] == pytest.approx((0.35 + 0.6 + 0.05) / 5)
    assert result["bins"] == [
        {"low": 0.3, "high": 0.4, "n": 2, "confidence": pytest.approx(0.325), "accuracy": 0.5},
        {"low": 0.6, "high": 0.7, "n": 1, "confidence": 0.6, "accuracy": 0.0},
        {"low": 0.9, "high": 1.0, "n": 2, "confidence": pytest.approx(0.975), "accuracy": 1.0},
    ]
    assert expected_calibration_error([0.2, 0.9], [False, True], bins=1)["ece"] == pytest.approx(
        0.05
    )
    generator = np.random.default_rng(0)
    probabilities = generator.random(50_000)
    assert (
        expected_calibration_error(probabilities, generator.random(50_000) < probabilities)["ece"]
        < 0.01
    )
    assert expected_calibration_error(probabilities, generator.random(50_000) < probabilities**2)[
        "ece"
    ] == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clips": [("a",)]}, r"as many rows, not \(2, 1\), 1 and 2"),
        ({"clips": [("a",), "bc"]}, "expected a tuple of one or two clips for each row"),
        ({"clips": [(), ("a",)]}, "expected a tuple of one or two clips for each row"),
        ({"values": np.array([1.0, np.nan])}, "expected finite outcomes"),
    ],
)
def test_resampling_of_invalid_rows_is_an_error(change, message):
    values = {
        "values": np.array([1.0, 0.0]),
        "clips": [("a",), ("b",)],
        "groups": np.array([0, 0]),
    } | change
    with pytest.raises(ValueError, match=message):
        clip_bootstrap(values["values"][:, None], values["clips"], values["groups"])
