"""`report.html` of a comparison: one file without scripts that needs no network.

This module gathers what the page shows. `templates/` holds its text and markup.
"""

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from ...data.reasonaqa import QUESTION_TYPES, AudioDir
from ...evaluation.answering import PROTOCOL_NAMES
from ...evaluation.controls import CONTROLS
from ...evaluation.tables import MAJORITY
from ...runtime import write_text
from ..runs import Run
from .charts import (
    SECTIONS,
    accuracy_rows,
    control_accuracy,
    place_differences,
    place_dots,
    signed_points,
)
from .examples import browse_examples, build_filters
from .figure import CAPTION, cost_pictures, learning_curve_pictures, reliability_picture
from .styles import COLOURS, encodable, style_arms, template_environment

NAMES = {
    "mcq": "multiple choice",
    "yes_no": "yes or no",
    "entailment": "entailment",
    "difference": "difference of two clips",
    "caption": "caption",
    "detail": "detail",
    "macro": "macro accuracy",
    "micro": "all questions with options",
    "majority": "majority",
    "no_audio": "audio ablated",
    "noise": "noise",
    "mismatched_audio": "mismatched audio",
    "option_relabel": "relabelled options",
    "question_only": "text-only model",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "spice": "SPICE",
    "spider": "SPIDEr",
}
GROUPINGS = {
    "truncation": "truncation",
    "clips": "clips per example",
    "answer_words": "words of the reference answer",
}
NUM_EXAMPLES = 60
FAMILIES = ("primary", "by_type", "by_category")


def write_report(
    path: str | Path,
    comparison: dict,
    runs: Mapping[str, list[Run]],
    audio_dir: AudioDir | None,
    count: int = NUM_EXAMPLES,
) -> None:
    """Writes the page.

    Args:
        path: File to write.
        comparison: Contents of `comparison.json`.
        runs: Evaluations of each arm, one for each seed.
        audio_dir: Where the clips are. None leaves out players and spectrograms.
        count: Number of test examples to browse.
    """
    environment = template_environment()
    environment.filters |= {"percent": format_percent, "points": signed_points}
    first = next(iter(runs.values()))[0]
    examples = browse_examples(runs, audio_dir, count)
    html = environment.get_template("page.html").render(
        **result_context(comparison, runs),
        names=NAMES,
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
    controls = [name for name in CONTROLS if any(name in arm["controls"] for arm in arms.values())]
    return {
        "comparison": comparison,
        "seeds": comparison["seeds"],
        "styles": styles,
        "colours": COLOURS,
        "text_only": [arm for arm, style in styles.items() if style.is_text_only],
        "sections": SECTIONS,
        "groupings": GROUPINGS,
        "controls": controls,
        "rows": accuracy_rows(comparison),
        "dots": place_dots(comparison),
        "gains": place_differences(audio_gain_rows(comparison)),
        "pairs": {family: place_differences(pair_rows(comparison, family)) for family in FAMILIES},
        "control_rows": control_rows(comparison, controls),
        "by_protocol": protocol_rows(runs),
        "open": open_columns(comparison),
        "costs": cost_pictures(comparison),
        "caption": CAPTION,
        "reliability": {
            arm: reliability_picture(arm, styles[arm], results["calibration"])
            for arm, results in arms.items()
            if results["calibration"]
        },
        "curves": learning_curve_pictures(comparison),
    }


def format_percent(share: float) -> str:
    """Formats a share in per cent, without the sign.

    >>> format_percent(0.1234)
    '12.3'
    """
    return f"{100 * share:.1f}"


def evaluation_folders(
    runs: Mapping[str, list[Run]], output: Path
) -> dict[str, list[tuple[int, str]]]:
    """Returns seed and folder of each evaluation of an arm."""
    folders = {}
    for arm, seed_runs in runs.items():
        folders[arm] = [(run.seed, display_folder(run.folder, output)) for run in seed_runs]
    return folders


def display_folder(folder: Path, output: Path) -> str:
    """Returns a folder below `output` as a path relative to it, another folder as it is."""
    relative = os.path.relpath(folder, output)
    return Path(folder if relative.startswith(os.pardir) else relative).as_posix()


def audio_gain_rows(comparison: Mapping) -> list[dict]:
    """Returns the audio gains in rows: "macro" and each question type, a lane for each arm."""
    gains = {
        arm: results["audio_gain"]
        for arm, results in comparison["arms"].items()
        if not results["no_audio"] and results["audio_gain"]
    }
    names = ["macro"]
    for gain in gains.values():
        names += gain
    rows = []
    for name in dict.fromkeys(names if gains else ()):
        lanes = [{"arm": arm, **gain[name]} for arm, gain in gains.items()]
        rows.append({"name": name, "lanes": lanes})
    return rows


def control_rows(comparison: Mapping, columns: list[str]) -> list[dict]:
    """Returns the accuracy of each arm with audio and under controls: macro and by question type.

    Args:
        comparison: Contents of `comparison.json`.
        columns: Names of controls.
    """
    arms = {arm: results for arm, results in comparison["arms"].items() if "macro" in results}
    names = ["macro"] if arms else []
    for results in arms.values():
        names += results["question_type"]
    rows = []
    for name in dict.fromkeys(names):
        for arm, results in arms.items():
            cell = results["macro"] if name == "macro" else results["question_type"][name]
            relabelled = results["controls"].get("option_relabel", {})
            rows.append(
                {
                    "name": name,
                    "arm": arm,
                    "accuracy": cell["accuracy"],
                    "n": 0 if name == "macro" else cell["n"],
                    "controls": [_control_cell(results, column, name) for column in columns],
                    "same_option": relabelled.get("same_option", {}).get(name),
                }
            )
    return rows


def _control_cell(results: Mapping, control_name: str, name: str) -> dict | None:
    control = results["controls"].get(control_name, {})
    if name == "macro":
        accuracy = control_accuracy(results, control, "question_type", name)
        return {"accuracy": accuracy, "n": 0}
    return control.get("question_type", {}).get(name)


def pair_rows(comparison: Mapping, family: str) -> list[dict]:
    """Returns the differences of all pairs of arms in a row each, those of one group together.

    Args:
        comparison: Contents of `comparison.json`.
        family: One of `FAMILIES`.
    """
    rows_by_name: dict[str, list[dict]] = {}
    for pair in comparison["statistics"].get(family, []):
        name = pair.get("question_type") or pair.get("category") or "macro"
        rows_by_name.setdefault(name, []).append({"name": name, "lanes": [pair]})
    return list(chain.from_iterable(rows_by_name.values()))


def protocol_rows(runs: Mapping[str, list[Run]]) -> list[dict]:
    """Returns mean accuracies over seeds by each scoring protocol, that of the conclusion first."""
    first = next(iter(runs.values()))[0].metrics
    if "question_type" not in first:
        return []
    rows = []
    for protocol in (first["protocol"], *first.get("other_protocols", {})):
        for arm, seed_runs in runs.items():
            metrics = [_protocol_metrics(run.metrics, protocol) for run in seed_runs]
            types = {}
            for name in first["question_type"]:
                types[name] = _mean([seed["question_type"][name]["accuracy"] for seed in metrics])
            rows.append(
                {
                    "protocol": protocol,
                    "arm": arm,
                    "types": types,
                    "macro": _mean([seed["macro_accuracy"] for seed in metrics]),
                    "unparsed": _mean([seed["micro"]["n_unparsed"] for seed in metrics]),
                }
            )
    return rows


def _protocol_metrics(metrics: Mapping, protocol: str) -> Mapping:
    return metrics if protocol == metrics["protocol"] else metrics["other_protocols"][protocol]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def open_columns(comparison: Mapping) -> dict[str, list[str]]:
    """Returns the open question types, and the controls and metrics that any arm has for them."""
    arms = comparison["arms"].values()
    results = list(chain.from_iterable(arm["text"].values() for arm in arms))
    metrics: dict[str, None] = {}
    for result in results:
        generated = result.get("generated", {})
        metrics |= {name: None for name, value in generated.items() if value is not None}
    return {
        "types": [name for name in QUESTION_TYPES if any(name in arm["text"] for arm in arms)],
        "controls": [
            name for name in CONTROLS if any(name in result["control_loss"] for result in results)
        ],
        "metrics": list(metrics),
    }
