"""Plans a comparison: how many seeds and clips find a difference of a given size.

`audiolm compare --plan_power 3 --comparison outputs/compare/comparison.json`
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..evaluation.estimates import ALPHA, POWER, add_training_error
from ..evaluation.tables import format_table
from ..runtime import UserError, explain_errors

SIMULATIONS = 4_000
SEEDS = (3, 4, 5, 6, 8, 10, 15, 20)
CLIP_FACTORS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Noise:
    """Errors of a comparison, in points of macro accuracy."""

    scatter: float  # standard deviation between trainings of one arm
    clip_error: float  # standard error of a difference over the clips
    clips: int  # number of clips with that error
    pairs: int = 3  # number of pairs that Holm's correction counts


def read_noise(path: str | Path) -> Noise:
    """Returns the errors of a finished comparison.

    Args:
        path: `comparison.json`, with several seeds and at least two arms that use audio.

    Raises:
        UserError: If it is no such file.
    """
    message = f"{path}: no comparison of several arms"
    with explain_errors(message, OSError, ValueError, KeyError, TypeError):
        comparison = json.loads(Path(path).read_text(encoding="utf-8"))
        pairs = comparison["statistics"]["primary"]
        clip_errors = [pair["clip_error"] for pair in pairs]
        clips = comparison["statistics"]["clips"]
        by_seed = [arm["macro_by_seed"] for arm in comparison["arms"].values()]
    variances = [np.var(values, ddof=1) for values in by_seed if len(values) > 1]
    if not variances:
        raise UserError(f"{path}: one seed does not show the scatter between seeds")
    scatter = 100 * float(np.mean(variances)) ** 0.5
    clip_error = 100 * float(np.mean(np.square(clip_errors))) ** 0.5
    return Noise(scatter, clip_error, clips, len(pairs))


def power(noise: Noise, difference: float, seeds: int, clips: int) -> float:
    """Returns the probability of finding a true difference between two arms.

    Args:
        noise: Errors, of which that of the clips shrinks with their number.
        difference: In points.
        seeds: Trainings of each arm.
        clips: Test clips.
    """
    rng = np.random.default_rng(0)
    trained = noise.scatter * rng.standard_normal((2, SIMULATIONS, seeds))
    clip_error = noise.clip_error * (noise.clips / clips) ** 0.5
    values = difference + clip_error * rng.standard_normal(SIMULATIONS)
    values += trained[1].mean(-1) - trained[0].mean(-1)
    estimate = add_training_error(values, clip_error**2, clips, list(trained))
    # Holm's strictest level.
    return float(np.mean(np.abs(values) > estimate.margin(ALPHA / noise.pairs)))


def plan_power(difference: float, comparison_file: str | Path) -> str:
    """Returns a table of the power by seeds and clips.

    Args:
        difference: True difference of macro accuracy, in points.
        comparison_file: See [`read_noise`].
    """
    noise = read_noise(comparison_file)
    lines = [
        f"Power to find a difference of {difference:g} points in macro accuracy between two of "
        f"{noise.pairs} pairs, in per cent.",
        f"Scatter between seeds {noise.scatter:.2f} points, error of a difference over "
        f"{noise.clips:,} clips {noise.clip_error:.2f} points.",
    ]
    rows = []
    sufficient_counts = []
    for clips in (factor * noise.clips for factor in CLIP_FACTORS):
        powers = {seeds: power(noise, difference, seeds, clips) for seeds in SEEDS}
        rows.append((f"{clips:,} clips", *(f"{100 * value:.0f}" for value in powers.values())))
        sufficient = [seeds for seeds, value in powers.items() if value >= POWER]
        num_seeds = str(sufficient[0]) if sufficient else f"more than {SEEDS[-1]}"
        sufficient_counts.append(f"{num_seeds} seeds with {clips:,} clips")
    lines += format_table(("seeds", *map(str, SEEDS)), rows)
    return "\n".join([*lines, f"{100 * POWER:.0f} % power: {', '.join(sufficient_counts)}."])
