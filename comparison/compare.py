"""Evaluations beside each other: arms, each of one seed or several, the statistics of their differences, and one sentence on
them.

A comparison is a plain dictionary (`comparison.json`). What is claimed, by which test, is fixed in docs/protocol.md.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ..evaluation.answering import PROTOCOL_NAMES
from ..evaluation.metric import SCORED
from ..evaluation.scores import (
    NO_AUDIO_CONTROLS,
    clips_of,
    gain_over_best_baseline,
    groups,
    option_probabilities,
)
from ..evaluation.statistics import (
    clip_bootstrap,
    clip_permutation_test,
    expected_calibration_error,
    holm,
    interval,
    mcnemar,
    minimum_detectable_difference,
)
from .runs import Run

LEVEL = 0.05
RESAMPLES = 10_000
SEEDS = 3  # fewer are exploratory
TRAINED_ON = (
    "HTSAT of MS-CLAP 2023 was trained on 22 audio tasks and then on 4.6 M captions, and may have heard test clips; Mimi was "
    "trained on speech, hears up to 12 kHz (HTSAT up to 19 kHz) and quantises"
)


class Outcomes(NamedTuple):
    """Closed rows as numbers: 1 for a right answer, 0 for a wrong one, the mean over an arm's seeds.

    Attributes:
        rows: of the first arm. kinds: the question types that are there. kind: of each row, its number among `kinds`.
        arms: (rows,) of each arm. by_seed: (seeds, rows). controls: of each arm, (rows,) of each control.
    """

    rows: list[dict]
    kinds: list[str]
    kind: np.ndarray
    clips: list[tuple[str, ...]]
    arms: dict[str, np.ndarray]
    by_seed: dict[str, np.ndarray]
    controls: dict[str, dict[str, np.ndarray]]

    def means(self, outcome: np.ndarray) -> np.ndarray:
        """Accuracy of each question type, (types, ...), of outcomes (rows, ...)."""
        return np.array([outcome[self.kind == number].mean(0) for number in range(len(self.kinds))])


def outcomes(runs: Mapping[str, list[Run]]) -> Outcomes:
    """The closed rows of comparable runs. A model without audio is a control of those with it, `question_only`."""
    first = next(iter(runs.values()))[0]
    protocol = first.metrics["protocol"]
    numbers = [i for i, row in enumerate(first.rows) if row["question_type"] in SCORED]
    rows = [first.rows[i] for i in numbers]
    kinds = [kind for kind in SCORED if any(row["question_type"] == kind for row in rows)]

    def right(run, control=None):
        given = [run.rows[i] for i in numbers]
        given = [row["controls"][control] for row in given] if control else given
        return np.array([row["answers"][protocol]["correct"] for row in given], float)

    by_seed = {arm: np.array([right(run) for run in of]) for arm, of in runs.items()}
    arms = {arm: of.mean(0) for arm, of in by_seed.items()}
    controls = {}
    for arm, of in runs.items():
        names = [
            name
            for name in NO_AUDIO_CONTROLS
            if all(name in run.rows[i]["controls"] for run in of for i in numbers)
        ]
        controls[arm] = {name: np.mean([right(run, name) for run in of], 0) for name in names}
        if not of[0].deaf:
            controls[arm] |= {other: arms[other] for other, its in runs.items() if its[0].deaf}
    kind = np.array([kinds.index(row["question_type"]) for row in rows])
    return Outcomes(rows, kinds, kind, [clips_of(row) for row in rows], arms, by_seed, controls)


def _cell(mean: float, samples: np.ndarray, n: int) -> dict:
    low, high = interval(samples)
    return {"n": n, "accuracy": float(mean), "ci95_low": float(low), "ci95_high": float(high)}


def accuracies(of: Outcomes, max_audio_seconds: float) -> dict[str, dict]:
    """Accuracy of each arm with its bootstrap interval over clips: by question type and every other grouping, of all rows, and
    the mean of types."""
    named = {
        "question_type": [of.kinds[k] for k in of.kind],
        **groups(of.rows, max_audio_seconds),
        "micro": [""] * len(of.rows),
    }
    stacked, found = np.stack(list(of.arms.values()), 1), {arm: {} for arm in of.arms}
    for grouping, names in named.items():
        order = of.kinds if grouping == "question_type" else sorted(set(names))
        number = np.array([order.index(name) for name in names])
        samples = clip_bootstrap(stacked, of.clips, number, RESAMPLES)
        for column, (arm, outcome) in enumerate(of.arms.items()):
            cells = {
                name: _cell(
                    outcome[number == g].mean(), samples[:, g, column], int((number == g).sum())
                )
                for g, name in enumerate(order)
            }
            found[arm][grouping] = cells[""] if grouping == "micro" else cells
            if grouping == "question_type":
                macro = _cell(of.means(outcome).mean(), samples[:, :, column].mean(1), len(of.rows))
                seeds = [float(of.means(one).mean()) for one in of.by_seed[arm]]
                found[arm] |= {
                    "macro_accuracy": macro["accuracy"],
                    "macro": macro,
                    "macro_by_seed": seeds,
                }
    return found


def differences(of: Outcomes, arms: list[str], max_audio_seconds: float) -> dict:
    """Every pair of these arms: by macro accuracy, the primary endpoint, by question type, and by category without a test."""
    pairs = list(combinations(arms, 2))
    first = [
        clips[:1] for clips in of.clips
    ]  # rows about two clips would chain all of them into one that nothing can flip
    paired = np.stack([of.arms[b] - of.arms[a] for a, b in pairs], 1)
    samples, means = clip_bootstrap(paired, of.clips, of.kind, RESAMPLES), of.means(paired)
    primary, by_type = [], []
    for column, (a, b) in enumerate(pairs):
        drawn = samples[:, :, column].mean(1)
        low, high = interval(drawn)
        seeds = [
            float((of.means(two) - of.means(one)).mean())
            for one, two in zip(of.by_seed[a], of.by_seed[b])
        ]
        primary.append(
            {
                "a": a,
                "b": b,
                "difference": float(means[:, column].mean()),
                "ci95_low": float(low),
                "ci95_high": float(high),
                "p": clip_permutation_test(paired[:, column], first, of.kind, RESAMPLES),
                "by_seed": seeds,
                "minimum_detectable_difference": minimum_detectable_difference(
                    float(np.nanstd(drawn, ddof=1)), len(pairs), LEVEL
                ),
            }
        )
        for number, kind in enumerate(of.kinds):
            inside = of.kind == number
            low, high = interval(samples[:, number, column])
            clips = [clips for clips, keep in zip(first, inside) if keep]
            by_type.append(
                {
                    "question_type": kind,
                    "a": a,
                    "b": b,
                    "n": int(inside.sum()),
                    "clips": len(set(clips)),
                    "difference": float(means[number, column]),
                    "ci95_low": float(low),
                    "ci95_high": float(high),
                    "p": clip_permutation_test(
                        paired[inside, column], clips, np.zeros(inside.sum(), int), RESAMPLES
                    ),
                    "mcnemar": mcnemar(
                        of.by_seed[a][0][inside] > 0, of.by_seed[b][0][inside] > 0
                    ),  # of the first seed
                }
            )
    for family in (primary, by_type):
        for entry, corrected in zip(family, holm([entry["p"] for entry in family])):
            entry["p_holm"] = corrected
    for entry, corrected in zip(by_type, holm([entry["mcnemar"]["p"] for entry in by_type])):
        entry["mcnemar"]["p_holm"] = corrected
    names = groups(of.rows, max_audio_seconds)["category"]
    order = sorted(set(names))
    number = np.array([order.index(name) for name in names])
    samples = clip_bootstrap(paired, of.clips, number, RESAMPLES)
    by_category = [
        {
            "category": name,
            "a": a,
            "b": b,
            "n": int((number == g).sum()),
            "difference": float(paired[number == g, column].mean()),
            **dict(zip(("ci95_low", "ci95_high"), map(float, interval(samples[:, g, column])))),
        }
        for g, name in enumerate(order)
        for column, (a, b) in enumerate(pairs)
    ]
    return {
        "primary": primary,
        "by_type": by_type,
        "by_category": by_category,
        "resamples": RESAMPLES,
    }


def _mean(values: list) -> float | None:
    return None if any(value is None for value in values) else float(np.mean(values))


def _of_controls(runs: list[Run]) -> dict[str, dict]:
    """Accuracy under each control by question type and category, and of the mean of types: means over seeds."""
    found = {}
    for control in runs[0].metrics.get("controls", {}):
        of = [run.metrics["controls"][control] for run in runs]
        if all(of):
            found[control] = {
                grouping: {
                    name: {
                        "n": one["n"],
                        "accuracy": _mean([o[grouping][name]["accuracy"] for o in of]),
                    }
                    for name, one in of[0][grouping].items()
                }
                for grouping in ("question_type", "category")
            } | {"macro_accuracy": _mean([o["macro_accuracy"] for o in of])}
            if "consistency" in of[0]:
                found[control]["same_option"] = {
                    k: _mean([o["consistency"][k]["same_option"] for o in of])
                    for k in of[0]["consistency"]
                }
    return found


def _of_texts(runs: list[Run]) -> dict[str, dict]:
    """Numbers of open question types, means over seeds."""
    found = {}
    for kind, of in runs[0].metrics["text"].items():
        all_of = [run.metrics["text"][kind] for run in runs]
        found[kind] = {
            "n": of["n"],
            "loss_per_answer_token": _mean([o["loss_per_answer_token"] for o in all_of]),
        }
        if "generated" in of:
            names = [
                name
                for name in ("bleu_4", "rouge_l", "cider_d", "meteor", "spice", "spider")
                if name in of["generated"]
            ]
            found[kind]["generated"] = {
                name: _mean([o["generated"][name] for o in all_of]) for name in names
            }
        found[kind]["control_loss"] = {
            name: _mean([o["control_loss"][name] for o in all_of]) for name in of["control_loss"]
        }
    return found


def _calibration(runs: list[Run]) -> dict | None:
    """Of the probabilities that an arm gives to its answers to closed questions, over its seeds."""
    given = [found for run in runs for row in run.rows if (found := option_probabilities(row))]
    if not given:
        return None
    best = np.array([max(found.values()) for found in given])
    right = np.array(
        [
            bool(row["answers"]["likelihood"]["correct"])
            for run in runs
            for row in run.rows
            if option_probabilities(row)
        ]
    )
    return expected_calibration_error(best, right)


def conclusion(comparison: Mapping) -> str:
    """What can and what cannot be concluded, in one sentence, by the rules of docs/protocol.md.

    A difference that "would have been found" is one that such a test finds four times in five.
    """

    def spread(of):
        return f"{100 * of['ci95_low']:+.1f} to {100 * of['ci95_high']:+.1f}, p {of['p_holm']:.3g}"

    statistics, seeds, arms = comparison["statistics"], len(comparison["seeds"]), comparison["arms"]
    said, none = [], []
    for pair in statistics.get("primary", []):
        worse, better = (pair["a"], pair["b"]) if pair["difference"] > 0 else (pair["b"], pair["a"])
        steady = len({value > 0 for value in pair["by_seed"]}) == 1
        by = f"by {100 * abs(pair['difference']):.1f} points of macro accuracy ({spread(pair)})"
        if pair["p_holm"] < LEVEL and steady:
            said.append(f"{better} answers better than {worse} {by}, in every seed")
        elif pair["p_holm"] < LEVEL:
            said.append(
                f"{better} leads {worse} {by}, but not in every seed: no difference was shown"
            )
        else:
            least = 100 * pair["minimum_detectable_difference"]
            none.append(
                f"between {pair['a']} and {pair['b']} ({spread(pair)}; one of {least:.1f} would have been found)"
            )
    if none:
        said.append(f"no difference was shown {', nor '.join(none)}")
    for arm, of in arms.items():
        above = {} if of["no_audio"] else of["audio_gain"].get("macro", {})
        if above and above["ci95_low"] <= 0:
            said.append(f"{arm} is not shown to listen: {above['best_control']} does as well")
    if seeds < SEEDS:
        said.append(
            f"with {'one seed' if seeds == 1 else f'{seeds} seeds'}, fewer than the protocol's {SEEDS}, this is "
            "exploratory and says nothing about another training"
        )
    said.append(f"nothing follows for codecs and classifiers as such: {TRAINED_ON}")
    about = f"{statistics['rows']:,} closed rows about {statistics['clips']:,} clips, by {PROTOCOL_NAMES[comparison['protocol']]}"
    return (
        f"On {about} (in points, 95 % intervals and p after Holm in brackets): "
        + "; ".join(said)
        + "."
    )


def macros(runs: Mapping[str, list[Run]]) -> dict[str, dict]:
    """Of each arm of comparable runs, `macro`: the mean accuracy of closed question types, and `listening`: the same above its
    best control, each with its interval; None where there are no such rows or controls."""
    first = next(iter(runs.values()))[0]
    if not any(row["question_type"] in SCORED for row in first.rows):
        return {arm: {"macro": None, "audio_gain": None} for arm in runs}
    of = outcomes(runs)
    above = {
        arm: gain_over_best_baseline(of.arms[arm], of.controls[arm], of.kinds, of.kind, of.clips)
        for arm in of.arms
    }
    return {
        arm: {"macro": found["macro"], "audio_gain": above[arm].get("macro")}
        for arm, found in accuracies(of, first.metrics["max_audio_seconds"]).items()
    }


def compare(runs: Mapping[str, list[Run]]) -> dict:
    """Arms beside each other, of comparable runs: what each answers, what it gets from listening, how the arms differ."""
    first = next(iter(runs.values()))[0]
    seconds = first.metrics["max_audio_seconds"]
    arms = {
        arm: {
            "encoder_type": of[0].metrics["settings"]["model"]["encoder_type"],
            "no_audio": of[0].deaf,
            "text": _of_texts(of),
            "controls": _of_controls(of),
            "calibration": _calibration(of),
            "training": of[0].metrics["settings"]["model"]["training"],
            "audio_gain": {},
        }
        for arm, of in runs.items()
    }
    comparison = {
        "protocol": first.metrics["protocol"],
        "seeds": [run.seed for run in next(iter(runs.values()))],
        "rows": {"test": len(first.rows)},
        "arms": arms,
        "statistics": {},
        "majority": first.metrics.get("controls", {}).get("majority", {}),
    }
    if any(row["question_type"] in SCORED for row in first.rows):
        of = outcomes(runs)
        for arm, found in accuracies(of, seconds).items():
            arms[arm] |= found
            arms[arm]["audio_gain"] = gain_over_best_baseline(
                of.arms[arm], of.controls[arm], of.kinds, of.kind, of.clips
            )
        hearing = [arm for arm, its in runs.items() if not its[0].deaf]
        comparison["statistics"] = differences(of, hearing, seconds) if len(hearing) > 1 else {}
        comparison["statistics"] |= {
            "rows": len(of.rows),
            "clips": len({clip for clips in of.clips for clip in clips}),
        }
        comparison["conclusion"] = conclusion(comparison)
    return comparison
