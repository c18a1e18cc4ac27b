"""`report.html` of a comparison: one file without scripts that needs no network.

This module gathers what the page shows. `templates/` holds its text and markup.
"""

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from ...data.reasonaqa import CLOSED_QUESTION_TYPES, QUESTION_TYPES, AudioDir
from ...evaluation.answering import PROTOCOL_NAMES
from ...evaluation.categories import CATEGORIES
from ...evaluation.controls import CONTROLS
from ...runtime import write_text
from ..compare import average
from ..conclusion import has_text_only_baseline
from ..runs import Run
from ..tables import MAJORITY, comparison_columns
from .examples import browse_examples, build_filters
from .figure import CAPTION, cost_pictures, learning_curve_pictures, reliability_picture
from .styles import COLOURS, encodable, signed_points, signed_tick, style_arms, template_environment

SECTIONS = {"overall": "Overall", "question_type": "By question type", "category": "By category"}
SECTION_ROWS = {
    "overall": ("macro", "micro"),
    "question_type": CLOSED_QUESTION_TYPES,
    "category": CATEGORIES,
}
NUM_EXAMPLES = 60  # test examples to browse
FAMILIES = ("primary", "by_type", "by_category")


def write_report(
    path: str | Path,
    comparison: dict,
    runs: Mapping[str, list[Run]],
    audio_dir: AudioDir | None,
) -> None:
    """Writes the page.

    Args:
        path: File to write.
        comparison: Contents of `comparison.json`.
        runs: Evaluations of each arm, one for each seed.
        audio_dir: Where the clips are. None leaves out players and spectrograms.
    """
    environment = template_environment()
    environment.filters |= {"percent": lambda x: f"{100 * x:.1f}", "points": signed_points}
    first = next(iter(runs.values()))[0]
    examples = browse_examples(runs, audio_dir, NUM_EXAMPLES)
    html = environment.get_template("page.html").render(
        **result_context(comparison, runs),
        protocols=PROTOCOL_NAMES,
        majority=MAJORITY,
        examples=examples,
        filters=build_filters(examples),
        num_examples=len(first.rows),
        has_audio=audio_dir is not None,
        max_seconds=first.metrics["max_audio_seconds"],
        folders=evaluation_folders(runs, Path(path).parent),
    )
    write_text(path, encodable(html))


def result_context(comparison: dict, runs: Mapping[str, list[Run]]) -> dict[str, object]:
    """Returns what the templates of the results read, by name."""
    arms = comparison["arms"]
    styles = style_arms(comparison)
    texts = [arm["text"] for arm in arms.values()]
    open_results = list(chain.from_iterable(text.values() for text in texts))
    metrics = chain.from_iterable(result.get("generated", {}).items() for result in open_results)
    return {
        "comparison": comparison,
        "seeds": comparison["seeds"],
        "styles": styles,
        "colours": COLOURS,
        "has_text_only": has_text_only_baseline(comparison),
        "text_only": [arm for arm, style in styles.items() if style.is_text_only],
        "sections": SECTIONS,
        "controls": _present_controls(arm["controls"] for arm in arms.values()),
        "rows": accuracy_rows(comparison),
        "gains": plot_differences(audio_gain_rows(comparison)),
        "pairs": {family: plot_differences(pair_rows(comparison, family)) for family in FAMILIES},
        "by_protocol": protocol_rows(runs),
        "has_contradictions": any(arm["contradictions"] for arm in arms.values()),
        "open": {
            "types": [name for name in QUESTION_TYPES if any(name in text for text in texts)],
            "controls": _present_controls(result["control_loss"] for result in open_results),
            "metrics": list(dict.fromkeys(name for name, value in metrics if value is not None)),
        },
        "costs": cost_pictures(comparison),
        "caption": CAPTION,
        "reliability": {
            arm: reliability_picture(arm, styles[arm], results["calibration"])
            for arm, results in arms.items()
            if results["calibration"]
        },
        "curves": learning_curve_pictures(comparison),
    }


def _present_controls(results: Iterable[Mapping]) -> list[str]:
    present = set(chain.from_iterable(results))
    return [name for name in CONTROLS if name in present]


def evaluation_folders(runs: Mapping[str, list[Run]], output: Path) -> dict[str, list[tuple]]:
    """Returns seed and folder of each evaluation of an arm. Folders are relative to `output`."""
    folders = {}
    for arm, seed_runs in runs.items():
        paths = [Path(os.path.relpath(run.folder, output)).as_posix() for run in seed_runs]
        folders[arm] = [(run.seed, path) for run, path in zip(seed_runs, paths)]
    return folders


def accuracy_rows(comparison: dict) -> list[dict]:
    """Returns the accuracies of questions with options, in the order of `SECTIONS`.

    The section "overall" has "macro", the primary metric, and "micro". Each row has the `section`,
    its `name`, the number `n` of examples (0 for "macro") and `cells` by column: a group of
    metrics.json, or None. `lanes` are the cells of arms, with their `controls`.
    """
    columns = comparison_columns(comparison)
    rows = []
    for section, names in SECTION_ROWS.items():
        for name in names:
            cells = {}
            for column, metrics in columns.items():
                groups = metrics if section == "overall" else metrics.get(section, {})
                cells[column] = groups.get(name)
            if not any(cells.values()):
                continue
            lanes = {}
            for arm, results in comparison["arms"].items():
                if cells[arm]:
                    controls = _control_accuracies(results, section, name)
                    lanes[arm] = {**cells[arm], "controls": controls}
            count = 0 if name == "macro" else max(cell["n"] for cell in cells.values() if cell)
            row = {"section": section, "name": name, "n": count, "cells": cells, "lanes": lanes}
            rows.append(row)
    return rows


def _control_accuracies(arm: Mapping, section: str, name: str) -> dict[str, float]:
    """Returns an arm's accuracy under each control that was run on exactly the examples of a row.

    For instance, options can only be relabelled where there are letters.
    """
    accuracies = {}
    for control, results in arm["controls"].items():
        if control == MAJORITY or arm["no_audio"]:
            continue
        cell = results.get(section, {}).get(name)
        if name == "macro":
            if results.get("question_type", {}).keys() == arm["question_type"].keys():
                accuracies[control] = results["macro_accuracy"]
        elif cell and cell["n"] == arm[section][name]["n"]:
            accuracies[control] = cell["accuracy"]
    return accuracies


def plot_differences(rows: list[dict]) -> dict:
    """Returns a plot of differences on an axis that they share, with zero in its middle.

    Args:
        rows: Rows with `lanes`: dictionaries with `difference`, `ci95_low` and `ci95_high`.

    Returns:
        `rows`, the `limit` of the axis as a share, and `ticks`: positions in per cent and labels.
    """
    largest = 1.0
    for lane in chain.from_iterable(row["lanes"] for row in rows):
        largest = max(largest, -100 * lane["ci95_low"], 100 * lane["ci95_high"])
    limit = float(MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(0, largest)[-1])
    ticks = [(50 + 25 * step, signed_tick(step * limit / 2)) for step in (-2, -1, 0, 1, 2)]
    return {"rows": rows, "limit": limit / 100, "ticks": ticks}


def audio_gain_rows(comparison: Mapping) -> list[dict]:
    """Returns the audio gains in rows: "macro" and each question type, a lane for each arm."""
    gains = {
        arm: results["audio_gain"]
        for arm, results in comparison["arms"].items()
        if not results["no_audio"] and results["audio_gain"]
    }
    rows = []
    for name in next(iter(gains.values()), {}):
        lanes = [{"arm": arm, **gain[name]} for arm, gain in gains.items()]
        rows.append({"name": name, "lanes": lanes})
    return sorted(rows, key=lambda row: row["name"] != "macro")


def pair_rows(comparison: Mapping, family: str) -> list[dict]:
    """Returns the differences of a family, those of one question type or category together."""
    rows = []
    for pair in comparison["statistics"].get(family, []):
        name = pair.get("question_type") or pair.get("category") or "macro"
        rows.append({"name": name, "lanes": [pair]})
    names = [row["name"] for row in rows]
    return sorted(rows, key=lambda row: names.index(row["name"]))


def protocol_rows(runs: Mapping[str, list[Run]]) -> list[dict]:
    """Returns mean accuracies over seeds by each scoring protocol, that of the conclusion first."""
    first = next(iter(runs.values()))[0].metrics
    rows = []
    if "question_type" in first:
        for protocol in (first["protocol"], *first.get("other_protocols", {})):
            for arm, seed_runs in runs.items():
                seeds = [_protocol_results(run.metrics, protocol) for run in seed_runs]
                rows.append({"protocol": protocol, "arm": arm, **average(seeds)})
    return rows


def _protocol_results(metrics: Mapping, protocol: str) -> dict:
    results = {metrics["protocol"]: metrics, **metrics.get("other_protocols", {})}[protocol]
    return {name: results[name] for name in ("question_type", "macro_accuracy", "micro")}
