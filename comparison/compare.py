"""Compares evaluations of several arms. Each arm has one evaluation for each seed."""

from collections.abc import Mapping
from itertools import chain, combinations
from typing import Any

import numpy as np

from ..data.reasonaqa import CLOSED_QUESTION_TYPES
from ..evaluation.estimates import describe_accuracy
from ..evaluation.scores import option_probabilities
from ..evaluation.statistics import expected_calibration_error
from ..evaluation.tables import TEXT_METRICS
from .conclusion import caveats, conclusion
from .differences import compare_by_category, compare_by_type
from .outcomes import Outcomes, collect_outcomes
from .runs import Run

RESAMPLES = 10_000


def compare(
    runs: Mapping[str, list[Run]],
    header: Mapping | None = None,
    options_by_arm: Mapping[str, Mapping] | None = None,
) -> dict:
    """Returns `comparison.json` of comparable runs.

    Args:
        runs: Evaluations of each arm, one for each seed.
        header: Its first entries: what was run.
        options_by_arm: Options of each arm, if a config trained them.
    """
    first = next(iter(runs.values()))[0]
    # A published model has no seeds.
    trained = sorted(runs.values(), key=lambda seeds: seeds[0].is_published)[0]
    training_rows = (trained[0].training.get("data") or {}).get("rows")
    comparison: dict = {
        **(header or {}),
        "protocol": first.metrics["protocol"],
        "seeds": [run.seed for run in trained],
        "rows": {"test": len(first.rows), **({"train": training_rows} if training_rows else {})},
        "arms": {arm: _summarise_arm(seeds) for arm, seeds in runs.items()},
        "statistics": {},
        "majority": first.metrics.get("controls", {}).get("majority", {}),
    }
    if any(row["question_type"] in CLOSED_QUESTION_TYPES for row in first.rows):
        outcomes = collect_outcomes(runs)
        pairs = combinations((arm for arm, seeds in runs.items() if not seeds[0].is_text_only), 2)
        comparison["statistics"] = _add_accuracies(comparison["arms"], outcomes, list(pairs))
        comparison["conclusion"] = conclusion(comparison)
    comparison["caveats"] = caveats(comparison, options_by_arm, first.rows)
    return comparison


def _add_accuracies(
    arms: dict[str, dict], outcomes: Outcomes, pairs: list[tuple[str, str]]
) -> dict:
    """Adds the accuracies of arms in every group, with intervals. Returns the `statistics`.

    Each arm gets its accuracies by `question_type` and every other grouping, `micro` over all rows,
    the mean over question types (`macro`, `macro_accuracy`, `macro_by_seed`), and `audio_gain`.
    """
    statistics: dict = {"resamples": RESAMPLES} if pairs else {}
    for grouping, (names, index) in outcomes.groups.items():
        accuracies = outcomes.resample(grouping, RESAMPLES)
        counts = dict(zip(names, np.bincount(index).tolist()))
        for arm, results in arms.items():
            cells = {
                name: describe_accuracy(accuracies.estimate(arm, row_group=group), counts[name])
                for group, name in enumerate(names)
            }
            results[grouping] = cells[""] if grouping == "micro" else cells
            if grouping == "question_type":
                results["macro"] = describe_accuracy(accuracies.estimate(arm), len(outcomes.rows))
                results["macro_accuracy"] = results["macro"]["accuracy"]
                results["macro_by_seed"] = accuracies.group(arm).values.tolist()
        if grouping == "question_type" and pairs:
            statistics |= compare_by_type(outcomes, accuracies, pairs)
        elif grouping == "category" and pairs:
            statistics["by_category"] = compare_by_category(accuracies, pairs, counts)
    for arm, results in arms.items():
        results["audio_gain"] = outcomes.audio_gain(arm, RESAMPLES)
    clips = set(chain.from_iterable(outcomes.clips))
    return {**statistics, "rows": len(outcomes.rows), "clips": len(clips)}


def _summarise_arm(seeds: list[Run]) -> dict:
    """Returns what an arm is, and what its evaluations report, averaged over seeds."""
    model = seeds[0].metrics["settings"]["model"]
    warnings = [run.metrics.get("length_warning") for run in seeds]
    return {
        "encoder_type": model["encoder_type"],
        "no_audio": seeds[0].is_text_only,
        "text": average([_text_results(run.metrics["text"]) for run in seeds]),
        "controls": average([_control_results(run.metrics) for run in seeds]),
        "contradictions": average([run.metrics.get("contradictions", {}) for run in seeds]),
        "length_warnings": list(filter(None, warnings)),
        "calibration": _calibration(seeds),
        "training": model["training"],
        "audio_gain": {},
    }


def average(seeds: list[Any]) -> Any:
    """Averages numbers, or nested dicts of them, over seeds. A count `n` is that of all seeds."""
    first = seeds[0]
    if isinstance(first, dict):
        return {
            key: value if key == "n" else average([seed[key] for seed in seeds])
            for key, value in first.items()
            if all(key in seed for seed in seeds)
        }
    return None if None in seeds else float(np.mean(seeds))


def _pick(results: Mapping, *names: str) -> dict:
    return {name: results[name] for name in names if name in results}


def _control_results(metrics: dict) -> dict[str, dict]:
    """Returns the accuracy under each control."""
    results = {}
    for control, scores in metrics.get("controls", {}).items():
        if not scores:
            continue
        results[control] = _pick(scores, "macro_accuracy")
        for grouping in ("question_type", "category"):
            cells = scores[grouping].items()
            results[control][grouping] = {
                name: _pick(cell, "n", "accuracy") for name, cell in cells
            }
        if "consistency" in scores:
            consistency = scores["consistency"].items()
            shares = {name: cell["same_option"] for name, cell in consistency}
            results[control]["same_option"] = shares
    return results


def _text_results(metrics: dict) -> dict[str, dict]:
    """Returns the metrics of each open question type."""
    results = {}
    for question_type, scores in metrics.items():
        results[question_type] = _pick(scores, "n", "loss_per_answer_token", "control_loss")
        if "generated" in scores:
            results[question_type]["generated"] = _pick(scores["generated"], *TEXT_METRICS)
    return results


def _calibration(seeds: list[Run]) -> dict | None:
    """Returns the calibration of an arm's option probabilities, over all its seeds."""
    confidences = []
    is_correct = []
    for row in chain.from_iterable(run.rows for run in seeds):
        probabilities = option_probabilities(row)
        if probabilities:
            confidences.append(max(probabilities.values()))
            is_correct.append(bool(row["answers"]["likelihood"]["correct"]))
    return expected_calibration_error(confidences, is_correct) if confidences else None
