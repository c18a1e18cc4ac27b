"""Simulated comparisons of three equally good arms, with errors of clips and of trainings.

tests/evaluation/test_estimates.py prints the tables of docs/evaluate.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import t as student_t

from audiolm.evaluation.estimates import ALPHA, Estimate, add_training_error

ARMS = 3
# Standard deviations of the accuracy on one clip: between clips, between arms on one clip, and
# between trainings of one arm on one clip. With 2,000 clips and 3 seeds, the error of a difference
# over clips is 0.35 points, as at ReasonAQA's size.
CLIP, CLIP_OF_ARM, CLIP_OF_TRAINING = 0.2, 0.1, 0.08
VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class World:
    """A comparison to simulate.

    Attributes:
        clips: Number of clips.
        seeds: Number of trainings of each arm.
        scatter: Standard deviation of the accuracy between trainings, in points. One number for
            all arms, or one for each.
        shared: Share of the variance between trainings that a seed has in common for all arms.
        difference: True difference of the last arm from the others, in points.
    """

    clips: int
    seeds: int
    scatter: float | tuple[float, ...]
    shared: float = 0.0
    difference: float = 0.0


def simulate(world: World, simulations: int, seed: int = 0) -> Iterator[dict]:
    """Yields arrays of simulated estimates by pair of arms, some simulations at a time."""
    rng = np.random.default_rng(seed)
    size = max(1, VALUES_AT_ONCE // (ARMS * world.seeds * world.clips))
    for start in range(0, simulations, size):
        count = min(size, simulations - start)
        accuracies = simulate_accuracies(rng, world, count)
        values = accuracies.mean(-1)
        estimates = {}
        for a, b in combinations(range(ARMS), 2):
            differences = (accuracies[:, b] - accuracies[:, a]).mean(1)
            clip_variance = differences.var(-1, ddof=1) / world.clips
            trained = [values[:, a], values[:, b]]
            estimates[a, b] = add_training_error(
                differences.mean(-1), clip_variance, world.clips, trained
            )
        yield estimates


def simulate_accuracies(rng: np.random.Generator, world: World, count: int) -> np.ndarray:
    """Accuracies on each clip, shape `(count, arms, seeds, clips)`."""
    shape = (count, ARMS, world.seeds)
    own = np.sqrt(1 - world.shared) * rng.standard_normal(shape)
    common = np.sqrt(world.shared) * rng.standard_normal((count, 1, world.seeds))
    scatter = np.broadcast_to(world.scatter, ARMS)[:, None] / 100
    trainings = scatter * (own + common)
    trainings[:, -1] += world.difference / 100
    accuracies = CLIP_OF_TRAINING * rng.standard_normal((*shape, world.clips))
    accuracies += CLIP_OF_ARM * rng.standard_normal((count, ARMS, 1, world.clips))
    accuracies += CLIP * rng.standard_normal((count, 1, 1, world.clips))
    return 0.6 + accuracies + trainings[..., None]


def margin_of_clips(estimate: Estimate, alpha: float) -> np.ndarray:
    """What the protocol used at first: the error of the clips alone."""
    return Estimate(estimate.value, estimate.clip_variance, estimate.num_clips).margin(alpha)


def margin_by_satterthwaite(estimate: Estimate, alpha: float) -> np.ndarray:
    """A t interval over the sum of the variances, with Satterthwaite's degrees of freedom."""
    total = estimate.clip_variance + estimate.training_variance
    squares = estimate.clip_variance**2 / (estimate.num_clips - 1)
    squares = squares + estimate.training_variance**2 / estimate.training_df
    return student_t.ppf(1 - alpha / 2, total**2 / squares) * np.sqrt(total)


PROCEDURES = {
    "clips alone": margin_of_clips,
    "Satterthwaite": margin_by_satterthwaite,
    "protocol": Estimate.margin,
}


def rates(world: World, simulations: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Rates of each procedure in per cent, and half of its 95 % interval in points.

    `claims` is how often Holm's correction finds any difference. `coverage` is how often an
    interval holds the true difference, for the pair with the lowest rate.
    """
    claims = {name: [] for name in PROCEDURES}
    coverage = {name: {} for name in PROCEDURES}
    margins = {name: [] for name in PROCEDURES}
    for estimates in simulate(world, simulations, seed):
        for name, margin in PROCEDURES.items():
            any_claim = False
            for (a, b), estimate in estimates.items():
                truth = world.difference / 100 if b == ARMS - 1 else 0.0
                half = margin(estimate, ALPHA)
                holds = np.abs(estimate.value - truth) <= half
                coverage[name].setdefault((a, b), []).append(holds)
                margins[name].append(half)
                # Holm finds something exactly if his strictest level does.
                any_claim |= np.abs(estimate.value) > margin(estimate, ALPHA / len(estimates))
            claims[name].append(any_claim)
    return {
        name: {
            "claims": 100 * np.concatenate(claims[name]).mean(),
            "coverage": 100 * min(np.concatenate(part).mean() for part in coverage[name].values()),
            "margin": 100 * np.concatenate(margins[name]).mean(),
        }
        for name in PROCEDURES
    }
