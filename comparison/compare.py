"""Compares evaluations of several arms. Each arm has one evaluation for each seed."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from ..data.reasonaqa import CLOSED_QUESTION_TYPES
from ..evaluation.scores import option_probabilities
from ..evaluation.statistics import expected_calibration_error
from .conclusion import caveats, conclusion
from .differences import compare_arms
from .outcomes import arm_accuracies, collect_outcomes
from .runs import Run

RESAMPLES = 10_000
TEXT_METRICS = ("bleu_4", "rouge_l", "cider_d")


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
    comparison: dict = {
        **(header or {}),
        "protocol": first.metrics["protocol"],
        "seeds": [run.seed for run in trained],
        "rows": _count_rows(trained[0]),
        "arms": {arm: _summarise_arm(seeds) for arm, seeds in runs.items()},
        "statistics": {},
        "majority": first.metrics.get("controls", {}).get("majority", {}),
    }
    if any(row["question_type"] in CLOSED_QUESTION_TYPES for row in first.rows):
        outcomes = collect_outcomes(runs)
        seconds = first.metrics["max_audio_seconds"]
        for arm, accuracies in arm_accuracies(outcomes, seconds, RESAMPLES).items():
            gain = outcomes.audio_gain(arm, RESAMPLES)
            comparison["arms"][arm] |= accuracies | {"audio_gain": gain}
        arms = [arm for arm, seeds in runs.items() if not seeds[0].is_text_only]
        if len(arms) > 1:
            comparison["statistics"] = compare_arms(outcomes, arms, seconds, RESAMPLES)
        clips = set(chain.from_iterable(outcomes.clips))
        comparison["statistics"] |= {"rows": len(outcomes.rows), "clips": len(clips)}
        comparison["conclusion"] = conclusion(comparison)
    comparison["caveats"] = caveats(comparison, options_by_arm)
    return comparison


def _count_rows(run: Run) -> dict[str, int]:
    training_rows = (run.training.get("data") or {}).get("rows")
    return {"test": len(run.rows), **({"train": training_rows} if training_rows else {})}


def _summarise_arm(seeds: list[Run]) -> dict:
    """Returns what an arm is, and what its evaluations report, averaged over seeds."""
    model = seeds[0].metrics["settings"]["model"]
    return {
        "encoder_type": model["encoder_type"],
        "no_audio": seeds[0].is_text_only,
        "text": _average([_text_results(run.metrics["text"]) for run in seeds]),
        "controls": _average([_control_results(run.metrics) for run in seeds]),
        "contradictions": _average([run.metrics.get("contradictions", {}) for run in seeds]),
        "length_warnings": [
            run.metrics["length_warning"] for run in seeds if run.metrics.get("length_warning")
        ],
        "calibration": _calibration(seeds),
        "training": model["training"],
        "audio_gain": {},
    }


def _average(seeds: list[Any]) -> Any:
    """Averages numbers, or nested dicts of them, over seeds. A count `n` is that of all seeds."""
    first = seeds[0]
    if isinstance(first, dict):
        return {
            key: value if key == "n" else _average([seed[key] for seed in seeds])
            for key, value in first.items()
            if all(key in seed for seed in seeds)
        }
    return None if None in seeds else float(np.mean(seeds))


def _control_results(metrics: dict) -> dict[str, dict]:
    """Returns the accuracy under each control."""
    results = {}
    for control, scores in metrics.get("controls", {}).items():
        if not scores:
            continue
        result: dict = {"macro_accuracy": scores["macro_accuracy"]}
        for grouping in ("question_type", "category"):
            result[grouping] = {}
            for name, cell in scores[grouping].items():
                result[grouping][name] = {"n": cell["n"], "accuracy": cell["accuracy"]}
        if "consistency" in scores:
            consistency = scores["consistency"].items()
            result["same_option"] = {name: cell["same_option"] for name, cell in consistency}
        results[control] = result
    return results


def _text_results(metrics: dict) -> dict[str, dict]:
    """Returns the metrics of each open question type."""
    results = {}
    for question_type, scores in metrics.items():
        result = {name: scores[name] for name in ("n", "loss_per_answer_token")}
        if "generated" in scores:
            generated = scores["generated"]
            result["generated"] = {
                name: generated[name] for name in TEXT_METRICS if name in generated
            }
        results[question_type] = {**result, "control_loss": scores["control_loss"]}
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
