"""Formats a comparison as text."""

from itertools import groupby
from operator import itemgetter

from ..evaluation.answering import PROTOCOL_NAMES
from ..evaluation.tables import (
    comparison_columns,
    comparison_rows,
    contradiction_lines,
    format_table,
)
from .conclusion import has_text_only_baseline

SECTION_TITLES = {
    "question_type": "accuracy by question type",
    "category": "accuracy by category",
    "overall": "accuracy overall",
    "text": "loss per answer token",
}
FAMILY_TITLES = {"primary": "macro accuracy", "by_type": "one question type"}


def comparison_table(comparison: dict) -> str:
    """Returns accuracies, audio gains, differences and probes of a comparison as text."""
    lines = [*_accuracy_lines(comparison), *_audio_gain_lines(comparison)]
    statistics = comparison["statistics"]
    if statistics:
        counts = f"{statistics['rows']:,} closed examples about {statistics['clips']:,} clips"
        protocol = PROTOCOL_NAMES[comparison["protocol"]]
        lines.insert(0, f"{counts}, scored by {protocol}; ± half of the 95 % interval")
    for family, title in FAMILY_TITLES.items():
        lines += _difference_lines(comparison["statistics"].get(family, []), title)
    for arm, results in comparison["arms"].items():
        lines += contradiction_lines(results.get("contradictions", {}), arm)
    if comparison.get("probes"):
        lines += _probe_lines(comparison["probes"])
    return "\n".join(lines)


def _accuracy_lines(comparison: dict) -> list[str]:
    columns = list(comparison_columns(comparison))
    lines = []
    for section, rows in groupby(comparison_rows(comparison), itemgetter("section")):
        lines.append((SECTION_TITLES[section], "", *[""] * len(columns)))
        for row in rows:
            cells = [_cell(row["cells"][name]) for name in columns]
            lines.append((f"  {row['name']}", str(row["n"] or ""), *cells))
    return format_table(("", "n", *columns), lines)


def _cell(value: dict | None) -> str:
    if value is None:
        return "-"
    if "loss" in value:
        return f"{value['loss']:.3f}"
    if "ci95_low" in value:
        half = (value["ci95_high"] - value["ci95_low"]) / 2
        return f"{value['accuracy']:.3f} ±{half:.3f}"
    return f"{value['accuracy']:.3f}" + " " * len(" ±0.000")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(result: dict, name: str = "ci95") -> str:
    return f"({_points(result[f'{name}_low'])} to {_points(result[f'{name}_high'])})"


def _audio_gain_lines(comparison: dict) -> list[str]:
    lines = []
    for arm, results in comparison["arms"].items():
        gain = results["audio_gain"].get("macro")
        if gain:
            difference = f"{_points(gain['difference']):>6} {_interval(gain)}"
            lines.append(f"  {arm:<26}{difference}, over {gain['best_control']}")
    if has_text_only_baseline(comparison):
        title = "audio gain over the strongest no-audio baseline, in points of macro accuracy"
    else:
        title = "points of macro accuracy above a control; no text-only model, so no audio gain"
    return [title, *lines] if lines else []


def _difference_lines(pairs: list[dict], title: str) -> list[str]:
    lines = [
        f"differences in points of {title} (above 0, the first arm is better): 95 % interval, p; "
        "the same after Holm"
    ]
    for pair in pairs:
        name = f"{pair.get('question_type', '')} {pair['b']} - {pair['a']}".strip()
        if "mcnemar" in pair:
            details = f"McNemar {pair['mcnemar']['p_holm']:.4f}"
        else:
            by_seed = ", ".join(_points(value) for value in pair["by_seed"])
            detectable = 100 * pair["minimum_detectable_difference"]
            details = f"by seed {by_seed}; minimum detectable {detectable:.1f}"
        lines.append(
            f"  {name:<40}{_points(pair['difference']):>6} {_interval(pair)}  p {pair['p']:.4f}; "
            f"{_interval(pair, 'holm')} p {pair['p_holm']:.4f}; {details}"
        )
    return lines if pairs else []


def _probe_lines(probes_by_topic: dict) -> list[str]:
    lines = ["accuracy of linear probes on the encoders' features"]
    for topic, probes in probes_by_topic.items():
        majority = probes["majority"]["accuracy"]
        for pooling, results in probes["results"].items():
            cells = ", ".join(f"{arm} {_cell(result)}" for arm, result in results.items())
            lines.append(f"  {topic}, {pooling} pooling: {cells}; majority {majority:.3f}")
    return lines
