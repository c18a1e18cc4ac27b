"""Compares evaluations of several arms. Each arm has one evaluation for each seed."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain

import numpy as np

from ..evaluation.metric import SCORED
from ..evaluation.scores import option_probabilities
from ..evaluation.statistics import expected_calibration_error
from .conclusion import conclusion
from .differences import compare_arms
from .outcomes import arm_accuracies, collect_outcomes
from .runs import Run

RESAMPLES = 10_000
TEXT_METRICS = ("bleu_4", "rouge_l", "cider_d", "meteor", "spice", "spider")


def compare(runs: Mapping[str, list[Run]]) -> dict:
    """Compares the arms of comparable runs.

    Args:
        runs: Evaluations of each arm, one for each seed.

    Returns:
        The entries of `comparison.json` that depend on the evaluations alone.
    """
    reference = next(iter(runs.values()))
    first = reference[0]
    comparison: dict = {
        "protocol": first.metrics["protocol"],
        "seeds": [run.seed for run in reference],
        "rows": {"test": len(first.rows)},
        "arms": {arm: summarise_arm(seeds) for arm, seeds in runs.items()},
        "statistics": {},
        "majority": first.metrics.get("controls", {}).get("majority", {}),
    }
    if any(row["question_type"] in SCORED for row in first.rows):
        outcomes = collect_outcomes(runs)
        seconds = first.metrics["max_audio_seconds"]
        for arm, accuracies in arm_accuracies(outcomes, seconds, RESAMPLES).items():
            comparison["arms"][arm] |= accuracies | {"audio_gain": outcomes.audio_gain(arm)}
        arms = [arm for arm, seeds in runs.items() if not seeds[0].is_text_only]
        if len(arms) > 1:
            comparison["statistics"] = asdict(compare_arms(outcomes, arms, seconds, RESAMPLES))
        clips = set(chain.from_iterable(outcomes.clips))
        comparison["statistics"] |= {"rows": len(outcomes.rows), "clips": len(clips)}
        comparison["conclusion"] = conclusion(comparison)
    return comparison


def summarise_arm(seeds: list[Run]) -> dict:
    """Returns what an arm is, and what its evaluations report, averaged over seeds."""
    model = seeds[0].metrics["settings"]["model"]
    return {
        "encoder_type": model["encoder_type"],
        "no_audio": seeds[0].is_text_only,
        "text": average_text_metrics(seeds),
        "controls": average_controls(seeds),
        "calibration": calibration(seeds),
        "training": model["training"],
        "audio_gain": {},
    }


def average_controls(seeds: list[Run]) -> dict[str, dict]:
    """Returns an arm's accuracy under each control, averaged over seeds."""
    averages = {}
    for control in seeds[0].metrics.get("controls", {}):
        results = [run.metrics["controls"][control] for run in seeds]
        if not all(results):
            continue
        average: dict = {"macro_accuracy": _mean([result["macro_accuracy"] for result in results])}
        for grouping in ("question_type", "category"):
            average[grouping] = _average_groups([result[grouping] for result in results])
        if "consistency" in results[0]:
            average["same_option"] = {}
            for name in results[0]["consistency"]:
                shares = [result["consistency"][name]["same_option"] for result in results]
                average["same_option"][name] = _mean(shares)
        averages[control] = average
    return averages


def _average_groups(seeds: list[dict]) -> dict[str, dict]:
    averages = {}
    for name, cell in seeds[0].items():
        accuracy = _mean([groups[name]["accuracy"] for groups in seeds])
        averages[name] = {"n": cell["n"], "accuracy": accuracy}
    return averages


def average_text_metrics(seeds: list[Run]) -> dict[str, dict]:
    """Returns the metrics of an arm's open question types, averaged over seeds."""
    averages = {}
    for question_type, first in seeds[0].metrics["text"].items():
        results = [run.metrics["text"][question_type] for run in seeds]
        average = {
            "n": first["n"],
            "loss_per_answer_token": _mean([result["loss_per_answer_token"] for result in results]),
        }
        if "generated" in first:
            names = [name for name in TEXT_METRICS if name in first["generated"]]
            average["generated"] = _average_keys([result["generated"] for result in results], names)
        controls = list(first["control_loss"])
        losses = [result["control_loss"] for result in results]
        average["control_loss"] = _average_keys(losses, controls)
        averages[question_type] = average
    return averages


def _average_keys(seeds: list[dict], names: list[str]) -> dict[str, float | None]:
    return {name: _mean([values[name] for values in seeds]) for name in names}


def _mean(values: list) -> float | None:
    return None if any(value is None for value in values) else float(np.mean(values))


def calibration(seeds: list[Run]) -> dict | None:
    """Returns the calibration of an arm's option probabilities, over all its seeds."""
    confidences = []
    is_correct = []
    for run in seeds:
        for row in run.rows:
            probabilities = option_probabilities(row)
            if probabilities:
                confidences.append(max(probabilities.values()))
                is_correct.append(bool(row["answers"]["likelihood"]["correct"]))
    if not confidences:
        return None
    return expected_calibration_error(confidences, is_correct)
